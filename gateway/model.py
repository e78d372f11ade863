"""The nouns of the gateway: what the configuration says, frozen.

Rule: values only. Durations are seconds, sizes are bytes, None is "off"; everything that
the file leaves to `defaults` is already resolved here (defaults, then upstream, then
route), so that nothing on the request path asks where a value came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from gateway.patterns import Expression

Seconds = float | None

# The protocols that may become a tunnel by default. Equal sets of a configuration are this object:
# it is compared by identity on each request.
WEBSOCKET = frozenset({b"websocket"})


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of one exchange with an upstream, in seconds; None is no limit.

    connect: one TCP connection, TLS included. write: without progress while sending the
    request. response: from the request's end to the answer's head. idle: between two
    reads of the answer's body. total: up to the head, attempts included; it never cuts a
    body. tunnel: an upgraded connection without a byte either way.
    """

    connect: Seconds = 2.0
    write: Seconds = 60.0
    response: Seconds = 30.0
    idle: Seconds = 60.0
    total: Seconds = None
    tunnel: Seconds = 3600.0


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Connections kept per endpoint and worker. max_connections 0: no limit."""

    max_idle: int = 100
    idle_timeout: Seconds = 30.0
    max_connections: int = 0
    queue_timeout: Seconds = 1.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a request may be tried again. `attempts`: tries in all. `budget`: the share of
    live traffic that may be retries. `buffer`: the largest body kept for another try.
    `backoff`: seconds; the longest wait before the second try where there is no other endpoint,
    twice as long before each further one. `hedge`: a GET without an answer after the time in
    which 95 of 100 have one is sent to another endpoint as well."""

    attempts: int = 2
    when: frozenset[str] = frozenset({"connect", "stale", "reset"})
    statuses: frozenset[int] = frozenset()
    methods: frozenset[bytes] = frozenset({b"GET", b"HEAD", b"OPTIONS"})
    budget: float = 0.2
    buffer: int = 64 * 1024
    backoff: float = 0.025
    hedge: bool = False


@dataclass(frozen=True, slots=True)
class Balance:
    """How an endpoint is picked. `policy`: a name in `balancers.BALANCERS`. For hash, `by` is
    client_ip, path, header, cookie or query, and `name` that of the last three (a header's in
    lower case). For sticky, `name` is the cookie's and `secret` what it is signed with; "": a
    key of this process group."""

    policy: str = "round_robin"
    by: str = ""
    name: str = ""
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Eject:
    """Passive health: when an endpoint that fails gets no requests for a while.

    `consecutive` failures in a row, or at least the share `error_rate` of `min_requests` or
    more within `window` seconds (0: that rule is off). It is out for `out_for` seconds, twice
    as long each time up to `max_for`; at most the share `max_ejected` of the endpoints are.
    `statuses`: 5xx answers that count as failures.
    """

    consecutive: int = 5
    error_rate: float = 0.5
    min_requests: int = 20
    window: float = 10.0
    out_for: float = 10.0
    max_for: float = 300.0
    max_ejected: float = 0.5
    statuses: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Active health: each endpoint is asked every `interval` seconds, HTTP (`path`) or by a
    mere connection (`tcp`), and has `timeout` seconds to answer. `healthy` good answers in a
    row bring one back, `unhealthy` bad ones take it out. `statuses`: those that are good.
    `host` None: the endpoint's own. `headers`: sent as they are."""

    path: bytes = b"/healthz"
    tcp: bool = False
    interval: float = 10.0
    timeout: float = 2.0
    healthy: int = 2
    unhealthy: int = 3
    statuses: frozenset[int] = frozenset(range(200, 400))
    host: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Breaker:
    """When an upstream gets no requests at all: the share `error_rate` of at least
    `min_requests` failed within `window` seconds. After `open_for` seconds one is tried."""

    error_rate: float = 0.5
    min_requests: int = 20
    window: float = 10.0
    open_for: float = 5.0


