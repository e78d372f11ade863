"""The gateway announced in Consul: what is said, by which worker, when, and how it ends."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from gateway.hosting.gunicorn_settings import listens_at
from gateway.hosting.siblings import Siblings, reloaded
from gateway.model import ConsulSettings, RegistrationSettings
from gateway.registries import RegistryError, registration
from gateway.registries.registration import (
    Announcer,
    Listener,
    Registration,
    RegistrationError,
    listeners,
    local_address,
    make,
    service,
)
from gateway.runtime import background
from gateway.runtime.background import Background
from gateway.testing import FakeClock
from tests.services import ROOT

DEFAULTS = RegistrationSettings()


# -- what is announced ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bind", "found"),
    [
        ("http://10.0.0.1:8000", [Listener("http", "10.0.0.1", 8000)]),
        ("http://0.0.0.0:80", [Listener("http", None, 80)]),
        ("http://[::]:80", [Listener("http", None, 80)]),
        ("http://[2001:db8::1]:80", [Listener("http", "2001:db8::1", 80)]),
        (
            "http://127.0.0.1:1,https://10.0.0.1:2,unix:/run/x",
            [Listener("https", "10.0.0.1", 2), Listener("http", "127.0.0.1", 1)],
        ),
        ("unix:/run/x", []),
        ("", []),
    ],
)
def test_listeners(bind: str, found: list[Listener]) -> None:
    assert listeners(bind) == found


def test_a_worker_s_sockets_are_named_alike_in_all_of_them(tmp_path: Path) -> None:
    for address, scheme in ((("127.0.0.1", 0), "http"), (("::1", 0), "https")):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with socket.create_server(address, family=family) as listener:
            port = listener.getsockname()[1]
            name = listens_at(listener, scheme == "https")
            assert listeners(name) == [Listener(scheme, address[0], port)]
            with socket.socket(fileno=os.dup(listener.fileno())) as same:
                assert listens_at(same, scheme == "https") == name
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert listens_at(listener, False) == f"unix:{tmp_path}/s"


def announced(settings: RegistrationSettings, bind: str, local: str = "10.0.0.7") -> dict[str, Any]:
    return service(settings, bind, "/-/", "box", lambda: local)


def test_the_defaults() -> None:
    assert announced(DEFAULTS, "http://10.0.0.1:8000") == {
        "name": "gateway",
        "id": "gateway-box-10.0.0.1-8000",
        "address": "10.0.0.1",
        "port": 8000,
        "tags": [],
        "check": {"TTL": "30000ms", "DeregisterCriticalServiceAfter": "60000ms"},
    }


@pytest.mark.parametrize(
    ("bind", "local", "address"),
    [
        ("http://0.0.0.0:80", "10.0.0.7", "10.0.0.7"),  # as the agent sees us
        ("http://0.0.0.0:80", "127.0.0.1", None),  # the agent is on this machine: its node's address
        ("http://[::]:80", "::1", None),
        ("http://10.0.0.1:80", "127.0.0.1", "10.0.0.1"),
        ("http://127.0.0.1:1,http://10.0.0.1:2", "127.0.0.1", "10.0.0.1"),
    ],
)
def test_the_address_where_others_reach_us(bind: str, local: str, address: str | None) -> None:
    assert announced(DEFAULTS, bind, local)["address"] == address


@pytest.mark.parametrize(
    ("bind", "told"),
    [
        ("http://127.0.0.1:80", "listens on 127.0.0.1 alone: discovery.consul.registration.address must say"),
        ("http://[::1]:80", "listens on ::1 alone"),
        ("unix:/run/x", "listens on no port: discovery.consul.registration.port must name one"),
    ],
)
def test_where_nobody_else_reaches_us_the_file_must_say_more(bind: str, told: str) -> None:
    with pytest.raises(RegistrationError, match=told):
        announced(DEFAULTS, bind)


def test_what_the_file_says_wins() -> None:
    settings = RegistrationSettings("edge", "gw.example", 443, ("a",), "ttl", 2.0, None)
    found = announced(settings, "http://127.0.0.1:8000")
    assert (found["id"], found["address"], found["port"]) == ("edge-box-127.0.0.1-443", "gw.example", 443)
    assert (found["tags"], found["check"]) == (["a"], {"TTL": "6000ms"})
    assert announced(settings, "unix:/run/x")["id"] == "edge-box-443"


@pytest.mark.parametrize(
    ("bind", "local", "url"),
    [
        ("http://10.0.0.1:80", "10.0.0.1", "http://10.0.0.1:80/-/readyz"),
        ("http://[2001:db8::1]:80", "::1", "http://[2001:db8::1]:80/-/readyz"),
        ("http://0.0.0.0:80", "127.0.0.1", "http://127.0.0.1:80/-/readyz"),
        ("https://0.0.0.0:443", "10.0.0.7", "https://10.0.0.7:443/-/readyz"),
    ],
)
def test_consul_may_ask_readyz(bind: str, local: str, url: str) -> None:
    check = announced(RegistrationSettings(check="http"), bind, local)["check"]
    assert check["HTTP"] == url
    assert check.get("TLSSkipVerify", False) == url.startswith("https")
    assert (check["Interval"], check["Timeout"]) == ("10000ms", "2000ms")


@pytest.mark.parametrize("agent", ["http://127.0.0.1:8500", "127.0.0.1", "http://localhost:8500"])
def test_our_address_on_the_way_to_the_agent(agent: str) -> None:
    assert local_address(agent) in ("127.0.0.1", "::1")


def test_nothing_is_announced_unless_asked_for() -> None:
    assert make(ConsulSettings(), "http://10.0.0.1:80", "/-/", lambda: "", lambda: False, None, FakeClock()) is None


# -- when, and by whom ------------------------------------------------------------------


class FakeAgent:
    """An agent that can be away and can forget."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.known: set[str] = set()
        self.away = False

    def _call(self, *call: object) -> None:
        self.calls.append(call)
        if self.away:
            raise RegistryError("connection refused")

    def register(self, service: dict[str, Any]) -> None:
        self._call("register", service["id"])
        self.known.add(service["id"])

    def deregister(self, ident: str, within: float) -> None:
        self._call("deregister", ident)
        self.known.discard(ident)

    def report(self, ident: str, passing: bool, note: str) -> None:
        self._call("report", passing, note)
        if ident not in self.known:
            raise RegistryError("HTTP 404")

    def registered(self, ident: str) -> bool:
        self._call("registered", ident)
        return ident in self.known

    def close(self) -> None:
        self.calls.append(("close",))

    def since(self) -> list[tuple[object, ...]]:
        calls, self.calls = self.calls, []
        return calls


