"""The kinds of scalar that a configuration holds, as pydantic types.

Rule: a kind says what is allowed when it refuses. Nothing is guessed: `"5"` is no number
and `5` is no text, but what came from the environment is read as the kind that is wanted.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from gateway import patterns
from gateway.config import units, urls
from gateway.config.document import resolve
from gateway.config.scalars import Scalar
from gateway.errors import BadRequest, ClientError
from gateway.http import target, trusted_proxies
from gateway.model import Endpoint

# RFC 9110 §5.6.2.
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
PRINTABLE = re.compile(r"[!-~]+\Z")
NEVER_UPGRADED = frozenset({"h2c", "http", "tls"})


def wrong(told: str) -> PydanticCustomError:
    """A mistake with our own words; they stand in a field of the context, because pydantic
    reads braces in a template."""
    return PydanticCustomError("mistake", "{told}", {"told": told})


def shown(value: object) -> str:
    """A value as the file has it, short."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    written = value.written if isinstance(value, Scalar) else str(value)
    if len(written) > 60:
        written = f"{written[:59]}…"
    return written if isinstance(value, Scalar) and not isinstance(value.value, str) else f'"{written}"'


def refused(what: str, value: object, allowed: str = "") -> PydanticCustomError:
    told = f"must be {what}, not {shown(value)}"
    return wrong(f"{told} ({allowed})" if allowed else told)


def _typed(value: object) -> object:
    """The value of a scalar; text from the environment is read by the core schema here."""
    if not isinstance(value, Scalar):
        return value
    return resolve(str(value)) if value.replaced else value.value


# -- text ------------------------------------------------------------------------------


def text(value: object) -> str:
    if isinstance(value, str) and (not isinstance(value, Scalar) or isinstance(value.value, str)):
        return str(value)
    quote = f'write "{value.written}"' if isinstance(value, Scalar) else ""
    raise refused("text", value, quote)


def filled(value: object) -> str:
    got = text(value)
    if not got.strip():
        raise refused("text that is not empty", value)
    return got


def as_written(value: object) -> str:
    """Text, or a number or boolean exactly as the file spells it."""
    if isinstance(value, str):
        return str(value)
    raise refused("text or a number", value)


def name(value: object) -> str:
    got = text(value)
    if not got.isprintable() or got != got.strip() or not 1 <= len(got) <= 128:
        raise refused("a name", value, "1 to 128 printable characters, no space at either end")
    return got


def token(value: object) -> str:
    got = text(value)
    if not TOKEN.match(got):
        raise refused("a token", value, "letters, digits and !#$%&'*+-.^_`|~")
    return got


def optional(kind: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else kind(value)


Text = Annotated[str, PlainValidator(text), WithJsonSchema({"type": "string"})]
Filled = Annotated[str, PlainValidator(filled), WithJsonSchema({"type": "string", "minLength": 1})]
AsWritten = Annotated[str, PlainValidator(as_written), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Name = Annotated[str, PlainValidator(name), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 128})]
Token = Annotated[str, PlainValidator(token), WithJsonSchema({"type": "string", "minLength": 1})]
OptionalText = Annotated[str | None, PlainValidator(optional(filled)), WithJsonSchema({"type": ["string", "null"]})]
OptionalToken = Annotated[str | None, PlainValidator(optional(token)), WithJsonSchema({"type": ["string", "null"]})]


# -- numbers ---------------------------------------------------------------------------


def flag(value: object) -> bool:
    got = _typed(value)
    if isinstance(got, bool):
        return got
    raise refused("true or false", value)


def whole(low: int, high: int = sys.maxsize) -> Callable[[object], int]:
    bounds = f"{low} or more" if high == sys.maxsize else f"{low} to {high}"

    def check(value: object) -> int:
        got = _typed(value)
        if isinstance(got, int) and not isinstance(got, bool) and low <= got <= high:
            return got
        raise refused("a whole number", value, bounds)

    return check


def count(value: object) -> int:
    """A limit on a number of things; 0 and null are no limit."""
    return 0 if value is None else whole(0, 2**31)(value)


def idle_count(value: object) -> int:
    """As `count`, but 0 is none: here null alone is no limit."""
    return sys.maxsize if value is None else whole(0, 2**31)(value)


def _unit(value: object) -> str:
    """The text of what should carry a unit; only `0` may be a bare number."""
    got = _typed(value)
    if isinstance(got, str):
        return got
    return "0" if got == 0 and not isinstance(got, bool) else ""


