"""Which member is asked, who asks, and what a watch makes of what it reads; without sockets."""

import json
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import EtcdSettings
from gateway.registries import RegistryError, etcd
from gateway.registries.etcd import Compacted, EtcdApi, Event, KeyValue, Watch, shared
from gateway.registries.etcd_wire import Refusal
from gateway.testing import chunk
from tests.unit.registries.test_etcd_wire import b64, cut, result

Reply = tuple[int, bytes] | Exception


def found(*pairs: tuple[str, str], revision: int = 7, more: bool = False) -> Reply:
    header = {"revision": str(revision), "cluster_id": "1"}
    kvs = [{"key": b64(key), "value": b64(value)} for key, value in pairs]
    return 200, json.dumps({"header": header, "kvs": kvs, "more": more}).encode()


def no(code: int, message: str) -> Reply:
    return 400, json.dumps({"code": code, "message": message}).encode()


class Scripted(EtcdApi):
    """Answers come from a function of (member's number, path, what is asked, token)."""

    def __init__(self, script: Callable[[int, str, Any, str], Reply], members: int = 3, **settings: Any) -> None:
        super().__init__(EtcdSettings(tuple(f"http://m{at}" for at in range(members)), **settings))
        self._first = 0
        self._script = script
        self.asked: list[tuple[int, str, str]] = []

    def _exchange(self, pool: Any, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        number, signature = int(pool.host.removeprefix("m")), headers.get("Authorization", "")
        self.asked.append((number, path, signature))
        reply = self._script(number, path, json.loads(body), signature)
        if isinstance(reply, Exception):
            raise reply
        return reply

    @property
    def members(self) -> list[int]:
        return [number for number, _, _ in self.asked]


# -- fail-over --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        OSError("refused"), TimeoutError("late"), (500, b"oops"), (404, b"404 page not found"), (200, b"<html>"), (200, b"{}"),
        (503, b'{"code":14,"message":"etcdserver: request timed out"}'), (500, b'{"code":2,"message":"no leader"}'),
    ],
)  # fmt: skip
def test_a_member_without_an_answer_is_passed_over_and_then_not_asked_first(fault: Reply) -> None:
    api = Scripted(lambda member, *_: fault if member == 0 else found(("k", "v")))
    assert api.key("k") == KeyValue(b"v", 7)
    assert api.key("k") == KeyValue(b"v", 7)
    assert api.members == [0, 1, 1]


def test_the_next_one_after_the_last_is_the_first() -> None:
    down = {0, 1}
    api = Scripted(lambda member, *_: OSError("no") if member in down else found())
    api.key("k")
    down.clear()
    down |= {2}
    api.key("k")
    assert api.members == [0, 1, 2, 2, 0]


def test_what_every_member_says_is_asked_of_one() -> None:
    api = Scripted(lambda *_: no(7, "etcdserver: permission denied"))
    with pytest.raises(Refusal, match="http://m0: etcdserver: permission denied"):
        api.prefix("/a/")
    assert api.members == [0]


def test_a_member_that_failed_since_it_answered_is_asked_after_the_others() -> None:
    api = Scripted(lambda *_: found())
    api.key("k")
    api._members[0].failed = api._members[0].answered + 1  # its watch was given up
    api.key("k")
    assert api.members == [0, 1]


def test_no_member_answers() -> None:
    api = Scripted(lambda member, *_: OSError(f"no {member}"))
    with pytest.raises(RegistryError) as caught:
        api.key("k")
    assert str(caught.value) == "; ".join(f"http://m{n}: OSError: no {n}" for n in range(3))


def test_gateways_spread_over_the_members() -> None:
    settings = EtcdSettings(tuple(f"http://m{at}" for at in range(3)))
    assert {EtcdApi(settings)._first for _ in range(100)} == {0, 1, 2}