class Lead:
    """A sibling without a kernel: POSIX locks do not hold within one process."""

    def __init__(self) -> None:
        self.leads = True
        self.gone = False
        self.reloaded = False

    def lead(self) -> bool:
        return self.leads

    def resign(self) -> None:
        self.gone = True

    def replaced(self) -> bool:
        return self.reloaded


class Scene:
    """One worker's registration on a clock that nothing waits for."""

    def __init__(self, check: str = "ttl", siblings: Lead | None = None) -> None:
        self.agent = FakeAgent()
        self.clock = FakeClock(0.0)
        self.unready = ""
        self.draining = False
        self.registration = Registration(
            self.agent,
            RegistrationSettings(check=check),
            self.announced,
            lambda: self.unready,
            lambda: self.draining,
            siblings,
            self.clock,
        )

    def announced(self) -> dict[str, Any]:
        return {"id": "gw"}

    def after(self, seconds: float) -> list[tuple[object, ...]]:
        """What the agent is asked when so much time has passed."""
        self.clock.advance(seconds)
        self.registration.look()
        return self.agent.since()


READY = ("report", True, "ready")
REGISTER, DEREGISTER, REGISTERED = ("register", "gw"), ("deregister", "gw"), ("registered", "gw")


def test_announced_once_and_reported_every_interval() -> None:
    scene = Scene()
    assert scene.after(0) == [REGISTER, READY]
    assert scene.after(9.9) == []
    assert scene.after(0.1) == [READY]


def test_a_change_of_readiness_is_reported_at_once() -> None:
    scene = Scene()
    scene.unready = "not ready"
    assert scene.after(0) == [REGISTER, ("report", False, "not ready")]
    scene.unready = ""
    assert scene.after(0.25) == [READY]
    assert scene.after(0.25) == []


def test_an_agent_that_asks_itself_is_only_asked_whether_it_still_knows() -> None:
    scene = Scene(check="http")
    assert scene.after(0) == [REGISTER]
    scene.unready = "not ready"
    assert scene.after(5) == []
    assert scene.after(5) == [REGISTERED]
    scene.agent.known.clear()
    assert scene.after(10) == [REGISTERED, REGISTER]