@dataclass(frozen=True, slots=True)
class Buffering:
    """What is held of bodies so that slow clients keep no upstream busy. `request`, `response`: bytes in memory
    of one body; 0: none is held. `spool`: the folder of temporary files for longer ones; None: those stream.
    `spool_max`: bytes that all such files of one worker and folder may have."""

    request: int = 64 * 1024
    response: int = 64 * 1024
    spool: str | None = None
    spool_max: int = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Requests that one upstream may have at once in one worker (0: no limit), how many more
    wait for their turn, and for how many seconds at most. `adaptive`: the limit follows the
    upstream's latency, up to `limit`."""

    limit: int = 1024
    queue: int = 100
    queue_timeout: Seconds = 1.0
    adaptive: bool = False


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """How much head an upstream's answer may have: bytes of all lines, number of lines.
    0 is no limit."""

    header: int = 64 * 1024
    headers: int = 256


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How to speak TLS to an upstream. `ca`, `cert`, `key`: paths of PEM files."""

    verify: bool = True
    ca: str | None = None
    server_name: str | None = None
    cert: str | None = None
    key: str | None = None


# Scheme, host, port and base path: with the upstream's name, what is known of an endpoint is stored under it.
Key = tuple[str, str, int, bytes]


@dataclass(frozen=True)
class Endpoint:
    """One address that serves an upstream.

    `host` is an IP address (or, straight from the file, a name still to be looked up);
    `authority` is what the URL said (`name:port`), used for `host: upstream`;
    `server_name` is the name to verify and to send as SNI. `base_path` and `query` are
    raw bytes put before and behind what is forwarded.
    """

    scheme: str
    host: str
    port: int
    weight: int = 1
    base_path: bytes = b""
    query: bytes = b""
    authority: bytes = b""
    server_name: str | None = None

    @cached_property
    def key(self) -> Key:
        return (self.scheme, self.host, self.port, self.base_path)

    @cached_property
    def address(self) -> str:
        """`host:port`, IPv6 in brackets: for logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class StaticSource:
    """Endpoints written in the file; names among them are looked up in the background. `literal`: there are no
    names among them; None: that is not known."""

    endpoints: tuple[Endpoint, ...]
    literal: bool | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ConsulSource:
    """Endpoints that Consul's health API reports as passing."""

    service: str
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class DnsSrvSource:
    """Endpoints that SRV records name (RFC 2782). `name` is absolute, without the last dot."""

    name: str


@dataclass(frozen=True, slots=True)
class EtcdSource:
    """Endpoints that stand in etcd, one for each key that begins with `prefix` (which ends
    with a slash)."""

    prefix: str


Source = StaticSource | ConsulSource | DnsSrvSource | EtcdSource


@dataclass(frozen=True, slots=True)
class Upstream:
    """A named group of endpoints and how to talk to it."""

    name: str
    source: Source
    scheme: str = "http"
    host: str = "preserve"  # "preserve" | "upstream" | a literal
    balance: Balance = Balance()
    timeouts: Timeouts = Timeouts()
    pool: PoolSettings = PoolSettings()
    retry: RetryPolicy = RetryPolicy()
    limits: AnswerLimits = AnswerLimits()
    tls: TlsSettings | None = None
    upgrade: frozenset[bytes] = WEBSOCKET
    eject: Eject | None = Eject()
    health: HealthCheck | None = None
    breaker: Breaker | None = None
    concurrency: Concurrency = Concurrency()
    buffer: Buffering = Buffering()
    # Seconds in which a newcomer's share grows to its whole weight; 0: at once.
    slow_start: float = 0.0
    # The header that tells an upstream how many milliseconds it has; None: none does.
    deadline_header: str | None = None
    # The upstream that is asked when this one has no endpoint.
    fallback: str | None = None

    def fields(self) -> Iterator[str]:
        """The names of the header fields that its balancer reads, in lower case."""
        if self.balance.by == "header":
            yield self.balance.name


@dataclass(frozen=True, slots=True)
class Rewrite:
    """How the path that is forwarded differs from the one that came: exactly one is set.
    `regex` (matched on the normal form, whole path) goes with `to`, a template of its groups."""

    prefix: bytes | None = None
    path: bytes | None = None
    regex: Expression | None = None
    to: bytes | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """One set of conditions; all must hold. Of path, prefix and regex either the path is set, or
    any of the others; none is prefix "/". Paths are as written in the file; `host` is lower case,
    a wildcard keeps its `*.`; header names are lower case. `excluded`: conditions none of which
    may hold (`not` in the file); there path, prefix and regex may all be set, and none is no
    condition on the path."""

    host: str | None = None
    path: str | None = None
    prefix: str | None = None
    regex: str | None = None
    methods: frozenset[str] = frozenset()
    headers: tuple[tuple[str, str], ...] = ()
    query: tuple[tuple[str, str], ...] = ()
    excluded: Match | None = None

    def fields(self) -> Iterator[str]:
        """The names of the header fields that it looks at, in lower case."""
        yield from (name for name, _ in self.headers)
        if self.excluded is not None:
            yield from self.excluded.fields()

    def alone(self) -> Iterator[Match]:
        """Each condition by itself; for `excluded` those of which none may hold."""
        for key in ("host", "path", "prefix", "regex", "methods"):
            if getattr(self, key):
                yield Match(**{key: getattr(self, key)})
        yield from (Match(headers=(one,)) for one in self.headers)
        yield from (Match(query=(one,)) for one in self.query)


