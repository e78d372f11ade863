"""The file, version 1, as pydantic models: every key, its kind, its default, its meaning.

Rule: what stands here works. A key that the format reserves for what this version cannot
do yet stands in `later` of its section, and is refused by name. Defaults are spelt as in
the file and read like anything else; `build` takes from a section only what was given.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import CoreSchema

from gateway.config import scalar_types
from gateway.config.scalar_types import (
    AdminBind,
    AnswerHeader,
    AnswerStatus,
    AsWritten,
    Attempts,
    Balancer,
    BearerToken,
    CheckHeader,
    Count,
    DeadlineHeader,
    DeregisterAfter,
    DnsName,
    DnsServer,
    Duration,
    DurationOrNever,
    DurationOrNone,
    EndpointUrl,
    ErrorStatus,
    Filled,
    Flag,
    Graceful,
    HashBy,
    HeaderName,
    HeaderValue,
    HostPolicy,
    IdleCount,
    Interval,
    Kept,
    MatchHost,
    MatchPath,
    Method,
    Moment,
    Name,
    Network,
    OneHost,
    OptionalPort,
    OptionalText,
    OptionalToken,
    OwnPrefix,
    Pattern,
    Percent,
    Poll,
    Priority,
    RedirectStatus,
    Registry,
    ReportInterval,
    RewritingPattern,
    Secret,
    SentHost,
    SentPath,
    SentPrefix,
    SentValue,
    ServerErrorStatus,
    ServerName,
    Share,
    ShareAboveZero,
    Size,
    SplitBy,
    Statuses,
    Template,
    Text,
    Times,
    TimesOrNone,
    Token,
    Trusted,
    UpgradeToken,
    Weight,
)
from gateway.model import NEVER_ENDPOINTS, REDACT


class Section(BaseModel):
    """A mapping of the file. `later`: keys of the format that this version refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, arbitrary_types_allowed=True)
    later: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def keys(cls) -> list[str]:
        """The keys as the file has them."""
        return [field.alias or name for name, field in cls.model_fields.items()]


def key(default: Any, told: str, *, alias: str | None = None) -> Any:
    """A key that may be left out; the default is spelt as in the file. `alias`: what it is
    called there, where Python has that word for itself."""
    return Field(default, description=told, alias=alias)


def inherited(section: Any = lambda: None) -> Any:
    """A key that, left out, is as the level above has it: no default is written down."""
    return Field(default_factory=section, validate_default=False)


class OneOrMany:
    """A list, or one item of it without the list."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        many = handler(core)
        return {"anyOf": [many["items"], many]}


def _many(value: object) -> object:
    return [value] if isinstance(value, dict) else value


class OrText:
    """A mapping, or the text of its one key that is required."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "format": "uri"}, handler(core)]}


