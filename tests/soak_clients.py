"""The clients of the reload soak: what they ask for, how they leave, and what they accept.

Rule: an answer is right or it is a fault; only a client that leaves on purpose accepts anything. What each request must
have left in the access log is noted here: exactly one line where the gateway surely read the head, at most one else.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import gevent
from gevent.event import Event

from gateway.testing import Malformed, RawClient, RawResponse, Truncated, chunk
from tests.soak_orders import BUSY, EARLY, FAILING, Expected, Faults, Order, ended, expected, wrong_answer
from tests.soak_reloads import ALWAYS, GUESTS, IMPATIENT, History

CLIENTS = 32
# A connection is used so often, then another is opened.
_USES = 40
# Seconds without a byte after which an answer counts as never coming: longer than every timeout of the gateway.
_PATIENCE = 40.0
# The longest pause of a slow upload, and of a client before it leaves (seconds).
_PAUSE = 0.04
# The share of requests whose client leaves, and the moments and ways of it; the share of uploads with a request behind.
_LEAVING = 0.12
_PHASES = ("head", "body", "wait", "answer")
ABORTS = tuple(f"{how}, {phase}" for how in ("RST", "FIN") for phase in _PHASES)
_PIPELINED = 0.15
# The share of uploads that wait for a `100 Continue`.
_EXPECTING = 0.15
# Every answer is longer than so many bytes.
_SHORTEST = 120

_FINE = ("ok", "ok", "chunked", "close")
# Sizes of bodies: around a read, around `retry.buffer`, and far beyond it.
_SMALL = (1, 700, 7_000, 16_384, 30_000)
_SIZES = (*_SMALL, *_SMALL, 65_536, 65_537, 100_000, 131_072, 131_073, 400_000)

# The one connection of "narrow" serves fewer requests than the others' many.
_SHARES = [1 if route == "narrow" else 3 for route in ALWAYS]

Maker = Callable[[Random], Order]


# -- what is asked for --------------------------------------------------------------------


def _route(rng: Random) -> str:
    return rng.choice(GUESTS) if rng.random() < 0.3 else rng.choices(ALWAYS, _SHARES)[0]


def _get(rng: Random, *acts: str) -> Order:
    answer = rng.choice((0, 100, 3_000, 3_000, 20_000, 200_000))
    return Order(0, _route(rng), acts=acts or (rng.choice(_FINE),), answer=answer)


def _upload(rng: Random, *acts: str, slow: bool = False) -> Order:
    method, chunked = rng.choice(("PUT", "PUT", "POST")), rng.random() < 0.35
    answer = rng.choice((0, 500, 5_000))
    expects = rng.random() < _EXPECTING
    return Order(
        0, _route(rng), method, rng.choice(_SIZES), chunked, slow, expects, acts or (rng.choice(_FINE),), answer
    )


def _slowly(rng: Random, *acts: str) -> Order:
    return _upload(rng, *acts, slow=True)


def _first(acts: frozenset[str], rng: Random) -> tuple[str, ...]:
    """One of these acts at the first attempt, or at all of them."""
    act = rng.choice(sorted(acts))
    return (act,) if rng.random() < 0.15 else (act, "ok")


def _hedged(rng: Random) -> Order:
    # Fewer than one of 20 of the route's answers, or slow answers become the usual ones and are not hedged.
    acts = ("slow", "ok") if rng.random() < 0.06 else ("ok",)
    return replace(_get(rng, *acts), route="hedged")


# How often each kind comes, and how it is made.
KINDS: dict[str, tuple[float, Maker]] = {
    "GET": (32, _get),
    "upload": (16, _upload),
    "slow upload": (8, _slowly),
    "retry status during a slow upload": (10, lambda rng: _slowly(rng, *_first(BUSY, rng))),
    "retry status during an upload": (5, lambda rng: _upload(rng, *_first(BUSY, rng))),
    "retry status of a GET": (4, lambda rng: _get(rng, *_first(BUSY, rng))),
    "final answer during a slow upload": (3, lambda rng: _slowly(rng, "early")),
    "hedged GET": (20, _hedged),
    "upstream ends the connection of a GET": (2, lambda rng: _get(rng, *_first(FAILING, rng))),
    "upstream ends the connection of a slow upload": (3, lambda rng: _slowly(rng, *_first(FAILING, rng))),
    "upstream cuts its answer": (1, lambda rng: _get(rng, "cut")),
    "upstream stalls": (1, lambda rng: replace(_get(rng, rng.choice(("stall", "stall-body"))), route=IMPATIENT)),
}
_NAMES = list(KINDS)
_WEIGHTS = [weight for weight, _ in KINDS.values()]


def drawn(rng: Random, number: int) -> Order:
    """A request of a random kind."""
    kind = rng.choices(_NAMES, _WEIGHTS)[0]
    return replace(KINDS[kind][1](rng), number=number, kind=kind)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes to send, and the pause before them (seconds)."""

    data: bytes
    pause: float = 0.0


