"""A pattern without look-around that matches at least what the original matches.

Rule: for closed routes only. They may refuse more than the source did, never less. Look-around,
atomic groups, possessive quantifiers and back-references only restrict a pattern, so removing
them widens it.
"""

from __future__ import annotations

import re

# A backslash with what it takes along, a class as a whole, the beginning of a group.
_PIECES = re.compile(r"\\k<\w+>|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]?|\(\?(?:<?[=!]|>|P=\w+)|[^\\]", re.DOTALL)
_LOOKS = frozenset({"(?=", "(?!", "(?<=", "(?<!"})


def widened(pattern: str) -> str:
    """The pattern without its look-around; what is not understood stays as it stands."""
    found: list[str] = []
    depth = looking = 0
    quantified = False
    for piece in _PIECES.findall(pattern):
        if piece in _LOOKS and not looking:
            looking = depth + 1
        if piece[0] == "(":
            depth += 1
        elif piece == ")":
            depth -= 1
        if looking:
            # Nothing is left of it; `()` keeps a quantifier behind it in its place.
            if depth < looking:
                looking = 0
                found.append("(?:)")
            continue
        if piece == "(?>":
            found.append("(?:")
        elif re.match(r"\\[1-9k]|\(\?P=", piece):
            found.append("(?:.*" if piece[0] == "(" else "(?:.*)")
        elif not (quantified and piece == "+"):
            found.append(piece)
        quantified = piece in ("*", "+", "?", "}") and not quantified
    return "".join(found)