def _with_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class OrParts:
    """A mapping, or the list that is its one key that is required."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        whole = handler(core)
        return {"anyOf": [handler.resolve_ref_schema(whole)["properties"]["to"], whole]}


def _with_parts(value: object) -> object:
    return {"to": value} if isinstance(value, list) else value


def _no_filters(value: object) -> list[str]:
    if not isinstance(value, list):
        raise scalar_types.refused("a list", value)
    if value:
        raise scalar_types.wrong("filters are not in this version ([])")
    return []


AmbiguousPaths = Annotated[
    str,
    PlainValidator(scalar_types.choice("refuse", "forward")),
    WithJsonSchema(scalar_types.words("refuse", "forward")),
]
LogFormat = Annotated[str, PlainValidator(scalar_types.choice("json")), WithJsonSchema(scalar_types.words("json"))]
Upgrade = list[UpgradeToken]
NoFilters = Annotated[list[str], PlainValidator(_no_filters), WithJsonSchema({"type": "array", "maxItems": 0})]


# -- server ----------------------------------------------------------------------------


class ServerTimeouts(Section):
    header: Duration = key("5s", "for the whole head of a request")
    body: Duration = key("10s", "without progress while a request's body is awaited")
    write: Duration = key("60s", "without progress while an answer is written")
    keepalive: Duration = key("75s", "for the next request on an idle connection")
    half_close: DurationOrNever = key("1s", "how long an exchange goes on after the client's FIN")
    tls_handshake: Duration = key("5s", "for a TLS handshake")


class ServerLimits(Section):
    body: Size = key(0, "a request's body")
    request_line: Size = key("16KiB", "the request line")
    header: Size = key("32KiB", "all header lines together")
    headers: Count = key(100, "number of header lines")
    chunk_extensions: Size = key("4KiB", "chunk extensions of one body")
    connections: Count = key(10000, "client connections of one worker")
    connections_per_client: Count = key(0, "of them, those of one client address")
    linger: Size = key("64MiB", "what is read and dropped of a request whose answer is out")
    buffers: Size = key("256MiB", "what one worker holds of bodies for slow clients")


class Server(Section):
    name: OptionalToken = key(None, "the gateway's name in Via")
    trusted_proxies: list[Trusted] = key([], "whose X-Forwarded-* are believed")
    timeouts: ServerTimeouts = key({}, "limits in time on the client's side")
    min_rate: Size = key("256B", "bytes a second, averaged over 30 s, below which a client is cut off")
    limits: ServerLimits = key({}, "what a request may measure")
    graceful: Graceful = key("25s", "how long a stopping worker may take")
    drain: DurationOrNone = key(0, "how long accepting goes on after SIGTERM")
    overload: Duration = key("500ms", "how late a worker may be before it refuses requests")
    request_id: Token = key("X-Request-Id", "the header that carries the request id")
    own_prefix: OwnPrefix = key("/-/", "the gateway's own paths")
    via: Annotated[
        str,
        PlainValidator(scalar_types.choice("both", "request", "response", "off")),
        WithJsonSchema(scalar_types.words("both", "request", "response", "off")),
    ] = key("both", "where Via is written")
    forwarded: Flag = key(False, "write RFC 7239 Forwarded also when the request had none")
    ambiguous_paths: AmbiguousPaths = key("refuse", "paths that servers may read as those of another route")


# -- admin, access log, discovery ------------------------------------------------------


class Admin(Section):
    bind: AdminBind = key("127.0.0.1:9901", "HOST:PORT, unix:PATH, or inline: under own_prefix where data is served")
    token: BearerToken = key("", "asked of whoever wants to know; of 16 characters or more with inline")


class AccessLog(Section):
    path: OptionalText = key("-", "a file; - is standard output, null no log")
    format: LogFormat = key("json", "one JSON object a line")
    redact: list[Filled] = key(list(REDACT), "query parameters whose values are masked")


class Registration(Section):
    service: Filled = key("gateway", "the name of the service that gateways are")
    address: OptionalText = key(None, "where others reach it; null: where it listens")
    port: OptionalPort = key(None, "null: where it listens")
    tags: list[Filled] = key([], "tags of this instance")
    check: Annotated[
        str, PlainValidator(scalar_types.choice("ttl", "http")), WithJsonSchema(scalar_types.words("ttl", "http"))
    ] = key("ttl", "ttl: the gateway reports how it is; http: Consul asks its readyz")
    interval: ReportInterval = key("10s", "how often that happens")
    deregister_after: DeregisterAfter = key("1m", "how long one that does not pass stays listed; null: for ever")


class Consul(Section):
    address: Registry = key("http://127.0.0.1:8500", "Consul's HTTP API")
    token: Text = key("", "ACL token")
    datacenter: OptionalText = key(None, "null: the agent's own")
    poll: Poll = key("5s", "the longest that a question waits for a change")
    stale: Flag = key(True, "let any server answer, not the leader alone")
    registration: Registration | None = key(None, "how the gateway announces itself")


class Etcd(Section):
    endpoints: list[Registry] = key(["http://127.0.0.1:2379"], "the members of the cluster")
    username: OptionalText = key(None, "who asks; null: nobody in particular")
    password: OptionalText = key(None, "the password of username")
    poll: Poll = key("5s", "how often a watched member must answer, and one that cannot be watched is asked")


class Dns(Section):
    servers: list[DnsServer] = key([], "DNS servers, in the order in which they are asked; none: the system's")
    ttl: Kept = key("30s", "the longest that an answer is kept; a record's shorter TTL wins")


class Discovery(Section):
    consul: Consul = key({}, "where Consul is and how it is asked")
    etcd: Etcd = key({}, "where etcd is and how it is asked")
    dns: Dns = key({}, "which DNS servers are asked, and how long answers are kept")
    wait: DurationOrNone = key("3s", "at start, for first answers")
    deny: list[Network] = key(list(NEVER_ENDPOINTS), "networks that are never an endpoint")
    snapshot: OptionalText = key(None, "a file that keeps the last good endpoints over a restart")


# -- defaults, upstreams ---------------------------------------------------------------


class Timeouts(Section):
    connect: Duration = key("2s", "one TCP connection, TLS included")
    write: Duration = key("60s", "without progress while a request is sent")
    response: Duration = key("30s", "from the request's end to the answer's head")
    idle: Duration = key("60s", "between two reads of an answer's body")
    total: Duration = key(None, "up to the answer's head, attempts included")
    tunnel: Duration = key("1h", "a tunnel without a byte either way")


class Pool(Section):
    max_idle: IdleCount = key(100, "idle connections kept; 0: no reuse, null: no limit")
    idle_timeout: Duration = key("30s", "how long a connection may be idle")
    max_connections: Count = key(0, "connections in all")
    queue_timeout: Duration = key("1s", "how long a request waits for one of them")


class Limits(Section):
    header: Size = key("64KiB", "all header lines of an answer together")
    headers: Count = key(256, "number of header lines of an answer")


class Retry(Section):
    attempts: Attempts = key(2, "tries in all; 1: no retries")
    when: list[
        Annotated[
            str,
            PlainValidator(scalar_types.choice("connect", "stale", "reset", "timeout")),
            WithJsonSchema(scalar_types.words("connect", "stale", "reset", "timeout")),
        ]
    ] = key(["connect", "stale", "reset"], "what is tried again")
    statuses: list[ErrorStatus] = key([], "statuses that are tried again")
    methods: list[Method] = key(["GET", "HEAD", "OPTIONS"], "methods that may reach an upstream twice")
    budget: Share = key("20%", "the share of live traffic that may be retries")
    buffer: Size = key("64KiB", "the largest body kept for another try")
    backoff: DurationOrNone = key("25ms", "the longest wait before a second try where there is no other endpoint")
    hedge: Flag = key(False, "ask another endpoint as well when a GET takes longer than 95 of 100 do")


class Buffer(Section):
    request: Size = key("64KiB", "a request's body of up to this is complete before an endpoint is picked; 0: none")
    response: Size = key("64KiB", "so much of an answer is read ahead of a slow client; 0: nothing")
    spool: OptionalText = key(None, "a folder for temporary files of longer bodies; null: those stream")
    spool_max: Size = key("1GiB", "what all such files of a worker may hold; 0: nothing")


class Hash(Section):
    by: HashBy = Field(description="client_ip, path, header:NAME, cookie:NAME or query:NAME")


class Sticky(Section):
    cookie: Token = Field(description="the name of the cookie that remembers the endpoint")
    secret: Secret = key(None, "what the cookie is signed with; null: a key of this start of the gateway")


class Balance(Section):
    hash: Hash | None = key(None, "requests with the same value go to the same endpoint")
    sticky: Sticky | None = key(None, "a client stays with its endpoint")


def _balance(value: object, _: object) -> str | Balance:
    # Which of both was meant is told by its form: a mistake inside is told as one of that.
    return Balance.model_validate(value) if isinstance(value, dict) else scalar_types.balancer(value)


Balancing = Annotated[Balancer | Balance, WrapValidator(_balance)]


class Eject(Section):
    consecutive: TimesOrNone = key(5, "failures in a row; 0: they are not counted")
    error_rate: Share = key("50%", "the share of failures; 0%: it is not looked at")
    min_requests: Times = key(20, "in fewer requests no share is looked at")
    window: Interval = key("10s", "the time in which they are counted")
    out_for: Interval = key("10s", "how long an endpoint gets no requests; each time twice as long", alias="for")
    max_for: Interval = key("5m", "the longest time without requests")
    max_ejected: Share = key("50%", "the largest share of the endpoints that gets no requests")
    statuses: list[ServerErrorStatus] = key([], "answers that count as failures")


class HealthCheck(Section):
    path: SentPath = key("/healthz", "asked with GET")
    tcp: Flag = key(False, "connect only, and ask nothing")
    interval: Interval = key("10s", "how often an endpoint is asked")
    timeout: Moment = key("2s", "how long it may take to answer")
    healthy: Times = key(2, "good answers in a row that bring an endpoint back")
    unhealthy: Times = key(3, "bad ones in a row that take it out")
    status: list[Statuses] = key(["200-399"], "good answers: statuses and ranges of them")
    host: SentHost = key(None, "the Host that is sent; null: the endpoint's own")
    headers: dict[CheckHeader, SentValue] = key({}, "headers that are sent")


class Breaker(Section):
    error_rate: ShareAboveZero = key("50%", "the share of failures that opens it")
    min_requests: Times = key(20, "fewer requests do not open it")
    window: Interval = key("10s", "the time in which they are counted")
    open_for: Interval = key("5s", "how long there are no requests at all")


class Concurrency(Section):
    limit: Count = key(1024, "requests at once, per upstream and worker")
    queue: TimesOrNone = key(100, "how many more wait for their turn; 0: none")
    queue_timeout: Duration = key("1s", "how long they wait")
    adaptive: Flag = key(False, "the limit follows the upstream's latency, up to limit")


class Defaults(Section):
    timeouts: Timeouts = key({}, "limits in time of one exchange with an upstream")
    pool: Pool = key({}, "connections, per endpoint and worker")
    retry: Retry = key({}, "when a request may be tried again")
    limits: Limits = key({}, "what an upstream's answer may measure")
    buffer: Buffer = key({}, "what is held of bodies so that slow clients keep no upstream busy")
    upgrade: Upgrade = key(["websocket"], "protocols of Upgrade that may become a tunnel")
    host: HostPolicy = key("preserve", "the Host that upstreams get: preserve, upstream, or a literal")
    balance: Balancing = key("round_robin", "how an endpoint is picked")
    eject: Eject | None = key({}, "when an endpoint that fails gets no requests for a while; null: never")
    health: HealthCheck | None = key(None, "endpoints are asked whether they are well; null: they are not")
    breaker: Breaker | None = key(None, "when an upstream that fails gets no requests for a while; null: never")
    concurrency: Concurrency | None = key({}, "how many requests there may be at once; null: any number")
    slow_start: DurationOrNone = key(0, "how long the share of a new endpoint grows to its whole")
    deadline_header: DeadlineHeader = key(None, "the header that tells upstreams how many milliseconds are left")


class Tls(Section):
    verify: Flag = key(True, "verify the upstream's certificate")
    ca: OptionalText = key(None, "PEM file of the authorities to trust; null: the system's")
    server_name: ServerName = key(None, "the name to verify and send; null: the URL's")
    cert: OptionalText = key(None, "PEM file of our certificate")
    key: OptionalText = key(None, "PEM file of its key; null: in cert")


class StaticEndpoint(Section):
    url: EndpointUrl = Field(description="http or https, name or address; path and query are put before what comes")
    weight: Weight = key(1, "its share of the traffic; 0: none")


class Upstream(Section):
    later = frozenset({"wsgi"})
    consul: Filled | None = key(None, "the service's name in Consul")
    tag: Filled | None = key(None, "only instances with this tag")
    etcd: Filled | None = key(None, "the path in etcd below which each key is one endpoint")
    dns_srv: DnsName | None = key(None, "the name of SRV records, absolute")
    endpoints: Annotated[
        list[Annotated[StaticEndpoint, BeforeValidator(_with_url), OrText()]] | None,
        Field(description="URLs, or {url, weight}"),
    ] = None
    scheme: Annotated[
        str | None,
        PlainValidator(scalar_types.optional(scalar_types.choice("http", "https"))),
        WithJsonSchema(scalar_types.words("http", "https")),
    ] = key(None, "how discovered endpoints are spoken to; https if tls is given")
    tls: Tls | None = key(None, "how https endpoints are verified")
    timeouts: Timeouts = inherited(Timeouts)
    pool: Pool = inherited(Pool)
    retry: Retry = inherited(Retry)
    limits: Limits = inherited(Limits)
    buffer: Buffer = inherited(Buffer)
    upgrade: Upgrade = inherited()
    host: HostPolicy = inherited()
    balance: Balancing = inherited()
    eject: Eject | None = inherited()
    health: HealthCheck | None = inherited()
    breaker: Breaker | None = inherited()
    concurrency: Concurrency | None = inherited()
    slow_start: DurationOrNone = inherited()
    deadline_header: DeadlineHeader = inherited()
    fallback: Name | None = key(None, "the upstream that is asked when this one has no endpoint")


# -- routes ----------------------------------------------------------------------------


class Excluded(Section):
    host: MatchHost | None = key(None, "exact, or *.example.com")
    path: MatchPath | None = key(None, "exact path")
    prefix: MatchPath | None = key(None, "prefix by whole segments")
    regex: Pattern | None = key(None, "RE2, anchored at both ends")
    methods: list[Method] = key([], "none of these")
    headers: dict[HeaderName, HeaderValue] = key({}, "none of these, exact values")
    query: dict[str, AsWritten] = key({}, "none of these, exact values")


class Match(Section):
    host: MatchHost | None = key(None, "exact, or *.example.com")
    path: MatchPath | None = key(None, "exact path")
    prefix: MatchPath | None = key(None, "prefix by whole segments; with regex, both must match")
    regex: Pattern | None = key(None, "RE2, anchored at both ends")
    methods: list[Method] = key([], "any of these")
    headers: dict[HeaderName, HeaderValue] = key({}, "all of these, exact values")
    query: dict[str, AsWritten] = key({}, "all of these, exact values")
    excluded: Excluded | None = key(None, "the same conditions, none of which may match", alias="not")


class Rewrite(Section):
    prefix: SentPrefix | None = key(None, "put in place of the prefix that matched")
    path: SentPath | None = key(None, "put in place of the whole path")
    regex: RewritingPattern | None = key(None, "matched on the whole normal form; with to")
    to: Template | None = key(None, "the new path, \\1 for groups")


class Part(Section):
    upstream: Name = Field(description="the name of an upstream")
    weight: Weight = key(1, "its share of the requests; 0: none")


class Split(Section):
    by: SplitBy | None = key(None, "cookie:NAME or header:NAME, whose values stay together; null: by chance")
    to: list[Part] = Field(description="upstreams and their weights")


class Mirror(Section):
    upstream: Name = Field(description="the name of an upstream; its answers are thrown away")
    percent: Percent = key(100, "how many of the requests are copied")


class Redirect(Section):
    status: RedirectStatus = key(302, "301, 302, 303, 307 or 308")
    path: SentPrefix | None = key(None, "in place of the whole path")
    prefix: SentPrefix | None = key(None, "in place of the prefix that matched")
    scheme: Annotated[
        str | None,
        PlainValidator(scalar_types.optional(scalar_types.choice("http", "https"))),
        WithJsonSchema(scalar_types.words("http", "https")),
    ] = key(None, "http or https; null: as it was asked for")
    host: OneHost = key(None, "null: as it was asked for")
    port: OptionalPort = key(None, "null: as it was asked for; with scheme or host, that scheme's own")


class Respond(Section):
    status: AnswerStatus = key(200, "200 to 599")
    body: Text = key("", "what is answered, in UTF-8")
    headers: dict[AnswerHeader, SentValue] = key({}, "headers of the answer")


class Route(Section):
    name: Name = Field(description="unique; in logs, metrics and errors")
    match: Annotated[list[Match], BeforeValidator(_many), OneOrMany()] = key(
        [{}], "conditions that must all hold, or a list of them: any"
    )
    priority: Priority = key(0, "higher wins before anything else")
    upstream: Name | None = key(None, "the name of an upstream")
    split: Annotated[Split, BeforeValidator(_with_parts), OrParts()] | None = key(
        None, "upstreams that share the requests: a list, or {by, to}"
    )
    redirect: Redirect | None = key(None, "send clients elsewhere")
    respond: Respond | None = key(None, "answer with what stands here")
    mirror: Mirror | None = key(None, "copy requests to another upstream")
    strip_prefix: Flag = key(False, "take off the prefix that matched")
    rewrite: Rewrite | None = key(None, "change the path that is forwarded")
    filters: NoFilters = key([], "policies, in order")
    timeouts: Timeouts = inherited(Timeouts)
    retry: Retry = inherited(Retry)
    host: HostPolicy = inherited()
    upgrade: Upgrade = inherited()
    deadline_header: DeadlineHeader = inherited()
    ambiguous_paths: AmbiguousPaths | None = key(None, "as server.ambiguous_paths, for this route; null: as there")


class Document(Section):
    """A configuration of the gateway."""

    version: Annotated[Literal[1], PlainValidator(scalar_types.version), WithJsonSchema({"const": 1})] = Field(
        description="of this format"
    )
    server: Server = key({}, "the client's side")
    admin: Admin | None = key({}, "where status and metrics are told; null: nowhere")
    access_log: AccessLog | None = key({}, "one line for each request; null: none")
    discovery: Discovery = key({}, "where endpoints are found")
    defaults: Defaults = key({}, "what upstreams and routes begin with")
    upstreams: dict[Name, Upstream] = key({}, "named groups of endpoints")
    routes: list[Route] = key([], "which requests go where")


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the file, for editors."""
    schema = Document.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