def test_many_that_wait_for_a_member_give_it_up_with_the_first_that_does() -> None:
    def script(member: int, *_: Any) -> Reply:
        if member == 0:
            gevent.sleep(0.01)
            return TimeoutError("hangs")
        return found()

    api = Scripted(script, members=2)
    gevent.joinall([gevent.spawn(api.key, "k") for _ in range(50)], raise_error=True)
    assert api.members.count(0) <= etcd.MOST_QUESTIONS
    assert api.members.count(1) == 50


def test_one_answer_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "WHOLE", 0.01)

    def script(member: int, *_: Any) -> Reply:
        if member == 0:
            gevent.sleep(60)
        return found()

    api = Scripted(script, members=2)
    api.key("k")
    assert api.members == [0, 1]


def test_waiting_for_a_turn_is_not_the_member_s_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "WHOLE", 0.5)

    def script(*_: Any) -> Reply:
        gevent.sleep(0.03)
        return found()

    api = Scripted(script, members=1)
    gevent.joinall([gevent.spawn(api.key, "k") for _ in range(100)], raise_error=True)
    assert len(api.members) == 100


def test_a_time_limit_of_somebody_else_is_not_ours() -> None:
    def script(*_: Any) -> Reply:
        gevent.sleep(60)
        return found()

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        Scripted(script).key("k")


# -- ranges -----------------------------------------------------------------------------


def test_a_prefix_is_read_in_pages_of_one_revision() -> None:
    seen = []

    def script(_: int, path: str, asked: Any, __: str) -> Reply:
        seen.append((asked["key"], asked["range_end"], asked["limit"], asked["revision"]))
        pages = [found(("/a/1", "x"), ("/a/2", "y"), revision=7, more=True), found(("/a/3", "z"), revision=9)]
        return pages[len(seen) - 1]

    got = Scripted(script).prefix("/a/")
    assert got == ({b"/a/1": b"x", b"/a/2": b"y", b"/a/3": b"z"}, 7, "1")
    assert seen == [(b64("/a/"), b64("/a0"), 1000, 0), (b64("/a/2\0"), b64("/a0"), 1000, 7)]


def test_a_prefix_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "MOST_KEYS", 1)
    with pytest.raises(RegistryError, match="more than 1 keys"):
        Scripted(lambda *_: found(("a", ""), ("b", ""), more=True)).prefix("a")


def test_a_key_that_is_not_there() -> None:
    assert Scripted(lambda *_: found(revision=3)).key("k") == KeyValue(None, 3)


def test_compacted_between_two_pages() -> None:
    api = Scripted(lambda _, __, asked, ___: no(11, "mvcc: required revision has been compacted") if asked["revision"] else found(("a", ""), more=True))
    with pytest.raises(RegistryError, match="compacted"):
        api.prefix("a")


# -- logins -----------------------------------------------------------------------------


class Guard:
    """A registry that wants to know who asks; `tokens` are those it knows."""

    def __init__(self) -> None:
        self.logins = 0
        self.tokens: set[str] = set()
        self.password = "pass\"word"

    def __call__(self, member: int, path: str, asked: Any, signature: str) -> Reply:
        if path == "/v3/auth/authenticate":
            self.logins += 1
            if asked != {"name": "gw", "password": self.password}:
                return no(3, f"etcdserver: authentication failed, invalid user ID or password {asked['password']}")
            self.tokens.add(f"t{self.logins}")
            return 200, json.dumps({"token": f"t{self.logins}"}).encode()
        if signature not in self.tokens:
            return no(16, "etcdserver: invalid auth token") if signature else no(3, "etcdserver: user name is empty")
        return found(("k", "v"))


def test_one_login_for_many_questions() -> None:
    guard = Guard()
    api = Scripted(guard, username="gw", password=guard.password)
    gevent.joinall([gevent.spawn(api.key, "k") for _ in range(20)], raise_error=True)
    assert guard.logins == 1