@dataclass(frozen=True, slots=True)
class Redirect:
    """An answer that sends the client elsewhere. What is None stays as it was asked for, but
    that the port goes with `scheme` and `host`: where one of them is set and `port` is not, it
    is the scheme's own. `prefix` replaces the prefix that matched, `path` the whole path; the
    query is kept."""

    status: int = 302
    scheme: str | None = None
    host: str | None = None
    port: int | None = None
    path: bytes | None = None
    prefix: bytes | None = None


@dataclass(frozen=True, slots=True)
class Respond:
    """A fixed answer."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Share:
    """One part of a split: the route as it is for that upstream (without the split, with the
    mirror), and its weight."""

    route: Route
    weight: int


@dataclass(frozen=True, slots=True)
class Split:
    """Upstreams that share a route's requests. `by` header or cookie (`name`; a header's in
    lower case): the same value always goes to the same upstream; "": chosen at random."""

    shares: tuple[Share, ...]
    by: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of the share `percent` (0.0 to 1.0) of the requests goes to the upstream of
    `route`, and nobody waits for what it answers. `route` has no mirror and no fallback."""

    route: Route
    percent: float = 1.0


@dataclass(frozen=True, slots=True)
class Route:
    """Which requests go to which upstream, and what is special about them. `index` is the
    place in the file, `line` where it stands there.

    Exactly one of `upstream`, `split`, `redirect` and `respond` says what becomes of a
    request; `upstream` is "" with the other three. `fallback`: the same route as it is for
    the upstream's fallback, its mirror included.
    """

    name: str
    upstream: str = ""
    matches: tuple[Match, ...] = (Match(),)
    priority: int = 0
    strip_prefix: bool = False
    rewrite: Rewrite | None = None
    host: str = "preserve"
    timeouts: Timeouts = Timeouts()
    retry: RetryPolicy = RetryPolicy()
    upgrade: frozenset[bytes] = WEBSOCKET
    deadline_header: str | None = None
    split: Split | None = None
    mirror: Mirror | None = None
    redirect: Redirect | None = None
    respond: Respond | None = None
    fallback: Route | None = None
    # refuse | forward: requests whose path has other readings; None: as the server does.
    ambiguous_paths: str | None = None
    index: int = 0
    line: int = 0
    # Nothing but `upstream` says what becomes of a request: what most routes are.
    plain: bool = field(init=False, repr=False, compare=False)
    # Target and Host go on as they came, and no field is added but the usual ones, unless the endpoint has a path or
    # query of its own, or the request asks for an upgrade: what most routes are as well.
    verbatim: bool = field(init=False, repr=False, compare=False)

    def fields(self) -> Iterator[str]:
        """The names of the header fields that it is chosen by or chooses by, in lower case."""
        for match in self.matches:
            yield from match.fields()
        if self.split is not None and self.split.by == "header":
            yield self.split.name

    def __post_init__(self) -> None:
        shaped = self.split or self.mirror or self.redirect or self.respond or self.fallback
        object.__setattr__(self, "plain", shaped is None)
        changed = self.rewrite or self.strip_prefix or self.deadline_header or self.host != "preserve"
        object.__setattr__(self, "verbatim", not changed and self.upgrade <= WEBSOCKET)

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Where requests may go, mirrors and fallbacks left out."""
        if self.split is not None:
            return tuple(share.route.upstream for share in self.split.shares)
        return (self.upstream,) if self.upstream else ()

    @property
    def branches(self) -> tuple[Route, ...]:
        """The route as it is for each upstream that may get its requests, fallbacks included."""
        heads = (self,) if self.split is None else tuple(share.route for share in self.split.shares)
        return tuple(one for head in heads for one in _line(head))


def _line(route: Route) -> tuple[Route, ...]:
    """A route and its fallbacks; nothing where it leads to no upstream."""
    if not route.upstream:
        return ()
    return (route,) if route.fallback is None else (route, *_line(route.fallback))


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """Limits of the client's side, in seconds; None is no limit."""

    header: Seconds = 5.0
    body: Seconds = 10.0
    write: Seconds = 60.0
    keepalive: Seconds = 75.0
    half_close: Seconds = 1.0  # None: never; 0: at once
    tls_handshake: Seconds = 5.0


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a request may measure; 0 is no limit. Sizes are bytes; `header` is all lines."""

    body: int = 0
    request_line: int = 16 * 1024
    header: int = 32 * 1024
    headers: int = 100
    chunk_extensions: int = 4 * 1024
    connections: int = 10_000
    connections_per_client: int = 0
    linger: int = 64 * 1024 * 1024
    # What a worker holds of bodies for slow clients.
    buffers: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The client's side. `trusted_proxies`: CIDRs and the words private, loopback, unix,
    as written. `own_prefix` None: the gateway has no paths of its own."""

    name: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    timeouts: ServerTimeouts = ServerTimeouts()
    min_rate: int = 256
    limits: ServerLimits = ServerLimits()
    graceful: float = 25.0
    drain: float = 0.0
    # How late the hub may be before requests are refused as `overloaded`.
    overload: Seconds = 0.5
    request_id: str = "X-Request-Id"
    own_prefix: str | None = "/-/"
    via: str = "both"  # both | request | response | off
    forwarded: bool = False
    ambiguous_paths: str = "refuse"  # refuse | forward


