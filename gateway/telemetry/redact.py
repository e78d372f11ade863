"""Secrets kept out of logs: which part of a request target is written, which is masked.

Rule: pure, and when two readings of a target are possible, both are masked. Some servers
end a query parameter at `&` only, others at `;` too (HTML 4.01 §B.2.2): a name is found
after either, its value reaches to the next `&`. Names are compared without regard to case
and percent-encoding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

MASK = "***"

# Credentials in an absolute-form's authority (RFC 9110 §4.2.4).
_USERINFO = re.compile(r"^([^/?#]*://)[^/?#]*@")
# Where the query begins. A fragment does not belong in a target, but a refused request is
# logged too, and tokens do travel in fragments.
_QUERY = re.compile(r"[?#]")


def ways(char: str, encoded: bool) -> list[str]:
    """Patterns for one character of a name, whatever its case.

    No two match the same text: a pattern that could choose would try all its choices for
    each character, and one request could hold the gateway for seconds.
    """
    found: set[str] = set()
    for form in (char.lower(), char.upper()):
        raw = form.encode("utf-8", "surrogatepass")
        found.add("%(?!25)" if form == "%" else re.escape(raw.lower().decode("latin-1")))
        if form == " ":
            found.add(r"\+")
        if encoded:
            found.add("".join(f"%{byte:02x}" for byte in raw))
    return sorted(found)


def _spellings(names: Iterable[str], encoded: bool) -> str:
    """A pattern for names in any case and, character by character, percent-encoded or not."""
    return "|".join("".join(f"(?:{'|'.join(ways(char, encoded))})" for char in name) for name in sorted(names))


def masking(names: Iterable[str]) -> Callable[[str], str]:
    """A function that masks, in a target decoded as Latin-1, the values of these names."""
    names = frozenset(names)
    flags = re.IGNORECASE | re.ASCII
    secret = re.compile(rf"([?&;#](?:{_spellings(names, encoded=True)})=)[^&]*", flags)
    # Cheaper, and enough to acquit a target without percent-encoding.
    plain = re.compile(rf"[?&;#](?:{_spellings(names, encoded=False)})=", flags)
    replacement = rf"\g<1>{MASK}"

    def mask(target: str) -> str:
        if target[:1] != "/":
            target = _USERINFO.sub(rf"\g<1>{MASK}@", target)
        if not names or ("%" not in target and plain.search(target) is None):
            return target
        query = _QUERY.search(target)
        if query is None:
            return target
        start = query.start()
        return target[:start] + secret.sub(replacement, target[start:])

    return mask
