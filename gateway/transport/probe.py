"""One question to an endpoint over a connection of its own: how checks of health reach it.

Rule: the same way as traffic (address, TLS settings, limits of a head), and never by a
connection that traffic uses. No redirect is followed: an answer is its status. What that is
worth is for whoever asks.
"""

from __future__ import annotations

from gevent import Timeout

from gateway.errors import ResponseTimeout, UpstreamReset
from gateway.model import Endpoint, Upstream
from gateway.transport.connection import Connection
from gateway.transport.transport import Transport

# So much of a body has to come; nobody reads on to the end of a longer one.
MOST_OF_A_BODY = 16 * 1024


def ask(transport: Transport, upstream: Upstream, endpoint: Endpoint, question: bytes | None, within: float) -> int:
    """The status of the answer to `question`, which is a whole request with `Connection: close`;
    0 when it is None: then a connection (TLS included) is all that is wanted. `within` seconds
    for all of it. Raises GatewayError."""
    connection = transport.fresh(upstream, endpoint)
    late = TimeoutError("timed out")
    with Timeout(within, late):
        connection.open(endpoint.address, within)
        try:
            return 0 if question is None else _status(connection, upstream, question)
        except TimeoutError as error:
            raise ResponseTimeout(f"no answer from {endpoint.address} within {within:g} s") from error
        except (OSError, EOFError) as error:
            raise UpstreamReset(f"no answer from {endpoint.address}: {error}") from error
        finally:
            connection.stream.close()


def _status(connection: Connection, upstream: Upstream, question: bytes) -> int:
    reader = connection.reader
    reader.begin(upstream.limits)
    connection.stream.send(question, None)
    reader.read_head(False, None, b"")
    left = MOST_OF_A_BODY
    # What follows a 101 is another protocol's.
    while reader.status != 101 and left > 0 and (data := reader.read_body(None)):
        left -= len(data)
    return reader.status