def duration(value: object) -> float | None:
    """Seconds; 0 and null are off."""
    return None if value is None else length(value) or None


def length(value: object) -> float:
    try:
        return units.duration(_unit(value))
    except ValueError:
        raise refused("a duration", value, "such as 500ms, 5s, 2m, 1h; at most 8760h; 0: none") from None


def duration_or_never(value: object) -> float | None:
    """Seconds; 0 is at once, null never."""
    return None if value is None else length(value)


def duration_or_none(value: object) -> float:
    """Seconds; null is as good as 0."""
    return 0.0 if value is None else length(value)


def at_least(low: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        got = 0.0 if value is None else length(value)
        if got < low:
            raise refused(f"a duration of at least {low * 1000:.0f}ms", value)
        return got

    return check


def size(value: object) -> int:
    """Bytes; 0 and null are no limit."""
    if value is None:
        return 0
    try:
        return units.size(_unit(value))
    except ValueError:
        raise refused("a size", value, "such as 256B, 64KiB, 10MiB, 1GiB; 0: off") from None


def share(value: object) -> float:
    got = _typed(value)
    try:
        return units.share(got if isinstance(got, str) else "")
    except ValueError:
        raise refused("a percentage", value, "0% to 100%") from None


def share_above_zero(value: object) -> float:
    got = share(value)
    if got:
        return got
    raise refused("a percentage above 0%", value)


def percent(value: object) -> float:
    """A percentage whose sign may be left out, as a share."""
    got = _typed(value)
    if isinstance(got, int | float) and not isinstance(got, bool) and 0 <= got <= 100:
        return got / 100
    return share(value)


_LENGTH_SCHEMA = {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)$"}
_DURATION_SCHEMA = {"anyOf": [_LENGTH_SCHEMA, {"const": 0}]}
_SIZE_SCHEMA = {"anyOf": [{"type": "string", "pattern": "^[0-9]{1,12}(B|KiB|MiB|GiB)$"}, {"const": 0}]}
_WHOLE_SCHEMA = {"type": "integer", "minimum": 0}
_NULL = {"type": "null"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*schema.get("anyOf", [schema]), _NULL]}


Flag = Annotated[bool, PlainValidator(flag), WithJsonSchema({"type": "boolean"})]
Priority = Annotated[int, PlainValidator(whole(-(2**31), 2**31)), WithJsonSchema({"type": "integer"})]
Attempts = Annotated[int, PlainValidator(whole(1)), WithJsonSchema({"type": "integer", "minimum": 1})]
# SRV records and Consul have 16 bits for it; 0 takes no traffic.
Weight = Annotated[
    int, PlainValidator(whole(0, 65535)), WithJsonSchema({"type": "integer", "minimum": 0, "maximum": 65535})
]
OptionalPort = Annotated[
    int | None,
    PlainValidator(optional(whole(1, 65535))),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, _NULL]}),
]
ErrorStatus = Annotated[
    int, PlainValidator(whole(400, 599)), WithJsonSchema({"type": "integer", "minimum": 400, "maximum": 599})
]
ServerErrorStatus = Annotated[
    int, PlainValidator(whole(500, 599)), WithJsonSchema({"type": "integer", "minimum": 500, "maximum": 599})
]
AnswerStatus = Annotated[
    int, PlainValidator(whole(200, 599)), WithJsonSchema({"type": "integer", "minimum": 200, "maximum": 599})
]
Times = Annotated[int, PlainValidator(whole(1, 2**31)), WithJsonSchema({"type": "integer", "minimum": 1})]
TimesOrNone = Annotated[int, PlainValidator(whole(0, 2**31)), WithJsonSchema(_WHOLE_SCHEMA)]
Count = Annotated[int, PlainValidator(count), WithJsonSchema(_or_null(_WHOLE_SCHEMA))]
IdleCount = Annotated[int, PlainValidator(idle_count), WithJsonSchema(_or_null(_WHOLE_SCHEMA))]
Duration = Annotated[float | None, PlainValidator(duration), WithJsonSchema(_or_null(_DURATION_SCHEMA))]
DurationOrNever = Annotated[float | None, PlainValidator(duration_or_never), WithJsonSchema(_or_null(_DURATION_SCHEMA))]
DurationOrNone = Annotated[float, PlainValidator(duration_or_none), WithJsonSchema(_or_null(_DURATION_SCHEMA))]
# Shorter than this is no time to finish a request in, and gunicorn counts whole seconds.
Graceful = Annotated[float, PlainValidator(at_least(1.0)), WithJsonSchema(_LENGTH_SCHEMA)]
# No answer is kept for less, so that nothing can be asked for more often.
Kept = Annotated[float, PlainValidator(at_least(1.0)), WithJsonSchema(_LENGTH_SCHEMA)]
# A registry asked more often than that by every worker is a registry under attack.
Poll = Annotated[float, PlainValidator(at_least(0.1)), WithJsonSchema(_LENGTH_SCHEMA)]
ReportInterval = Annotated[float, PlainValidator(at_least(1.0)), WithJsonSchema(_LENGTH_SCHEMA)]
# Consul takes a shorter time for a minute.
DeregisterAfter = Annotated[
    float | None, PlainValidator(optional(at_least(60.0))), WithJsonSchema(_or_null(_LENGTH_SCHEMA))
]
# What is looked at, or left alone, for less tells nothing.
Interval = Annotated[float, PlainValidator(at_least(0.1)), WithJsonSchema(_LENGTH_SCHEMA)]
Moment = Annotated[float, PlainValidator(at_least(0.001)), WithJsonSchema(_LENGTH_SCHEMA)]
Size = Annotated[int, PlainValidator(size), WithJsonSchema(_or_null(_SIZE_SCHEMA))]
_SHARE_SCHEMA = {"type": "string", "pattern": r"^[0-9]{1,3}(\.[0-9]{1,9})?%$"}
Share = Annotated[float, PlainValidator(share), WithJsonSchema(_SHARE_SCHEMA)]
ShareAboveZero = Annotated[float, PlainValidator(share_above_zero), WithJsonSchema(_SHARE_SCHEMA)]
Percent = Annotated[
    float,
    PlainValidator(percent),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": 100}, _SHARE_SCHEMA]}),
]


