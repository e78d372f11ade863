"""Names: how weights are shared, what is asked when, what stays when a look-up fails."""

import math
import socket
import threading
from collections import Counter
from fractions import Fraction

import gevent
import gevent.event
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import DnsSettings, Endpoint
from gateway.providers import names as module
from gateway.providers.names import FRESH, THREADS, LookupFailed, Names, Threads, expand
from gateway.testing import FakeClock


def shares(endpoints: tuple[Endpoint, ...]) -> list[tuple[str, int]]:
    return [(e.host, e.weight) for e in endpoints]


def test_literals_pass_as_they_are() -> None:
    given_ = (Endpoint("http", "10.0.0.1", 80, 3), Endpoint("http", "::1", 80, 6), Endpoint("http", "10.0.0.2", 80, 0))
    assert expand(given_, {}.__getitem__) == given_


def test_each_address_is_an_endpoint_and_the_name_stays_the_authority() -> None:
    name = Endpoint("https", "api.internal", 443, base_path=b"/v1", query=b"k=v", authority=b"api.internal:443")
    assert expand([name], {"api.internal": ("10.0.0.1", "::1")}.__getitem__) == tuple(
        Endpoint("https", host, 443, 1, b"/v1", b"k=v", b"api.internal:443", "api.internal")
        for host in ("10.0.0.1", "::1")
    )


def test_a_server_name_that_is_given_stays() -> None:
    name = Endpoint("https", "api.internal", 443, server_name="other")
    assert expand([name], lambda _: ("10.0.0.1",))[0].server_name == "other"


def test_a_name_shares_its_weight_among_its_addresses() -> None:
    endpoints = (Endpoint("http", "a", 80, 3), Endpoint("http", "10.0.0.9", 80, 1), Endpoint("http", "b", 80, 1))
    known = {"a": ("10.0.0.1", "10.0.0.2"), "b": ("10.0.1.1", "10.0.1.2", "10.0.1.3")}
    assert shares(expand(endpoints, known.__getitem__)) == [
        ("10.0.0.1", 9), ("10.0.0.2", 9), ("10.0.0.9", 6), ("10.0.1.1", 2), ("10.0.1.2", 2), ("10.0.1.3", 2),
    ]  # fmt: skip


def test_weight_0_stays_0() -> None:
    endpoints = (Endpoint("http", "a", 80, 0), Endpoint("http", "10.0.0.9", 80, 1))
    assert shares(expand(endpoints, lambda _: ("10.0.0.1", "10.0.0.2"))) == [
        ("10.0.0.1", 0),
        ("10.0.0.2", 0),
        ("10.0.0.9", 1),
    ]
    assert shares(expand(endpoints[:1], lambda _: ("10.0.0.1", "10.0.0.2"))) == [("10.0.0.1", 0), ("10.0.0.2", 0)]


def test_a_name_that_is_not_known_is_left_out() -> None:
    endpoints = (Endpoint("http", "a", 80), Endpoint("http", "10.0.0.9", 80, 5))
    assert expand(endpoints, lambda _: ()) == endpoints[1:]
    assert expand(endpoints[:1], lambda _: ()) == ()


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 6)), min_size=1, max_size=6))
def test_shares_are_exact(groups: list[tuple[int, int]]) -> None:
    endpoints = [Endpoint("http", f"n{i}", 80, weight) for i, (weight, _) in enumerate(groups)]
    known = {f"n{i}": tuple(f"10.0.{i}.{n}" for n in range(count)) for i, (_, count) in enumerate(groups)}
    got = expand(endpoints, known.__getitem__)
    assert len(got) == sum(count for _, count in groups)
    total, whole = sum(e.weight for e in got), sum(weight for weight, _ in groups)
    weights = {e.host: e.weight for e in got}
    for i, (weight, count) in enumerate(groups):
        for place in known[f"n{i}"]:
            if whole:
                assert Fraction(weights[place], total) == Fraction(weight, whole) / count
            else:
                assert weights[place] == 0


class Resolver:
    def __init__(self, **known: tuple[str, ...]) -> None:
        self.known = known
        self.asked: Counter[str] = Counter()

    def __call__(self, name: str) -> tuple[str, ...]:
        self.asked[name] += 1
        if name not in self.known:
            raise LookupFailed(f"{name}: not known")
        return self.known[name]


def test_an_answer_is_asked_again_only_when_it_is_old() -> None:
    clock, resolver = FakeClock(), Resolver(a=("10.0.0.1",))
    names = Names(resolver, clock)
    assert names.refresh(["a"]) == ()
    clock.advance(FRESH - 0.1)
    names.refresh(["a"])
    assert resolver.asked == {"a": 1}
    clock.advance(0.1)
    resolver.known["a"] = ("10.0.0.2",)
    names.refresh(["a", "a"])
    assert resolver.asked == {"a": 2}
    assert names.addresses("a") == ("10.0.0.2",)


