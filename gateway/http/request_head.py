"""What happens to header fields on their way through: hop-by-hop, forwarding, trust.

Rule: pure; list in, list (or one preformatted head) out. A field is looked at once: its
name, in whatever case it came, is looked up in a bounded table that says what kind of
field it is; kind 0, which is nearly all, passes untouched with its case and place.

Sources: RFC 9110 §7.6.1 (Connection and the fields it names), §7.6.3 (Via), §7.6.2
(Max-Forwards), RFC 9113 and 9112 (framing fields), RFC 7239 (Forwarded), RFC 8586
(CDN-Loop); the trust rules are interface "Headers to the upstream".
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable
from typing import Generic, NamedTuple, TypeVar

from gateway.errors import BadRequest, BadResponse, LoopDetected
from gateway.http.messages import Header, Headers, Request
from gateway.http.trusted_proxies import Trust
from gateway.model import ServerSettings

log = logging.getLogger("gateway.http.request_head")

# Kinds of fields. 0 passes as it is; 1 is dropped; the others are looked at.
_PASS, _DROP, _CONNECTION, _XFF, _XFH, _XFPROTO, _XFPORT, _TRUSTED_ONLY, _FORWARDED, _VIA = range(10)
_REQUEST_ID, _CDN_LOOP, _COOKIE, _MAX_FORWARDS, _AUTH, _TRACEPARENT = range(10, 16)
_LENGTH, _TRANSFER, _KEEP_ALIVE, _GATEWAY_ERROR, _UPGRADE = range(20, 25)
# A name with an underscore; a field that no client has a say in: both are dropped, and invisible to routes.
_UNDERSCORE, _NEVER = -1, -2

# Says that a request is a copy, and of which route; a client's own word for it is dropped.
MIRROR = b"Gateway-Mirror"

# Fields that routes see as they will be forwarded, not as they came.
_RESOLVED = frozenset(
    {_XFF, _XFH, _XFPROTO, _XFPORT, _TRUSTED_ONLY, _FORWARDED, _REQUEST_ID, _UNDERSCORE, _NEVER}
)

_REQUEST_KINDS = {
    b"host": _DROP,  # written anew, from what the request asked for
    b"keep-alive": _DROP,
    # CGI-style servers make HTTP_PROXY of it, which HTTP clients take for their proxy (httpoxy, CVE-2016-5385).
    b"proxy": _NEVER,
    b"proxy-connection": _DROP,
    b"proxy-authenticate": _DROP,
    b"proxy-authorization": _DROP,
    b"te": _DROP,  # trailers are dropped, so none may be promised
    b"trailer": _DROP,
    b"transfer-encoding": _DROP,
    b"content-length": _DROP,
    b"upgrade": _DROP,
    b"http2-settings": _DROP,
    b"expect": _DROP,
    b"gateway-error": _NEVER,
    MIRROR.lower(): _NEVER,  # copies get theirs behind this (gateway.forwarding.mirror)
    b"connection": _CONNECTION,
    b"x-forwarded-for": _XFF,
    b"x-forwarded-host": _XFH,
    b"x-forwarded-proto": _XFPROTO,
    b"x-forwarded-port": _XFPORT,
    b"x-real-ip": _NEVER,
    b"x-request-start": _TRUSTED_ONLY,
    b"forwarded": _FORWARDED,
    b"via": _VIA,
    b"cdn-loop": _CDN_LOOP,
    b"cookie": _COOKIE,
    b"max-forwards": _MAX_FORWARDS,
    b"authorization": _AUTH,
    b"traceparent": _TRACEPARENT,
}

_ANSWER_KINDS = {
    b"connection": _CONNECTION,
    b"keep-alive": _KEEP_ALIVE,
    b"proxy-connection": _DROP,
    b"proxy-authenticate": _DROP,
    b"proxy-authorization": _DROP,
    b"proxy-authentication-info": _DROP,
    b"te": _DROP,
    b"trailer": _DROP,
    b"upgrade": _UPGRADE,
    b"transfer-encoding": _TRANSFER,
    b"content-length": _LENGTH,
    b"gateway-error": _GATEWAY_ERROR,
    b"via": _VIA,
    b"www-authenticate": _AUTH,
}

# What a client's Connection header can never take away: framing, Host and what the gateway
# itself says (interface, "Headers to the upstream").
_PROTECTED = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-real-ip",
        b"forwarded",
        b"via",
        b"cdn-loop",
        b"max-forwards",
        b"traceparent",
        b"tracestate",
        # Taking these away would make a request look like another client's.
        b"authorization",
        b"cookie",
    }
)

# Attackers may send any number of names; only so many, and only short ones, are kept.
_MAX_NAMES = 2048
_MAX_NAME = 64

_REQUEST_ID_FORM = re.compile(rb"[A-Za-z0-9._-]{1,128}\Z")
# W3C Trace Context §3.2: version ff and all-zero ids are invalid; a later version may add more.
_TRACEPARENT_FORM = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-|\Z)"
)
# Authentication schemes that authenticate the connection, not the request (RFC 4559 §6).
_CONNECTION_AUTH = (b"ntlm", b"nego")


class _Kinds:
    """name as it came -> kind, filled as names are met."""

    __slots__ = ("_find", "table")

    def __init__(self, find: Callable[[bytes], int]) -> None:
        self._find = find
        self.table: dict[bytes, int] = {}

    def learn(self, name: bytes) -> int:
        kind = self._find(name.lower())
        if len(name) <= _MAX_NAME:
            # Clients choose the names: a full table is cleared, as in `FieldLines`, so that none can fill it for good.
            if len(self.table) >= _MAX_NAMES:
                self.table.clear()
            self.table[name] = kind
        return kind


# A length of more digits is no length (llhttp counts to 2 ** 64).
_MAX_DIGITS = 18
# A NamedTuple's own constructor is a Python function around this.
_new = tuple.__new__


# A field line as nearly all are: a name, a colon and one space, a value that neither begins
# nor ends with white space (RFC 9112 §5). Whatever is not like that is a parser's to judge.
_field_line = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++): ([!-~\x80-\xff]++(?:[ \t]++[!-~\x80-\xff]++)*)"
).fullmatch
# Lines are the other side's to choose: so many, and only short ones, are remembered. The
# table starts anew when it is full, as values (dates, ids) change for ever.
_MAX_LINES = 4096
_MAX_LINE = 256
# Fields whose lines are never remembered: a credential ends with its connection.
_CREDENTIALS = frozenset(
    {
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"x-api-key",
        b"x-auth-token",
        b"x-amz-security-token",
        b"x-goog-iap-jwt-assertion",
    }
)

What = TypeVar("What")


class FieldLines(Generic[What]):
    """Field lines met before: line -> (what its name means, the field).

    Most lines of most heads are the same from one message to the next, so that one look-up
    tells their syntax, their name in lower case and their kind.
    """

    __slots__ = ("_mean", "table")

    def __init__(self, mean: Callable[[bytes], What]) -> None:
        self._mean = mean
        self.table: dict[bytes, tuple[What, Header]] = {}

    def learn(self, line: bytes) -> tuple[What, Header] | None:
        """What a line says that is not in the table; None when it is not as nearly all are."""
        found = _field_line(line)
        if found is None:
            return None
        name, value = found.groups()
        key = name.lower()
        entry = (self._mean(key), (name, value))
        if len(line) <= _MAX_LINE and key not in _CREDENTIALS:
            if len(self.table) >= _MAX_LINES:
                self.table.clear()
            self.table[line] = entry
        return entry


def tokens(value: bytes) -> list[bytes]:
    """The lower-case members of a comma-separated list, empty ones left out."""
    return [token for token in (part.strip(b" \t").lower() for part in value.split(b",")) if token]


def received_by(via: bytes) -> list[bytes]:
    """The gateways that a Via value names (RFC 9110 §7.6.3: each entry is a protocol, white
    space, the gateway and perhaps a comment). Time is linear in the length of the value."""
    entries = (entry.split(None, 2) for entry in via.split(b","))
    return [entry[1] for entry in entries if len(entry) > 1]


def carries_connection_auth(value: bytes) -> bool:
    """Whether a (WWW-)Authenticate or Authorization value binds a user to the connection."""
    return value[:4].lower() in _CONNECTION_AUTH


class Head(NamedTuple):
    """One request head ready to be sent, whether its connection may be shared after, and
    the token of the Upgrade that it asks for."""

    data: bytes
    shareable: bool
    upgrade: bytes | None = None


def with_field(head: Head, name: bytes, value: bytes | None) -> Head:
    """The head with that field once, and in no other line of that name; None: without it."""
    wanted = name.lower() + b":"
    lines = [line for line in head.data[:-4].split(b"\r\n") if line[: len(wanted)].lower() != wanted]
    if value is not None:
        lines.append(name + b": " + value)
    return head._replace(data=b"\r\n".join(lines) + b"\r\n\r\n")


# Peer, client, the authority asked for, scheme, HTTP/1.1.
_Asked = tuple[str, str, bytes, str, bool]


class Outbound:
    """Makes the head that an upstream gets from a `Request`. One per gateway and worker."""

    def __init__(
        self, server: ServerSettings, name: bytes, trust: Trust, new_id: Callable[[], bytes]
    ) -> None:
        self._trust = trust
        self._new_id = new_id
        self._via = server.via in ("both", "request")
        self._write_forwarded = server.forwarded
        self._id_name = server.request_id.encode("latin-1")
        self._id_key = self._id_name.lower()
        self._kinds = _Kinds(self._kind)
        # Lower-case names of fields that the gateway writes itself for some routes (deadline_header).
        self.replaced: Collection[bytes] = frozenset()
        # How many fields were dropped for an underscore in their name.
        self.underscores = 0
        self._told: set[bytes] = set()
        self.rename(name)

    def rename(self, name: bytes) -> None:
        """Be called `name` in Via from now on."""
        self._name = name
        self._hop = b" " + name
        self._added: dict[_Asked, bytes] = {}

    def _add_usual(self, asked: _Asked) -> bytes:
        """What is added to a request that came without any forwarding field, but for the
        request id at its end; remembered, as requests of one connection have it in common."""
        peer, client, host, scheme, http11 = asked
        via = (b"Via: 1.1 " if http11 else b"Via: 1.0 ") if self._via else b"CDN-Loop: "
        lines = (
            b"X-Forwarded-For: " + peer.encode("latin-1"),
            b"X-Forwarded-Host: " + host,
            b"X-Forwarded-Proto: " + scheme.encode(),
            b"X-Forwarded-Port: " + (port_of(host) or (b"443" if scheme == "https" else b"80")),
            b"X-Real-IP: " + client.encode("latin-1"),
            via + self._name,
            self._id_name + b": ",
        )
        added = b"\r\n".join(lines)
        if len(host) <= _MAX_LINE:
            if len(self._added) >= _MAX_LINES:
                self._added.clear()
            self._added[asked] = added
        return added

    def _kind(self, key: bytes) -> int:
        if key == self._id_key:
            return _REQUEST_ID
        if b"_" in key:
            return _UNDERSCORE
        known = _REQUEST_KINDS.get(key)
        if known is not None:
            return known
        # X-Forwarded-Prefix, -Uri, -Method, -Tls-Client-Cert …: a client's claims.
        return _TRUSTED_ONLY if key.startswith(b"x-forwarded-") else _PASS

    def _tell_underscore(self, name: bytes) -> None:
        """CGI-style servers cannot tell `X_User` from `X-User`: dropped, told once a name."""
        self.underscores += 1
        if name not in self._told and len(self._told) < 100:
            self._told.add(name)
            log.warning("header %r dropped: names with '_' are ambiguous behind CGI-style servers", name[:80])

    def identify(self, request: Request) -> None:
        """Find out who asks: `request.client` and `request.request_id`. Before routing, so
        that every answer and log line has them."""
        known = self._trust.known(request.peer)
        request.client = known.text
        given = None
        if known.trusted:
            forwarded: list[bytes] = []
            kinds = self._kinds.table
            for name, value in request.headers:
                kind = kinds.get(name)
                if kind is None:
                    kind = self._kinds.learn(name)
                if kind == _XFF:
                    forwarded.append(value)
                elif kind == _REQUEST_ID:
                    given = value
            if forwarded:
                request.client = self._trust.client_address(request.peer, forwarded)
        if given is not None and _REQUEST_ID_FORM.match(given):
            request.request_id = given
        else:
            request.request_id = self._new_id()

    def trusts(self, peer: str) -> bool:
        """Whether what a peer says of its clients is believed."""
        return self._trust.trusts(peer)

    def resolves(self, names: Iterable[bytes]) -> bool:
        """Whether any of these lower-case names is a field that `view` shows otherwise than it came."""
        return any(name == b"host" or self._kind(name) in _RESOLVED or name in self.replaced for name in names)

    def view(self, request: Request, asked_host: bytes) -> Headers:
        """The request's fields as an upstream will get them: without what an untrusted peer has no say
        in, and with the values that the gateway puts there. Host is `asked_host`, which a target in
        absolute-form decides (RFC 9112 §3.2.2). Hop-by-hop fields stay as they came. `identify` comes first."""
        trusted = self._trust.trusts(request.peer)
        kept: Headers = [(b"Host", asked_host)] if asked_host else []
        seen: dict[int, list[bytes]] = {}
        for name, value in request.headers:
            kind = self._kinds.table.get(name)
            if kind is None:
                kind = self._kinds.learn(name)
            if kind in (_XFF, _XFH, _XFPROTO, _XFPORT, _FORWARDED):
                seen.setdefault(kind, []).append(value)
            elif kind in (_UNDERSCORE, _NEVER, _REQUEST_ID) or name.lower() in self.replaced or name.lower() == b"host":
                pass
            elif trusted or kind != _TRUSTED_ONLY:
                kept.append((name, value))
        lines: list[bytes] = []
        self._add_forwarding(lines.append, request, trusted, seen, asked_host, request.peer.encode("latin-1"))
        for line in b"\r\n".join(lines).split(b"\r\n"):
            name, _, value = line.partition(b": ")
            kept.append((name, value))
        kept.append((self._id_name, request.request_id))
        return kept

    def scheme(self, request: Request) -> str:
        """http or https as the client sees it: a trusted peer's word, else the connection's."""
        if self._trust.trusts(request.peer):
            given = (request.header(b"x-forwarded-proto") or b"").partition(b",")[0].strip().lower()
            if given in (b"http", b"https"):
                return given.decode()
        return request.scheme

    def head(
        self,
        request: Request,
        target: bytes,
        asked_host: bytes,
        host: bytes,
        prefix: bytes = b"",
        upgrade: bytes | None = None,
    ) -> Head:
        """The head for an upstream, ended by an empty line.

        `asked_host`: the authority that the client asked for, as it came. `host`: what goes
        into Host. `prefix`: what strip_prefix cut off. Raises LoopDetected and BadRequest.
        """
        kinds = self._kinds.table
        learn = self._kinds.learn
        lines = [request.method + b" " + target + b" HTTP/1.1\r\nHost: " + host]
        add = lines.append
        seen: dict[int, list[bytes]] | None = None
        shareable = True
        cookies = 0
        for name, value in request.headers:
            kind = kinds.get(name)
            if kind is None:
                kind = learn(name)
            if kind == _PASS:
                add(name + b": " + value)
            elif kind == _DROP:
                pass
            elif kind < 0:
                if kind == _UNDERSCORE:
                    self._tell_underscore(name)
            elif kind == _TRUSTED_ONLY:
                if self._trust.trusts(request.peer):
                    add(name + b": " + value)
            elif kind == _COOKIE:
                cookies += 1
                add(name + b": " + value)
            elif kind > _COOKIE:
                self._add_in_place(lines, request, kind, name, value)
                shareable = shareable and not (kind == _AUTH and carries_connection_auth(value))
            else:
                if seen is None:
                    seen = {}
                seen.setdefault(kind, []).append(value)
        if cookies > 1:
            _join_cookies(lines)
        if seen is None and request.peer and asked_host and not self._write_forwarded:
            asked = (request.peer, request.client, asked_host, request.scheme, request.http11)
            add((self._added.get(asked) or self._add_usual(asked)) + request.request_id)
        else:
            seen = seen or {}
            peer = request.peer.encode("latin-1")
            named = [token for value in seen.get(_CONNECTION, ()) for token in tokens(value)]
            if named:
                self._drop_named(lines, named, _routed_by(request))
            self._add_forwarding(add, request, self._trust.trusts(request.peer), seen, asked_host, peer)
            self._add_via(add, request, seen)
            add(self._id_name + b": " + request.request_id)
        if prefix:
            add(b"X-Forwarded-Prefix: " + prefix)
        if request.content_length is not None:
            add(b"Content-Length: %d" % request.content_length)
        elif request.chunked:
            add(b"Transfer-Encoding: chunked")
        if request.body is not None and request.body.expects_continue:
            add(b"Expect: 100-continue")
        if upgrade is not None:
            add(b"Connection: Upgrade\r\nUpgrade: " + upgrade)
        add(b"\r\n")
        return _new(Head, (b"\r\n".join(lines), shareable, upgrade))

    def _add_in_place(self, lines: list[bytes], request: Request, kind: int, name: bytes, value: bytes) -> None:
        """Fields that go on where they came, but are looked at or changed."""
        if kind == _TRACEPARENT:
            if (form := _TRACEPARENT_FORM.match(value)) is not None:
                request.trace_id = form[1].decode("latin-1")
        elif kind == _MAX_FORWARDS and request.method == b"OPTIONS" and value.isdigit():
            # It counts down on OPTIONS (and TRACE, refused here); else it is left alone.
            value = b"%d" % (int(value) - 1)
        lines.append(name + b": " + value)

    def _drop_named(self, lines: list[bytes], named: list[bytes], used: Collection[bytes]) -> None:
        """Take out what Connection names (RFC 9110 §7.6.1), but for what the gateway or the route uses: a
        client must not be able to have a request forwarded without what it was chosen by."""
        gone = {token for token in named if token not in _PROTECTED and token != self._id_key and token not in used}
        if gone:
            # The first line is the request line with Host.
            lines[1:] = [line for line in lines[1:] if line.partition(b":")[0].lower() not in gone]

    def _add_via(self, add: Callable[[bytes], None], request: Request, seen: dict[int, list[bytes]]) -> None:
        """Say that the request went through here, and find out whether it did before."""
        via = b", ".join(seen.get(_VIA, ()))
        loops = b", ".join(seen.get(_CDN_LOOP, ()))
        if self._name in received_by(via) or self._name in [
            token.split(b";", 1)[0].strip() for token in loops.split(b",")
        ]:
            raise LoopDetected(f"the request names this gateway ({self._name.decode('latin-1')}) in Via or CDN-Loop")
        if self._via:
            hop = (b"1.1" if request.http11 else b"1.0") + self._hop
            add(b"Via: " + via + b", " + hop if via else b"Via: " + hop)
            if loops:
                add(b"CDN-Loop: " + loops)
        else:
            if via:
                add(b"Via: " + via)
            add(b"CDN-Loop: " + loops + b"," + self._hop if loops else b"CDN-Loop:" + self._hop)

    def _add_forwarding(
        self,
        add: Callable[[bytes], None],
        request: Request,
        trusted: bool,
        seen: dict[int, list[bytes]],
        asked_host: bytes,
        peer: bytes,
    ) -> None:
        """X-Forwarded-*, X-Real-IP and Forwarded: a trusted peer's word, else our own."""
        scheme = request.scheme.encode("latin-1")
        given = seen if trusted else {}
        # A unix socket's peer has no address: there is nothing to add.
        chain = [*given.get(_XFF, ()), peer] if peer else given.get(_XFF, [])
        if chain:
            add(b"X-Forwarded-For: " + b", ".join(chain))
        hosts = given.get(_XFH)
        host = hosts[0] if hosts else asked_host
        if host:
            add(b"X-Forwarded-Host: " + host)
        protos = given.get(_XFPROTO)
        proto = protos[0] if protos else scheme
        ports = given.get(_XFPORT)
        port = ports[0] if ports else (port_of(asked_host) or (b"443" if proto == b"https" else b"80"))
        add(b"X-Forwarded-Proto: " + proto + b"\r\nX-Forwarded-Port: " + port)
        if request.client:
            add(b"X-Real-IP: " + request.client.encode("latin-1"))
        chain = given.get(_FORWARDED, [])
        if chain or self._write_forwarded:
            add(b"Forwarded: " + b", ".join([*chain, forwarded_element(peer, asked_host, scheme)]))