# Suites of TLS 1.2 with forward secrecy and authenticated encryption (RFC 9325 §4.2), as OpenSSL
# names them; those of TLS 1.3 all are.
TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM:DHE+CHACHA20"

# Query parameters whose values are secrets, unless the file names others.
REDACT = (
    "access_token", "api_key", "api_token", "auth_token", "client_assertion", "client_secret", "id_token", "jwt",
    "key", "passwd", "password", "pwd", "refresh_token", "secret", "session_token", "sig", "signature", "token",
    "X-Amz-Credential", "X-Amz-Security-Token", "X-Amz-Signature", "X-Goog-Signature",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AccessLogSettings:
    """`path` "-" is standard output, None switches the log off."""

    path: str | None = "-"
    format: str = "json"
    redact: frozenset[str] = frozenset(map(str.lower, REDACT))


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """Where status, metrics and the configuration are told: `HOST:PORT`, `unix:PATH`, or
    `inline`, under `own_prefix` of the data listeners. `token` "": nobody is asked for one."""

    bind: str = "127.0.0.1:9901"
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class RegistrationSettings:
    """How the gateway announces itself to Consul. `address`, `port` None: where it listens.
    `check`: ttl (the gateway reports every `interval` seconds) or http (Consul asks that often).
    `deregister_after`: how long a gateway that does not pass stays listed; None: for ever."""

    service: str = "gateway"
    address: str | None = None
    port: int | None = None
    tags: tuple[str, ...] = ()
    check: str = "ttl"
    interval: float = 10.0
    deregister_after: Seconds = 60.0


@dataclass(frozen=True, slots=True)
class ConsulTls:
    """How Consul's API is spoken to over https, as the variables of Consul's own tools say. `required`: plain http
    is not used. `ca`, `cert`, `key`: PEM files; None: the system's authorities, and no certificate of our own."""

    required: bool = False
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True


@dataclass(frozen=True, slots=True)
class ConsulSettings:
    """Where Consul's HTTP API is and how it is asked. `poll` in seconds: the longest that a
    question waits for a change. `registration` None: the gateway does not announce itself."""

    address: str = "http://127.0.0.1:8500"
    token: str = field(default="", repr=False)
    datacenter: str | None = None
    poll: float = 5.0
    stale: bool = True
    registration: RegistrationSettings | None = None
    tls: ConsulTls = ConsulTls()


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """Which DNS servers are asked, each `address:port`; none: the system's. `ttl`: the
    longest that an answer is kept, in seconds."""

    servers: tuple[str, ...] = ()
    ttl: float = 30.0


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """The members of an etcd cluster and who asks them. `poll` in seconds: how often a member
    that is watched has to answer, and how often one is asked that cannot be watched."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    poll: float = 5.0


# Where clouds answer with a machine's own credentials: link-local (AWS, Azure, Google and most others), AWS over IPv6,
# Alibaba Cloud.
NEVER_ENDPOINTS = ("169.254.0.0/16", "fd00:ec2::254", "100.100.100.200")


@dataclass(frozen=True, slots=True)
class DiscoverySettings:
    consul: ConsulSettings = ConsulSettings()
    etcd: EtcdSettings = EtcdSettings()
    dns: DnsSettings = DnsSettings()
    wait: float = 3.0
    deny: tuple[str, ...] = NEVER_ENDPOINTS
    snapshot: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """One whole document. `version` is the first 12 hex digits of the SHA-256 of its bytes."""

    version: str
    upstreams: dict[str, Upstream]
    routes: tuple[Route, ...]
    server: ServerSettings = ServerSettings()
    admin: AdminSettings | None = AdminSettings()
    access_log: AccessLogSettings | None = AccessLogSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    path: str = ""
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def fields(self) -> frozenset[bytes]:
        """The names of the header fields that routes and balancers read, in lower case."""
        found = [name for route in self.routes for name in route.fields()]
        found += [name for upstream in self.upstreams.values() for name in upstream.fields()]
        return frozenset(name.encode("latin-1") for name in found)

    def deadline_headers(self) -> frozenset[bytes]:
        """The names that any `deadline_header` gives, in lower case."""
        found = {route.deadline_header for route in self.routes}
        found |= {upstream.deadline_header for upstream in self.upstreams.values()}
        return frozenset(name.lower().encode("latin-1") for name in found if name is not None)