def test_an_agent_that_forgot_is_told_again_within_seconds() -> None:
    scene = Scene()
    scene.after(0)
    scene.agent.known.clear()
    assert scene.after(10) == [READY]
    assert scene.after(1.2) == [REGISTER, READY]


def test_an_agent_that_is_away_is_asked_at_least_once_an_interval(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gateway.registries.registration")
    scene = Scene()
    scene.agent.away = True
    asked = [bool(scene.after(0.25)) for _ in range(4 * 60)]
    assert 60 / 10 <= sum(asked) <= 60 / 10 + 5
    scene.agent.away = False
    assert scene.after(10) == [REGISTER, READY]
    told = [record.getMessage() for record in caplog.records]
    assert told == ["the gateway is not announced to Consul: connection refused", "announced to Consul as gw"]


def test_a_fault_of_our_own_is_not_the_end() -> None:
    scene = Scene()
    faults: list[Exception] = [KeyError("x"), RegistrationError("listens on 127.0.0.1 alone")]

    def announced() -> dict[str, Any]:
        if faults:
            raise faults.pop(0)
        return {"id": "gw"}

    scene.registration._make = announced
    assert [scene.after(0), scene.after(2), scene.after(3)] == [[], [], [REGISTER, READY]]


def test_alone_it_takes_the_registration_back_when_it_ends() -> None:
    scene = Scene()
    scene.after(0)
    scene.registration.stop()
    assert scene.agent.since() == [DEREGISTER, ("close",)]


def test_what_was_never_announced_is_not_taken_back() -> None:
    scene = Scene()
    scene.registration.stop()
    assert scene.agent.since() == [("close",)]


def test_what_may_have_been_announced_is_taken_back() -> None:
    """The agent may have taken what it did not answer."""
    scene = Scene()
    scene.agent.away = True
    scene.after(0)
    scene.agent.away = False
    scene.agent.since()
    scene.registration.stop()
    assert scene.agent.since() == [DEREGISTER, ("close",)]


def test_an_agent_that_is_away_does_not_keep_it_from_ending(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.after(0)
    scene.agent.away = True
    scene.registration.stop()
    assert "stays announced until its check fails" in caplog.text


def test_one_worker_does_it_for_all() -> None:
    lead = Lead()
    scene = Scene(siblings=lead)
    lead.leads = False
    assert scene.after(0) == []
    lead.leads = True
    assert scene.after(0.25) == [REGISTER, READY]


@pytest.mark.parametrize(
    ("draining", "reloaded_", "taken_back"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_a_worker_that_is_replaced_leaves_the_registration_to_the_next(
    draining: bool, reloaded_: bool, taken_back: bool
) -> None:
    lead = Lead()
    scene = Scene(siblings=lead)
    scene.after(0)
    scene.draining, lead.reloaded = draining, reloaded_
    scene.registration.stop()
    assert (DEREGISTER in scene.agent.since()) == taken_back
    assert lead.gone


def test_a_worker_that_is_replaced_goes_on_until_it_ends() -> None:
    lead = Lead()
    scene = Scene(siblings=lead)
    scene.draining = lead.reloaded = True
    scene.registration.start()
    gevent.sleep(0)
    assert scene.agent.since() == [REGISTER, READY]
    assert not lead.gone
    scene.registration.stop()
    assert scene.agent.since() == [("close",)]
    assert lead.gone


def test_a_worker_that_leaves_for_good_takes_it_back_before_it_ends() -> None:
    scene = Scene(siblings=Lead())
    scene.after(0)
    scene.draining = True
    scene.registration.start()
    gevent.sleep(0)
    assert scene.agent.since()[-1] == DEREGISTER
    scene.registration.stop()
    assert scene.agent.since() == [("close",)]


def test_another_configuration_takes_the_old_registration_back() -> None:
    scene = Scene(siblings=Lead())
    scene.after(0)
    scene.agent.since()
    scene.registration.stop(for_good=True)
    assert scene.agent.since() == [DEREGISTER, ("close",)]


# -- siblings ---------------------------------------------------------------------------


def test_a_reload_is_seen_by_those_who_were_there(tmp_path: Path) -> None:
    old = Siblings(str(tmp_path))
    assert not old.replaced()
    reloaded(str(tmp_path))
    young = Siblings(str(tmp_path))
    assert old.replaced()
    assert not young.replaced()
    reloaded(str(tmp_path))
    assert young.replaced()


def test_a_worker_without_the_file_leads_nothing_until_it_has_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Siblings(str(tmp_path / "gone"))
    for _ in range(2):
        assert not ours.lead()
    assert not ours.replaced()
    ours.resign()
    assert len(caplog.records) == 1
    (tmp_path / "gone").mkdir()
    assert ours.lead()
    reloaded(str(tmp_path / "gone"))
    assert ours.replaced()


def in_another(program: str) -> str:
    """What a program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_process_leads_until_it_ends(tmp_path: Path) -> None:
    ours = Siblings(str(tmp_path))
    program = f"from gateway.hosting.siblings import Siblings; print(Siblings({str(tmp_path)!r}).lead())"
    # The other process leads, and ends.
    assert in_another(program) == "True"
    assert ours.lead()
    assert ours.lead()
    assert in_another(program) == "False"
    ours.resign()
    assert in_another(program) == "True"


# -- what the configuration in force says -----------------------------------------------------


class Announced(Registration):
    """A registration that only notes what becomes of it."""

    def __init__(self, consul: ConsulSettings, calls: list[tuple[str, str]], faults: list[Exception]) -> None:
        self.name = consul.token
        self.calls = calls
        self.faults = faults

    def start(self) -> None:
        if self.calls[-1:] != [("start", self.name)]:
            self.calls.append(("start", self.name))

    def stop(self, for_good: bool = False) -> None:
        if self.faults:
            raise self.faults.pop()
        self.calls.append(("take back" if for_good else "stop", self.name))


class Announcing:
    """An announcer for consul settings that are told apart by their token; "" is not announced."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.faults: list[Exception] = []
        self.refused: set[str] = set()
        self.background = Background()
        self.announcer = Announcer(self._make, self.background)

    def _make(self, consul: ConsulSettings) -> Registration | None:
        if consul.token in self.refused:
            self.refused.clear()
            raise RuntimeError("no")
        return Announced(consul, self.calls, self.faults) if consul.token else None

    def follow(self, token: str) -> None:
        self.announcer.follow(ConsulSettings(token=token))

    def until(self, *calls: tuple[str, str]) -> None:
        with gevent.Timeout(10, AssertionError(f"not {calls} but {self.calls}")):
            while self.calls != [*calls]:
                gevent.sleep(0.001)


@pytest.fixture
def announcing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Announcing]:
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    made = Announcing()
    yield made
    made.announcer.stop()
    assert list(made.background) == []


def test_it_follows_the_configuration_in_force(announcing: Announcing) -> None:
    announcing.announcer.start(ConsulSettings(token="a"))
    assert announcing.calls == [("start", "a")]
    announcing.follow("b")
    announcing.until(("start", "a"), ("take back", "a"), ("start", "b"))
    announcing.follow("")
    announcing.until(("start", "a"), ("take back", "a"), ("start", "b"), ("take back", "b"))
    assert announcing.announcer.registration is None


def test_the_same_again_changes_nothing(announcing: Announcing) -> None:
    announcing.announcer.start(ConsulSettings(token="a"))
    announcing.follow("a")
    gevent.sleep(0.01)
    assert announcing.calls == [("start", "a")]


def test_what_fails_while_it_changes_is_done_again(announcing: Announcing) -> None:
    announcing.announcer.start(ConsulSettings(token="a"))
    announcing.faults.append(RuntimeError("while it is taken back"))
    announcing.refused.add("b")
    announcing.follow("b")
    announcing.until(("start", "a"), ("take back", "a"), ("start", "b"))
    (task,) = announcing.background
    assert (task.restarts, task.last_error) == (2, "RuntimeError: while it is taken back")


def test_it_ends_with_what_is_left_to_take_back(announcing: Announcing) -> None:
    announcing.announcer.start(ConsulSettings(token="a"))
    announcing.follow("b")
    # Before its greenlet had a turn.
    announcing.announcer.stop()
    assert announcing.calls == [("start", "a"), ("stop", "a")]


def test_a_fault_thrown_into_the_greenlet_of_a_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(registration, "LOOK", 0.001)
    scene = Scene()
    scene.registration.start()
    with gevent.Timeout(10):
        while not scene.agent.known:
            gevent.sleep(0.001)
    task = scene.registration._greenlet
    assert task is not None
    task._greenlet.kill(RuntimeError("thrown in"), block=False)
    with gevent.Timeout(10):
        while not task.restarts:
            gevent.sleep(0.001)
    scene.unready = "not ready"
    with gevent.Timeout(10):
        while ("report", False, "not ready") not in scene.agent.calls:
            gevent.sleep(0.001)
    scene.registration.stop()
    assert scene.agent.known == set()
