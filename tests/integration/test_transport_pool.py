"""The pool: how many connections there are, who gets one, and that none is ever lost from the count."""

from __future__ import annotations

from contextlib import contextmanager

import gevent
import pytest
from gevent import event

from gateway.errors import (
    BadResponse,
    ClientClosed,
    ConnectError,
    PoolFull,
    ResponseTimeout,
    UpstreamReset,
    UpstreamTruncated,
)
from gateway.model import PoolSettings, Timeouts, Upstream
from gateway.testing import Act, FakeUpstream, answer, head
from gateway.transport.transport import pool_key
from tests.exchanges import Line, Pieces, finish, greenlets, open_files, request, soon, whole


@pytest.fixture
def upstream():
    with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def to(upstream):
    made: list[Line] = []

    def line(**pool: object) -> Line:
        made.append(Line(upstream.host, upstream.port, pool=PoolSettings(**pool)))  # type: ignore[arg-type]
        return made[-1]

    yield line
    for one in made:
        one.close()
        soon(lambda one=one: one.counts == (0, 0, 0))


@contextmanager
def all_busy(upstream, line, number=1):
    """So many exchanges under way; ended by the block's end."""
    done = event.Event()
    before = upstream.__dict__["_default"]
    upstream.answer(lambda exchange: (done.wait(), exchange.send(answer(b"busy"))))
    seen = len(upstream.requests)
    running = [gevent.spawn(line.ask) for _ in range(number)]
    upstream.wait(seen + number)
    upstream.answer(before)
    try:
        yield done
    finally:
        done.set()
        finish(running)


class TestIdle:
    def test_at_most_max_idle_are_kept(self, upstream, to):
        line = to(max_idle=2)
        with all_busy(upstream, line, 5):
            assert line.counts == (5, 0, 0)
        soon(lambda: line.counts == (2, 2, 0))

    def test_max_idle_0_is_no_reuse(self, upstream, to):
        line = to(max_idle=0)
        assert [line.ask().reused for _ in range(3)] == [False] * 3
        assert line.counts == (0, 0, 0)

    def test_the_sweep_closes_what_is_idle_for_too_long(self, upstream, to):
        line = to(idle_timeout=5.0)
        line.ask()
        line.transport.expire()
        assert line.counts == (1, 1, 0)
        line.pool._idle[0].idle_since -= 5.0
        line.transport.expire()
        assert line.counts == (0, 0, 0)

    def test_checkout_refuses_it_before_the_sweep_came(self, upstream, to):
        line = to(idle_timeout=5.0)
        line.ask()
        line.pool._idle[0].idle_since -= 5.0
        assert not line.ask().reused
        assert line.counts == (1, 1, 0)

    def test_null_is_no_limit(self, upstream, to):
        line = to(idle_timeout=None)
        line.ask()
        line.pool._idle[0].idle_since -= 1e6
        line.transport.expire()
        assert line.ask().reused

    @pytest.mark.parametrize(("told", "limit"), [(b"timeout=5", 4.0), (b"max=9, timeout=3", 2.0), (b"timeout=90", 30.0)])
    def test_the_upstreams_own_limit_lowers_ours(self, upstream, to, told, limit):
        line = to(idle_timeout=30.0)
        upstream.answer(answer(b"x", b"Connection: keep-alive", b"Keep-Alive: " + told))
        line.ask()
        connection = line.pool._idle[0]
        assert connection.idle_limit == limit
        connection.idle_since -= limit
        assert not line.ask().reused

    @pytest.mark.parametrize("told", [b"timeout=0", b"timeout=1"])
    def test_an_upstream_that_keeps_nothing(self, upstream, to, told):
        line = to()
        upstream.answer(answer(b"x", b"Keep-Alive: " + told))
        assert not line.ask().reused
        assert not line.ask().reused

    def test_an_endpoint_that_is_gone_drains(self, upstream, to):
        line = to()
        line.ask()
        with all_busy(upstream, line):
            line.transport.drop([pool_key(line.upstream, line.endpoint)])
            assert line.counts == (1, 0, 0)
        soon(lambda: line.counts == (0, 0, 0))
        assert line.transport.pool(line.upstream, line.endpoint) is not line.pool