def _routed_by(request: Request) -> set[bytes]:
    """The fields, in lower case, that decided where the request goes: its Connection cannot take them away."""
    used: set[str] = set()
    if request.route is not None:
        used.update(request.route.fields())
    if request.upstream is not None:
        used.update(request.upstream.fields())
    return {name.encode("latin-1") for name in used}


def _join_cookies(lines: list[bytes]) -> None:
    """Put all cookies in the first Cookie line, joined by "; " (RFC 9113 §8.2.3, RFC 6265 §5.4).
    One pass, because a client chooses how many lines there are."""
    # The first line holds the request line and Host.
    places = [at for at, line in enumerate(lines) if at and line[:7].lower() == b"cookie:"]
    first, *others = places
    lines[first] = b"; ".join((lines[first], *(lines[at][len(b"Cookie: ") :] for at in others)))
    joined = set(others)
    lines[:] = [line for at, line in enumerate(lines) if at not in joined]


def port_of(host: bytes) -> bytes:
    """The port that a Host value names, b"" for none."""
    _, colon, port = host.rpartition(b":")
    return port if colon and port.isdigit() else b""


def forwarded_element(peer: bytes, host: bytes, proto: bytes) -> bytes:
    """One element of RFC 7239 §4; an address with a colon is quoted and in brackets."""
    node = b'"[%b]"' % peer if b":" in peer else peer or b"unknown"
    named = b';host="%b"' % host.replace(b'"', b"") if host else b""
    return b"for=%b%b;proto=%b" % (node, named, proto)


