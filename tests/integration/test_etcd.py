"""The etcd provider against real clusters, and against a registry that misbehaves as told."""

import json
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from gevent.event import Event as Flag

from gateway import providers
from gateway.model import DiscoverySettings, EtcdSettings, EtcdSource, Upstream
from gateway.providers.base import Update
from gateway.providers.etcd import EtcdProvider
from gateway.providers.names import Names, Threads
from gateway.registries import RegistryError, etcd
from gateway.registries.etcd import Compacted, EtcdApi, Event, Range
from gateway.testing import Act, Exchange, FakeUpstream, Script, answer, chunk, head
from tests.etcd_server import Cluster, Etcd, coded
from tests.services import free_port

POLL = 0.2
A, B, C = "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"


@dataclass
class Running:
    """A provider in a greenlet, and what it said."""

    provider: providers.Provider
    told: list[Update] = field(default_factory=list)
    stop: Flag = field(default_factory=Flag)
    _news: Flag = field(default_factory=Flag)
    _seen: int = 0

    def __post_init__(self) -> None:
        self.greenlet = gevent.spawn(self.provider.run, self._tell, self.stop)

    def _tell(self, update: Update) -> None:
        self.told.append(update)
        self._news.set()

    def until(self, wanted: Callable[[Update], bool], within: float = 20.0) -> Update:
        """The next thing it says that is wanted, not counting what was asked for before."""
        with gevent.Timeout(within, AssertionError(f"{self.told[-3:]} {self.provider.status}")):
            while True:
                while self._seen < len(self.told):
                    self._seen += 1
                    if wanted(self.told[self._seen - 1]):
                        return self.told[self._seen - 1]
                self._news.clear()
                self._news.wait()

    def until_at(self, *addresses: str) -> Update:
        return self.until(lambda update: places(update) == list(addresses))

    def until_failed(self) -> str:
        return self.until(lambda update: update.failed).error

    def end(self) -> None:
        self.stop.set()
        self.greenlet.join(2)
        assert self.greenlet.successful()


def places(update: Update) -> list[str] | None:
    return None if update.endpoints is None else [e.address for e in update.endpoints]


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Running] = []

    def start(*urls: str, prefix: str = "/svc/a/", api: EtcdApi | None = None, **settings: Any) -> Running:
        given = DiscoverySettings(etcd=EtcdSettings(urls, **{"poll": POLL, **settings}))
        upstream = Upstream("u", EtcdSource(prefix))
        provider = providers.make(upstream, given)
        if api is not None:
            clock = time.monotonic
            names = Names(Threads(), clock)
            provider = EtcdProvider(upstream, EtcdSource(prefix), api, given, names, clock, lambda: 0.5)
        assert provider is not None
        started.append(Running(provider))
        return started[-1]

    yield start
    for running in started:
        running.end()


@pytest.fixture(scope="module")
def shared_member() -> Iterator[Etcd]:
    """One member for the tests that leave it as it is; each has a prefix of its own."""
    with Cluster.start() as cluster:
        yield cluster.members[0]


