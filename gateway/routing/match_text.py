"""A route's match as one line of text, for commands and warnings.

Rule: values look as in the file, so that what is printed can be searched for there.
"""

from __future__ import annotations

from gateway.model import Match


def told_match(match: Match) -> str:
    """`api.example.com /user GET x-beta: 1 ?v=2 not (/user/x, POST)`."""
    parts = [match.host or "*", told_path(match), ",".join(sorted(match.methods)), *told_conditions(match)]
    return " ".join(part for part in parts if part)


def told_path(match: Match) -> str:
    """`= /exact`, `/prefix`, `~ /regex.*`, `/prefix ~ /regex.*`; `/` for any path."""
    if match.path is not None:
        return f"= {match.path}"
    if match.regex is not None:
        return f"{match.prefix} ~ {match.regex}" if match.prefix is not None else f"~ {match.regex}"
    return match.prefix or "/"


def told_conditions(match: Match) -> list[str]:
    """What a match says of headers and query, and what it excludes."""
    told = [f"{name}: {value}" for name, value in match.headers]
    told += [f"?{name}={value}" for name, value in match.query]
    return told if match.excluded is None else [*told, f"not ({', '.join(map(told_excluded, match.excluded.alone()))})"]


def told_excluded(one: Match) -> str:
    """One condition of `not`, which stands alone."""
    path = told_path(one) if one.path or one.prefix or one.regex else ""
    return one.host or path or ",".join(sorted(one.methods)) or told_conditions(one)[0]