def check_max_forwards(request: Request) -> bool:
    """Whether an OPTIONS ends here because its Max-Forwards is 0 (RFC 9110 §7.6.2)."""
    value = request.header(b"max-forwards")
    if value is None:
        return False
    if not value.isdigit() or len(value) > 9:
        raise BadRequest(f"Max-Forwards is no number: {value[:40]!r}")
    return int(value) == 0


class Inbound(NamedTuple):
    """What an answer's fields say. `headers`: what goes on to the client, or (then `headers`
    is empty) `block`, the same as lines joined by CRLF. `content_length` None: not told.
    `persistent` False: Connection says close. `keep_alive`: the N of `Keep-Alive: timeout=N`.
    `upgrade`: the token of Upgrade. `gateway_error`: what an upstream that is a gateway
    itself said, for the log."""

    headers: Headers
    content_length: int | None
    chunked: bool
    persistent: bool
    shareable: bool
    keep_alive: int | None
    upgrade: bytes | None
    gateway_error: bytes | None
    block: bytes = b""


_answer_kinds = _Kinds(lambda key: _ANSWER_KINDS.get(key, _PASS))
_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:^|,)\s*timeout\s*=\s*(\d{1,9})", re.IGNORECASE)


class _AnswerLines(FieldLines[int]):
    """Field lines of answers. `passing`: those that go on as they came, so that most lines of a head are judged by
    one look-up."""

    __slots__ = ("passing",)

    def __init__(self, mean: Callable[[bytes], int]) -> None:
        super().__init__(mean)
        self.passing: set[bytes] = set()

    def learn(self, line: bytes) -> tuple[int, Header] | None:
        entry = super().learn(line)
        if entry is not None and entry[0] == _PASS and line in self.table:
            if len(self.passing) >= _MAX_LINES:
                self.passing.clear()
            self.passing.add(line)
        return entry