class TestMaxConnections:
    @pytest.mark.parametrize(("max_idle", "reused"), [(1, True), (0, False)])
    def test_one_more_waits_and_takes_over(self, upstream, to, max_idle, reused):
        """The connection, or where none is used again, its place."""
        line = to(max_connections=1, max_idle=max_idle)
        with all_busy(upstream, line) as done:
            waiting = gevent.spawn(line.ask)
            soon(lambda: line.counts == (1, 0, 1))
            done.set()
            (got,) = finish([waiting])
        assert (got.body, got.reused) == (b"ok", reused)
        assert len(upstream.connections) == (1 if reused else 2)

    def test_queue_timeout(self, upstream, to):
        line = to(max_connections=1, queue_timeout=0.05)
        with all_busy(upstream, line):
            asked = request()
            with pytest.raises(PoolFull) as seen:
                line.ask(asked)
            assert (seen.value.status, seen.value.reason, seen.value.may_have_been_sent) == (503, "pool_full", False)
            assert asked.queue_s >= 0.05
            assert line.counts == (1, 0, 0)
        assert line.ask().body == b"ok"

    def test_null_waits_as_long_as_it_takes(self, upstream, to):
        line = to(max_connections=1, queue_timeout=None)
        with all_busy(upstream, line) as done:
            waiting = gevent.spawn(line.ask)
            gevent.sleep(0.05)
            done.set()
            assert finish([waiting])[0].body == b"ok"

    def test_first_come_first_served(self, upstream, to):
        line = to(max_connections=2, queue_timeout=10.0)
        order: list[int] = []

        def ask(number):
            response = line.send()
            order.append(number)
            whole(response)

        with all_busy(upstream, line, 2) as done:
            waiting = []
            for number in range(20):
                waiting.append(gevent.spawn(ask, number))
                soon(lambda number=number: line.counts[2] == number + 1)
            done.set()
            finish(waiting)
        assert order == sorted(order)

    def test_newcomers_do_not_overtake(self, upstream, to):
        """A place that came free belongs to who waited, even while that one has not run yet."""
        line = to(max_connections=1, queue_timeout=10.0)
        order: list[str] = []

        def ask(name):
            response = line.send()
            order.append(name)
            whole(response)

        upstream.answer([head(200, b"Content-Length: 9"), Act.HANG])
        first = line.send()
        upstream.answer(answer(b"ok"))
        waiting = gevent.spawn(ask, "waited")
        soon(lambda: line.counts[2] == 1)
        first.stream.close()
        ask("came later")
        finish([waiting])
        assert order == ["waited", "came later"]

    @pytest.mark.parametrize("how", ["times out", "is killed", "is thrown at", "has a timeout of its own"])
    def test_who_gives_up_keeps_no_place(self, upstream, to, how):
        line = to(max_connections=1, queue_timeout=0.05 if how == "times out" else 10.0)

        def ask():
            if how == "has a timeout of its own":
                with gevent.Timeout(0.05):
                    line.ask()
            line.ask()

        with all_busy(upstream, line):
            gone = gevent.spawn(ask)
            soon(lambda: line.counts[2] == 1)
            if how == "is killed":
                gone.kill()
            elif how == "is thrown at":
                gevent.get_hub().loop.run_callback(gone.throw, ClientClosed("gone"))
            (error,) = finish([gone])
            assert type(error) is {
                "times out": PoolFull,
                "is killed": gevent.GreenletExit,
                "is thrown at": ClientClosed,
                "has a timeout of its own": gevent.Timeout,
            }[how]
            assert line.counts == (1, 0, 0)
        assert line.ask().reused

    @pytest.mark.parametrize("with_connection", [True, False])
    def test_who_is_killed_at_the_moment_it_is_served_passes_it_on(self, upstream, to, with_connection):
        line = to(max_connections=1, queue_timeout=10.0)
        upstream.answer([head(200, b"Content-Length: 2") + b"o", 0.01, b"k"])
        first = line.send()
        unlucky, next_one = gevent.spawn(line.ask), gevent.spawn(line.ask)
        soon(lambda: line.counts[2] == 2)
        # Not by the stream, which would end the exchange with the last byte.
        assert first.stream._connection.reader.read_body(10.0, 9) == b"k"
        unlucky.kill(block=False)
        # Either the connection is handed on, or the place for a new one.
        first.stream.finish() if with_connection else first.stream.close()
        got = finish([unlucky, next_one])[1]
        assert (got.body, got.reused) == (b"ok", with_connection)
        assert line.counts == (1, 1, 0)

    def test_a_connection_handed_on_is_looked_at_first(self, upstream, to):
        """What came behind the answer meanwhile would be the next one's answer."""
        line = to(max_connections=1, queue_timeout=10.0)
        upstream.answer([head(200, b"Content-Length: 2"), b"o", Act.HANG])
        first = line.send()
        upstream.answer(answer(b"mine"))
        waiting = gevent.spawn(line.ask)
        soon(lambda: line.counts[2] == 1)
        connection, first.stream._connection = first.stream._connection, None
        upstream.connections[0].send(answer(b"stolen"))
        line.pool.give_back(connection)
        (got,) = finish([waiting])
        assert (got.body, got.reused) == (b"mine", False)
        assert line.counts == (1, 1, 0)

    def test_an_old_idle_connection_makes_room_for_a_fresh_one(self, upstream, to):
        line = to(max_connections=1, queue_timeout=0.05)
        line.ask()
        line.pool._idle[0].idle_since -= 2.0
        assert not line.ask(request(b"POST", b"x"), replayable=False).reused
        assert line.counts == (1, 1, 0)
        assert not line.ask(fresh=True).reused
        assert line.counts == (1, 1, 0)

    def test_a_higher_limit_lets_who_waits_in(self, upstream, to):
        line = to(max_connections=1, queue_timeout=10.0)
        with all_busy(upstream, line):
            waiting = [gevent.spawn(line.ask) for _ in range(3)]
            soon(lambda: line.counts == (1, 0, 3))
            more = Upstream("service", line.upstream.source, pool=PoolSettings(max_connections=3, queue_timeout=10.0))
            line.transport.pool(more, line.endpoint)
            assert {got.body for got in finish(waiting)} == {b"ok"}
            none = Upstream("service", line.upstream.source, pool=PoolSettings(max_connections=0))
            line.transport.pool(none, line.endpoint)

    def test_never_more_than_the_limit(self, upstream, to):
        line = to(max_connections=3, queue_timeout=10.0)
        most, now = 0, 0

        def script(exchange):
            nonlocal most, now
            now += 1
            most = max(most, now)
            gevent.sleep(0.002)
            now -= 1
            exchange.send(answer(b"ok", *([b"Connection: close"] if len(upstream.requests) % 3 == 0 else [])))

        upstream.answer(script)
        assert {got.body for got in finish(gevent.spawn(line.ask) for _ in range(100))} == {b"ok"}
        assert most == 3