# -- words of HTTP ---------------------------------------------------------------------


def method(value: object) -> str:
    got = token(value)
    if got != got.upper():
        raise refused("a method in capitals", value, "methods are case-sensitive")
    return got


def upgrade_token(value: object) -> bytes:
    got = text(value)
    if not all(TOKEN.match(part) for part in got.split("/", 1)):
        raise refused("a protocol of an Upgrade header", value, "such as websocket")
    if got.partition("/")[0].lower() in NEVER_UPGRADED:
        raise refused("a protocol that may become a tunnel", value, "h2c, HTTP and TLS never may")
    return got.lower().encode()


def header_name(value: object) -> str:
    return token(value).lower()


def header_value(value: object) -> str:
    got = as_written(value)
    if got != got.strip() or any((letter < " " and letter != "\t") or letter == "\x7f" for letter in got):
        raise refused("a header value", value, "no space at either end, no control characters")
    return got


def choice(*allowed: str) -> Callable[[object], str]:
    """One of some words."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise refused(f"one of {' | '.join(allowed)}" if len(allowed) > 1 else allowed[0], value)
        return str(value)

    return check


_STATUSES = re.compile(r"(?P<first>[2-5][0-9]{2})-(?P<last>[2-5][0-9]{2})\Z")


def statuses(value: object) -> range:
    """One status, or all from one to another."""
    got = _typed(value)
    if isinstance(got, int) and 200 <= got <= 599:
        return range(got, got + 1)
    found = _STATUSES.match(got) if isinstance(got, str) else None
    if found is not None and found["first"] <= found["last"]:
        return range(int(found["first"]), int(found["last"]) + 1)
    raise refused("a status or a range of them", value, "such as 204 or 200-399; 200 to 599")


REDIRECTS = (301, 302, 303, 307, 308)


def redirect_status(value: object) -> int:
    got = _typed(value)
    if isinstance(got, int) and got in REDIRECTS:
        return got
    raise refused(f"one of {', '.join(map(str, REDIRECTS))}", value)


# What frames a message or belongs to one connection (RFC 9110 §7.6.1, RFC 9112 §6).
_FRAMING = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# What the gateway itself tells upstreams of where a request comes from.
_WHENCE = frozenset(
    {
        "cdn-loop",
        "forwarded",
        "host",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-proto",
        "x-real-ip",
    }
)


def sent_name(*, apart_from: frozenset[str]) -> Callable[[object], str]:
    """The name of a header that is put into a message, in the case in which it is written."""

    def check(value: object) -> str:
        got = token(value)
        if got.lower() in apart_from:
            raise refused("a header that can be set", value, "not one that frames a message or that is the gateway's")
        return got

    return check


def sent_value(value: object) -> bytes:
    got = header_value(value)
    if not got.isascii():
        raise refused("a header value in ASCII", value)
    return got.encode()


def keyed(*plain: str, named: tuple[str, ...]) -> Callable[[object], tuple[str, str]]:
    """What of a request is looked at: one of the words in `plain`, or KIND:NAME with a kind of
    `named`. The kind and the name, a header's in lower case."""
    allowed = " | ".join((*plain, *(f"{kind}:NAME" for kind in named)))

    def check(value: object) -> tuple[str, str]:
        got = text(value)
        if got in plain:
            return got, ""
        kind, _, name = got.partition(":")
        # Any text names a query parameter.
        if kind not in named or not (name if kind == "query" else TOKEN.match(name)):
            raise refused(f"one of {allowed}", value)
        return kind, name.lower() if kind == "header" else name

    return check


