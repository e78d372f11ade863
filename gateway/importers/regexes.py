"""Regular expressions of other gateways as ours: RE2's, of the whole path.

Rule: a pattern that is searched for becomes one that the whole path must match, with the
same meaning. What RE2 does not know is left as it stands; `gateway check` refuses it, and
the importer says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.errors import ClientError
from gateway.http import target

_SPECIAL = re.compile(r"[.^$*+?{}\[\]\\|()]")
_FLAGS = re.compile(r"\(\?([a-zA-Z]+)\)")
# A backslash with what it takes along, an opened group with a name, a class as a whole. A class that
# is not closed is one piece too, so that no text is read twice.
_PIECES = re.compile(r"\\.|\(\?<(?=[A-Za-z_])|\[\^?\]?(?:\\.|[^\]\\])*\]?|[^\\]", re.DOTALL)
_GROUPS = re.compile(r"\$(?:\$|\{(?P<braced>\w+)\}|(?P<bare>\w+))")


def escaped(text: str) -> str:
    """Text as a pattern that matches just that."""
    return _SPECIAL.sub(lambda found: "\\" + found[0], text)


def path(text: str) -> str:
    """A literal path as a pattern on the normal form; what is no path stays as it is, to
    be refused by whoever checks it."""
    try:
        return escaped(target.written(text).decode())
    except ClientError:
        return escaped(text)


def spelled(source: str) -> str:
    """The same pattern in our spelling of named groups and of the end of the text, and with what a path
    holds percent-encoded (a blank, `é`) in that form: others match the decoded path."""
    spelt = {"(?<": "(?P<", "\\Z": "\\z"}
    return "".join(spelt.get(piece) or _as_sent(piece) for piece in _PIECES.findall(source))


def _as_sent(piece: str) -> str:
    letter = piece.removeprefix("\\")
    if len(letter) != 1 or "!" <= letter <= "~":
        return piece
    return f"(?:{''.join(f'%{byte:02X}' for byte in letter.encode())})"


def whole(source: str, *, anchored: bool = False, insensitive: bool = False) -> str:
    """A pattern that finds its place anywhere in a path (`anchored`: at its beginning) as
    one that the whole path must match."""
    body, flags = _without_flags(spelled(source))
    if insensitive and "i" not in flags:
        flags += "i"
    if _has_branches(body):
        body = f"(?:{body})"
        head = tail = ".*"
    else:
        head = "" if body.startswith("^") else ".*"
        body = body.removeprefix("^")
        tail = "" if _ends(body) else ".*"
        body = body[:-1] if _ends(body) else body
    tail = "" if body.endswith(".*") and not body.endswith("\\.*") else tail
    found = f"{'' if anchored else head}{body}{tail}"
    return f"(?{flags}:{found})" if flags else found


def begins_at_start(source: str) -> bool:
    """Whether a pattern can only match at the beginning, so at most once."""
    body, _ = _without_flags(source)
    return body.startswith("^") and not _has_branches(body)


def replacing(source: str, replacement: str) -> tuple[str, str] | None:
    """`regex` and `to` for a replacement of what a pattern finds, where that is at most
    one place; None when it could be several."""
    if not begins_at_start(source):
        return None
    body, flags = _without_flags(spelled(source))
    body = body.removeprefix("^")
    template = groups(replacement)
    if _ends(body):
        pattern = body[:-1]
    elif body.endswith((".*", ".*)")) and not body.endswith(("\\.*", "\\.*)")):
        pattern = body
    else:
        pattern, template = f"{body}(?P<beyond>.*)", f"{template}\\g<beyond>"
    return (f"(?{flags}:{pattern})" if flags else pattern), template


def groups(replacement: str) -> str:
    """`$1` and `${name}` as Python writes them."""

    def group(found: re.Match[str]) -> str:
        name = found["braced"] or found["bare"]
        return "$" if name is None else f"\\g<{name}>" if not name.isdigit() or len(name) > 1 else f"\\{name}"

    template = _GROUPS.sub(group, replacement.replace("\\", "\\\\"))
    # `\1` before a digit would be another group.
    return re.sub(r"\\([0-9])(?=[0-9])", r"\\g<\1>", template)


def either(sources: Sequence[str]) -> str:
    """A pattern for what any of the patterns matches as a whole."""
    return sources[0] if len(sources) == 1 else "|".join(f"(?:{source})" for source in sources)


def beginning(text: str) -> str:
    """A pattern for every path that begins with the bytes of a literal one."""
    return f"{path(text)}.*"


def literal(source: str) -> str:
    """The text that every match of a pattern begins with, as far as that is plain to see."""
    if _has_branches(source):
        return ""
    found = ""
    for piece in _PIECES.findall(source):
        if piece[0] == "\\" and not piece[1].isalnum():
            found += piece[1]
        elif piece in ("*", "?", "{"):
            return found[:-1]
        elif len(piece) > 1 or _SPECIAL.match(piece):
            return found
        else:
            found += piece
    return found


def _without_flags(source: str) -> tuple[str, str]:
    found = _FLAGS.match(source)
    return (source[found.end() :], found[1]) if found else (source, "")


def _ends(body: str) -> bool:
    """Whether the last character is a `$` that means the end."""
    return body.endswith("$") and (len(body) - len(body[:-1].rstrip("\\")) - 1) % 2 == 0


def _has_branches(source: str) -> bool:
    """Whether there is a `|` outside of every group."""
    depth = 0
    for piece in _PIECES.findall(source):
        if piece in ("(", "(?<"):
            depth += 1
        elif piece == ")":
            depth -= 1
        elif piece == "|" and depth == 0:
            return True
    return False
