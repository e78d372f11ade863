"""Secrets kept out of logs: which part of a request target, or of a cause, is written and which is masked.

Rule: pure, and when two readings are possible, both are masked. Some servers end a query
parameter at `&` only, others at `;` too (HTML 4.01 §B.2.2): a name is found after either, and
its value reaches to the next `&`. Names are compared in a normal form, as frameworks read
them: percent-decoded (twice at most), without regard to case, `-`, `_`, `.` and blanks between
letters; of `auth[token]` and `access.token` each part counts as well. Whole names only:
`zip_code` is not `code`.

A target is read in one pass. Names beyond `MOST_NAMES`, and names of more than `LONGEST_NAME`
characters, are not read: what belongs to them is masked.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from urllib.parse import unquote_to_bytes

MASK = "***"
# Names that one target may have before the rest of it is masked, and characters of a name.
MOST_NAMES = 500
# Quotations in one cause before the rest of it is masked.
MOST_QUOTES = 50
LONGEST_NAME = 256
# What a login sends beside `state` is an authorization code (RFC 6749 §4.1.2); elsewhere it is a code of something.
CODE, BESIDE = "code", "state"
# Names that are too common to count as a part of a longer one, as in `sort[key]`.
_WHOLE_ONLY = frozenset({"key", CODE, BESIDE})
_KEPT = 4096

# Credentials in an absolute-form's authority (RFC 9110 §4.2.4).
_USERINFO = re.compile(r"^([^/?#]*://)[^/?#]*@")
# A name and its equals sign, which may be percent-encoded: in a query or a fragment, and in the
# parameters of a path's segments (RFC 3986 §3.3), where the semicolon may be percent-encoded, too, as
# in gateway.routing.readings.
_NAMED = r"([^{0}%]*(?:%(?!3[bBdD])[^{0}%]*)*)(?:=|%3[dD])"
_QUERY_NAME = re.compile("(?:[?&;#]|%3[bB])" + _NAMED.format("?&;#="))
_PATH_NAME = re.compile("(?:;|%3[bB])" + _NAMED.format("/;="))
_QUERY = re.compile(r"[?#]")
_SLASH, _AMPERSAND, _TEXT_END = re.compile("/"), re.compile("&"), re.compile(r"[&\s]")
# In what a cause quotes (a request line, a target, a host) a name may also come first.
_QUOTED_NAME = re.compile(r"(?:^|[?&;#\s]|%3[bB])" + _NAMED.format(r"?&;#=\s"))
_QUOTE = re.compile("b?[\"']")
# The rest of a quotation, by the mark that began it.
_REST = {
    "'": re.compile(r"(?:[^'\\]|\\.)*'", re.DOTALL).match,
    '"': re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL).match,
}
_AUTHORITY = re.compile(r"(^|//)[^/?#]*@")
_CUT_AUTHORITY = re.compile(r"(^|//)[^/?#]*:[^/?#]*\Z")
_TEXT_USERINFO = re.compile(r"(//)[^/?#\s]*@")
# A quotation of this many characters may have been cut off.
SHORTEST_CUT = 40
_PARTS = re.compile(r"[][.]+")
_BETWEEN = re.compile(r"(?<=[^\W_])[-_\s]+(?=[^\W_])")

# What a name is: nothing, a secret, `code` or `state`.
_NOTHING, _SECRET, _CODE, _STATE = range(4)


def masking(names: Iterable[str]) -> Callable[[str], str]:
    """A function that masks the values of these names in a target decoded as Latin-1."""
    kind = _kinds(names)

    def mask(target: str) -> str:
        if target[:1] != "/":
            target = _USERINFO.sub(rf"\g<1>{MASK}@", target)
        if kind is None:
            return target
        names = _QUERY_NAME.findall(target)
        if len(names) <= MOST_NAMES and not any(map(kind, names)):
            return target
        query = _QUERY.search(target)
        start = len(target) if query is None else query.start()
        path, rest = target[:start], target[start:]
        if ";" in path or "%3" in path:
            path = _masked(path, _PATH_NAME, _SLASH, kind)
        return path + (_masked(rest, _QUERY_NAME, _AMPERSAND, kind) if rest else "")

    return mask


def masking_causes(names: Iterable[str]) -> Callable[[str], str]:
    """A function that masks the same in a text that may quote a request line, a target or a URL."""
    kind = _kinds(names)

    def mask(cause: str) -> str:
        return "".join(_masked_text(text, kind) + _masked_quote(quote, kind) for text, quote in _quotes(cause))

    return mask


Kind = Callable[[str], int]


def _kinds(names: Iterable[str]) -> Kind | None:
    """What a name is; None where nothing is masked."""
    secret = frozenset("".join(_parts(name.lower())) for name in names)
    if not secret:
        return None

    @lru_cache(_KEPT)
    def kind(name: str) -> int:
        if len(name) > LONGEST_NAME:
            return _SECRET
        parts = _parts(_decoded(name))
        whole = "".join(parts)
        if whole in secret or not secret.isdisjoint(set(parts) - _WHOLE_ONLY):
            return _SECRET
        return {CODE: _CODE, BESIDE: _STATE}.get(whole, _NOTHING)

    return kind


def _decoded(name: str) -> str:
    text = name.replace("+", " ") if "+" in name else name
    if "%" in text or not text.isascii():
        raw = text.encode("latin-1", "replace")
        for _ in range(2):
            raw = unquote_to_bytes(raw) if b"%" in raw else raw
        text = raw.decode("utf-8", "surrogateescape")
    return text.lower()


def _parts(name: str) -> list[str]:
    """`a[b].c` as its parts, without indices."""
    if name.isalnum():
        return [name]
    stripped = (part.strip() for part in _PARTS.split(name))
    return [_squeezed(part) for part in stripped if part and not part.isdigit()]


def _squeezed(name: str) -> str:
    return _BETWEEN.sub("", name)


def _masked(text: str, names: re.Pattern[str], end: re.Pattern[str], kind: Kind) -> str:
    """The text with the values of secrets masked, each up to the next `end`."""
    secrets: list[tuple[int, int]] = []
    codes: list[tuple[int, int]] = []
    place = number = 0
    beside = False
    while (found := names.search(text, place)) is not None:
        number += 1
        if number > MOST_NAMES:
            secrets.append((found.start(1), len(text)))
            break
        place = found.end()
        what = kind(found[1])
        if what in (_SECRET, _CODE):
            stop = end.search(text, place)
            span = (place, len(text) if stop is None else stop.start())
            if what == _CODE:
                codes.append(span)
            else:
                secrets.append(span)
                place = span[1]
        beside = beside or what == _STATE
    return _cut(text, sorted(secrets + codes) if beside and codes else secrets)


def _cut(text: str, spans: list[tuple[int, int]]) -> str:
    pieces: list[str] = []
    last = 0
    for start, stop in spans:
        if start >= last:
            pieces += [text[last:start], MASK]
            last = stop
    return "".join([*pieces, text[last:]])


# -- causes ----------------------------------------------------------------------------------


def _quotes(cause: str) -> Iterator[tuple[str, str]]:
    """The cause in pieces of text and the quoted piece behind each, as `repr` wrote it."""
    place = number = 0
    while (found := _QUOTE.search(cause, place)) is not None:
        number += 1
        if number > MOST_QUOTES:
            yield cause[place : found.start()] + MASK, ""
            return
        closed = _REST[found[0][-1]](cause, found.end())
        if closed is None:
            break
        yield cause[place : found.start()], found[0] + closed[0]
        place = closed.end()
    yield cause[place:], ""


def _masked_quote(quote: str, kind: Kind | None) -> str:
    if not quote:
        return ""
    try:
        value = ast.literal_eval(quote)
    except (SyntaxError, ValueError):
        return MASK
    inner = value.decode("latin-1") if isinstance(value, bytes) else value
    shown = _AUTHORITY.sub(rf"\g<1>{MASK}@", inner)
    if len(shown) >= SHORTEST_CUT:
        # Causes quote no more than the beginning, which may end within a password.
        shown = _CUT_AUTHORITY.sub(rf"\g<1>{MASK}", shown)
    if kind is not None:
        shown = _masked(shown, _QUOTED_NAME, _AMPERSAND, kind)
    if shown == inner:
        return quote
    return repr(shown.encode("latin-1") if isinstance(value, bytes) else shown)


def _masked_text(text: str, kind: Kind | None) -> str:
    text = _TEXT_USERINFO.sub(rf"\g<1>{MASK}@", text)
    return text if kind is None else _masked(text, _QUERY_NAME, _TEXT_END, kind)
