"""Who may ask what, and the answers: the door of the admin listener.

Rule: this is the one place that decides it. The admin listener has its own paths, always
under `/-/`, and no route; it is told apart by the socket that a connection was accepted on,
never by what the client says. On a loopback listener a Host must be `localhost` or an
address, so that no page in a browser gets in by a name of its own (DNS rebinding). With
`inline` the same answers are under `own_prefix` of the data listeners, for a token only.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from gateway.admin import effective, status
from gateway.admin.gauges import Scrape
from gateway.admin.observed import Observed
from gateway.admin.peers import Part, Peers
from gateway.errors import GatewayError, MethodNotAllowed, Misdirected, NoRoute, Unauthorized
from gateway.http import problem, target
from gateway.http.messages import Header, Request, Response
from gateway.model import AdminSettings, Config
from gateway.runtime import garbage
from gateway.runtime.hub import Slices, beside, parts
from gateway.telemetry.metrics import Metrics

log = logging.getLogger("gateway.admin")

PREFIX = b"/-/"
# Anybody may know these; they are on every data listener, too.
_PUBLIC = frozenset({b"healthz", b"readyz"})
_METHODS = (b"GET", b"HEAD")
_CHALLENGE: Header = (b"WWW-Authenticate", b'Bearer realm="gateway"')
_ALLOW: Header = (b"Allow", b"GET, HEAD")
# What is made of all workers' words at one time; whoever asks meanwhile waits.
_ANSWERS = 1
# Pieces of JSON that are put together, and endpoints that are freed, at once.
_TEXTS = 20_000
_FREED = 200
# Seconds that a wrong token waits for its answer: each connection has so many guesses a second.
WRONG_TOKEN_DELAY = 0.3


class Admin:
    """The admin listener's door (`handle`, `answer`, `finish`: `server.connection.Door`), and
    `inline` for the data listeners. `metrics` takes the access log's records."""

    def __init__(
        self, gateway: Observed, settings: AdminSettings, sleep: Callable[[float], object] = gevent.sleep
    ) -> None:
        self._gateway = gateway
        self._sleep = sleep
        # How many wrong tokens came, since this worker began.
        self.wrong_tokens = 0
        self._token = settings.token.encode()
        self.is_inline = settings.bind == "inline"
        self._folder = ""
        self._private: tempfile.TemporaryDirectory[str] | None = None
        self._hosting: Any = None
        self._slot: int | str = 0
        self._name: Any = None
        self._started = time.monotonic()
        self.metrics: Metrics | None = None
        self._peers = Peers("", 0, self._told)
        self._answering = BoundedSemaphore(_ANSWERS)
        self._pool: ThreadPool | None = None
        self._pages: dict[bytes, Callable[[Request], tuple[bytes, bytes]]] = {
            b"status": self._status,
            b"metrics": self._metrics,
            b"config": self._config,
        }

    # -- life ---------------------------------------------------------------------------

    def host(self, folder: str, hosting: Any, name: Any) -> None:
        """Before `start`, in a gunicorn worker: where the workers of its master meet, the worker,
        and the name of the admin listener's socket (None: there is none)."""
        self._folder = folder
        self._hosting = hosting
        self._name = name

    def start(self, slot: int | str) -> None:
        """Without a master there is but this process to tell of."""
        self._slot = slot
        self._started = time.monotonic()
        try:
            if not self._folder:
                self._private = tempfile.TemporaryDirectory(prefix="wsgi-gateway-alone-")
            self.metrics = Metrics(
                self._folder or self._private_folder(), slot, self._in_use, decided=self._decided
            )
        except OSError as error:
            log.error("no metrics: %s", error)
        self._peers = Peers(self._folder, slot, self._told, self._gateway.background)
        self._peers.listen()

    def stop(self) -> None:
        """After the access log has ended."""
        self._peers.close()
        if self.metrics is not None:
            self.metrics.close()
            self.metrics = None
        if self._pool is not None:
            self._pool.kill()
            self._pool = None
        if self._private is not None:
            self._private.cleanup()
            self._private = None

    def _private_folder(self) -> str:
        return self._private.name if self._private is not None else ""

    def listens(self) -> tuple[str, ...]:
        """Where the admin listener is, which is never an endpoint."""
        if not isinstance(self._name, tuple):
            return ()
        host, port = self._name[:2]
        return (f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",)

    # -- the door -------------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """The answer to a request on the admin listener. Never raises an ordinary fault."""
        self._gateway.identify(request)
        try:
            return self._line(request)
        except GatewayError as error:
            return self.answer(error, request)
        except Exception:
            log.exception("request %s to the admin listener failed", request.request_id.decode("latin-1"))
            return self.answer(GatewayError("a fault of the gateway; see its log"), request)

    def answer(self, error: GatewayError, request: Request) -> Response:
        if not request.request_id:
            self._gateway.identify(request)
        request.fail(error)
        return problem.answer(error, request, _headers(error))

    def finish(self, request: Request, response: Response | None, bytes_out: int, error: GatewayError | None) -> None:
        """Who looks at the gateway is no traffic: neither logged nor counted."""

    def _line(self, request: Request) -> Response:
        asked = target.parse(request.target)
        path = target.normal(asked.path)
        host = asked.authority if asked.authority is not None else request.header(b"host") or b""
        if self._is_loopback() and host and not _is_here(target.host(host)):
            raise Misdirected(f"Host {host[:80]!r} on a loopback listener")
        if not path.startswith(PREFIX):
            raise NoRoute(f"{path[:80]!r} is not under /-/")
        name = path[len(PREFIX) :]
        if name in _PUBLIC:
            _check_method(request)
            return self._gateway.health(request, name)
        return self._page(request, name)

    def inline(self, request: Request, name: bytes) -> Response:
        """The answer under `own_prefix` of a data listener. Raises what is wrong."""
        if name not in self._pages:
            raise NoRoute(f"{name[:80]!r} is none of the gateway's own paths")
        try:
            return self._page(request, name)
        except (Unauthorized, MethodNotAllowed) as error:
            return self.answer(error, request)

    def came_in(self, environ: dict[str, Any]) -> bool:
        """Whether a request of a WSGI server came by the admin listener."""
        if environ.get("gateway.admin"):
            return True
        name = self._name
        connection = environ.get("gunicorn.socket")
        if name is None or connection is None or "gateway.request" in environ:
            return False
        if isinstance(name, tuple) and environ.get("SERVER_PORT") != str(name[1]):
            return False
        # SERVER_PORT alone will not do: on a unix socket it comes from Host.
        own = connection.getsockname()
        if not (isinstance(own, tuple) and isinstance(name, tuple)):
            return bool(own == name)
        return bool(own[1] == name[1] and (own[0] == name[0] or ipaddress.ip_address(name[0]).is_unspecified))

    def _is_loopback(self) -> bool:
        return isinstance(self._name, tuple) and ipaddress.ip_address(self._name[0]).is_loopback

    def _page(self, request: Request, name: bytes) -> Response:
        self._authorize(request)
        page = self._pages.get(name)
        if page is None:
            raise NoRoute(f"{name[:80]!r} is none of the admin listener's paths")
        _check_method(request)
        kind, body = page(request)
        headers: list[Header] = [
            (b"Content-Type", kind),
            (b"Cache-Control", b"no-store"),
            (b"X-Content-Type-Options", b"nosniff"),
        ]
        bodyless = request.method == b"HEAD"
        return Response(
            200, b"OK", headers, content_length=len(body), data=b"" if bodyless else body, bodyless=bodyless
        )

    def _authorize(self, request: Request) -> None:
        """RFC 6750 §2.1. The comparison takes as long for a wrong token as for the right one."""
        if not self._token:
            return
        given = [value for name, value in request.headers if name.lower() == b"authorization"]
        scheme, _, token = given[0].strip(b" \t").partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(b" "), self._token):
            return
        if not given:
            raise Unauthorized("no token")
        self.wrong_tokens += 1
        self._sleep(WRONG_TOKEN_DELAY)
        raise Unauthorized("not the token")

    # -- the pages ------------------------------------------------------------------------

    def _told(self) -> Iterator[Part]:
        """This worker, for itself and for others that ask. What it has counted is written."""
        if self.metrics is not None:
            self.metrics.flush()
        yield status.of_worker(self._gateway, self._slot, self._hosting, self._started, self.wrong_tokens)
        yield from status.of_upstreams(self._gateway, Slices())

    def _status(self, request: Request) -> tuple[bytes, bytes]:
        return self._of_all(_status_of, self._gateway.name_in_via)

    def _metrics(self, request: Request) -> tuple[bytes, bytes]:
        accept = (request.header(b"accept") or b"").decode("latin-1")
        return self._of_all(_metrics_of, self._folders(), accept)

    def _config(self, request: Request) -> tuple[bytes, bytes]:
        return self._off_hub(_config_of, self._gateway.store.config)

    def _of_all(self, make: Callable[..., tuple[bytes, bytes]], *given: Any) -> tuple[bytes, bytes]:
        """An answer made of what every worker says."""
        with self._answering, garbage.spared():
            return self._off_hub(make, self._peers.ask(), *given)

    def _off_hub(self, make: Callable[..., tuple[bytes, bytes]], *given: Any) -> tuple[bytes, bytes]:
        """Where there are many endpoints this takes long, and metrics are read from files."""
        if self._pool is None:
            self._pool = ThreadPool(1)
        with beside():
            answer: tuple[bytes, bytes] = self._pool.apply(make, given)
        return answer

    def _folders(self) -> list[str]:
        """Ours; and the one of an application that has metrics of its own by prometheus_client."""
        given = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
        own = self._folder or self._private_folder()
        return [folder for folder in (own, given) if folder and os.path.isdir(folder)]

    def _in_use(self) -> tuple[Collection[str], Collection[str], Collection[tuple[str, str]]]:
        snapshot = self._gateway.store.current
        endpoints: set[tuple[str, str]] = set()
        turn = Slices()
        for name, group in snapshot.groups.items():
            endpoints.update((name, one.address) for one in parts(group.endpoints, turn))
            turn()
        config = snapshot.config
        return {route.name for route in config.routes}, config.upstreams.keys(), endpoints

    def _decided(self) -> Iterator[tuple[str, str, int]]:
        yield "", "shed", self._gateway.overload.shed
        for kind, number in getattr(self._hosting, "closed_connections", {}).items():
            yield "", f"connection_{kind}", number
        yield "", "wrong_token", self.wrong_tokens
        for word, number in self._gateway.buffers.counts.items():
            yield "", word, number
        for name, group in self._gateway.store.current.groups.items():
            for word, number in status.decisions(group.state).items():
                yield name, word, number