def test_a_token_that_was_forgotten_is_renewed_once_for_all() -> None:
    guard = Guard()
    api = Scripted(guard, username="gw", password=guard.password)
    api.key("k")
    guard.tokens.clear()
    asking = [gevent.spawn(api.key, "k") for _ in range(20)]
    gevent.joinall(asking, raise_error=True)
    assert {greenlet.value for greenlet in asking} == {KeyValue(b"v", 7)}
    assert guard.logins == 2


def test_without_a_name_there_is_no_login() -> None:
    guard = Guard()
    with pytest.raises(Refusal, match="user name is empty"):
        Scripted(guard).key("k")
    assert guard.logins == 0


def test_a_login_before_there_is_one_and_after() -> None:
    guard = Guard()
    enabled = False

    def script(member: int, path: str, asked: Any, signature: str) -> Reply:
        if enabled:
            return guard(member, path, asked, signature)
        return (412, no(9, "etcdserver: authentication is not enabled")[1]) if "auth" in path else found()  # type: ignore[index]

    api = Scripted(script, username="gw", password=guard.password)
    assert api.key("k") == KeyValue(None, 7)
    assert api.key("k") == KeyValue(None, 7)
    assert [path for _, path, _ in api.asked].count("/v3/auth/authenticate") == 1
    enabled = True
    assert api.key("k") == KeyValue(b"v", 7)


