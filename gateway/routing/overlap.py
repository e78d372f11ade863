"""How two matches relate: whether one holds wherever the other does, or never with it.

Rule: pure, and decided from what is written alone. Where that does not settle it (regular
expressions, mostly) the answer is the careful one: nothing covers, nothing is apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gateway.http import target
from gateway.model import Match


@dataclass(frozen=True, slots=True)
class Extent:
    """What a match takes, in normal form. `host` None is any; a wildcard keeps its `*.`. Of
    `path`, `prefix` (b"" is any path) and `regex` one is set, or both of the last two. `hosts` and
    `prefixes`: what another match may ask for that holds wherever this one's host and path do.
    `excluded`: the extents of what it excludes, one by one."""

    host: str | None
    hosts: frozenset[str | None]
    path: bytes | None
    prefix: bytes | None
    prefixes: frozenset[bytes]
    regex: str | None
    methods: frozenset[str]
    headers: Mapping[str, str]
    query: Mapping[str, str]
    excluded: tuple[Extent, ...] = ()

    @classmethod
    def of(cls, match: Match) -> Extent:
        host = _host(match.host)
        path = None if match.path is None else target.written(match.path)
        any_path = match.path is None and match.regex is None and match.prefix is None
        wanted = "/" if any_path else match.prefix
        prefix = None if wanted is None else target.written_prefix(wanted)
        return cls(
            host=host,
            hosts=frozenset(_hosts_around(host)),
            path=path,
            prefix=prefix,
            prefixes=frozenset(_prefixes_around(path or prefix or b"")),
            regex=match.regex,
            methods=match.methods,
            headers=dict(match.headers),
            query=dict(match.query),
            excluded=() if match.excluded is None else tuple(map(cls.of, match.excluded.alone())),
        )

    def covers(self, narrow: Extent) -> bool:
        """Whether this certainly holds for every request for which `narrow` holds."""
        return (
            self.host in narrow.hosts
            and self._covers_path(narrow)
            and (not self.methods or (bool(narrow.methods) and narrow.methods <= self.methods))
            and self.headers.items() <= narrow.headers.items()
            and self.query.items() <= narrow.query.items()
            and all(one in narrow.excluded or one.apart(narrow) for one in self.excluded)
        )

    def apart(self, other: Extent) -> bool:
        """Whether certainly no request meets both."""
        return (
            (self.host not in other.hosts and other.host not in self.hosts)
            or not self._paths_may_meet(other)
            or (bool(self.methods) and bool(other.methods) and self.methods.isdisjoint(other.methods))
            or _contradict(self.headers, other.headers)
            or _contradict(self.query, other.query)
            or any(one.covers(other) for one in self.excluded)
            or any(one.covers(self) for one in other.excluded)
        )

    def _covers_path(self, narrow: Extent) -> bool:
        if self.path is not None:
            return self.path == narrow.path
        if self.regex is not None and self.regex != narrow.regex:
            return False
        return self.prefix is None or self.prefix in narrow.prefixes

    def _paths_may_meet(self, other: Extent) -> bool:
        """False where their exact paths or prefixes tell them apart; expressions are not compared."""
        ours, theirs = self._beginning, other._beginning
        if ours is None or theirs is None:
            return True
        if self.path is not None and other.path is not None:
            return ours == theirs
        return (self.path is None and ours in other.prefixes) or (other.path is None and theirs in self.prefixes)

    @property
    def _beginning(self) -> bytes | None:
        return self.prefix if self.path is None else self.path


def apart(one: Match, other: Match) -> bool:
    """Whether certainly no request meets both matches."""
    return Extent.of(one).apart(Extent.of(other))


def _host(written: str | None) -> str | None:
    if written is None:
        return None
    name = written.removeprefix("*.")
    return written[: len(written) - len(name)] + target.host(name.encode()).decode("latin-1")


def _hosts_around(name: str | None) -> Iterator[str | None]:
    """Itself, wider wildcards, any."""
    if name is not None:
        yield name
        labels = name.removeprefix("*.").split(".")
        yield from (f"*.{'.'.join(labels[first:])}" for first in range(1, len(labels)))
    yield None


def _prefixes_around(path: bytes) -> Iterator[bytes]:
    """Itself, and whatever it lies under, up to every path."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]
    yield b""


def _contradict(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return any(other.get(name, value) != value for name, value in one.items())
