"""The configurations of the reload soak: what stays, what comes and goes, what is invalid, and when each was written.

Rule: a route of ALWAYS is in every version, whatever else changes. A route of GUESTS is there for a while, its upstream
with it. Upstreams lose and regain endpoints while those are in use. Invalid files stand for a moment between two
valid ones and must change nothing.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import gevent
from gevent.event import Event

from tests.gateway_process import version

ALWAYS = ("main", "secure", "single", "narrow", "queued", "hedged", "mixed", "moving")
GUESTS = ("guest0", "guest1", "guest2", "guest3", "guest4")
# Stalls only: short timeouts for them and for no request that must be answered.
IMPATIENT = "impatient"

# Seconds between two versions, and how long a guest stays or is away. Short stays meet reloads that are not over yet,
# long ones show whether the route is there at all.
_EVERY = (0.1, 0.5)
_STAY = (0.3, 25.0)
# Seconds within which every worker serves a new version: the file has to come to rest (0.4 s), is loaded, and the
# machine may be busy. Within them the old and the new version are both right.
IN_FORCE = 8.0
# Versions that are remembered: more than a request can meet.
_MOST_VERSIONS = 2_000
# Each time after so many valid versions the next comes behind an invalid file.
_INVALID = 3

_BALANCERS = (
    "round_robin",
    "least_requests",
    "ewma",
    "{hash: {by: client_ip}}",
    "{hash: {by: 'header:X-Soak'}}",
    "{sticky: {cookie: gw}}",
)
_RETRY = "statuses: [503], methods: [GET, PUT], budget: 100%"
# `overload` is off: a machine that stands still must not look like a fault.
_TOP = """\
version: 1
server: {{name: gw, overload: 0, timeouts: {{half_close: 200ms}}}}
admin: null
access_log: {{path: {log}}}
"""


@dataclass(frozen=True, slots=True)
class Servers:
    """Addresses of the upstreams. `secure`: those that speak TLS; `authorities`: files of one and the same authority."""

    plain: tuple[str, str, str]
    secure: tuple[str, str]
    authorities: tuple[Path, Path]
    log: Path


@dataclass(slots=True)
class Choice:
    """What one version says. `options`: by upstream, the text of its settings."""

    guests: frozenset[str]
    options: dict[str, str]
    mixed: int = 0
    moving: int = 0


def rendered(choice: Choice, servers: Servers) -> str:
    """The file of a version: a line for each upstream and route, each in a flow mapping."""
    one, two, three = (json.dumps(url) for url in servers.plain)
    mixed = json.dumps(f"{servers.plain[0]}/c{choice.mixed}")
    own = {
        "main": "",
        "secure": "",
        "single": f"endpoints: [{three}]",
        "narrow": f"endpoints: [{two}]",
        "queued": f"endpoints: [{one}, {three}], concurrency: {{limit: 4, queue: 1000, queue_timeout: 15s}}",
        "hedged": f"endpoints: [{one}, {two}]",
        "mixed": f"endpoints: [{mixed}]",
        f"moving{choice.moving}": f"endpoints: [{three}, {two}]",
        IMPATIENT: f"endpoints: [{two}], timeouts: {{response: 300ms, idle: 300ms}}",
    }
    own |= {
        guest: f"endpoints: [{(one, two, three)[number % 3]}]"
        for number, guest in enumerate(GUESTS)
        if guest in choice.guests
    }
    lines = [_TOP.format(log=json.dumps(str(servers.log))), "upstreams:\n"]
    for name, text in own.items():
        parts = ", ".join(part for part in (text, choice.options.get(_options_of(name), "")) if part)
        lines.append(f"  {name}: {{{parts}}}\n")
    lines.append("routes:\n")
    lines += [_route(name, choice) for name in (*ALWAYS, IMPATIENT, *sorted(choice.guests))]
    return "".join(lines)


def _options_of(upstream: str) -> str:
    return "moving" if upstream.startswith("moving") else "guest" if upstream.startswith("guest") else upstream


def _route(name: str, choice: Choice) -> str:
    parts = [f"name: {name}", f"match: {{prefix: /{name}}}"]
    parts.append(f"upstream: {name}{choice.moving if name == 'moving' else ''}")
    if name == "mixed":
        parts.append(f"rewrite: {{prefix: /c{choice.mixed}}}")
    parts.append(f"retry: {{{choice.options.get('retry', _RETRY)}{', hedge: true' if name == 'hedged' else ''}}}")
    return f"  - {{{', '.join(parts)}}}\n"


class Chooser:
    """Makes one version after another, each a few changes from the one before."""

    def __init__(self, servers: Servers, rng: Random) -> None:
        self._servers = servers
        self._rng = rng
        self._until = dict.fromkeys(GUESTS, 0.0)
        self.choice = self.settled()

    def settled(self) -> Choice:
        """The version with every guest, in which the soak begins and ends."""
        return Choice(frozenset(GUESTS), {name: self._options(name, Random(name)) for name in self._named()})

    @staticmethod
    def _named() -> Sequence[str]:
        return (*ALWAYS, "guest", "retry")

    def next(self, now: float) -> Choice:
        rng, before = self._rng, self.choice
        guests = set(before.guests)
        for guest, until in self._until.items():
            if now >= until:
                guests ^= {guest}
                self._until[guest] = now + rng.uniform(*_STAY) * rng.random()
        options = {
            name: self._options(name, rng) if rng.random() < 0.3 else before.options[name] for name in self._named()
        }
        mixed = before.mixed + (rng.random() < 0.5)
        self.choice = Choice(frozenset(guests), options, mixed, rng.randrange(2))
        return self.choice

    def _options(self, name: str, rng: Random) -> str:
        if name == "retry":
            return f"{_RETRY}, attempts: {rng.choice((2, 3, 4))}, buffer: {rng.choice(('64KiB', '128KiB'))}, backoff: {rng.choice((0, '1ms', '25ms'))}"
        pool = f"max_idle: {rng.choice((0, 3, 100))}, idle_timeout: {rng.choice(('500ms', '1s'))}"
        if name == "narrow":
            pool += ", max_connections: 1, queue_timeout: 10s"
        elif rng.random() < 0.2:
            pool += ", max_connections: 40, queue_timeout: 20s"
        # An answer without an end holds its place until then.
        idle = "1s" if name in ("narrow", "queued") else "3s"
        parts = [
            f"balance: {rng.choice(_BALANCERS)}",
            f"timeouts: {{connect: {rng.choice((10, 15))}s, response: {rng.choice((15, 20))}s, idle: {idle}}}",
            f"pool: {{{pool}}}",
            f"eject: {rng.choice(('null', '{}'))}",
            f"slow_start: {rng.choice(('0', '2s'))}",
        ]
        if name == "main":
            parts.insert(0, self._endpoints(self._servers.plain[:2], rng))
        elif name == "secure":
            parts.insert(
                0,
                f"{self._endpoints(self._servers.secure, rng)}, tls: {{ca: {json.dumps(str(rng.choice(self._servers.authorities)))}}}",
            )
        return ", ".join(parts)

    @staticmethod
    def _endpoints(urls: Sequence[str], rng: Random) -> str:
        """All of them or one alone, with weights or without."""
        if rng.random() < 0.4:
            return f"endpoints: [{json.dumps(rng.choice(urls))}]"
        weights = [f"{{url: {json.dumps(url)}, weight: {rng.randint(1, 3)}}}" for url in urls]
        return f"endpoints: [{', '.join(weights)}]"


@dataclass(slots=True)
class History:
    """The valid versions that were written, the latest last."""

    times: list[float] = field(default_factory=list)
    guests: list[frozenset[str]] = field(default_factory=list)
    # The guests of every version, by its name.
    of_version: dict[str, frozenset[str]] = field(default_factory=dict)

    def add(self, at: float, guests: frozenset[str], text: str) -> None:
        self.times.append(at)
        self.guests.append(guests)
        self.of_version[version(text)] = guests
        if len(self.times) > 2 * _MOST_VERSIONS:
            del self.times[:_MOST_VERSIONS], self.guests[:_MOST_VERSIONS]

    def between(self, began: float, ended: float) -> list[frozenset[str]]:
        """The guests of each version that may have been in force at a moment between the two."""
        first = max(bisect_right(self.times, began - IN_FORCE) - 1, 0)
        return self.guests[first : bisect_right(self.times, ended)]

    def allows(self, guest: str, status: int, began: float, ended: float) -> bool:
        """Whether a guest's route may have been absent (404), or there (anything else)."""
        present = [guest in guests for guests in self.between(began, ended)]
        return not all(present) if status == 404 else any(present)