@pytest.mark.parametrize("echo", ["{}", '"{}"', "<html>{}", '{{"code": 3, "message": {}}}', '{{"code": 14, "message": {}}}'])
@pytest.mark.parametrize("status", [200, 400, 500])
def test_the_password_is_in_no_error_whatever_is_answered(echo: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    def script(_: int, path: str, asked: Any, __: str) -> Reply:
        return status, echo.format(json.dumps(asked["password"])).encode()

    api = Scripted(script, username="gw", password='geh"eim')
    with pytest.raises(RegistryError) as caught:
        api.key("k")
    whole = repr(caught.value) + caplog.text + repr(api._settings)
    assert "eim" not in whole


def test_a_login_that_was_refused_is_not_tried_again_at_once() -> None:
    guard = Guard()
    api = Scripted(guard, username="gw", password="wrong")
    for _ in range(5):
        with pytest.raises(Refusal, match=r"login as gw: .*authentication failed") as caught:
            api.key("k")
        assert "wrong" not in str(caught.value)
    assert guard.logins == 1
    api._denied = (api._denied[0] - etcd.DENIED, "")
    guard.password = "wrong"
    assert api.key("k").value == b"v"


def test_one_client_for_all_that_ask_one_cluster() -> None:
    settings = EtcdSettings(("http://shared",))
    first = shared(settings)
    assert shared(EtcdSettings(("http://shared",))) is first
    assert shared(EtcdSettings(("http://shared",), poll=1.0)) is not first


# -- a watch ----------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CREATED = result(created=True) + b"\n"


class Pieces:
    """A socket that holds what is still to come; None in it is a silence."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.pieces = list(pieces)
        self.sent = b""
        self.closed = False

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv(self, _: int) -> bytes:
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if piece is None:
            gevent.sleep(60)
        assert piece is not None
        return piece

    def close(self) -> None:
        self.closed = True


def watching(*pieces: bytes | None) -> Watch:
    watch = Watch(Pieces(*pieces), 0.01)  # type: ignore[arg-type]
    watch.begin(b"")
    return watch


def put(key: str, value: str, revision: int) -> dict[str, Any]:
    return {"kv": {"key": b64(key), "value": b64(value), "mod_revision": str(revision)}}


def everything(watch: Watch) -> list[Event]:
    taken: list[Event] = []
    with pytest.raises(RegistryError, match=r"^the watch ended$"):
        list(map(taken.extend, watch))
    return taken


MESSAGES = [
    result(events=[put("/a", "x" * size, revision)]) + b"\n" for revision, size in enumerate((0, 1, 300, 5, 70_000, 2))
]
EVENTS = [Event(b"/a", b"x" * size, revision) for revision, size in enumerate((0, 1, 300, 5, 70_000, 2))]


@given(st.lists(st.integers(0), max_size=30), st.lists(st.integers(0), max_size=30))
def test_events_come_out_whole_however_chunks_and_packets_are_cut(chunks: list[int], packets: list[int]) -> None:
    body = b"".join(chunk(piece) for piece in cut(CREATED + b"".join(MESSAGES), chunks) if piece)
    pieces = [piece for piece in cut(HEAD + body, packets) if piece]
    assert everything(watching(*pieces)) == EVENTS


def test_what_comes_with_the_confirmation_is_not_lost() -> None:
    assert everything(watching(HEAD + chunk(CREATED + MESSAGES[1]))) == [EVENTS[1]]


def test_fragments_are_told_together() -> None:
    parts = [
        result(fragment=True, events=[put("/a", "1", 5)]), result(fragment=True, events=[put("/b", "2", 5)]),
        result(events=[put("/c", "3", 5)]), result(events=[put("/d", "4", 6)]),
    ]  # fmt: skip
    watch = watching(HEAD + chunk(CREATED), *(chunk(part + b"\n") for part in parts))
    assert [len(watch.take(1)) for _ in parts] == [0, 0, 3, 1]


def test_a_silence_is_no_news_and_nothing_is_lost_by_it() -> None:
    sent = HEAD + chunk(CREATED)
    message = chunk(MESSAGES[2])
    # A silence in every place where bytes can be divided.
    for at in range(len(message)):
        watch = watching(sent, *([message[:at]] if at else []), None, message[at:])
        taken = watch.take(1) if at else ()
        assert watch.take(0.0001) == ()
        # Only the end of the line counts, not that of the chunk.
        assert taken + watch.take(1) == (EVENTS[2],)


def test_in_a_silence_the_member_is_asked_whether_it_is_there() -> None:
    watch = watching(HEAD + chunk(CREATED), None, None)
    asked = []
    watch.trust(lambda: asked.append(1))
    assert watch.take(0.001) == ()
    assert asked == [1]

    def gone() -> None:
        raise RegistryError("no answer")

    watch.trust(gone)
    with pytest.raises(RegistryError, match="no answer"):
        watch.take(0.001)


def test_iterating_goes_on_through_silence() -> None:
    events = iter(watching(HEAD + chunk(CREATED), None, chunk(MESSAGES[1])))
    assert [next(events), next(events)] == [(), (EVENTS[1],)]


def test_it_ends_with_a_compaction_and_what_came_before_it_is_read_anew_anyway() -> None:
    watch = watching(HEAD + chunk(CREATED), chunk(result(canceled=True, compact_revision="9") + b"\n"))
    with pytest.raises(Compacted):
        watch.take(1)


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ((), "the watch ended"),
        ((chunk(b'{"result":{"ev'),), "the watch ended in the middle of a message"),
        ((b"0\r\n\r\n",), "the watch ended"),
        ((b"zz\r\n",), "not HTTP"),
        ((chunk(b"<html>\n"),), "not JSON: <html>"),
    ],
)
def test_how_it_ends(rest: tuple[bytes, ...], told: str) -> None:
    watch = watching(HEAD + chunk(CREATED), *rest)
    with pytest.raises(RegistryError, match=told):
        list(watch)


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ((b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n", b"Not Found"), "HTTP 404: Not Found"),
        ((b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n",), "HTTP 405: "),
        ((b"HTTP/1.1 500 No\r\n\r\n",), "HTTP 500: "),
        ((HEAD + chunk(b'{"error":{"message":"no leader"}}\n'),), "the watch failed: no leader"),
        ((HEAD + b"0\r\n\r\n",), "the watch ended"),
    ],
)
def test_how_it_does_not_begin(pieces: tuple[bytes, ...], told: str) -> None:
    with pytest.raises(RegistryError, match=told):
        watching(*pieces)