MANY = 1000


class TestNothingIsLost:
    """A thousand of each failure: every place comes back, no file and no greenlet is left."""

    @pytest.fixture(autouse=True)
    def _books(self):
        files, running = open_files(), greenlets()
        yield
        soon(lambda: open_files() <= files and greenlets() <= running)

    def run(self, line, errors, work, number=MANY):
        """`work` a thousand times, 20 at once, over 10 places; half of them will have waited."""

        def worker():
            for _ in range(number // 20):
                try:
                    work()
                except errors:
                    pass
                else:
                    raise AssertionError("no failure")

        assert finish(gevent.spawn(worker) for _ in range(20)) == [None] * 20
        soon(lambda: line.counts[0] == line.counts[1] and line.counts[2] == 0)

    @contextmanager
    def line(self, script, **timeouts):
        with FakeUpstream(script) as fake:
            line = Line(
                fake.host,
                fake.port,
                pool=PoolSettings(max_connections=10, queue_timeout=30.0),
                timeouts=Timeouts(**timeouts),
            )
            yield line
            line.close()
            soon(lambda: line.counts == (0, 0, 0))

    def test_connect(self):
        line = Line("127.0.0.1", 1, pool=PoolSettings(max_connections=10))
        self.run(line, ConnectError, line.ask)
        assert line.counts == (0, 0, 0)

    @pytest.mark.parametrize(
        ("script", "error"),
        [
            ([Act.CLOSE], UpstreamReset),
            ([Act.RESET], UpstreamReset),
            (b"no HTTP\r\n\r\n", BadResponse),
            (head(101), BadResponse),
            ([head(200, b"Content-Length: 9") + b"x", Act.CLOSE], UpstreamTruncated),
            ([head(200, b"Content-Length: 9") + b"x", Act.RESET], (UpstreamTruncated, UpstreamReset)),
        ],
    )
    def test_answers(self, script, error):
        with self.line(script) as line:
            self.run(line, error, line.ask)

    def test_timeouts(self):
        with self.line([Act.HANG], response=0.01) as line:
            self.run(line, ResponseTimeout, line.ask)

    def test_bodies_closed_early(self):
        def work():
            line.send().stream.close()
            raise UpstreamReset

        with self.line([head(200, b"Content-Length: 9") + b"x", Act.HANG]) as line:
            self.run(line, UpstreamReset, work)

    @pytest.mark.parametrize("upload", [True, False])
    def test_killed_at_any_moment(self, upload):
        """gevent.Timeout at every await: queue, dial, write, head, body, and the end of an upload."""
        wait = iter(range(10**9))

        def body():
            if not upload:
                return None
            return Pieces(*[b"x" * 1000] * 5, event.Event())

        def work():
            with gevent.Timeout((next(wait) % 40) / 2000 + 0.0001):
                whole(line.send(request(b"POST", body(), chunked=upload), replayable=False))

        with self.line([head(200, b"Content-Length: 9") + b"x", Act.HANG]) as line:
            self.run(line, gevent.Timeout, work)

    def test_exceptions_thrown_at_any_moment(self):
        delays = iter(range(10**9))

        def work():
            asking = gevent.spawn(line.ask, request(b"POST", Pieces(b"x", event.Event()), chunked=True))
            gevent.sleep((next(delays) % 10) / 2000)
            loop = gevent.get_hub().loop
            for _ in range(2):  # a second one meets it at its cleaning up
                loop.run_callback(lambda: asking.dead or asking.throw(ClientClosed("gone")))
            asking.join()
            raise UpstreamReset

        with self.line(lambda exchange: exchange.hang()) as line:
            self.run(line, UpstreamReset, work)

    def test_clients_that_fail_in_the_middle_of_their_upload(self):
        with self.line(lambda exchange: exchange.hang()) as line:
            self.run(line, ClientClosed, lambda: line.ask(request(b"POST", Pieces(b"x", ClientClosed()), length=9)))

    def test_queues_that_are_full(self):
        with self.line([Act.HANG]) as line:
            line.pool._settings = PoolSettings(max_connections=1, queue_timeout=0.002)
            busy = gevent.spawn(line.ask)
            soon(lambda: line.counts == (1, 0, 0))
            for _ in range(50):
                assert {type(error) for error in finish(gevent.spawn(line.ask) for _ in range(20))} == {PoolFull}
            assert line.counts == (1, 0, 0)
            busy.kill()