class Reloader:
    """Rewrites the file of a gateway until it is stopped."""

    def __init__(self, path: Path, servers: Servers, rng: Random) -> None:
        self._path = path
        self._servers = servers
        self._rng = rng
        self._chooser = Chooser(servers, rng)
        self.history = History()
        self.text = ""
        self.valid = 0
        self.invalid: Counter[str] = Counter()

    def first(self) -> str:
        """The text of the settled version, noted as written now."""
        choice = self._chooser.settled()
        self.text = rendered(choice, self._servers)
        self.history.add(time.monotonic(), choice.guests, self.text)
        return self.text

    def settle(self) -> None:
        """Write the version in which everything comes to rest."""
        self._write(self.first())

    def run(self, stop: Event) -> None:
        while not stop.wait(self._rng.uniform(*_EVERY)):
            if self.valid % _INVALID == _INVALID - 1:
                self._spoil()
                if stop.wait(self._rng.uniform(0.05, 1.5)):
                    break
            choice = self._chooser.next(time.monotonic())
            text = rendered(choice, self._servers)
            # It may be read before this returns, so it counts from here.
            self.text = text
            self.history.add(time.monotonic(), choice.guests, text)
            self.valid += 1
            self._write(text)

    def _write(self, text: str) -> None:
        """By rename, or in place in two parts."""
        if self._rng.random() < 0.6:
            beside = self._path.with_name("beside.yaml")
            beside.write_text(text)
            beside.rename(self._path)
            return
        at = half(text, self._rng)
        with self._path.open("w") as file:
            file.write(text[:at])
            file.flush()
            gevent.sleep(self._rng.random() * 0.05)
            file.write(text[at:])

    def _spoil(self) -> None:
        text = rendered(self._chooser.choice, self._servers)
        kind, spoiled = spoiled_by(text, self._rng)
        self.invalid[kind] += 1
        self._path.write_text(spoiled)


def half(text: str, rng: Random) -> int:
    """Where to cut a file so that the first part is invalid: inside one of its flow mappings."""
    line = rng.choice([at for at in range(len(text)) if text.startswith("\n  ", at)])
    return text.index("{", line) + 1


def spoiled_by(text: str, rng: Random) -> tuple[str, str]:
    """A kind of mistake, and the text with it."""
    kinds = {
        "half a file": text[: half(text, rng)],
        "an empty file": "",
        "no YAML": text + "routes: [}\n",
        "an unknown key": text + "rutes: []\n",
        "an unknown upstream": text + "  - {name: lost, match: {prefix: /lost}, upstream: nowhere}\n",
        "a wrong value": text.replace("version: 1", "version: one", 1),
        "a file that is not there": text.replace("{ca: ", "{cert: /nonexistent.pem, ca: ", 1),
        "bytes": "\x00\x01" + text,
    }
    kind = rng.choice(sorted(kinds))
    return kind, kinds[kind]