BALANCERS = ("round_robin", "least_requests", "ewma")


def balancer(value: object) -> str:
    """A way to pick an endpoint that is said in one word."""
    if not isinstance(value, str) or value not in BALANCERS:
        raise refused(f"one of {' | '.join(BALANCERS)} | {{hash: {{by}}}} | {{sticky: {{cookie}}}}", value)
    return str(value)


def secret(value: object) -> str:
    """Any text; null is none."""
    if value is None or (isinstance(value, str) and (not isinstance(value, Scalar) or isinstance(value.value, str))):
        return str(value or "")
    # What was given is a secret, and stays out of the message.
    raise wrong("must be text (in quotes, if it looks like a number)")


def version(value: object) -> int:
    if type(_typed(value)) is int and _typed(value) == 1:
        return 1
    raise refused("1", value, "the version of the file's format that this gateway reads")


def words(*allowed: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(allowed)}


Method = Annotated[str, PlainValidator(method), WithJsonSchema({"type": "string"})]
UpgradeToken = Annotated[bytes, PlainValidator(upgrade_token), WithJsonSchema({"type": "string"})]
HeaderName = Annotated[str, PlainValidator(header_name), WithJsonSchema({"type": "string"})]
HeaderValue = Annotated[str, PlainValidator(header_value), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Statuses = Annotated[
    range,
    PlainValidator(statuses),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 200, "maximum": 599}, {"type": "string"}]}),
]
RedirectStatus = Annotated[
    int, PlainValidator(redirect_status), WithJsonSchema({"type": "integer", "enum": list(REDIRECTS)})
]
AnswerHeader = Annotated[str, PlainValidator(sent_name(apart_from=_FRAMING)), WithJsonSchema({"type": "string"})]
CheckHeader = Annotated[
    str, PlainValidator(sent_name(apart_from=_FRAMING | {"host"})), WithJsonSchema({"type": "string"})
]
DeadlineHeader = Annotated[
    str | None,
    PlainValidator(optional(sent_name(apart_from=_FRAMING | _WHENCE))),
    WithJsonSchema({"type": ["string", "null"]}),
]
SentValue = Annotated[bytes, PlainValidator(sent_value), WithJsonSchema({"type": ["string", "number", "boolean"]})]
_NAMED = {"type": "string", "pattern": "^(client_ip|path|(header|cookie|query):.+)$"}
HashBy = Annotated[
    tuple[str, str],
    PlainValidator(keyed("client_ip", "path", named=("header", "cookie", "query"))),
    WithJsonSchema(_NAMED),
]
SplitBy = Annotated[
    tuple[str, str],
    PlainValidator(keyed(named=("cookie", "header"))),
    WithJsonSchema({"type": "string", "pattern": "^(cookie|header):.+$"}),
]
Balancer = Annotated[str, PlainValidator(balancer), WithJsonSchema(words(*BALANCERS))]
Secret = Annotated[str, PlainValidator(secret), WithJsonSchema({"type": ["string", "null"]})]


# -- hosts, paths, addresses -----------------------------------------------------------