@pytest.fixture
def member() -> Iterator[Etcd]:
    """One member, to be hurt."""
    with Cluster.start() as cluster:
        yield cluster.members[0]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that hangs is given up sooner than in life."""
    monkeypatch.setattr(etcd, "READ", 0.3)


# -- a real member ----------------------------------------------------------------------


def test_keys_come_and_go(shared_member: Etcd, start: Start) -> None:
    running = start(shared_member.url, prefix="/come/a/")
    running.until_at()
    shared_member.put("/come/a/1", A)
    running.until_at(A)
    shared_member.put("/come/a/2", '{"url": "http://10.0.0.2", "weight": 7}')
    assert [e.weight for e in running.until_at(A, B).endpoints or ()] == [1, 7]
    shared_member.put("/come/a/1", C)  # elsewhere
    running.until_at(B, C)
    shared_member.delete("/come/a/", "/come/a0")
    running.until_at()
    assert not any(update.error for update in running.told)


def test_what_only_begins_alike_is_something_else(shared_member: Etcd, start: Start) -> None:
    for key in ("/edge/ab", "/edge/ab/1", "/edge/a", "/edge/a/", "/edge/a0", "/edge/a/1", "/edge/a/deep/er"):
        shared_member.put(key, f"10.0.0.{len(key)}:80")
    running = start(shared_member.url, prefix="/edge/a/")
    running.until_at("10.0.0.15:80", "10.0.0.9:80")
    shared_member.put("/edge/ab/2", C)
    shared_member.delete("/edge/a/1")
    running.until_at("10.0.0.15:80")
    assert len(running.told) == 2


def test_a_bad_value_costs_its_own_key_only(shared_member: Etcd, start: Start) -> None:
    for key, value in (("1", A), ("2", "rubbish"), ("3", B), ("4", ""), ("5", '{"url":')):
        shared_member.put(f"/bad/{key}", value)
    running = start(shared_member.url, prefix="/bad/")
    running.until_at(A, B)
    shared_member.put("/bad/1", "rubbish too")
    running.until_at(B)
    shared_member.put("/bad/2", C)
    running.until_at(B, C)


def test_an_endpoint_is_gone_with_its_lease(shared_member: Etcd, start: Start) -> None:
    shared_member.put("/lease/stays", A)
    lease, revoked = shared_member.lease(1), shared_member.lease(60)
    shared_member.put("/lease/leaves", B, lease)
    shared_member.put("/lease/revoked", C, revoked)
    running = start(shared_member.url, prefix="/lease/")
    running.until_at(A, B, C)
    shared_member.revoke(revoked)
    running.until_at(A, B)
    running.until_at(A)


def test_one_transaction_is_one_update(shared_member: Etcd, start: Start) -> None:
    shared_member.change(**{f"/txn/{n}": f"10.0.0.{n}:80" for n in range(1, 101)})
    running = start(shared_member.url, prefix="/txn/")
    assert len(running.until(lambda _: True).endpoints or ()) == 100
    shared_member.change(**{f"/txn/{n}": f"10.0.1.{n}:80" for n in range(1, 101)})
    changed = running.until(lambda _: True).endpoints or ()
    assert {e.host.rpartition(".")[0] for e in changed} == {"10.0.1"}


def test_the_same_again_is_no_update(shared_member: Etcd, start: Start) -> None:
    shared_member.put("/same/1", A)
    running = start(shared_member.url, prefix="/same/")
    running.until_at(A)
    for _ in range(3):
        shared_member.put("/same/1", A)
    shared_member.put("/same/2", B)
    running.until_at(A, B)
    assert len(running.told) == 2


def test_thousands_of_keys(shared_member: Etcd, start: Start) -> None:
    for base in range(0, 2500, 125):
        shared_member.change(**{f"/many/{n:05}": f"10.1.{n // 250}.{n % 250}:80" for n in range(base, base + 125)})
    running = start(shared_member.url, prefix="/many/")
    assert len(running.until(lambda update: not update.failed).endpoints or ()) == 2500
    shared_member.delete("/many/00001", "/many/02499")
    assert len(running.until(lambda update: not update.failed).endpoints or ()) == 2


def test_fast_churn_is_told_twice_a_second_and_to_its_end(shared_member: Etcd, start: Start) -> None:
    running = start(shared_member.url, prefix="/churn/")
    running.until_at()
    began = time.monotonic()
    for n in range(1, 61):
        shared_member.put("/churn/1", f"10.0.0.{n}:80")
        gevent.sleep(0.03)
    running.until_at("10.0.0.60:80")
    assert len(running.told) <= 1 + 3 + 2 * (time.monotonic() - began) + 1


class Gap(EtcdApi):
    """Something happens between a listing and the watch after it."""

    def __init__(self, settings: EtcdSettings, meanwhile: Callable[[], None]) -> None:
        super().__init__(settings)
        self.meanwhile: Callable[[], None] | None = meanwhile
        self.listed: list[Range] = []

    def prefix(self, prefix: str | bytes) -> Range:
        self.listed.append(super().prefix(prefix))
        if self.meanwhile is not None:
            self.meanwhile()
            self.meanwhile = None
        return self.listed[-1]


def test_compaction_means_listing_again_and_what_was_deleted_meanwhile_is_gone(member: Etcd, start: Start) -> None:
    member.change(**{"/svc/a/1": A, "/svc/a/2": B})

    def meanwhile() -> None:
        member.delete("/svc/a/1")
        member.put("/svc/a/3", C)
        member.compact(member.put("/other", "x"))

    api = Gap(EtcdSettings((member.url,), poll=POLL), meanwhile)
    running = start(member.url, api=api)
    running.until_at(A, B)
    running.until_at(B, C)
    assert len(api.listed) == 2
    member.put("/svc/a/4", A)
    running.until_at(A, B, C)
    assert len(api.listed) == 2
    assert not any(update.error for update in running.told)


def test_what_happens_between_listing_and_watch_is_not_missed(member: Etcd, start: Start) -> None:
    member.put("/svc/a/1", A)
    running = start(member.url, api=Gap(EtcdSettings((member.url,), poll=POLL), lambda: void(member.put("/svc/a/1", B))))
    running.until_at(A)
    running.until_at(B)


def void(_: object) -> None:
    pass


def test_a_killed_member_changes_nothing_and_is_found_again(member: Etcd, start: Start) -> None:
    member.put("/svc/a/1", A)
    running = start(member.url)
    running.until_at(A)
    member.kill()
    assert "refused" in running.until_failed().lower()
    member.up()  # with its data
    running.until_at(A)
    member.put("/svc/a/2", B)
    running.until_at(A, B)
    assert [] not in [places(update) for update in running.told]


@pytest.mark.usefixtures("soon")
def test_a_member_that_hangs_without_closing(member: Etcd, start: Start) -> None:
    member.put("/svc/a/1", A)
    running = start(member.url)
    running.until_at(A)
    member.freeze()
    assert "Timeout" in running.until_failed() or "timed out" in running.told[-1].error
    member.thaw()
    running.until_at(A)
    member.put("/svc/a/2", B)
    running.until_at(A, B)


def test_a_member_that_comes_back_without_its_memory(start: Start) -> None:
    with Cluster.start() as cluster:
        member = cluster.members[0]
        for n in range(5):
            member.put("/svc/a/1", f"10.0.0.{n}:80")
        running = start(member.url)
        running.until_at("10.0.0.4:80")
        member.kill()
        shutil.rmtree(Path(member.server.command[member.server.command.index("--data-dir") + 1]))
        member.up()
        running.until(lambda update: "lost its memory" in update.error)
        member.put("/svc/a/1", B)
        running.until_at(B)
        assert [] not in [places(update) for update in running.told]


def test_stop_and_kill_end_it_while_it_listens(shared_member: Etcd, start: Start) -> None:
    running, other = start(shared_member.url, prefix="/stop/", poll=60.0), start(shared_member.url, prefix="/stop/", poll=60.0)
    running.until_at()
    other.until_at()
    running.end()
    other.greenlet.kill(timeout=2)
    assert other.greenlet.dead


# -- several members --------------------------------------------------------------------


@pytest.mark.usefixtures("soon")
def test_three_members_of_which_one_and_then_two_are_lost(start: Start) -> None:
    with Cluster.start(3) as cluster:
        api = EtcdApi(EtcdSettings(cluster.urls, poll=POLL))
        running = start(*cluster.urls, api=api)
        running.until_at()
        watched = cluster.members[api._first]
        left = [member for member in cluster.members if member is not watched]
        watched.kill()
        left[0].ready()  # they may have to elect
        left[0].put("/svc/a/1", A)
        running.until_at(A)
        watched.up()

        watched = cluster.members[api._first]
        left = [member for member in cluster.members if member is not watched]
        watched.freeze()
        left[0].ready()
        left[0].put("/svc/a/2", B)
        running.until_at(A, B)
        watched.thaw()
        watched.ready()

        # Without a majority those that are left answer, but not for the cluster.
        watched = cluster.members[api._first]
        left = [member for member in cluster.members if member is not watched]
        for member in left:
            member.kill()
        running.until_failed()
        for member in left:
            member.server.start()
        for member in left:
            member.ready()
        left[0].put("/svc/a/3", C)
        running.until_at(A, B, C)
        assert [] not in [places(update) for update in running.told[1:]]


def test_members_that_are_none_are_passed_over(shared_member: Etcd, start: Start) -> None:
    shared_member.put("/over/1", A)
    with FakeUpstream(answer(b"<html>")) as page:
        running = start(f"http://127.0.0.1:{free_port()}", page.url, shared_member.url, prefix="/over/")
        running.until_at(A)
        assert not any(update.error for update in running.told)


# -- who asks ---------------------------------------------------------------------------


def test_logins(member: Etcd, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    member.put("/svc/a/1", A)
    member.put("/svc/b/1", C)
    running = start(member.url, username="gw", password="geheim")  # no login is needed yet
    running.until_at(A)
    member.add_user("root", "pw")
    member.add_user("gw", "geheim", "/svc/a/")
    member.call("auth/enable", {})
    member.login("root", "pw")
    member.put("/svc/a/2", B)
    running.until_at(A, B)

    wrong = start(member.url, username="gw", password="falsch")
    assert "login as gw: " in wrong.until_failed()
    elsewhere = start(member.url, username="gw", password="geheim", prefix="/svc/b/")
    assert "permission denied" in elsewhere.until_failed()
    nobody = start(member.url)
    assert "user name is empty" in nobody.until_failed()
    again = start(member.url, username="gw", password="geheim")
    again.until_at(A, B)

    # A member that is started anew has forgotten every token.
    member.kill()
    running.until_failed()
    member.up()
    member.login("root", "pw")
    member.delete("/svc/a/1")
    running.until_at(B)
    again.until_at(B)
    assert "geheim" not in caplog.text
    assert "falsch" not in caplog.text
    assert "geheim" not in repr(running.provider.status)


# -- one key, as a configuration is ------------------------------------------------------


def test_a_document_in_a_key(shared_member: Etcd) -> None:
    api = EtcdApi(EtcdSettings((shared_member.url,), poll=0.1))
    assert api.key("gateway.yaml").value is None
    large = "x" * 1_000_000
    shared_member.put("gateway.yaml", large)
    held = api.key("gateway.yaml")
    assert held.value == large.encode()
    with api.watch("gateway.yaml", held.revision + 1) as watch:
        shared_member.put("gateway.yaml.old", "another key")
        assert watch.take(0.3) == ()
        revision = shared_member.put("gateway.yaml", large + "y")
        assert watch.take(5) in ((), (Event(b"gateway.yaml", (large + "y").encode(), revision),))
        shared_member.delete("gateway.yaml")
        with gevent.Timeout(5):
            events = [event for events in take_until(watch, b"gateway.yaml") for event in events]
        assert events[-1].value is None
    shared_member.compact(revision)
    with pytest.raises(Compacted), api.watch("gateway.yaml", held.revision) as watch:
        watch.take(5)


def take_until(watch: etcd.Watch, gone: bytes) -> Iterator[tuple[Event, ...]]:
    for events in watch:
        yield events
        if events and events[-1].key == gone and events[-1].value is None:
            return


# -- a scripted registry ----------------------------------------------------------------

RANGE, WATCH = b"/v3/kv/range", b"/v3/watch"


def listing(*addresses: str, revision: int = 10) -> bytes:
    kvs = [{"key": coded(f"/svc/a/{n}"), "value": coded(address)} for n, address in enumerate(addresses)]
    return json.dumps({"header": {"revision": str(revision), "cluster_id": "1"}, "kvs": kvs}).encode()


def message(**fields: Any) -> bytes:
    return chunk(json.dumps({"result": {"header": {}, **fields}}).encode() + b"\n")


def put(key: str, value: str, revision: int = 11) -> dict[str, Any]:
    return {"kv": {"key": coded(key), "value": coded(value), "mod_revision": str(revision)}}


GOOD = answer(listing(A))
OPEN = head(200, b"Transfer-Encoding: chunked")
CREATED = message(created=True)


@pytest.fixture
def registry() -> Iterator[FakeUpstream]:
    with FakeUpstream(GOOD) as fake:
        fake.serve(WATCH, [OPEN, CREATED, Act.HANG])
        yield fake
        assert fake.violations == []


def asked(registry: FakeUpstream, path: bytes) -> int:
    return sum(request.target == path for request in registry.requests)


def test_what_is_asked(registry: FakeUpstream, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    start(registry.url).until_at(A)
    registry.until(lambda: asked(registry, WATCH) == 1 and all(request.complete for request in registry.requests))
    ranged, watched = registry.requests[:2]
    assert (ranged.method, ranged.target) == (b"POST", RANGE)
    assert json.loads(ranged.body) == {"key": coded("/svc/a/"), "range_end": coded("/svc/a0"), "limit": 1000, "revision": 0}
    assert ranged.header(b"Authorization") is None
    assert json.loads(watched.body) == {
        "create_request": {
            "key": coded("/svc/a/"), "range_end": coded("/svc/a0"), "start_revision": 11,
            "progress_notify": True, "fragment": True,
        }
    }  # fmt: skip


def test_an_idle_registry_is_asked_once_a_poll_for_all_that_watch(registry: FakeUpstream, start: Start) -> None:
    several = [start(registry.url, prefix=f"/svc/{n}/", poll=0.5) for n in range(8)]
    for running in several:
        running.until_at(A)
    registry.until(lambda: asked(registry, WATCH) == 8)
    before, began = len(registry.requests), time.monotonic()
    gevent.sleep(2)
    polls = (time.monotonic() - began) / 0.45
    assert 2 <= len(registry.requests) - before <= polls + 2
    assert asked(registry, WATCH) == 8


FAULTS: dict[str, tuple[Script, str]] = {
    "500": (answer(b"oops", status=500), "HTTP 500: oops"),
    "no leader": (answer(b'{"code":14,"message":"etcdserver: no leader"}', status=503), "etcdserver: no leader"),
    "403": (answer(b'{"code":7,"message":"etcdserver: permission denied"}', status=403), "permission denied"),
    "404": (answer(b"404 page not found", status=404), "HTTP 404"),
    "redirect": (answer(b"", b"Location: http://127.0.0.1:1/", status=302), "HTTP 302"),
    "HTML": (answer(b"<html>\r\n<b>Log in</b>"), "not JSON: <html>  <b>Log in"),
    "empty": (answer(b""), "not JSON"),
    "wrong JSON": (answer(b'{"header":[]}'), "not the answer to a range request"),
    "half, by length": ([head(200, b"Content-Length: 500"), listing(A)[:50], Act.CLOSE], "IncompleteRead"),
    "half, chunked": ([OPEN, chunk(listing(A))[:50], Act.CLOSE], "Incomplete"),
    "half, to the end": ([head(200, b"Connection: close"), listing(A)[:50], Act.CLOSE], "not JSON"),
    "reset": ([Act.RESET], "reset"),
    "closed": ([Act.CLOSE], "closed"),
    "not HTTP": ([b"SSH-2.0-x\r\n", Act.CLOSE], "BadStatusLine"),
    "hangs": ([Act.HANG], "imed"),
    "hangs in the middle": ([head(200, b"Content-Length: 500"), listing(A)[:50], Act.HANG], "imed"),
    "drips": ([head(200, b"Content-Length: 500"), *[b" ", 0.05] * 40, Act.HANG], "no answer in 1 s"),
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_no_update_and_passes(fault: str, registry: FakeUpstream, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "WHOLE", 1.0)
    script, told = FAULTS[fault]
    registry.serve(WATCH, [OPEN, CREATED, Act.CLOSE])  # so that there is a listing now and then
    running = start(registry.url)
    running.until_at(A)
    registry.answer(script)
    assert told in running.until_failed()
    registry.answer(answer(listing(B)))
    running.until_at(B)
    assert [places(update) for update in running.told if not update.failed] == [[A], [B]]


def test_a_stream_that_is_cut_in_the_middle_of_a_message(registry: FakeUpstream, start: Start) -> None:
    event = message(events=[put("/svc/a/9", B)])
    registry.serve(WATCH, [OPEN, CREATED, event[:60], Act.CLOSE])
    running = start(registry.url, poll=1.0)
    running.until_at(A)
    registry.until(lambda: asked(registry, WATCH) == 1)
    # Cut each time: no endless fast loop.
    before, began = len(registry.requests), time.monotonic()
    gevent.sleep(2)
    assert len(registry.requests) - before <= 4 * (time.monotonic() - began)
    assert [places(update) for update in running.told] == [[A]]
    registry.serve(WATCH, [OPEN, CREATED, event, Act.HANG])
    running.until_at(A, B)


def test_messages_in_pieces_and_together(registry: FakeUpstream, start: Start) -> None:
    events = b"".join(message(events=[put(f"/svc/a/{n}", f"10.0.1.{n}:80")]) for n in range(20))
    registry.serve(WATCH, [OPEN + CREATED + events[:700], 0.05, events[700:701], 0.3, events[701:], message(), Act.HANG])
    running = start(registry.url)
    running.until(lambda update: len(update.endpoints or ()) == 20)
    assert asked(registry, WATCH) == 1


def test_fragments_of_one_revision_are_one_update(registry: FakeUpstream, start: Start) -> None:
    first, second = message(fragment=True, events=[put("/svc/a/0", B)]), message(events=[put("/svc/a/1", C)])
    registry.serve(WATCH, [OPEN, CREATED, first, 0.3, second, Act.HANG])
    running = start(registry.url)
    running.until_at(B, C)
    assert [places(update) for update in running.told] == [[A], [B, C]]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "script",
    [
        answer(b"Method Not Allowed", status=405), answer(b"<html>"), [Act.HANG], [OPEN, Act.HANG], [Act.RESET],
        [OPEN, message(created=True, canceled=True, cancel_reason="no")],
    ],
    ids=["405", "HTML", "silent", "buffered", "reset", "cancelled"],
)  # fmt: skip
def test_where_no_watch_can_be_had_it_is_polled(script: Script, registry: FakeUpstream, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "CONNECT", 0.2)
    registry.serve(WATCH, script)
    running = start(registry.url)
    running.until_at(A)
    registry.answer(answer(listing(B)))
    running.until_at(B)
    registry.answer(answer(listing()))
    running.until_at()
    assert not any(update.error for update in running.told)


@pytest.mark.usefixtures("soon")
def test_without_watches_the_polls_of_many_do_not_disturb_each_other(registry: FakeUpstream, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "CONNECT", 0.2)
    registry.serve(WATCH, [Act.HANG])
    several = [start(registry.url, prefix=f"/svc/{n}/") for n in range(12)]
    for running in several:
        running.until_at(A)
    registry.answer(answer(listing(B)))
    for running in several:
        running.until_at(B)
    assert [update for running in several for update in running.told if update.error] == []


@pytest.mark.usefixtures("soon")
def test_a_watch_is_given_up_when_its_member_does_not_answer_any_more(registry: FakeUpstream, start: Start) -> None:
    running = start(registry.url)
    running.until_at(A)
    registry.until(lambda: asked(registry, WATCH) == 1)
    registry.answer([Act.HANG])
    running.until_failed()
    registry.until(lambda: any(request.target == WATCH for request in registry.aborted))
    registry.answer(answer(listing(B)))
    running.until_at(B)


def test_connections_are_closed_with_the_provider(registry: FakeUpstream, start: Start) -> None:
    running = start(registry.url)
    running.until_at(A)
    registry.until(lambda: asked(registry, WATCH) == 1)
    running.end()
    registry.until(lambda: any(request.target == WATCH for request in registry.aborted))
    count = len(registry.requests)
    gevent.sleep(3 * POLL)
    assert len(registry.requests) == count


def test_a_head_that_does_not_end(registry: FakeUpstream, start: Start) -> None:
    def endless(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.wire.send(b"HTTP/1.1 200 OK\r\n")
        for _ in range(4000):
            exchange.wire.send(b"X: " + b"x" * 60 + b"\r\n")

    registry.serve(WATCH, endless)
    with pytest.raises(RegistryError, match="head of an answer"):
        EtcdApi(EtcdSettings((registry.url,))).watch("k", 1)


# -- members over TLS -------------------------------------------------------------------


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeUpstream]:
    """The scripted registry over TLS; its authority is the only one that the system knows."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with FakeUpstream(GOOD, tls=context) as fake:
        yield fake
        assert fake.violations == []


def test_members_over_tls(secure: FakeUpstream, start: Start) -> None:
    event = message(events=[put("/svc/a/1", B)])
    secure.serve(WATCH, [OPEN, CREATED, event[:50], 0.5, event[50:], Act.HANG])
    running = start(secure.url)
    running.until_at(A, B)
    assert asked(secure, WATCH) == 1
    running.end()
    secure.until(lambda: any(request.target == WATCH for request in secure.aborted))


def test_members_that_cannot_be_verified_are_not_asked(secure: FakeUpstream, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_bytes(trustme.CA().cert_pem.bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    running = start(secure.url)
    assert "CERTIFICATE_VERIFY_FAILED" in running.until_failed()
    assert secure.requests == []
    with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED"):
        EtcdApi(EtcdSettings((secure.url,))).watch("k", 1)
    assert secure.requests == []
