"""What etcd holds as endpoints, and the loop of the provider with a scripted registry and clock."""

import json
import logging
from collections.abc import Sequence
from typing import Any, Self

import pytest

from gateway import providers
from gateway.model import DiscoverySettings, Endpoint, EtcdSettings, EtcdSource, TlsSettings, Upstream
from gateway.providers.base import Update
from gateway.providers.etcd import MOST_VALUE, BadValue, EtcdProvider, Folder, endpoint
from gateway.providers.names import LookupFailed, Names
from gateway.registries import RegistryError
from gateway.registries.etcd import Compacted, Event, Range
from gateway.testing import FakeClock

PREFIX = "/svc/a/"
STOCK = Upstream("stock", EtcdSource(PREFIX), tls=TlsSettings())


def at(address: str, weight: int = 1) -> Endpoint:
    host, _, port = address.rpartition(":")
    return Endpoint("http", host, int(port), weight=weight, authority=address.encode())


# -- values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10.0.0.1:80", at("10.0.0.1:80")),
        (" 10.0.0.1:80\n", at("10.0.0.1:80")),
        ("Stock.internal:8080", Endpoint("http", "stock.internal", 8080, authority=b"Stock.internal:8080")),
        ("[2001:DB8::1]:80", Endpoint("http", "2001:db8::1", 80, authority=b"[2001:DB8::1]:80")),
        ("[::ffff:10.0.0.1]:80", Endpoint("http", "10.0.0.1", 80, authority=b"[::ffff:10.0.0.1]:80")),
        ("http://10.0.0.1", Endpoint("http", "10.0.0.1", 80, authority=b"10.0.0.1")),
        ("https://h/b?k=v", Endpoint("https", "h", 443, 1, b"/b", b"k=v", b"h", "h")),
        ('{"url": "10.0.0.1:80", "weight": 0}', at("10.0.0.1:80", 0)),
        ('{"url": "https://h:1/b", "weight": 7, "zone": null}', Endpoint("https", "h", 1, 7, b"/b", b"", b"h:1", "h")),
    ],
)  # fmt: skip
def test_values(value: str, expected: Endpoint) -> None:
    assert endpoint(value.encode(), STOCK) == expected


def test_a_place_is_spoken_to_as_the_upstream_is() -> None:
    secure = Upstream("u", EtcdSource(PREFIX), scheme="https", tls=TlsSettings())
    assert endpoint(b"h:1", secure) == Endpoint("https", "h", 1, authority=b"h:1", server_name="h")
    assert endpoint(b"http://h:1", secure).server_name is None
    named = Upstream("u", EtcdSource(PREFIX), scheme="https", tls=TlsSettings(server_name="n.example"))
    assert endpoint(b"10.0.0.1:1", named).server_name == "n.example"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (b"", "is neither"), (b"10.0.0.1", "is neither"), (b"h:80/x", "is neither"), (b"u:p@h:80", "is neither"),
        (b"10.0.0.1:80 ; x", "is neither"), (b"::1:80", "no valid host"), (b"10.0.0.1:0", "port 0"), (b"h:99999", "port 99999"),
        (b"1.2.3:80", "ends like an IPv4 address"), (b"ftp://h", "scheme ftp"), (b"http://u:secret@h", "user name or password"),
        (b"http://h#x", "fragment"), (b"http://", "no host"), (b"\xff", "UTF-8"), (b"{", "is not JSON"), (b"{}", "has no url"),
        (b"{" * 4000, "is not JSON"), (b'{"url": 5}', "has no url"), (b'{"url": "h:1", "weight": -1}', "weight"),
        (b'{"url": "h:1", "weight": true}', "weight"), (b'{"url": "h:1", "weight": "2"}', "weight"),
        (b'{"url": "h:1", "weight": 65536}', "weight"), (b'{"url": "h:1", "weight": 1.5}', "weight"),
        (b"h:1" + b" " * MOST_VALUE, "bytes"), (b'["h:1"]', "is neither"), ("ä:80".encode(), "outside ASCII"),
    ],
)  # fmt: skip
def test_bad_values(value: bytes, told: str) -> None:
    with pytest.raises(BadValue, match=told) as caught:
        endpoint(value, STOCK)
    assert "secret" not in str(caught.value)