def match_host(value: object) -> str:
    """A host to match: `api.example.com` or `*.example.com`, in lower case."""
    got = text(value)
    bare = got.removeprefix("*.")
    try:
        normal = target.host(bare.encode("ascii")).decode()
    except (UnicodeEncodeError, BadRequest):
        normal = ""
    if not normal or (got != bare and normal.startswith("[")):
        raise refused("a host", value, "api.example.com, *.example.com, [2001:db8::1]; an international name as xn--…")
    if _has_port(bare):
        raise refused("a host without a port", value, "a port in a request's Host is not looked at")
    return got[: len(got) - len(bare)] + normal


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


def server_name(value: object) -> str:
    """A name, or an address, that a certificate can be for."""
    got = text(value)
    try:
        return urls.host(got)
    except ValueError as error:
        raise wrong(f"{error} (a host name or an IP address)") from None


def host_policy(value: object) -> str:
    """What Host an upstream gets: `preserve`, `upstream`, or a literal."""
    return _sent_host(value, "preserve, upstream or a host")


def sent_host(value: object) -> str:
    """A Host to send, with or without a port."""
    return _sent_host(value, "a host")


def _sent_host(value: object, what: str) -> str:
    got = text(value)
    try:
        known = target.host(got.encode("ascii"))
    except (UnicodeEncodeError, BadRequest):
        known = b""
    if not known:
        raise refused(what, value)
    return got


def one_host(value: object) -> str:
    """A host as in a URL, without a port."""
    got = match_host(value)
    if got.startswith("*."):
        raise refused("a host without a wildcard", value)
    return got


def match_path(value: object) -> str:
    """A path or prefix to match, as written."""
    got = text(value)
    if not got.startswith("/") or "?" in got or "#" in got or not got.isprintable():
        raise refused("a path", value, "from the first slash, without ? and #")
    try:
        target.written(got)
    except ClientError:
        raise refused("a path without dot segments and %00", value, "no request is matched with them") from None
    return got


def pattern(value: object) -> str:
    got = text(value)
    _compiled(got, groups=False)
    return got


def _compiled(source: str, groups: bool) -> patterns.Pattern:
    try:
        return patterns.compile(source, groups)
    except patterns.PatternError as error:
        raise wrong(str(error)) from None


def rewriting_pattern(value: object) -> patterns.Pattern:
    return _compiled(text(value), groups=True)


def sent_path(value: object) -> bytes:
    """A path that is put in front of or in place of what came: only what may be sent."""
    got = text(value)
    if not got.startswith("/") or not PRINTABLE.match(got) or "#" in got:
        raise refused("a path", value, "from the first slash, printable ASCII, the rest percent-encoded, without #")
    return got.encode()


def sent_prefix(value: object) -> bytes:
    got = sent_path(value)
    if b"?" in got:
        raise refused("a path without ?", value)
    return got


def template(value: object) -> bytes:
    """What a rewriting puts together: a path with `\\1` for groups."""
    got = text(value)
    if not got.startswith(("/", "\\")) or not PRINTABLE.match(got) or "#" in got:
        raise refused("a path with groups", value, "such as /users/\\1; printable ASCII, without #")
    return got.encode()


def own_prefix(value: object) -> str | None:
    if value is None:
        return None
    got = match_path(value)
    normal = target.written(got).decode()
    if len(got) < 3 or not got.endswith("/") or normal != got:
        raise refused("a path such as /-/", value, "a slash at both ends, nothing percent-encoded; null: none")
    return got


def trusted(value: object) -> str:
    got = text(value)
    try:
        trusted_proxies.parse((got,))
    except ValueError as error:
        raise wrong(f"{error}") from None
    return got


def network(value: object) -> str:
    got = text(value)
    try:
        ipaddress.ip_network(got)
    except ValueError as error:
        raise wrong(f"must be a network: {error} (such as 169.254.0.0/16)") from None
    if "%" in got:
        raise wrong("must be a network without a zone (such as fe80::/10)")
    return got


def registry(value: object) -> str:
    """The address of a registry's HTTP API."""
    got = text(value)
    try:
        found = urls.endpoint(got)
    except ValueError as error:
        raise wrong(f"{error} (such as http://127.0.0.1:8500)") from None
    if found.base_path or found.query:
        raise refused("scheme, host and port alone", value, "such as http://127.0.0.1:8500")
    return got.rstrip("/")


def dns_server(value: object) -> str:
    got = text(value)
    try:
        return urls.dns_server(got)
    except ValueError:
        raise refused("the address of a DNS server", value, "10.0.0.53, 10.0.0.53:8600, [2001:db8::53]:53") from None


# RFC 2181 §11 lets any octet stand in a name; these are what services are called by.
_DNS_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?\Z")


