"""What nginx's `return` says: redirects and fixed answers, as keys of a route.

Rule: variables are understood where they stand for what was asked; anything else is not
carried over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from gateway.importers.nginx_syntax import Directive

_REDIRECTS = ("301", "302", "303", "307", "308")
# Closes the connection without a word.
_NO_ANSWER = "444"
_HOST = r"\$host|\$http_host|\$server_name|\[[0-9A-Fa-f:]++\]|[A-Za-z0-9._-]++"
# The path and query as they were asked, in the ways in which they are written.
_AS_ASKED = re.compile(r"\$request_uri|\$uri\$is_args\$args")
_URL = re.compile(rf"(?:(?P<scheme>https?|\$scheme)://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?)?(?P<rest>.*+)\Z")
# These answers have the headers of add_header, others only those that are added always.
_WITH_HEADERS = frozenset({200, 201, 204, 206, 301, 302, 303, 304, 307, 308})


def returned(directive: Directive, last: Callable[[str], Directive | None], name: str) -> dict[str, Any] | None:
    """The keys of a route for `return`; None when it has no counterpart. `last`: the directive
    of that name that holds; `name`: what `$server_name` is."""
    words = directive.words
    if directive.name != "return" or not 1 <= len(words) <= 2:
        return None
    code, text = (words[0], words[1] if len(words) == 2 else "") if words[0].isdecimal() else ("302", words[0])
    if code in _REDIRECTS:
        return _redirect(int(code), text, name)
    if len(code) != 3 or code == _NO_ANSWER or "$" in text or _is_error_page(code, last("error_page")):
        return None
    respond: dict[str, Any] = {"status": int(code)}
    if text:
        kind = last("default_type")
        respond |= {"body": text, "headers": {"Content-Type": kind.words[0] if kind and kind.words else "text/plain"}}
    return {"respond": respond}


def status_to_https(directive: Directive) -> int | None:
    """The status of a `return` that sends clients to an https URL, whatever else it says."""
    words = directive.words
    if directive.name != "return" or not words or not words[-1].startswith("https://"):
        return None
    return int(words[0]) if words[0] in _REDIRECTS else 302


# Patterns that meet every path, and what they leave of the path for `$1`.
_EVERY_PATH = re.compile(r"\^?/?(?:\.\*)?\$?\Z|\^?(?P<slash>/)?\(\.\*\)\$?\Z")


def as_return(rewrite: Directive) -> Directive | None:
    """The `return` that a `rewrite` of every path to a URL amounts to; None for any other."""
    words = rewrite.words
    found = _EVERY_PATH.match(words[0]) if len(words) in (2, 3) else None
    if found is None or not words[1].startswith(("http://", "https://", "$scheme://")):
        return None
    url = words[1].removesuffix("?")
    if url.endswith("$1"):
        # What `$1` stands for begins with a slash unless the pattern has that before it.
        before, slash = url.removesuffix("$1"), bool(found["slash"])
        if before.endswith("/") is not slash:
            return None
        url = f"{before.removesuffix('/')}$request_uri"
    status = "301" if words[2:] == ["permanent"] else "302"
    return Directive("return", [status, url], rewrite.line)


_PLAIN_HTTP = re.compile(
    r"\(\s*(?:\$(?:scheme|http_x_forwarded_proto)\s*(?:=\s*http|!=\s*https)|\$https\s*(?:=|!=\s*on)"
    r"|\$server_port\s*(?:=\s*80|!=\s*443))\s*\)"
)


def is_plain_http(condition: Directive) -> bool:
    """Whether an `if` asks for plain http, in one of the ways in which it is written."""
    return condition.name == "if" and _PLAIN_HTTP.fullmatch(" ".join(condition.words)) is not None


def _is_error_page(code: str, pages: Directive | None) -> bool:
    return pages is not None and code in pages.words


def _redirect(status: int, url: str, name: str) -> dict[str, Any] | None:
    found = _URL.match(url)
    if found is None or (found["scheme"] is None and not found["rest"].startswith("/")):
        return None
    to: dict[str, Any] = {"status": status}
    if found["scheme"] not in (None, "$scheme"):
        to["scheme"] = found["scheme"]
    host = name if found["host"] == "$server_name" else found["host"]
    if host == "":
        return None
    if host is not None and not host.startswith("$"):
        to["host"] = host
    if found["port"]:
        to["port"] = int(found["port"])
    path = found["rest"]
    if not _AS_ASKED.fullmatch(path):
        # `?` and what follows is not for a route to say; the query that was asked stays.
        path = (path or "/").removesuffix("$is_args$args")
        if "$" in path or "?" in path or not path.startswith("/"):
            return None
        to["path"] = path
    return {"redirect": to} if len(to) > 1 else None


def add_headers(end: dict[str, Any], answer: Directive, given: Iterable[Directive]) -> None:
    """Put what `add_header` adds into a fixed answer."""
    respond = end["respond"]
    for one in given:
        if len(one.words) < 2 or "$" in one.words[1]:
            continue
        if respond["status"] in _WITH_HEADERS or "always" in one.words[2:]:
            respond["headers"] = {**respond.get("headers", {}), one.words[0]: one.words[1]}


def host_of(condition: Directive) -> str | None:
    """NAME of `if ($host = NAME)`; None for any other condition."""
    found = re.fullmatch(r"\(\s*\$host\s*=\s*([^\s)]+)\s*\)", " ".join(condition.words))
    return found[1].lower() if condition.name == "if" and found is not None else None
