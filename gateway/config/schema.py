"""The file, version 1, as pydantic models: every key, its kind, its default, its meaning.

Rule: what stands here works. A key that the format reserves for what this version cannot
do yet stands in `later` of its section, and is refused by name. Defaults are spelt as in
the file and read like anything else; `build` takes from a section only what was given.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema

from gateway.config import kinds
from gateway.config.kinds import (
    AdminBind,
    AsWritten,
    Attempts,
    BearerToken,
    BytePattern,
    Count,
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
    HeaderName,
    HeaderValue,
    HostPolicy,
    IdleCount,
    Kept,
    MatchHost,
    MatchPath,
    Method,
    Name,
    Network,
    OptionalPort,
    OptionalText,
    OptionalToken,
    OwnPrefix,
    Pattern,
    Poll,
    Priority,
    Registry,
    ReportInterval,
    SentPath,
    SentPrefix,
    ServerName,
    Share,
    Size,
    Template,
    Text,
    Token,
    Trusted,
    UpgradeToken,
    Weight,
)

BALANCERS_LATER = frozenset({"least_requests", "ewma", "hash", "sticky"})


class Section(BaseModel):
    """A mapping of the file. `later`: keys of the format that this version refuses."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, arbitrary_types_allowed=True)
    later: ClassVar[frozenset[str]] = frozenset()


def key(default: Any, told: str) -> Any:
    """A key that may be left out; the default is spelt as in the file."""
    return Field(default, description=told)


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


def _no_filters(value: object) -> list[str]:
    if not isinstance(value, list):
        raise kinds.refused("a list", value)
    if value:
        raise kinds.wrong("filters are not in this version ([])")
    return []


Balance = Annotated[
    str,
    PlainValidator(kinds.choice("round_robin", later=BALANCERS_LATER)),
    WithJsonSchema(kinds.words("round_robin")),
]
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


class Server(Section):
    name: OptionalToken = key(None, "the gateway's name in Via")
    trusted_proxies: list[Trusted] = key([], "whose X-Forwarded-* are believed")
    timeouts: ServerTimeouts = key({}, "limits in time on the client's side")
    min_rate: Size = key("256B", "bytes a second, averaged over 30 s, below which a client is cut off")
    limits: ServerLimits = key({}, "what a request may measure")
    graceful: Graceful = key("25s", "how long a stopping worker may take")
    drain: DurationOrNone = key(0, "how long accepting goes on after SIGTERM")
    request_id: Token = key("X-Request-Id", "the header that carries the request id")
    own_prefix: OwnPrefix = key("/-/", "the gateway's own paths")
    via: Annotated[
        str,
        PlainValidator(kinds.choice("both", "request", "response", "off")),
        WithJsonSchema(kinds.words("both", "request", "response", "off")),
    ] = key("both", "where Via is written")
    forwarded: Flag = key(False, "write RFC 7239 Forwarded also when the request had none")


# -- admin, access log, discovery ------------------------------------------------------


class Admin(Section):
    bind: AdminBind = key("127.0.0.1:9901", "HOST:PORT, unix:PATH, or inline: under own_prefix where data is served")
    token: BearerToken = key("", "asked of whoever wants to know; of 16 characters or more with inline")


class AccessLog(Section):
    path: OptionalText = key("-", "a file; - is standard output, null no log")
    format: Annotated[str, PlainValidator(kinds.choice("json")), WithJsonSchema(kinds.words("json"))] = key(
        "json", "one JSON object a line"
    )
    redact: list[Filled] = key(
        ["access_token", "token", "api_key", "password", "signature", "X-Amz-Signature"],
        "query parameters whose values are masked",
    )