# -- on a native thread ----------------------------------------------------------------


def _status_of(answers: list[list[Part]], name: str) -> tuple[bytes, bytes]:
    merged = _merged(answers)
    answer = _json({"name": name, "time": time.time(), **merged})
    _take_apart(merged)
    return answer


def _metrics_of(answers: list[list[Part]], folders: list[str], accept: str) -> tuple[bytes, bytes]:
    registry = CollectorRegistry()
    merged = _merged(answers)
    registry.register(Scrape(folders, merged, time.time()))
    encode, kind = choose_encoder(accept)
    answer = kind.encode("ascii"), encode(registry)
    _take_apart(merged)
    return answer


def _config_of(config: Config) -> tuple[bytes, bytes]:
    return _json(effective.shown(config))


def _json(value: Any) -> tuple[bytes, bytes]:
    # With an indent it is Python that encodes, not one long call into C without a break. For the same reason the
    # text is put together in parts.
    written, texts = [], json.JSONEncoder(indent=1).iterencode(value)
    while text := "".join(islice(texts, _TEXTS)):
        written.append(text.encode())
    return b"application/json", b"".join((*written, b"\n"))


def _merged(answers: list[list[Part]]) -> Part:
    merged = status.merged(answers)
    for said in answers:
        while said:
            said.pop()
    return merged


def _take_apart(status: Part) -> None:
    """Free a large status in parts: another thread cannot run while the last reference to all of it goes."""
    for told in status["upstreams"].values():
        while told["endpoints"]:
            del told["endpoints"][-_FREED:]


# -- who and what ----------------------------------------------------------------------


def _check_method(request: Request) -> None:
    if request.method not in _METHODS:
        raise MethodNotAllowed(f"{request.method[:20]!r}")


def _headers(error: GatewayError) -> tuple[Header, ...]:
    if isinstance(error, Unauthorized):
        return (_CHALLENGE,)
    return (_ALLOW,) if isinstance(error, MethodNotAllowed) else ()


def _is_here(host: bytes) -> bool:
    """Whether a host is one that no foreign page can be given: localhost or an address."""
    name = host.decode("latin-1").removesuffix(".")
    if name == "localhost":
        return True
    with suppress(ValueError):
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        return True
    return False