_answer_lines = _AnswerLines(lambda key: _ANSWER_KINDS.get(key, _PASS))


def usual(lines: list[bytes], hop: bytes) -> Inbound | None:
    """`inbound` for the field lines of an answer that is framed by its length or chunked and
    says nothing unusual, the fields left as lines; None for any other."""
    passing = _answer_lines.passing
    kept: list[bytes] = []
    shareable = True
    chunked = False
    length: int | None = None
    keep_alive: int | None = None
    for line in lines:
        if line in passing:
            kept.append(line)
            continue
        entry = _answer_lines.table.get(line) or _answer_lines.learn(line)
        if entry is None:
            return None
        kind, (_, value) = entry
        if kind == _LENGTH:
            if length is not None or not value.isdigit() or len(value) > _MAX_DIGITS:
                return None
            length = int(value)
        elif kind == _CONNECTION:
            if value != b"keep-alive":
                return None
        elif kind == _PASS:
            kept.append(line)
        elif kind == _KEEP_ALIVE:
            if keep_alive is not None or (found := _KEEP_ALIVE_TIMEOUT.search(value)) is None:
                return None
            keep_alive = int(found[1])
        elif kind == _TRANSFER:
            if chunked or value.lower() != b"chunked":
                return None
            chunked = True
        elif kind == _AUTH:
            kept.append(line)
            shareable = shareable and not carries_connection_auth(value)
        else:
            return None
    if chunked == (length is not None):
        return None
    if hop:
        kept.append(b"Via: " + hop)
    return _new(Inbound, ([], length, chunked, True, shareable, keep_alive, None, None, b"\r\n".join(kept)))