def test_a_failure_keeps_what_was_known_and_is_asked_again_at_once() -> None:
    clock, resolver = FakeClock(), Resolver(a=("10.0.0.1",), b=("10.0.1.1",))
    names = Names(resolver, clock)
    names.refresh(["a", "b"])
    clock.advance(FRESH)
    del resolver.known["a"]
    assert names.refresh(["a", "b"]) == ("a: not known",)
    assert (names.addresses("a"), names.addresses("b")) == (("10.0.0.1",), ("10.0.1.1",))
    assert names.refresh(["a", "b"]) == ("a: not known",)
    assert resolver.asked == {"a": 3, "b": 2}
    resolver.known["a"] = ("10.0.0.3",)
    assert names.refresh(["a", "b"]) == ()
    assert names.addresses("a") == ("10.0.0.3",)


def test_a_name_that_is_not_wanted_any_more_is_forgotten() -> None:
    names = Names(Resolver(a=("10.0.0.1",)), FakeClock())
    names.refresh(["a"])
    names.refresh([])
    assert names.addresses("a") == ()


class SlowSystem:
    """The C library's resolver, as slow as it is told to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.release = threading.Event()
        self.asked: Counter[bytes] = Counter()
        self.answer: Exception | list[str] = ["10.0.0.1", "10.0.0.1", "::1"]
        monkeypatch.setattr(module, "_getaddrinfo", self)
        monkeypatch.setattr(module, "PATIENCE", 0.3)

    def __call__(self, name: bytes, *_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        self.asked[name] += 1
        if name.startswith(b"slow"):
            # Polled: an event of a patched `threading` does not wake a native thread.
            while not self.release.is_set():
                module.monkey.get_original("time", "sleep")(0.002)
        if isinstance(self.answer, Exception):
            raise self.answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self.answer]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> SlowSystem:
    return SlowSystem(monkeypatch)


def test_threads_give_each_address_once(system: SlowSystem) -> None:
    assert Threads()("fast") == ("10.0.0.1", "::1")


def test_threads_ask_anew_each_time(system: SlowSystem) -> None:
    threads = Threads()
    threads("fast")
    system.answer = ["10.0.0.2"]
    assert threads("fast") == ("10.0.0.2",)


def test_a_slow_look_up_is_not_waited_for_nor_asked_twice_and_collected_later(system: SlowSystem) -> None:
    threads = Threads()
    for _ in range(2):
        with pytest.raises(LookupFailed, match=r"slow: no answer in 0\.3 s"):
            threads("slow")
    assert threads("fast") == ("10.0.0.1", "::1")
    system.release.set()
    names = Names(threads, FakeClock())
    while names.refresh(["slow"]):
        pass
    assert names.addresses("slow") == ("10.0.0.1", "::1")
    assert system.asked == {b"slow": 1, b"fast": 1}


def test_when_every_thread_hangs_waiting_is_bounded_too(system: SlowSystem) -> None:
    threads = Threads(most=1)
    for name in ("slow1", "slow2"):
        with pytest.raises(LookupFailed, match="no answer"):
            threads(name)
    system.release.set()
    names = Names(threads, FakeClock())
    while names.refresh(["slow1", "slow2"]):
        pass
    assert system.asked == {b"slow1": 1, b"slow2": 1}


def test_hanging_names_do_not_stop_the_others_of_a_round(system: SlowSystem) -> None:
    names = Names(Threads(), FakeClock())
    errors = names.refresh(["slow1", "fast", "slow2"])
    system.release.set()
    assert names.addresses("fast") == ("10.0.0.1", "::1")
    assert len(errors) == 2


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), OSError("no"), UnicodeError("no")])
def test_an_error_of_the_system_is_a_failed_look_up_and_asked_again(system: SlowSystem, error: Exception) -> None:
    threads = Threads()
    good, system.answer = system.answer, error
    with pytest.raises(LookupFailed, match=r"^x: "):
        threads("x")
    system.answer = good
    assert threads("x") == ("10.0.0.1", "::1")


def test_a_label_that_is_too_long_is_a_failed_look_up() -> None:
    with pytest.raises(LookupFailed):
        Threads()("x" * 70)


def test_localhost_is_looked_up_for_real() -> None:
    assert set(Threads()("localhost")) <= {"127.0.0.1", "::1"}


# -- one pool for the process -----------------------------------------------------------------


def test_upstreams_share_the_threads() -> None:
    settings = DnsSettings()
    one, other = (module.make(settings, FakeClock(), lambda: 0.5) for _ in range(2))
    assert one._look_up is other._look_up


def test_many_upstreams_take_no_more_threads_than_there_may_be(system: SlowSystem) -> None:
    """Each of many upstreams looks up a name of its own, and none is answered."""
    shared = Threads()
    upstreams = [Names(shared, FakeClock()) for _ in range(5 * THREADS)]
    rounds = [gevent.spawn(names.refresh, [f"slow{number}"]) for number, names in enumerate(upstreams)]
    gevent.joinall(rounds, raise_error=True)
    assert sum(system.asked.values()) == THREADS
    assert shared._pool is not None
    assert shared._pool.size <= THREADS
    system.release.set()


def test_all_who_ask_for_one_name_share_one_look_up(system: SlowSystem) -> None:
    threads = Threads()
    asking = [gevent.spawn(threads, "slow") for _ in range(5)]
    gevent.sleep(0.01)
    system.release.set()
    gevent.joinall(asking, raise_error=True)
    assert [one.value for one in asking] == [("10.0.0.1", "::1")] * 5
    assert system.asked == {b"slow": 1}
    assert threads._running == {}


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("no")])
def test_all_who_ask_for_one_name_share_one_failure(system: SlowSystem, error: Exception) -> None:
    threads = Threads()
    system.answer = error
    asking = [gevent.spawn(Names(threads, FakeClock()).refresh, ["slow"]) for _ in range(5)]
    gevent.sleep(0.01)
    system.release.set()
    gevent.joinall(asking, raise_error=True)
    assert [one.value for one in asking] == [(f"slow: {error}",)] * 5
    assert threads._running == {}


def test_an_answer_that_nobody_collected_in_time_is_not_used(system: SlowSystem) -> None:
    """The upstream that asked is gone; another one asks for the same name much later."""
    now = [0.0]
    threads = Threads(clock=lambda: now[0])
    with pytest.raises(LookupFailed):
        threads("slow")
    system.release.set()
    while threads._running["slow"].ended == math.inf:
        gevent.sleep(0.001)
    system.answer = ["10.0.0.9"]
    for age, expected in ((FRESH, ("10.0.0.1", "::1")), (FRESH + 1, ("10.0.0.9",))):
        now[0] = age
        kept = dict(threads._running)
        assert threads("slow") == expected
        threads._running.update(kept)


class Gated:
    """Look-ups that wait: `open` holds an event for each name that is slow."""

    def __init__(self, *slow: str) -> None:
        self.open = {name: gevent.event.Event() for name in slow}
        self.asked: list[str] = []
        self.killed: list[str] = []

    def __call__(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        try:
            if name in self.open:
                self.open[name].wait()
        except gevent.GreenletExit:
            self.killed.append(name)
            raise
        return (f"10.0.0.{len(name)}",)


@pytest.fixture
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND", 0.02)


@pytest.mark.usefixtures("short_rounds")
@pytest.mark.parametrize("paced", [False, True])
def test_a_slow_name_holds_up_no_other_and_is_collected_later(paced: bool) -> None:
    system, clock = Gated("slow"), FakeClock()
    known = Names(system, clock, (lambda: 0.5) if paced else None)
    assert known.refresh(["slow", "a"]) == ("slow: no answer in 2 s",)
    assert (known.addresses("a"), known.addresses("slow")) == (("10.0.0.1",), ())
    # It is looked at soon, and asked for once.
    assert known.due - clock() <= 1.0
    assert known.refresh(["slow", "a"]) == ("slow: no answer in 2 s",)
    system.open["slow"].set()
    gevent.sleep(0)
    assert known.refresh(["slow", "a"]) == ()
    assert known.addresses("slow") == ("10.0.0.4",)
    assert sorted(system.asked) == ["a", "slow"]


@pytest.mark.usefixtures("short_rounds")
def test_a_slow_look_up_ends_when_its_name_is_not_wanted_any_more() -> None:
    system = Gated("one", "other")
    known = Names(system, FakeClock())
    known.refresh(["one", "other"])
    known.refresh(["other"])
    gevent.sleep(0)
    assert system.killed == ["one"]
    known.close()
    gevent.sleep(0)
    assert system.killed == ["one", "other"]


@pytest.mark.usefixtures("short_rounds")
def test_a_slow_name_keeps_its_addresses() -> None:
    system, clock = Gated("slow"), FakeClock()
    system.open["slow"].set()
    known = Names(system, clock)
    assert known.refresh(["slow"]) == ()
    system.open["slow"].clear()
    clock.advance(FRESH)
    assert known.refresh(["slow"]) == ("slow: no answer in 2 s",)
    assert known.addresses("slow") == ("10.0.0.4",)
    known.close()