def pieces(order: Order, rng: Random) -> list[Piece]:
    """A request as it is sent: all of it at once, or its body in up to eight pieces."""
    body = order.body
    count = rng.randint(2, 8) if order.slow and body else 1
    cuts = sorted(rng.randrange(len(body)) for _ in range(count - 1))
    parts = [body[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True) if end > begin]
    if order.chunked:
        parts = [chunk(part) for part in parts] + [b"0\r\n\r\n"]
    if not order.slow and not order.expects:
        return [Piece(b"".join((order.head(), *parts)))]
    return [Piece(order.head()), *(Piece(part, rng.random() * _PAUSE) for part in parts)]


def _continued(client: RawClient) -> bool:
    """Whether the answer to a head with `Expect` is 100. Whatever it is stays in the buffer, to be read as an answer."""
    while b"\r\n\r\n" not in client.buffer:
        if not client.fill():
            return False
    return client.buffer.startswith(b"HTTP/1.1 100 ")


# -- one client after another -------------------------------------------------------------


class Log:
    """What the access log must say: by number of the request the status, 0 where any is right, or None where there
    may be no line."""

    def __init__(self) -> None:
        self.lines: dict[int, int | None] = {}
        # Heads that were broken off before their end: their lines have no target.
        self.broken_heads = 0