def inbound(raw: Headers, hop: bytes, http11: bool = True) -> Inbound:
    """Judge the header fields of an upstream's answer and leave out what is hop-by-hop.

    `hop`: our entry for Via, b"" for none. Raises BadResponse for a Transfer-Encoding that
    is anything but one `chunked` (llhttp refuses the other ways to frame badly).
    """
    kinds = _answer_kinds.table
    out: list[Header] = []
    add = out.append
    seen: dict[int, list[bytes]] | None = None
    shareable = True
    length: int | None = None
    for field in raw:
        kind = kinds.get(field[0])
        if kind is None:
            kind = _answer_kinds.learn(field[0])
        if kind == _PASS:
            add(field)
        elif kind == _LENGTH:
            length = int(field[1])
        elif kind == _CONNECTION and field[1] == b"keep-alive":
            # What nearly every answer of HTTP/1.1 need not say.
            continue
        elif kind == _AUTH:
            add(field)
            shareable = shareable and not carries_connection_auth(field[1])
        elif kind != _DROP:
            if seen is None:
                seen = {}
            seen.setdefault(kind, []).append(field[1])
    if seen is None:
        if hop:
            add((b"Via", hop))
        return _new(Inbound, (out, length, False, True, shareable, None, None, None, b""))
    chunked = _TRANSFER in seen
    if chunked and (not http11 or [value.lower() for value in seen[_TRANSFER]] != [b"chunked"]):
        raise BadResponse(f"Transfer-Encoding {b', '.join(seen[_TRANSFER])[:80]!r} cannot be framed")
    persistent, keep_alive = True, None
    if _CONNECTION in seen:
        named = [token for value in seen[_CONNECTION] for token in tokens(value)]
        persistent = b"close" not in named
        gone = set(named) - _PROTECTED - {b"close", b"keep-alive", b"upgrade"}
        if gone:
            out = [field for field in out if field[0].lower() not in gone]
            add = out.append
    if _KEEP_ALIVE in seen and (found := _KEEP_ALIVE_TIMEOUT.search(seen[_KEEP_ALIVE][0])) is not None:
        keep_alive = int(found[1])
    via = seen.get(_VIA, [])
    if hop:
        add((b"Via", b", ".join([*via, hop])))
    elif via:
        add((b"Via", b", ".join(via)))
    upgrades = [token for value in seen.get(_UPGRADE, ()) for token in tokens(value)]
    return Inbound(
        out,
        length,
        chunked,
        persistent,
        shareable,
        keep_alive,
        upgrades[0] if len(upgrades) == 1 else None,
        seen[_GATEWAY_ERROR][0] if _GATEWAY_ERROR in seen else None,
    )