def dns_name(value: object) -> str:
    """A name of the DNS, absolute: in lower case, without the dot at its end."""
    got = text(value)
    if not _DNS_NAME.match(got) or len(got.removesuffix(".")) > 253:
        raise refused("a DNS name", value, "such as _http._tcp.orders.example.internal")
    return got.removesuffix(".").lower()


_ADMIN_BIND = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*):(?P<port>[0-9]{1,5})\Z")


def admin_bind(value: object) -> str:
    """Where the admin listener is: an address to bind, a unix socket, or the word inline."""
    got = text(value)
    if got == "inline" or (got.startswith("unix:/") and got.isprintable()):
        return got
    found = _ADMIN_BIND.match(got)
    if found is None or int(found["port"]) > 65535:
        raise refused("HOST:PORT, unix:/PATH or inline", value, "such as 127.0.0.1:9901")
    host = found["host"].removeprefix("[").removesuffix("]")
    try:
        if host:
            urls.host(host)
    except ValueError as error:
        raise wrong(f"{error} (such as 127.0.0.1:9901)") from None
    return got


def admin_is_local(bind: str) -> bool:
    """Whether only this machine reaches that address."""
    if bind.startswith("unix:"):
        return True
    host = bind.rpartition(":")[0].removeprefix("[").removesuffix("]")
    return host == "localhost" or (urls.is_address(host) and ipaddress.ip_address(host).is_loopback)


def bearer_token(value: object) -> str:
    """What goes behind `Authorization: Bearer `, or nothing."""
    got = text(value)
    if got and not PRINTABLE.match(got):
        # What was given is a secret, and stays out of the message.
        raise wrong("must be printable ASCII without spaces")
    return got


def endpoint(value: object) -> Endpoint:
    try:
        return urls.endpoint(text(value))
    except ValueError as error:
        raise wrong(f"{error} (such as http://10.0.0.9:8080, https://name/base?key=value)") from None


AdminBind = Annotated[str, PlainValidator(admin_bind), WithJsonSchema({"type": "string", "minLength": 1})]
BearerToken = Annotated[str, PlainValidator(bearer_token), WithJsonSchema({"type": "string"})]
ServerName = Annotated[str | None, PlainValidator(optional(server_name)), WithJsonSchema({"type": ["string", "null"]})]
MatchHost = Annotated[str, PlainValidator(match_host), WithJsonSchema({"type": "string"})]
OneHost = Annotated[str | None, PlainValidator(optional(one_host)), WithJsonSchema({"type": ["string", "null"]})]
SentHost = Annotated[str | None, PlainValidator(optional(sent_host)), WithJsonSchema({"type": ["string", "null"]})]
HostPolicy = Annotated[str, PlainValidator(host_policy), WithJsonSchema({"type": "string"})]
MatchPath = Annotated[str, PlainValidator(match_path), WithJsonSchema({"type": "string", "pattern": "^/"})]
Pattern = Annotated[str, PlainValidator(pattern), WithJsonSchema({"type": "string", "format": "regex"})]
RewritingPattern = Annotated[
    patterns.Pattern, PlainValidator(rewriting_pattern), WithJsonSchema({"type": "string", "format": "regex"})
]
SentPath = Annotated[bytes, PlainValidator(sent_path), WithJsonSchema({"type": "string", "pattern": "^/"})]
SentPrefix = Annotated[bytes, PlainValidator(sent_prefix), WithJsonSchema({"type": "string", "pattern": "^/"})]
Template = Annotated[bytes, PlainValidator(template), WithJsonSchema({"type": "string"})]
OwnPrefix = Annotated[str | None, PlainValidator(own_prefix), WithJsonSchema({"type": ["string", "null"]})]
Trusted = Annotated[str, PlainValidator(trusted), WithJsonSchema({"type": "string"})]
Network = Annotated[str, PlainValidator(network), WithJsonSchema({"type": "string"})]
Registry = Annotated[str, PlainValidator(registry), WithJsonSchema({"type": "string", "format": "uri"})]
DnsServer = Annotated[str, PlainValidator(dns_server), WithJsonSchema({"type": "string"})]
DnsName = Annotated[str, PlainValidator(dns_name), WithJsonSchema({"type": "string"})]
EndpointUrl = Annotated[Endpoint, PlainValidator(endpoint), WithJsonSchema({"type": "string", "format": "uri"})]
