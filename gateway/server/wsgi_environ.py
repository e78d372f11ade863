"""The second door: a `Request` from a WSGI environ, a `Response` through start_response.

Rule: PEP 3333, and as little lost as an environ allows: duplicates that the server joined
and the case of names cannot be had back. Our own worker puts the `Request` that it parsed
into the environ (`gateway.request`), and then nothing is lost.
"""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

from gateway.buffers.ahead import Ahead, ahead, unless_soon
from gateway.buffers.memory import Buffers
from gateway.errors import BadRequest, BodyTooLarge, ClientClosed, GatewayError, UnsupportedCoding
from gateway.http.messages import Headers, Request, Response, ResponseBody
from gateway.net.read_size import PIECE

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# The body is not handed on; HTTP_PROXY would pass for a setting (httpoxy, CVE-2016-5385).
_NOT_IN_ENVIRON = frozenset({"HTTP_CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "HTTP_PROXY"})
# Names whose usual spelling is not a capital after each hyphen.
_SPELLING = {"Te": "TE", "Dnt": "DNT", "Etag": "ETag", "Www-Authenticate": "WWW-Authenticate"}


def request(environ: WSGIEnvironment, started: float, body_limit: int) -> Request:
    """The request that an environ describes. Raises a ClientError."""
    parsed = environ.get("gateway.request")
    if isinstance(parsed, Request):
        if not _is_ours(environ["wsgi.input"], environ.get("gateway.input")):
            take_input(parsed, environ, body_limit)
        return parsed
    headers = _headers(environ)
    length = _content_length(environ)
    coding = environ.get("HTTP_TRANSFER_ENCODING", "")
    if coding and coding.strip(" \t").lower() != "chunked":
        # The server may have undone what it knows of it; the rest is not ours to guess.
        raise UnsupportedCoding(f"Transfer-Encoding {coding[:80]!r}")
    chunked = bool(coding)
    made = Request(
        environ["REQUEST_METHOD"].encode("latin-1"),
        _target(environ),
        headers,
        started=started,
        peer=environ.get("REMOTE_ADDR") or "",
        scheme=environ["wsgi.url_scheme"],
        port=int(environ.get("SERVER_PORT") or 0),
        http11=environ.get("SERVER_PROTOCOL") == "HTTP/1.1",
        content_length=length,
        chunked=chunked,
    )
    if chunked or length:
        made.body = WsgiBody(environ["wsgi.input"], made, length, body_limit)
    return made


def _is_ours(stream: Any, ours: Any) -> bool:
    """Whether wsgi.input is the one that our worker put there, or a transparent proxy of an agent around it."""
    if stream is ours or ours is None:
        return True
    raw = getattr(ours, "raw", None)
    return raw is not None and getattr(stream, "raw", None) is raw


def take_input(request: Request, environ: WSGIEnvironment, body_limit: int) -> None:
    """Somebody has read the body, and put another in its place."""
    length = request.content_length = _content_length(environ)
    request.chunked = bool(environ.get("HTTP_TRANSFER_ENCODING"))
    request.body = None
    if request.chunked or length:
        request.bytes_in = 0  # it is counted again
        request.body = WsgiBody(environ["wsgi.input"], request, length, body_limit)


# environ key -> the header's name, b"" for keys that are none; as many as there are in use.
_names: dict[str, bytes] = {}
_MOST_NAMES = 2048


def _name(key: str) -> bytes:
    """The header that an environ key is of, its words capitalised as most clients do."""
    if key.startswith("HTTP_"):
        spelled = key[5:].replace("_", "-").title()
    elif key == "CONTENT_TYPE":
        spelled = "Content-Type"
    else:
        spelled = ""
    name = _SPELLING.get(spelled, spelled).encode("latin-1")
    if len(_names) < _MOST_NAMES and len(key) <= 64:
        _names[key] = name
    return name


def _headers(environ: WSGIEnvironment) -> Headers:
    headers: Headers = []
    for key, value in environ.items():
        name = _names.get(key)
        if name is None:
            name = _name(key)
        if name and (value or name != b"Content-Type"):
            headers.append((name, value.encode("latin-1")))
    return headers


def _content_length(environ: WSGIEnvironment) -> int | None:
    told = environ.get("CONTENT_LENGTH")
    if not told or environ.get("HTTP_TRANSFER_ENCODING"):
        return None
    if not (told.isascii() and told.isdigit() and len(told) <= 18):
        raise BadRequest(f"Content-Length {told[:40]!r}")
    return int(told)


def _target(environ: WSGIEnvironment) -> bytes:
    """The target as it came where the server tells (RAW_URI: gunicorn; REQUEST_URI: others)."""
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw:
        return str(raw).encode("latin-1")
    decoded = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    path = quote(decoded.encode("latin-1"), safe="/!$&'()*+,;=:@~")
    query = environ.get("QUERY_STRING", "")
    return (f"{path or '/'}?{query}" if query else path or "/").encode("latin-1")


def environ(request: Request) -> WSGIEnvironment:
    """An environ for what Flask has to answer without a server's: that of `request`, its body left out."""
    path, _, query = request.target.decode("latin-1").partition("?")
    made: WSGIEnvironment = {
        "REQUEST_METHOD": request.method.decode("latin-1"),
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path if path.startswith("/") else "/").decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": request.target.decode("latin-1"),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": str(request.port),
        "SERVER_PROTOCOL": "HTTP/1.1" if request.http11 else "HTTP/1.0",
        "REMOTE_ADDR": request.peer,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": request.scheme,
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "gateway.request": request,
    }
    for name, value in request.headers:
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        text = value.decode("latin-1")
        if b"_" not in name and key not in _NOT_IN_ENVIRON:
            made[key] = f"{made[key]},{text}" if key in made and key != "HTTP_HOST" else text
    content_type = made.pop("HTTP_CONTENT_TYPE", None)
    if content_type is not None:
        made["CONTENT_TYPE"] = content_type
    return made


class WsgiBody:
    """A `RequestBody` over wsgi.input."""

    __slots__ = ("_input", "_left", "_limit", "_pieces", "_request", "complete", "expects_continue")

    def __init__(self, stream: Any, request: Request, length: int | None, limit: int) -> None:
        if limit and length is not None and length > limit:
            raise BodyTooLarge(f"Content-Length {length}, at most {limit}")
        self._input = stream
        self._request = request
        self._left = length
        self._limit = limit
        # gunicorn's read(n) waits for n bytes; these give what there is (private: tested).
        reader = getattr(stream, "reader", None)
        if length is not None and hasattr(reader, "unreader"):
            self._pieces: Callable[[], bytes] | None = lambda: self._counted_piece(reader)
        elif reader is not None and hasattr(reader, "parser"):
            # An empty piece comes when a size arrives before its data: it is not the end.
            chunks = filter(None, reader.parser)
            self._pieces = lambda: next(chunks, b"")
        else:
            self._pieces = None
        self.complete = False
        self.expects_continue = False

    def read(self, most: int = PIECE) -> bytes:
        """As `RequestBody`, but never more than 64 KiB: some servers wait for all that they are asked for."""
        if self._left == 0:
            return b""
        try:
            piece = self._pieces() if self._pieces is not None else self._read()
        except GatewayError:
            raise
        except Exception as error:
            # Servers have exceptions of their own for what is wrong with a body (gunicorn's
            # ParseException); whatever it is, it is the client's side that failed.
            self._fail()
            gone = isinstance(error, OSError) and (error.errno or type(error).__name__ == "NoMoreData")
            told = f"reading the body: {type(error).__name__}: {error}"
            raise (ClientClosed(told) if gone else BadRequest(told)) from error
        self._request.bytes_in += len(piece)
        if self._left is not None:
            self._left -= len(piece)
            if not piece:
                self._fail()
                raise ClientClosed(f"the body ended with {self._left} bytes to come")
        if self._limit and self._request.bytes_in > self._limit:
            raise BodyTooLarge(f"more than {self._limit} bytes")
        return piece

    def _fail(self) -> None:
        """Where the next request would begin is not known: gunicorn closes the connection then."""
        if hasattr(self._input, "failed"):
            self._input.failed = True

    def _read(self) -> bytes:
        size = PIECE if self._left is None else min(PIECE, self._left)
        data: bytes = self._input.read(size)
        return data

    def _counted_piece(self, reader: Any) -> bytes:
        left = self._left or 0
        piece: bytes = reader.unreader.take_buffered() or reader.unreader.chunk(min(left, PIECE))
        if len(piece) > left:
            reader.unreader.unread(piece[left:])
            piece = piece[:left]
        reader.length -= len(piece)
        return piece


class Exchange:
    """One exchange at the WSGI door (`environ["gateway.exchange"]`).

    Our own worker makes it, any other server leaves that to the gateway. By it the two reach each other however many
    middlewares and agents have wrapped the iterable between them.
    """

    __slots__ = ("answer", "failure", "finish", "finished", "sent", "status", "watched")

    def __init__(self, watched: bool = False) -> None:
        # The server notices a client that leaves, and throws ClientClosed into the greenlet.
        self.watched = watched
        # The answer of the gateway itself, once there is one; it may have been replaced since.
        self.answer: WsgiAnswer | None = None
        # What our worker knows: why it stopped writing, the status that it gave instead of the application's (or could
        # not give), and how many bytes of the body went out.
        self.failure: GatewayError | None = None
        self.status: int | None = None
        self.sent: int | None = None
        # Writes the log line of an answer that came through Flask.
        self.finish: Callable[[], None] | None = None
        # The log has its line.
        self.finished = False

    def end(self) -> None:
        """The server is done with the iterable: close what nobody has closed, and log what is not logged."""
        finish, self.finish = self.finish, None
        try:
            if self.answer is not None:
                self.answer.drop()
        finally:
            if finish is not None:
                finish()


class WsgiAnswer:
    """The iterable that a WSGI server writes, of the gateway's own answer. `finish` is called once, at its end."""

    def __init__(
        self,
        response: Response,
        finish: Callable[[int, GatewayError | None], None],
        exchange: Exchange,
        buffers: Buffers | None = None,
    ) -> None:
        """`buffers`: where what is read ahead of a slow client is counted; None: nothing is read ahead."""
        self.response = response
        self._finish = finish
        self._exchange = exchange
        self._buffers = buffers
        self._ahead: Ahead | None = None
        # Bytes of the body that were handed over, for the log.
        self._sent = 0
        self.ended = False
        # Why the body ended early.
        self.error: GatewayError | None = None

    def __iter__(self) -> Iterator[bytes]:
        response = self.response
        error: GatewayError | None = None
        try:
            if response.status == ClientClosed.status and not response.headers:
                self.error = ClientClosed("the client is gone: there is nobody to answer")
                if not self._exchange.watched:
                    raise ConnectionResetError(errno.ECONNRESET, str(self.error))
                return
            if response.tunnel is not None:
                # The worker carries both ways between this piece and the end.
                yield b""
                return
            if response.bodyless:
                return
            # The head goes out with the first piece, even an empty one: at once.
            yield from self._counted(response.data, response.stream)
            while (stream := self._ahead or response.stream) is not None and (piece := stream.read()):
                yield from self._counted(piece, stream)
        except GatewayError as failure:
            error = self.error = failure
            if self._exchange.watched and isinstance(failure, ClientClosed):
                # Agents would report an exception as a fault of the application.
                return
            # The one way to make a WSGI server break the connection: the body is cut.
            raise ConnectionResetError(errno.ECONNRESET, "the upstream's answer broke off") from failure
        except GeneratorExit:
            error = self._exchange.failure or ClientClosed("the client went away in the middle of the answer")
            raise
        finally:
            self._end(error)

    def _counted(self, piece: bytes, stream: ResponseBody | None) -> Iterator[bytes]:
        """One piece of the body. If the server is not back soon, its client is slow: the answer is read ahead."""
        self._sent += len(piece)
        if self._buffers is None or stream is None or stream.buffering is None:
            yield piece
            return
        with unless_soon(self._read_ahead, stream, self._buffers):
            yield piece

    def _read_ahead(self, stream: ResponseBody, buffers: Buffers) -> None:
        length = self.response.content_length
        self._ahead = ahead(stream, None if length is None else length - self._sent, buffers)

    def _end(self, error: GatewayError | None) -> None:
        if not self.ended:
            self.ended = True
            self.error = self.error or error
            rest = self._ahead or self.response.stream or self.response.tunnel
            try:
                if rest is not None:
                    rest.close()
            finally:
                self._finish(self._sent if self._exchange.sent is None else self._exchange.sent, error)

    def close(self) -> None:
        """Called by the server in every case (PEP 3333): a body that was not read to its end
        means that the client is gone."""
        failure = self._exchange.failure
        if failure is None and self.response.stream is not None and not self.response.bodyless:
            failure = ClientClosed("the client went away before its answer was complete")
        self._end(failure)

    def drop(self) -> None:
        """Give back what it comes from: the server never got it, because another answer took its place."""
        self._end(self._exchange.failure)


class Counted:
    """An iterable of Flask's whose bytes are counted; `exchange` ends with it."""

    def __init__(self, inner: Iterable[bytes], exchange: Exchange) -> None:
        self._inner = inner
        self._exchange = exchange
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self._inner:
                self.sent += len(piece)
                yield piece
        except ClientClosed:
            # The worker threw it in. Agents around this would report it as a fault of the application.
            if not self._exchange.watched:
                raise

    def close(self) -> None:
        """Called by the server in every case (PEP 3333)."""
        try:
            if hasattr(self._inner, "close"):
                self._inner.close()
        finally:
            self._exchange.end()


def start(response: Response, start_response: StartResponse) -> None:
    """Hand the head to the server. Framing is the server's, but for a length that is known."""
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
    if response.content_length is not None and response.status != 204 and response.status >= 200:
        headers.append(("Content-Length", str(response.content_length)))
    start_response(f"{response.status} {response.reason.decode('latin-1')}", headers)
