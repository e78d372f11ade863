"""What one request of the reload soak asks for, and the bytes that belong to it and to no other.

Rule: every byte of a body names its request. A body consists of lines of 16 bytes, each with the request's number and
the line's own, so that bytes in the wrong place show whose they are and where they stood. The target tells an
upstream everything it needs: no state is shared between client and upstream.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from gateway.testing import Truncated

# The largest body of the soak, in either direction (bytes).
MOST_BODY = 512 * 1024
_LINE = 16
_MARK = b"########"
_TEMPLATE = b"".join(b"%s:%06x\n" % (_MARK, line) for line in range(MOST_BODY // _LINE))
# Set in the number that answers are made of, so that no request looks like an answer.
_ANSWER = 0x80000000

# Acts after which the upstream asks for a retry by its status.
BUSY = frozenset({"busy-small", "busy-big", "busy-open", "busy-close"})
# Acts whose answer begins before the upstream has read the body.
EARLY = BUSY | {"early"}
# Acts that end the connection without an answer.
FAILING = frozenset({"reset", "drop"})
# Acts that begin an answer and do not end it.
BROKEN = frozenset({"cut", "stall-body", "busy-open"})

# Everything that an upstream can do.
ACTS = EARLY | FAILING | BROKEN | {"ok", "chunked", "close", "slow", "stall"}

# Bytes behind the first line of an answer whose length is the act's own.
OWN_LENGTH = {
    "busy-small": 200,
    "busy-big": 40_000,
    "busy-open": 300,
    "busy-close": 300,
    "early": 100,
    "cut": 6_000,
    "stall-body": 6_000,
}
# How much of it is sent where that is not all.
SENT_OF = {"busy-open": 150, "cut": 3_000, "stall-body": 3_000}
STATUS = {act: 503 if act in BUSY else 200 for act in OWN_LENGTH}


def owned(number: int, size: int) -> bytes:
    """`size` bytes that belong to `number`."""
    lines = -(-size // _LINE)
    return _TEMPLATE[: lines * _LINE].replace(_MARK, b"%08x" % number)[:size]


def answered(number: int, act: str, received: bytes, length: int) -> bytes:
    """An answer's body: a line with the number, the act, the length and SHA-1 of what the upstream received and the
    length of the rest, then that rest."""
    digest = hashlib.sha1(received).hexdigest().encode()
    line = b"%08x %s %d %s %d\n" % (number, act.encode(), len(received), digest, length)
    return line + owned(number | _ANSWER, length)


@dataclass(frozen=True, slots=True)
class Order:
    """One request. `size`: bytes of its body, None without one. `acts`: what the upstream does at the first attempt,
    at the second and so on; the last one repeats. `slow`: the client sends its body in pieces. `expects`: only behind a
    `100 Continue`."""

    number: int
    route: str
    method: str = "GET"
    size: int | None = None
    chunked: bool = False
    slow: bool = False
    expects: bool = False
    acts: tuple[str, ...] = ("ok",)
    answer: int = 0
    kind: str = "GET"

    @property
    def target(self) -> str:
        return f"/{self.route}/{self.number:08x}?do={','.join(self.acts)}&body={self.size or 0}&answer={self.answer}"

    @property
    def body(self) -> bytes:
        return owned(self.number, self.size or 0)

    def head(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: soak.test", f"X-Soak: {self.number:08x}"]
        if self.chunked:
            lines.append("Transfer-Encoding: chunked")
        elif self.size is not None:
            lines.append(f"Content-Length: {self.size}")
        if self.expects:
            lines.append("Expect: 100-continue")
        return "".join(line + "\r\n" for line in (*lines, "")).encode()


# What an upstream sees: an endpoint's base path and the rewritten prefix may stand before the number.
_SEEN = re.compile(
    r"(?P<before>(?:/[a-z]+[0-9]*)+)/(?P<number>[0-9a-f]{8})\?do=(?P<acts>[a-z,-]+)&body=(?P<size>\d+)&answer=(?P<answer>\d+)\Z"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A target as an upstream reads it. `before`: the segments in front of the number."""

    number: int
    before: tuple[str, ...]
    acts: tuple[str, ...]
    size: int
    answer: int

    def act(self, attempt: int) -> str:
        """What to do at an attempt, counted from 1."""
        return self.acts[min(attempt, len(self.acts)) - 1]