# -- a folder ---------------------------------------------------------------------------


def folder(**pairs: str) -> Folder:
    made = Folder(STOCK, PREFIX.encode())
    made.replace(named(pairs), lambda: None)
    return made


def named(pairs: dict[str, str]) -> dict[bytes, bytes]:
    return {f"{PREFIX}{key}".encode(): value.encode() for key, value in pairs.items()}


def test_a_bad_value_costs_its_own_key_only() -> None:
    assert folder(one="10.0.0.2:80", two="rubbish", three="10.0.0.1:80").endpoints() == (
        (at("10.0.0.1:80"), at("10.0.0.2:80")),
        ("key /svc/a/two is neither host:port, nor a URL, nor JSON with a url",),
    )


def test_two_keys_with_one_endpoint_are_one_with_the_larger_weight() -> None:
    found, _ = folder(a='{"url": "h:1", "weight": 2}', b='{"url": "h:1", "weight": 5}', c="h:1").endpoints()
    assert [each.weight for each in found] == [5]


def test_the_folder_itself_is_no_endpoint() -> None:
    made = folder(a="h:1")
    made.replace({PREFIX.encode(): b"", **named({"a": "h:1"})}, lambda: None)
    made.apply([Event(PREFIX.encode(), b"dir", 5)])
    assert len(made.endpoints()[0]) == 1
    assert made.endpoints()[1] == ()


def test_events_change_it() -> None:
    made = folder(a="10.0.0.1:80", b="10.0.0.2:80", c="rubbish")
    key = PREFIX.encode()
    made.apply([Event(key + b"a", None, 3), Event(key + b"b", b"10.0.0.3:80", 4), Event(key + b"c", b"10.0.0.4:80", 5)])
    made.apply([Event(key + b"never", None, 6)])
    assert made.endpoints() == ((at("10.0.0.3:80"), at("10.0.0.4:80")), ())


def test_a_long_listing_lets_others_have_their_turn() -> None:
    turns: list[int] = []
    Folder(STOCK, b"/").replace({b"/%d" % n: b"10.0.0.1:%d" % (n + 1) for n in range(1000)}, lambda: turns.append(1))
    assert len(turns) == 16


# -- the loop ---------------------------------------------------------------------------

Happening = Sequence[Event] | Exception | float


class Registry:
    """Listings in turn, each with what then happens on its watch: events, an error, or seconds of silence."""

    def __init__(self, clock: FakeClock, *script: tuple[Range | Exception, Sequence[Happening]]) -> None:
        self.clock = clock
        self.script = list(script)
        self.lists = 0
        self.watched: list[int] = []
        self.open = 0
        self._happening: list[Happening] = []

    def prefix(self, prefix: str) -> Range:
        assert prefix == PREFIX
        self.lists += 1
        if not self.script:
            pytest.fail("more is listed than was scripted")
        listing, happening = self.script.pop(0)
        self._happening = list(happening)
        if isinstance(listing, Exception):
            raise listing
        return listing

    def watch(self, key: str, revision: int, *, prefix: bool) -> Any:
        assert (key, prefix) == (PREFIX, True)
        self.watched.append(revision)
        if self._happening and isinstance(self._happening[0], ConnectionError):
            self._happening.clear()
            raise RegistryError("no watch to be had")
        return self

    def __enter__(self) -> Self:
        self.open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.open -= 1

    def take(self, patience: float) -> tuple[Event, ...]:
        if not self._happening:
            raise RegistryError("the watch ended")
        now = self._happening[0]
        if isinstance(now, float):
            passed = min(now, max(patience, 1e-3))  # no clock stands still
            self.clock.advance(passed)
            if now <= passed:
                self._happening.pop(0)
            else:
                self._happening[0] = now - passed
            return ()
        self._happening.pop(0)
        if isinstance(now, Exception):
            raise now
        return tuple(now)