class Registration(Section):
    service: Filled = key("gateway", "the name of the service that gateways are")
    address: OptionalText = key(None, "where others reach it; null: where it listens")
    port: OptionalPort = key(None, "null: where it listens")
    tags: list[Filled] = key([], "tags of this instance")
    check: Annotated[
        str, PlainValidator(kinds.choice("ttl", "http")), WithJsonSchema(kinds.words("ttl", "http"))
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
    deny: list[Network] = key(["169.254.0.0/16"], "networks that are never an endpoint")
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
            PlainValidator(kinds.choice("connect", "stale", "reset", "timeout")),
            WithJsonSchema(kinds.words("connect", "stale", "reset", "timeout")),
        ]
    ] = key(["connect", "stale", "reset"], "what is tried again")
    statuses: list[ErrorStatus] = key([], "statuses that are tried again")
    methods: list[Method] = key(["GET", "HEAD", "OPTIONS"], "methods that may reach an upstream twice")
    budget: Share = key("20%", "the share of live traffic that may be retries")
    buffer: Size = key("64KiB", "the largest body kept for another try")


class Defaults(Section):
    later = frozenset({"eject", "health", "breaker", "concurrency", "slow_start"})
    timeouts: Timeouts = key({}, "limits in time of one exchange with an upstream")
    pool: Pool = key({}, "connections, per endpoint and worker")
    retry: Retry = key({}, "when a request may be tried again")
    limits: Limits = key({}, "what an upstream's answer may measure")
    upgrade: Upgrade = key(["websocket"], "protocols of Upgrade that may become a tunnel")
    host: HostPolicy = key("preserve", "the Host that upstreams get: preserve, upstream, or a literal")
    balance: Balance = key("round_robin", "how an endpoint is picked")


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
    later = Defaults.later | {"wsgi", "fallback"}
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
        PlainValidator(kinds.optional(kinds.choice("http", "https"))),
        WithJsonSchema(kinds.words("http", "https")),
    ] = key(None, "how discovered endpoints are spoken to; https if tls is given")
    tls: Tls | None = key(None, "how https endpoints are verified")
    timeouts: Timeouts = inherited(Timeouts)
    pool: Pool = inherited(Pool)
    retry: Retry = inherited(Retry)
    limits: Limits = inherited(Limits)
    upgrade: Upgrade = inherited()
    host: HostPolicy = inherited()
    balance: Balance = inherited()


# -- routes ----------------------------------------------------------------------------


class Match(Section):
    host: MatchHost | None = key(None, "exact, or *.example.com")
    path: MatchPath | None = key(None, "exact path")
    prefix: MatchPath | None = key(None, "prefix by whole segments")
    regex: Pattern | None = key(None, "anchored at both ends")
    methods: list[Method] = key([], "any of these")
    headers: dict[HeaderName, HeaderValue] = key({}, "all of these, exact values")
    query: dict[str, AsWritten] = key({}, "all of these, exact values")


class Rewrite(Section):
    prefix: SentPrefix | None = key(None, "put in place of the prefix that matched")
    path: SentPath | None = key(None, "put in place of the whole path")
    regex: BytePattern | None = key(None, "matched on the whole normal form; with to")
    to: Template | None = key(None, "the new path, \\1 for groups")


class Route(Section):
    later = frozenset({"split", "mirror", "redirect", "respond"})
    name: Name = Field(description="unique; in logs, metrics and errors")
    match: Annotated[list[Match], BeforeValidator(_many), OneOrMany()] = key(
        [{}], "conditions that must all hold, or a list of them: any"
    )
    priority: Priority = key(0, "higher wins before anything else")
    upstream: Name = Field(description="the name of an upstream")
    strip_prefix: Flag = key(False, "take off the prefix that matched")
    rewrite: Rewrite | None = key(None, "change the path that is forwarded")
    filters: NoFilters = key([], "policies, in order")
    timeouts: Timeouts = inherited(Timeouts)
    retry: Retry = inherited(Retry)
    host: HostPolicy = inherited()
    upgrade: Upgrade = inherited()


class Document(Section):
    """A configuration of the gateway."""

    version: Annotated[Literal[1], PlainValidator(kinds.version), WithJsonSchema({"const": 1})] = Field(
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