def asked(target: bytes) -> Asked | None:
    """None for a target that no client of the soak sends."""
    found = _SEEN.match(target.decode("latin-1"))
    if found is None:
        return None
    acts = tuple(found["acts"].split(","))
    return Asked(
        int(found["number"], 16), tuple(found["before"].split("/")[1:]), acts, int(found["size"]), int(found["answer"])
    )


# -- what must come of it -----------------------------------------------------------------

# Largest body that every version of the configuration keeps for a retry, and the largest that any does.
SURELY_KEPT = 64 * 1024
EVER_KEPT = 128 * 1024


@dataclass(frozen=True, slots=True)
class Expected:
    """`statuses` that are right; `broken`: the answer may break off after its head."""

    statuses: frozenset[int]
    broken: bool


def _outcome(act: str) -> frozenset[int]:
    if act in FAILING:
        return frozenset({502})
    if act == "stall":
        return frozenset({504})
    if act == "cut":
        # The gateway may see the end before it has sent the head.
        return frozenset({200, 502})
    return frozenset({STATUS.get(act, 200)})


def _retried(order: Order, act: str) -> bool | None:
    """Whether a retry follows an act; None: either is right."""
    if act not in BUSY | FAILING or order.method not in ("GET", "PUT"):
        return False
    size = order.size or 0
    if order.chunked or size > EVER_KEPT:
        return False
    if size > SURELY_KEPT or act in ("busy-big", "busy-open"):
        # An answer that is long, or has no end, is passed on or given up: both are right.
        return None
    if act in FAILING and order.expects:
        # The upstream has sent a 100: that is more than no byte of an answer.
        return None
    return True


def expected(order: Order) -> Expected:
    first, last = order.acts[0], order.acts[-1]
    again = _retried(order, first)
    if first == last or again is False:
        acts = {first}
    elif again:
        acts = {last}
    else:
        acts = {first, last}
    statuses = frozenset[int]().union(*map(_outcome, acts))
    return Expected(statuses, bool(acts & BROKEN))


def wrong_answer(order: Order, status: int, body: bytes, whole: bool) -> str:
    """What is wrong with an upstream's answer as the client got it; "" if nothing is. `whole`: it did not break off."""
    line, end, _ = body.partition(b"\n")
    words = line.split(b" ")
    if not whole and not end:
        return "" if (b"%08x" % order.number).startswith(body[:8]) else f"bytes of another answer: {body[:100]!r}"
    if len(words) != 5 or words[0] != b"%08x" % order.number or words[1].decode() not in order.acts:
        return f"another answer: {body[:100]!r}"
    act, received, length = words[1].decode(), int(words[2]), int(words[4])
    if act not in EARLY | BROKEN and received != (order.size or 0):
        return f"the upstream took {received} of {order.size} bytes for the whole body"
    if status != STATUS.get(act, 200):
        return f"status {status} of {act}"
    wanted = answered(order.number, act, order.body[:received], length)
    if whole and body != wanted:
        return f"{act}: {different(body, wanted)}"
    if not wanted.startswith(body):
        return f"{act}, broken off: {different(body, wanted)}"
    return ""


def different(found: bytes, wanted: bytes) -> str:
    """Where two texts part, with what was found there."""
    at = next(
        (place for place, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other),
        min(len(found), len(wanted)),
    )
    return (
        f"{len(found)} bytes, not {len(wanted)}; from byte {at}: {found[at : at + 60]!r}, not {wanted[at : at + 30]!r}"
    )


# -- what was wrong -----------------------------------------------------------------------

# Examples that are kept of each kind of fault, and faults after which the soak stops.
_EXAMPLES = 5
MOST_FAULTS = 2_000


@dataclass(slots=True)
class Faults:
    """Faults by kind, with a few examples of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < _EXAMPLES:
            kept.append(example[:1_000])

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def too_many(self) -> bool:
        return self.total >= MOST_FAULTS

    def lines(self) -> list[str]:
        """A line for each kind, and its examples below it."""
        found = []
        for kind, times in sorted(self.counts.items()):
            found.append(f"{times:>7}  {kind}")
            found += [f"         {example}" for example in self.examples[kind]]
        return found


def ended(error: Exception) -> str:
    """A failed read or write in a few words."""
    partial = f" {error.partial[:100]!r}" if isinstance(error, Truncated) else ""
    return f"{type(error).__name__}: {str(error)[:200]}{partial}"