class Rounds:
    """An event that is set when the script is over, and lets the clock pass instead of waiting."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.waits: list[float] = []

    def is_set(self) -> bool:
        return not self.registry.script and not self.registry._happening

    def wait(self, timeout: float) -> bool:
        self.waits.append(timeout)
        self.registry.clock.advance(timeout)
        return self.is_set()


def listing(revision: int = 10, cluster: str = "1", **pairs: str) -> Range:
    return Range(named(pairs), revision, cluster)


def put(key: str, value: str | None, revision: int = 11) -> Event:
    return Event(f"{PREFIX}{key}".encode(), None if value is None else value.encode(), revision)


class Ran:
    def __init__(self, *script: tuple[Range | Exception, Sequence[Happening]], names: dict[str, tuple[str, ...]] | None = None, poll: float = 5.0, deny: tuple[str, ...] = (), members: tuple[str, ...] = ()) -> None:
        self.clock = FakeClock()
        self.registry = Registry(self.clock, *script)
        self.lookups: list[str] = []
        self.known = names or {}
        settings = DiscoverySettings(etcd=EtcdSettings(endpoints=members, poll=poll), deny=deny)
        look_up = Names(self.look_up, self.clock)
        self.provider = EtcdProvider(STOCK, EtcdSource(PREFIX), self.registry, settings, look_up, self.clock, lambda: 0.5)
        self.told: list[Update] = []
        self.times: list[float] = []
        self.rounds = Rounds(self.registry)
        self.began = self.clock()
        self.provider.run(self.emit, self.rounds)
        assert self.registry.open == 0

    def emit(self, update: Update) -> None:
        self.told.append(update)
        self.times.append(self.clock() - self.began)

    def look_up(self, name: str) -> tuple[str, ...]:
        self.lookups.append(name)
        if name not in self.known:
            raise LookupFailed(f"{name}: not known")
        return self.known[name]

    @property
    def places(self) -> list[list[str] | None]:
        return [None if u.endpoints is None else [e.address for e in u.endpoints] for u in self.told]


A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


def test_everything_is_listed_and_then_watched_from_there() -> None:
    ran = Ran((listing(10, a=A), [[put("b", B)], [put("a", None, 12)], 100.0, [put("a", A, 13)], 1.0]))
    assert ran.places == [[A], [A, B], [B], [A, B]]
    assert ran.registry.watched == [11]
    assert ran.registry.lists == 1


def test_what_is_the_same_is_not_told_again() -> None:
    ran = Ran((listing(a=A), [[put("a", A)], 1.0, [put("c", "rubbish")], 20.0]), (listing(a=A), [1.0]))
    assert ran.places == [[A]]


def test_a_compaction_is_followed_by_a_listing_and_what_went_in_between_is_gone() -> None:
    ran = Ran((listing(10, a=A, b=B), [Compacted("compacted", 11)]), (listing(50, b=B, c=C), [9.0]))
    assert ran.places == [[A, B], [B, C]]
    assert ran.registry.watched == [11, 51]
    assert not any(update.error for update in ran.told)


def test_an_error_is_not_an_update() -> None:
    ran = Ran((listing(a=A), [9.0]), (RegistryError("HTTP 500"), []), (RegistryError("HTTP 500"), []), (listing(a=A), [9.0]), (listing(), [1.0]))
    assert ran.told[1] == Update("stock", None, "HTTP 500")
    # The same again clears the error.
    assert ran.places == [[A], None, [A], []]
    assert ran.provider.status.last_error == ""


def test_pauses_grow_after_failures_up_to_the_poll() -> None:
    ran = Ran(*[(RegistryError("no"), [])] * 6, poll=5.0)
    assert ran.rounds.waits == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_and_never_beyond_thirty_seconds() -> None:
    ran = Ran(*[(RegistryError("no"), [])] * 7, poll=3600.0)
    assert ran.rounds.waits == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_ten_minutes_of_failures_are_not_noticed() -> None:
    ran = Ran((listing(a=A), [9.0]), *[(RegistryError("no answer"), [])] * 122, (listing(b=B), [9.0]))
    assert ran.places == [[A], None, [B]]
    assert 600 <= ran.times[-1] <= 620
    assert max(ran.rounds.waits) <= 5.0
    assert ran.registry.watched == [11, 11]
    assert ran.provider.status.last_error == ""


def test_a_watch_that_held_is_taken_up_again_soon_and_one_that_did_not_later_and_later() -> None:
    broken = RegistryError("the watch broke")
    ran = Ran((listing(a=A), [60.0, broken]), *[(listing(a=A), [0.1, broken])] * 5, (listing(a=A), [60.0, broken]), (listing(a=A), [broken]))
    assert ran.rounds.waits == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 0.5, 1.0]
    assert ran.places == [[A]]


def test_without_a_watch_everything_is_listed_at_every_poll() -> None:
    lists = [listing(10 + n, a=f"10.0.0.{n + 1}:80") for n in range(7)]
    ran = Ran(*[(each, [ConnectionError()]) for each in lists])
    assert ran.rounds.waits[:6] == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert len(ran.places) == 7


def test_a_storm_of_changes_is_told_twice_a_second_and_to_its_end() -> None:
    storm: list[Happening] = []
    for n in range(600):
        storm += [[put("a", f"10.0.{n // 200}.{n % 200}:80")], 0.05]
    ran = Ran((listing(a=A), [*storm, 2.0]))
    assert 55 <= len(ran.told) <= 2 * 30 + 3 + 1
    assert ran.places[-1] == ["10.0.2.199:80"]
    assert ran.times[-1] <= 30.6
    assert ran.registry.lists == 1


def test_a_change_in_quiet_times_is_told_at_once() -> None:
    ran = Ran((listing(), [10.0, [put("a", A)], 5.0, [put("b", B)], 1.0]))
    assert ran.times == [0.0, 10.0, 15.0]


def test_status_is_fresh_while_the_watch_is_alive() -> None:
    ran = Ran((listing(a=A), [100.0]))
    assert ran.provider.status.last_success == ran.began + 100.0
    ran = Ran((listing(a=A), [100.0, RegistryError("silent")]), (RegistryError("gone"), []))
    assert ran.provider.status.last_error == "gone"
    assert ran.provider.status.last_success == ran.began + 100.0


def test_each_trouble_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.providers")
    Ran(
        (listing(a="bad"), [9.0, RegistryError("the watch broke")]), (RegistryError("down"), []), (RegistryError("down"), []),
        (listing(a="bad"), [ConnectionError()]), (listing(a="bad"), [ConnectionError()]), (listing(a="bad"), [9.0]),
    )  # fmt: skip
    assert [r.getMessage().removeprefix("upstream stock: ") for r in caplog.records] == [
        "not an endpoint: key /svc/a/a is neither host:port, nor a URL, nor JSON with a url",
        "reading everything again: the watch broke",
        "discovery failed, what is known stays: down",
        "discovery works again",
        "reading everything again: no watch to be had",
        "watching",
    ]


@pytest.mark.parametrize("when", ["listing", "watching"])
def test_a_fault_of_our_own_is_not_the_end(when: str, caplog: pytest.LogCaptureFixture) -> None:
    fault = KeyError("x")
    first: tuple[Range | Exception, Sequence[Happening]] = (fault, []) if when == "listing" else (listing(), [fault])
    ran = Ran(first, (listing(a=A), [1.0]))
    assert ran.told[-2:] == [Update("stock", None, "KeyError: 'x'"), Update("stock", (at(A),))]
    assert any(r.exc_info for r in caplog.records)


# -- an empty answer --------------------------------------------------------------------


def test_an_empty_answer_is_an_answer() -> None:
    assert Ran((listing(), [1.0])).places == [[]]
    assert Ran((listing(10, a=A), [RegistryError("x")]), (listing(11), [1.0])).places == [[A], []]


@pytest.mark.parametrize("made_anew", [listing(2), listing(900, cluster="2")])
def test_a_registry_that_was_made_anew_is_not_believed_until_it_names_something(made_anew: Range) -> None:
    later = listing(1000, cluster=made_anew.cluster)
    ran = Ran((listing(10, a=A), [RegistryError("x")]), (made_anew, []), (later, []), (later._replace(pairs=named({"b": B}), revision=1001), [[put("b", None, 1002)], 1.0]))
    assert ran.places == [[A], None, [B], []]
    assert "lost its memory" in ran.told[1].error


def test_a_registry_that_was_made_anew_is_believed_when_nothing_was_known() -> None:
    ran = Ran((listing(10, a=A), [[put("a", None)], 1.0, RegistryError("x")]), (listing(2), [1.0]))
    assert ran.places == [[A], []]


# -- names and refusals -----------------------------------------------------------------


def test_names_are_looked_up_and_kept_fresh_while_nothing_happens() -> None:
    ran = Ran((listing(a="h.internal:80"), [65.0]), names={"h.internal": ("10.0.0.1", "10.0.0.2")}, poll=60.0)
    assert ran.places == [[A, B]]
    assert 3 <= len(ran.lookups) <= 5


def test_names_that_cannot_be_looked_up_are_an_error_only_when_nothing_is_left() -> None:
    ran = Ran((listing(a="h.internal:80"), [[put("b", B)], 1.0]))
    assert ran.places == [None, [B]]
    assert ran.told[0].error == "h.internal: not known"
    assert ran.registry.lists == 1


@pytest.mark.parametrize(
    "place",
    ["169.254.169.254:80", "[::ffff:169.254.169.254]:80", "[64:ff9b::a9fe:a9fe]:80", "[2002:a9fe:a9fe::]:80", "0.0.0.0:80", "[::]:80", "[ff02::1]:80", "[fe80::1%eth0]:80"],
)
def test_denied_addresses_are_left_out(place: str) -> None:
    ran = Ran((listing(a=place, b=B), [1.0]), deny=("169.254.0.0/16",))
    assert ran.places == [[B]]


@pytest.mark.parametrize(
    ("members", "warned"), [(("http://127.0.0.1:2379",), False), (("http://127.0.0.1:2379", "http://198.51.100.1:2379"), True)]
)
def test_loopback_from_members_elsewhere_is_used_and_logged(members: tuple[str, ...], warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    ran = Ran((listing(a="127.0.0.1:80"), [[put("b", B)], 1.0]), members=members)
    assert ran.places == [["127.0.0.1:80"], ["10.0.0.2:80", "127.0.0.1:80"]]
    assert [text for text in caplog.messages if "loopback" in text] == [
        "upstream stock: 127.0.0.1:80 is a loopback address, but the registry is on another machine"
    ] * warned


def test_a_group_of_denied_addresses_is_empty_and_says_why() -> None:
    ran = Ran((listing(a="169.254.169.254:80"), [1.0]), deny=("169.254.0.0/16",))
    assert ran.told == [Update("stock", (), refused=("169.254.169.254 is in 169.254.0.0/16, which discovery.deny excludes",))]


def test_the_table_knows_it() -> None:
    made = providers.make(STOCK, DiscoverySettings())
    assert isinstance(made, EtcdProvider)
    assert made.upstream == "stock"
    assert json.dumps(made.status.last_error) == '""'
    other = DiscoverySettings(etcd=EtcdSettings(poll=1.0))
    assert providers.depends_on(STOCK, DiscoverySettings()) != providers.depends_on(STOCK, other)


# -- faults --------------------------------------------------------------------------------


def test_a_value_in_whose_reading_something_fails_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, faults = Folder(STOCK, PREFIX.encode()), [RuntimeError("a fault of our own")]

    def fail(value: bytes, upstream: Upstream) -> Endpoint:
        if faults:
            raise faults.pop()
        return endpoint(value, upstream)

    monkeypatch.setattr(providers.etcd, "endpoint", fail)
    with pytest.raises(RuntimeError):
        made.replace(named({"a": "10.0.0.1:80"}), lambda: None)
    made.replace(named({"a": "10.0.0.1:80"}), lambda: None)
    assert made.endpoints() == ((at("10.0.0.1:80"),), ())
