"""The rest of an answer's body, and the end of its exchange.

Rule: the exchange ends exactly once, by `finish` (proper end: the connection serves again,
if the request was sent whole) or by `close` (anything else: it is broken). After either,
`on_end` has been called and no upload reads the client's body any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from gateway.errors import BadResponse, GatewayError, UpstreamStalled, UpstreamTruncated
from gateway.net.read_size import PIECE
from gateway.transport.connection import Connection
from gateway.transport.upload import Upload

if TYPE_CHECKING:
    from gateway.model import Buffering


class Owner(Protocol):
    """Takes a connection back at the end of its exchange. `address`: the endpoint's, for causes in the log."""

    address: str

    def give_back(self, connection: Connection) -> None: ...

    def discard(self, connection: Connection) -> None: ...


class AnswerBody:
    """A `ResponseBody` that reads from its connection as it is asked."""

    __slots__ = (
        "_complete",
        "_connection",
        "_idle_timeout",
        "_owner",
        "_shareable",
        "_upload",
        "buffering",
        "most",
        "on_end",
        "on_wait",
    )

    def __init__(
        self,
        owner: Owner,
        connection: Connection,
        upload: Upload | None,
        shareable: bool,
        idle_timeout: float | None,
    ) -> None:
        self._owner = owner
        self._connection: Connection | None = connection
        # The proper end was seen.
        self._complete = False
        self._upload = upload
        self._shareable = shareable
        self._idle_timeout = idle_timeout
        self.most = PIECE
        self.on_end: Callable[[], None] | None = None
        self.on_wait: Callable[[], None] | None = None
        self.buffering: Buffering | None = None

    @property
    def sent(self) -> bool:
        """Whether the whole request was sent."""
        return self._upload is None or self._upload.done

    def read(self) -> bytes:
        connection = self._connection
        if connection is None:
            if self._complete:
                return b""
            raise UpstreamTruncated(f"read body {self._owner.address}: closed before its end")
        try:
            data = connection.reader.read_body(self._idle_timeout, self.most)
        except TimeoutError as error:
            self.close()
            raise UpstreamStalled(f"read body {self._owner.address}: nothing for {self._idle_timeout} s") from error
        except (OSError, EOFError) as error:
            raise self._cut(error) from error
        except BadResponse as error:
            self.close()
            raise UpstreamTruncated(f"read body {self._owner.address}: {error.cause}") from error
        except BaseException:
            self.close()
            raise
        if not data or (connection.reader.complete and self.sent):
            # At once: the client may take its time with what was read.
            self.finish()
        return data

    def _cut(self, error: OSError | EOFError) -> GatewayError:
        """The connection broke: the client's failure if that was the reason, else the upstream's."""
        failed = self._upload.client_error if self._upload is not None else None
        self.close()
        return failed or UpstreamTruncated(f"read body {self._owner.address}: {error}")

    def finish(self) -> None:
        """The answer is complete: give the connection back if it is fit."""
        connection = self._connection
        if connection is None:
            return
        self._complete = True
        upload = self._upload
        if self._shareable and connection.reader.persistent and (upload is None or upload.done):
            self._connection = None
            self._owner.give_back(connection)
            self._ended()
            return
        self.close()

    def close(self) -> None:
        connection = self._connection
        if connection is None:
            return
        self._connection = None
        upload, self._upload = self._upload, None
        if upload is not None and not upload.done:
            # What was sent of the request must not look complete.
            connection.stream.abort()
        self._owner.discard(connection)
        self._ended()
        if upload is not None:
            # Last, because it waits: an exception thrown in meanwhile finds nothing left to do.
            upload.cancel()

    def _ended(self) -> None:
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()
