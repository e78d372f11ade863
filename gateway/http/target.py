"""The request target: read, put to normal form, and made ready for an upstream.

Rule: bytes in, bytes out, no state. Two views of one path are kept apart. The *normal
form* is what routes are matched on: unreserved characters decoded, empty and single-dot
segments dropped. The *raw* path is what came on the wire and what is forwarded, byte for
byte, unless the route says otherwise. Paths on which an upstream might read something else
than what was matched (`..` segments, an encoded NUL) are refused, so that what was checked
is reached.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

from gateway.errors import BadPath, BadRequest
from gateway.patterns import expand

if TYPE_CHECKING:
    from gateway.model import Endpoint, Rewrite, Route


class Target(NamedTuple):
    """A request target, taken apart (RFC 9112 §3.2).

    `authority` and `scheme` (lower case) are those of absolute-form, None otherwise.
    `path` begins with "/", or is `*` (asterisk-form). `query` is what stands behind the
    first "?": None without one, empty for a bare "?". `raw` is path and query in one
    piece: the target in origin-form, bytes as they came.
    """

    authority: bytes | None
    scheme: bytes | None
    path: bytes
    query: bytes | None
    raw: bytes


class AmbiguousTarget(Target):
    """A target whose path some servers read as another one (gateway.routing.readings)."""

    __slots__ = ()


# -- reading ----------------------------------------------------------------------------

# 0x21 to 0x7e without "#". RFC 3986 allows less (no `|`, `"`, `\` …), but clients send
# those and servers take them; a fragment is never sent by a conforming client and would
# mean one thing to us and another behind us.
# Possessive here are characters and classes alone, never groups: of those Python before 3.11.5 matches
# some wrongly (CPython issue 106052). Whatever a group may begin with, nothing else may, so that giving
# up what it has matched costs no more than its length.
_origin_form = re.compile(rb"/[!\"$-~]*+").fullmatch
_absolute_form = re.compile(rb"([A-Za-z]++)://([^/?]++)([!\"$-~]*+)").fullmatch
# In origin-form, its path in normal form already (`_plain`) and not ambiguous: nearly all are.
_simple = re.compile(rb"((?:/(?![/.])[!\"$&-.0-:<->@-\[\]-~]*+)+)(?:\?([!\"$-~]*+))?").fullmatch
# In a path in normal form.
_ambiguous = re.compile(rb"[\\;]|%(?:2F|5C|3B)").search
# The generated `Target.__new__` in Python costs as much as the rest of `parse`.
_new = tuple.__new__


def read(target: bytes) -> tuple[Target, bytes]:
    """A target taken apart (`parse`), and the normal form of its path (`normal`); for an
    asterisk that is the asterisk. An `AmbiguousTarget` if the path has other readings."""
    found = _simple(target)
    if found is not None:
        path, query = found.groups()
        return _new(Target, (None, None, path, query, target)), path
    asked = parse(target)
    if asked.path == b"*":
        return asked, asked.path
    path = normal(asked.path)
    return (asked if _ambiguous(path) is None else tuple.__new__(AmbiguousTarget, asked)), path


def parse(target: bytes) -> Target:
    """Take a target apart; raises `BadRequest` for what is none, authority-form included."""
    if _origin_form(target):
        path, mark, query = target.partition(b"?")
        return _new(Target, (None, None, path, query if mark else None, target))
    if target == b"*":
        return Target(None, None, target, None, target)
    return _parse_absolute(target)


def _parse_absolute(target: bytes) -> Target:
    found = _absolute_form(target)
    if found is None:
        raise BadRequest(f"{target[:80]!r} is no request target")
    scheme, authority, raw = found.groups()
    scheme = scheme.lower()
    if scheme not in (b"http", b"https"):
        raise BadRequest(f"scheme {scheme[:80]!r} in the request target")
    host(authority)
    if not raw.startswith(b"/"):  # an empty path, RFC 9112 §3.2.1
        raw = b"/" + raw
    path, mark, query = raw.partition(b"?")
    return Target(authority, scheme, path, query if mark else None, raw)


def for_server(asked: Target, target: bytes) -> Target:
    """An OPTIONS request's target as it is forwarded: absolute-form without path and query is about the server
    (RFC 9112 §3.2.4), so it becomes `*`. Routes match it as `/`."""
    return asked._replace(raw=b"*") if asked.raw == b"/" and not target.endswith(b"/") else asked


# -- the host ---------------------------------------------------------------------------

# Names as DNS and certificates hold them, and the underscore that container platforms
# use. RFC 3986 allows sub-delims and percent-encoding too; nothing is served under such a
# name, and a comma is the mark of two Host fields joined into one.
_authority = re.compile(
    rb"(?:([A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)*)\.?+|\[([0-9A-Fa-f:.]++)\])(?::([0-9]{0,5}+))?"
).fullmatch
_LONGEST_CACHED = 255  # a DNS name's limit, RFC 1035 §2.3.4


def host(value: bytes) -> bytes:
    """A Host value or authority as routes are matched on it: lower case, without port and
    trailing dot, an IPv6 address in its brackets.

    Raises `BadRequest` for what is no host; the empty value is none (RFC 9112 §3.2).
    """
    return _known_host(value) if len(value) <= _LONGEST_CACHED else _read_host(value)


def _read_host(value: bytes) -> bytes:
    found = _authority(value)
    if found is None:
        raise BadRequest(f"{value[:80]!r} is no host")
    name, address, port = found.groups()
    if port and not 0 < int(port) <= 65535:
        raise BadRequest(f"{value[:80]!r} has no valid port")
    if name is not None:
        return bytes(name.lower())
    try:
        IPv6Address(address.decode("ascii"))
    except AddressValueError as error:
        raise BadRequest(f"{value[:80]!r} is no IPv6 address") from error
    return b"[%b]" % address.lower()


_known_host = lru_cache(1024)(_read_host)


# -- the normal form --------------------------------------------------------------------

# Paths that are their own normal form: no triplet, no empty segment, none that begins
# with a dot. Most of them end here.
_plain = re.compile(rb"(?:/(?![/.])[^/%\\]*+)+").fullmatch
# The same with triplets that stay as they are, and are neither NUL, `/` nor `\`.
_clean = re.compile(
    rb"(?:/(?![/.])(?:[^/%\\]++"
    rb"|%(?:0[1-9A-F]|1[0-9A-F]|2[0-9A-C]|3[A-F]|40|5[BDE]|60|7[BCDF]|[89A-F][0-9A-F]))*)+"
).fullmatch
_slashes = re.compile(rb"//+").sub
# A triplet, and before it (rarely) a `%` that belongs to none: `%%41`, `%4%41`.
_triplets = re.compile(rb"(%[0-9A-Fa-f]?)??(%[0-9A-Fa-f]{2})").sub
# On a path whose triplets are settled. `;` ends a segment's name here: servers that know
# path parameters cut them off before they look for dots.
_parent_segment = re.compile(rb"(?:[/\\]|%2F|%5C)\.\.(?:[/\\;]|%2F|%5C|\Z)").search
# Single-dot segments of a path whose triplets and slashes are settled, but for the last segment.
_single_dots = re.compile(rb"/\.(?=/)").sub

_UNRESERVED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
_HEX = b"0123456789ABCDEFabcdef"
_SETTLED = {
    b"%%%c%c" % (high, low): bytes([code]) if code in _UNRESERVED else b"%%%02X" % code
    for high in _HEX
    for low in _HEX
    for code in (int(bytes((high, low)), 16),)
}


def normal(path: bytes) -> bytes:
    """The normal form of a raw path, on which routes are matched.

    Unreserved characters are decoded, other triplets keep their meaning and get
    upper-case digits (`%2F` is not a slash), what is no triplet stays, runs of slashes
    become one, single-dot segments are dropped (RFC 3986 §5.2.4). Raises `BadPath` for an
    encoded NUL and for `..` segments, where for this test `%2F`, `%5C` and `\\` end a
    segment as well and `;…` in a segment is ignored.
    """
    if _plain(path) or _clean(path):
        return path
    path = _settled(path)
    return _without_dots(path) if b"/." in path else path


def _without_dots(path: bytes) -> bytes:
    """The path without single-dot segments. A last one leaves the slash: `/a/.` is `/a/`."""
    path = _single_dots(b"", path)
    return path[:-1] if path.endswith(b"/.") else path


def _settled(path: bytes) -> bytes:
    """The normal form, but for single-dot segments."""
    if not path.startswith(b"/"):
        raise BadRequest(f"path {path[:80]!r} does not begin with a slash")
    if b"%" in path:
        path = _triplets(_settle, path)
    if b"//" in path:
        path = _slashes(b"/", path)
    if b"%00" in path:
        raise BadPath(f"an encoded NUL in {path[:80]!r}")
    if b".." in path and _parent_segment(path):
        raise BadPath(f"a .. segment in {path[:80]!r}")
    return path


def _settle(found: re.Match[bytes]) -> bytes:
    stray, triplet = found.groups()
    settled = _SETTLED[triplet]
    if stray is None:
        return settled
    # A decoded digit must not make a triplet out of a `%` that was none: `%%32e` is not
    # `%2e`. Such a digit stays as it came, or the normal form would have a normal form.
    return stray + (triplet if settled in _HEX else settled)


_unsendable = re.compile(rb"[^!-~]").sub


@lru_cache(1024)
def written(path: str) -> bytes:
    """The normal form of a path as written in the file, where anything may stand that a
    request must percent-encode: `/café` is `/caf%C3%A9`. A single-dot segment is refused
    here: the server that the file was imported from may take it for a name."""
    settled = _settled(_unsendable(lambda found: b"%%%02X" % found[0][0], path.encode()))
    if _without_dots(settled) != settled:
        raise BadPath(f"a dot segment in {settled[:80]!r}")
    return settled


@lru_cache(1024)
def written_prefix(path: str) -> bytes:
    """The same for a prefix, whose trailing slash means nothing; `/` becomes empty."""
    return written(path).removesuffix(b"/")


def decoded(text: bytes) -> bytes:
    """What a name or a value in a query means, as forms write it: `+` is a space."""
    return unquote_to_bytes(text.replace(b"+", b" "))


# A single-dot segment in a raw path, without its slash; whether there is one.
_DOT = rb"(?:\.|%2[Ee])"
has_dots = re.compile(rb"/" + _DOT + rb"(?:/|\Z)").search
# The empty and single-dot segments in front of a raw path, but for the last slash.
_skipped = re.compile(rb"(?:/" + _DOT + rb"?(?=/))+").match


# -- what an upstream gets --------------------------------------------------------------


def outbound(route: Route, endpoint: Endpoint, target: Target, normal: bytes) -> bytes:
    """The target to send to an endpoint: raw bytes, changed only where the route
    (`rewrite` or `strip_prefix`) or the endpoint (`base_path`, `query`) asks for it."""
    rewrite = route.rewrite
    if rewrite is None and not route.strip_prefix and not endpoint.base_path and not endpoint.query:
        return target.raw
    path, query = target.path, target.query
    if rewrite is not None:
        path, query = rewritten(rewrite, route, target, normal)
        if rewrite.prefix is not None:
            path = _single_slash(path)
    elif route.strip_prefix:
        path = _single_slash(path[_cut(matched_prefix(route, normal), path, normal) :]) or b"/"
        if target.raw == b"*" and path == b"/" and not endpoint.base_path and not endpoint.query:
            return target.raw
    if endpoint.base_path:
        path = endpoint.base_path.removesuffix(b"/") + path
    query = _joined_query(endpoint.query, query)
    return path if query is None else b"%b?%b" % (path, query)


def rewritten(rewrite: Rewrite, route: Route, target: Target, normal: bytes) -> tuple[bytes, bytes | None]:
    """Path and query as `rewrite` makes them of those that were asked for."""
    path, _, added = _rewritten(rewrite, route, target.path, normal).partition(b"?")
    return path, _joined_query(added, target.query)


def stripped(route: Route, normal: bytes) -> bytes:
    """The prefix that `strip_prefix` took off, for X-Forwarded-Prefix; empty for none.

    It is the configured prefix in normal form, not the client's bytes: an upstream builds
    links with it, and `//strip` would lead to a host of that name.
    """
    return matched_prefix(route, normal) if route.strip_prefix and route.rewrite is None else b""


def matched_prefix(route: Route, normal: bytes) -> bytes:
    """The longest prefix or exact path among the route's matches that `normal` begins
    with, by whole segments and without a trailing slash; empty when there is none."""
    longest = b""
    for match in route.matches:
        if match.prefix is not None:
            prefix = written_prefix(match.prefix)
            if len(prefix) > len(longest) and begins(normal, prefix):
                longest = prefix
        elif match.path is not None:
            path = written(match.path)
            if path == normal and len(path) > len(longest):
                longest = path.removesuffix(b"/")
    return longest


def begins(normal: bytes, prefix: bytes) -> bool:
    """Whether a path begins with a prefix (without trailing slash), by whole segments."""
    return normal.startswith(prefix) and normal[len(prefix) : len(prefix) + 1] in (b"", b"/")


def _cut(prefix: bytes, path: bytes, normal: bytes) -> int:
    """Where in the raw path the prefix of the normal form ends. Both have the same
    segments, once empty and single-dot ones are left out, so the segments are counted off."""
    if path == normal or not prefix:
        return len(prefix)
    found = _segments(prefix.count(b"/"))(path)
    assert found is not None, "the prefix is not one of this path's normal form"
    return found.end()


@lru_cache(256)
def _segments(number: int) -> Callable[[bytes], re.Match[bytes] | None]:
    """Matches so many segments at the beginning of a path, with the empty and single-dot ones before each."""
    return re.compile(rb"(?:(?:/" + _DOT + rb"?(?=/))*/(?!" + _DOT + rb"?(?:/|\Z))[^/]++){%d}" % number).match


def _single_slash(path: bytes) -> bytes:
    """The path with no more than one slash in front: two would begin with the name of a host
    (RFC 3986 §4.2), also once a server has removed the dot segments of `/.//host`."""
    skipped = _skipped(path)
    return path[skipped.end() :] if skipped is not None and b"//" in path[: skipped.end() + 1] else path


def _rewritten(rewrite: Rewrite, route: Route, path: bytes, normal: bytes) -> bytes:
    if rewrite.prefix is not None:
        rest = path[_cut(matched_prefix(route, normal), path, normal) :]
        return (rewrite.prefix.removesuffix(b"/") + rest if rest else rewrite.prefix) or b"/"
    if rewrite.path is not None:
        return rewrite.path
    assert rewrite.regex is not None
    assert rewrite.to is not None
    found = rewrite.regex.fullmatch(normal)
    return path if found is None else _rooted(expand(found, rewrite.to, rewrite.regex))


def _rooted(path: bytes) -> bytes:
    """A path put together from groups: it begins with a slash, also when an optional group
    was empty, and dot segments that came about by joining are refused."""
    path = path if path.startswith(b"/") else b"/" + path
    normal(path.partition(b"?")[0])
    return path


def _joined_query(first: bytes, second: bytes | None) -> bytes | None:
    return b"%b&%b" % (first, second) if first and second else first or second