class Load:
    """CLIENTS at once until so many requests were made."""

    def __init__(self, port: int, seed: int, history: History, faults: Faults) -> None:
        self._port = port
        self._seed = seed
        self._history = history
        self._faults = faults
        self._left = 0
        self._round = 0
        self.made = 0
        self.answered = 0
        self.kinds: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.aborts: Counter[str] = Counter()
        self.pipelined = 0
        self.log = Log()
        self.guests_absent = 0

    def run(self, number: int) -> None:
        self._left = number
        self._round += 1
        clients = [gevent.spawn(self._client, Random(f"{self._seed}:{self._round}:{each}")) for each in range(CLIENTS)]
        gevent.joinall(clients, raise_error=True)

    @property
    def over(self) -> bool:
        return self._left <= 0 or self._faults.too_many

    def _take(self, rng: Random) -> Order:
        self._left -= 1
        self.made += 1
        order = drawn(rng, self.made)
        self.kinds[order.kind] += 1
        self.log.lines[order.number] = None
        return order

    def _client(self, rng: Random) -> None:
        while not self.over:
            try:
                client = RawClient(self._port, timeout=_PATIENCE)
            except OSError as error:
                self._faults.add("no connection to the gateway", ended(error))
                gevent.sleep(0.1)
                continue
            with client:
                self._use(client, rng)

    def _use(self, client: RawClient, rng: Random) -> None:
        """Requests on one connection, until it ends. `sure`: the gateway has no reason to have closed it."""
        sure = True
        for _ in range(_USES):
            if self.over:
                return
            order = self._take(rng)
            if rng.random() < _LEAVING:
                self._abort(client, order, rng, sure)
                return
            keep, sure = self._exchange(client, order, rng, sure)
            if not keep:
                return
            client.received.clear()

    def _exchange(self, client: RawClient, order: Order, rng: Random, sure: bool) -> tuple[bool, bool]:
        """One request and its answer, sometimes with another behind it. Whether the connection is kept, and whether
        it surely is."""
        behind = self._behind(order, rng)
        began = time.monotonic()
        sent = self._send(client, pieces(order, rng), behind, order.expects)
        keep, sure = self._answer(client, order, began, sure and not sent)
        if behind is None or not keep:
            return keep and not sent, sure
        return self._answer(client, behind, began, sure)

    def _behind(self, order: Order, rng: Random) -> Order | None:
        if order.size is None or order.expects or rng.random() > _PIPELINED:
            return None
        behind = replace(_get(rng, "ok"), number=self.made + 1, kind="pipelined GET")
        self._left -= 1
        self.made += 1
        self.kinds[behind.kind] += 1
        self.log.lines[behind.number] = None
        self.pipelined += 1
        return behind

    @staticmethod
    def _send(client: RawClient, parts: list[Piece], behind: Order | None, expects: bool) -> str:
        """Send it all; why that failed, or "". The answer may be there all the same. `expects`: the body only when the
        answer to the head is 100."""
        last = behind.head() if behind is not None else b""
        try:
            for at, piece in enumerate(parts):
                if piece.pause:
                    gevent.sleep(piece.pause)
                client.send(piece.data + (last if at + 1 == len(parts) else b""))
                if expects and not at and not _continued(client):
                    return ""
        except OSError as error:
            return ended(error)
        return ""

    def _answer(self, client: RawClient, order: Order, began: float, sure: bool) -> tuple[bool, bool]:
        """Read an answer and judge it."""
        try:
            response, whole = client.read_response(order.method.encode()), True
        except Truncated as error:
            if error.response is None:
                return self._no_answer(order, sure or bool(error.partial), ended(error))
            response, whole = error.response, False
        except Malformed as error:
            return self._no_answer(order, True, ended(error))
        except OSError as error:
            # Without a head `read_response` leaves what it got in the buffer.
            return self._no_answer(order, sure or isinstance(error, TimeoutError), ended(error))
        self.answered += 1
        self.log.lines[order.number] = response.status
        fault, story = self._judged(order, response, whole, began)
        if fault:
            self._faults.add(
                fault,
                f"{order.kind}: {order.method} {order.target} ({'chunked' if order.chunked else order.size}): {story}",
            )
        keep = whole and not fault and response.header(b"connection") != b"close"
        return keep, keep and response.status == 200 and order.acts[0] not in EARLY | FAILING

    def _no_answer(self, order: Order, sure: bool, why: str) -> tuple[bool, bool]:
        """The connection ended before an answer: a fault, unless the gateway had a reason to close it."""
        if sure:
            kind = "no answer at all" if "timed out" in why else "the connection broke without an answer"
            self._faults.add(kind, f"{order.kind}: {order.method} {order.target}: {why}")
        return False, False

    def _judged(self, order: Order, response: RawResponse, whole: bool, began: float) -> tuple[str, str]:
        """Kind of fault and story, or two empty texts."""
        status, reason = response.status, (response.header(b"gateway-error") or b"").decode()
        self.statuses[f"{status} {reason}".strip()] += 1
        if order.route in GUESTS and not self._history.allows(
            order.route, status if reason == "no_route" else 0, began, time.monotonic()
        ):
            return "failed by a reload" if status == 404 else "a removed route answers", f"{status} {reason}"
        if reason == "no_route" and order.route in GUESTS:
            self.guests_absent += 1
            return "", ""
        wanted = expected(order)
        if status not in wanted.statuses:
            kind = (
                "failed by a reload" if reason in ("no_route", "no_endpoint") else f"status {status} {reason}".rstrip()
            )
            return kind, f"not {sorted(wanted.statuses)}; {response.body[:200]!r}"
        if reason:
            return "", ""
        return self._bytes(order, response, whole, wanted)

    @staticmethod
    def _bytes(order: Order, response: RawResponse, whole: bool, wanted: Expected) -> tuple[str, str]:
        """The same for the body of an upstream's answer."""
        if response.header(b"x-soak") != b"%08x" % order.number:
            return "another client's answer", repr(response.head)
        if wrong := wrong_answer(order, response.status, response.body, whole):
            return "wrong bytes in an answer", wrong
        if not whole and not wanted.broken:
            return "an answer broke off", f"{response.status} after {len(response.body)} bytes"
        return "", ""

    # -- clients that leave ---------------------------------------------------------------

    def _abort(self, client: RawClient, order: Order, rng: Random, sure: bool) -> None:
        """Leave at a random moment: inside the head, inside the body, before the answer or inside it."""
        parts = pieces(order, rng)
        phase = rng.choice((*_PHASES, "body") if order.size else ("head", "wait", "answer"))
        reset = rng.random() < 0.5
        self.aborts[f"{'RST' if reset else 'FIN'}, {phase}"] += 1
        head = len(order.head())
        data = b"".join(part.data for part in parts)
        left = {"head": rng.randrange(1, head), "body": rng.randrange(head, len(data) + 1)}.get(phase, len(data))
        try:
            for part in parts:
                if part.pause:
                    gevent.sleep(part.pause)
                client.send(part.data[:left])
                left -= len(part.data)
                if left <= 0:
                    break
            if phase == "answer":
                client.read_exactly(rng.randrange(1, _SHORTEST))
            elif rng.random() < 0.6:
                gevent.sleep(rng.random() * _PAUSE)
        except (OSError, Truncated):
            return  # the gateway has closed the connection behind an earlier answer, or refused this request
        if phase == "head":
            self.log.broken_heads += 1
        elif phase == "answer" or (sure and not reset):
            self.log.lines[order.number] = 0
        if reset:
            client.reset()


def stopped(stop: Event, greenlet: gevent.Greenlet) -> None:
    """End a greenlet by its event, and raise what it raised."""
    stop.set()
    greenlet.get(timeout=_PATIENCE)
