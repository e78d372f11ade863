"""The benchmark harness: what it counts, what it refuses, how it reports."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

import pytest
import yaml

from bench import __main__ as command
from bench import answer, chart, events, machine, paced, pairs, proc, report, scenarios, systems, upstream, wrk
from bench.proc import BenchError
from gateway import config
from gateway.routing.router import Router

ROOT = Path(__file__).resolve().parents[2]
Starter = Callable[..., proc.Program]


# -- programs ---------------------------------------------------------------------------


def test_times_are_found_behind_a_name_with_parentheses() -> None:
    stat = "42 (a) b (c) S 1 42 7 0 -1 0 0 0 0 0 10 20 3 4 20 0 1 0 99"
    assert proc.fields(stat)[0] == "S"
    assert proc.fields(stat)[3] == "7"
    assert proc.cpu_ticks(stat) == 37


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    started: list[proc.Program] = []
    core = min(os.sched_getaffinity(0))

    def start(*words: str) -> proc.Program:
        program = proc.Program("program", words, core, tmp_path / "log", cwd=tmp_path, env={"PATH": os.environ["PATH"]})
        started.append(program)
        return program

    yield start
    for program in started:
        program.stop(0)


def wait_for(program: proc.Program, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in program.tail():
        assert program.running
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_time_of_children_that_were_waited_for_counts(start: Starter) -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    program = start("sh", "-c", f"{sys.executable} -c '{burn}'; echo burnt; exec sleep 60")
    wait_for(program, "burnt")
    # Ticks are cut off, of user and system time each.
    assert program.cpu_seconds() >= 0.15


def test_a_tree_that_ignores_sigterm_ends_all_the_same(start: Starter) -> None:
    program = start("sh", "-c", 'trap "" TERM; sleep 60 & sleep 61 & echo up; wait')
    wait_for(program, "up")
    assert len(proc.living(program.pid)) == 3
    assert program.peak_mib() > 0
    assert program.resident_kib() > 0
    program.stop(0.1)
    assert not program.running
    deadline = time.monotonic() + 20
    while proc.living(program.pid):
        assert time.monotonic() < deadline


def test_orphans_end_too(start: Starter) -> None:
    program = start("sh", "-c", "sleep 60 & echo up; exit 0")
    wait_until_over = time.monotonic() + 20
    while program.running:
        assert time.monotonic() < wait_until_over
        time.sleep(0.01)
    assert len(proc.living(program.pid)) == 1
    program.stop(0)
    while proc.living(program.pid):
        assert time.monotonic() < wait_until_over


# -- answers ----------------------------------------------------------------------------


class Pieces:
    """Gives what a socket would, piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def recv(self, _: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


def reader(*pieces: bytes) -> answer.Reader:
    return answer.Reader(cast(socket.socket, Pieces(*pieces)))


def test_two_answers_in_odd_pieces() -> None:
    first = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    second = b"HTTP/1.1 502 Bad\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    both = first + second
    source = reader(*(both[index : index + 7] for index in range(0, len(both), 7)))
    assert source.answer() == answer.Answer(200, b"hello", len(first))
    assert source.answer() == answer.Answer(502, b"abcde", len(second))


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"SSH-2.0-x\r\n\r\n",
    ],
)
def test_half_an_answer_or_none_is_refused(data: bytes) -> None:
    with pytest.raises(BenchError):
        reader(data).answer()


# -- load -------------------------------------------------------------------------------

LOAD = wrk.Load("http://127.0.0.1:1/", connections=2)


def outcome(**changes: float) -> wrk.Outcome:
    told = {
        "requests": 1000,
        "seconds": 2.0,
        "bytes": 300_000,
        "wrong": 0,
        "status": 0,
        "socket": 0,
        "timeouts": 0,
        "p50_ms": 1.5,
        "p99_ms": 2.5,
    }
    return wrk.parse(f"noise\nRESULT {json.dumps({**told, **changes})}\n")


def test_right_answers_pass() -> None:
    good = outcome()
    good.judge(LOAD, 300)
    assert good.rate == 500


@pytest.mark.parametrize(
    "changes",
    [
        {"requests": 0},
        {"wrong": 1},
        {"status": 1},
        {"socket": 1},
        {"timeouts": 1},
        {"bytes": 283_000},
        {"bytes": 317_000},
    ],
)
def test_one_wrong_answer_fails(changes: dict[str, float]) -> None:
    with pytest.raises(BenchError):
        outcome(**changes).judge(LOAD, 300)


def test_wrk_without_a_result_fails() -> None:
    with pytest.raises(BenchError):
        wrk.parse("unable to connect")


def test_wrk_is_told_everything(tmp_path: Path) -> None:
    load = wrk.Load("http://127.0.0.1:1/x", "POST", tmp_path / "body", 8, keep=False)
    words = load.command(2.4, tmp_path / "expected")
    assert words[:4] == ["wrk", "-t1", "-c8", "-d2s"]
    assert "Connection: close" in words
    assert words[-3:] == ["POST", str(tmp_path / "body"), str(tmp_path / "expected")]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


def test_an_answer_is_complete_with_its_body() -> None:
    assert paced.complete(HEAD + b"body", b"body")
    assert paced.complete(b"HTTP/1.1 200 OK\r\n\r\n4\r\nbody\r\n0\r\n\r\n", b"body")
    assert not paced.complete(HEAD + b"bo", b"body")
    assert not paced.complete(b"HTTP/1", b"body")


@pytest.mark.parametrize("data", [b"HTTP/1.1 502 Bad Gateway\r\n", b"garbage", HEAD + b"x" * 70_000])
def test_a_wrong_answer_is_never_complete(data: bytes) -> None:
    with pytest.raises(BenchError):
        paced.complete(data, b"body")


def test_latencies_are_summed_up() -> None:
    latency = paced.summary(array("q", (number * 1_000_000 for number in range(100, 0, -1))))
    assert (latency.p50_ms, latency.p99_ms, latency.count) == (51, 100, 100)


def event(number: int, stamp: int) -> bytes:
    return b"id: %d\ndata: %d\n\n" % (number, stamp)


def test_events_come_in_any_pieces() -> None:
    stream = events.Stream(cast(socket.socket, Pieces()))
    data = b"".join(b"10\r\n%b\r\n" % event(number, number * 10) for number in range(5))
    stamps = [stamp for index in range(len(data)) for stamp in stream.feed(data[index : index + 1])]
    assert stamps == [0, 10, 20, 30, 40]


def test_a_lost_event_fails() -> None:
    stream = events.Stream(cast(socket.socket, Pieces()))
    stream.feed(event(3, 1))
    with pytest.raises(BenchError):
        stream.feed(event(5, 1))


# -- upstream ---------------------------------------------------------------------------


def test_the_answer_is_as_long_as_documented() -> None:
    assert len(upstream.JSON) == 98
    json.loads(upstream.JSON)


class Wire:
    """What a transport was given."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def _receive(connection: upstream.Streaming, data: bytes) -> None:
    connection.get_buffer(-1)[: len(data)] = data
    connection.buffer_updated(len(data))


def test_the_upstream_tells_what_it_received() -> None:
    connection = upstream.Streaming()
    wire = Wire()
    connection._transport = cast(asyncio.Transport, wire)
    _receive(connection, b"POST /in?crc=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    assert wire.written == b""
    _receive(connection, b"2\r\nde\r\n0\r\n\r\n")
    assert wire.written.endswith(upstream.told(5, zlib.crc32(b"abcde")))
    _receive(connection, b"POST /in HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxy")
    assert wire.written.endswith(upstream.told(2))


# -- systems ----------------------------------------------------------------------------


def test_our_configuration_is_valid_and_has_every_route() -> None:
    text = systems.gateway_config("127.0.0.1:9", 1_000, Path("/tmp/log"), systems.by_prefix)
    read = config.loads(text.encode(), "gateway.yaml", {})
    assert len(read.routes) == 1_000
    assert {route.matches[0].prefix for route in read.routes} >= {systems.route_path(0), systems.route_path(999)}
    assert read.access_log is not None


def test_our_patterns_take_the_path_that_is_asked_for() -> None:
    text = systems.gateway_config("127.0.0.1:9", 10, Path("/tmp/log"), systems.by_pattern)
    routes = Router(config.loads(text.encode(), "gateway.yaml", {}).routes)
    for entry in scenarios.pattern_counts():
        found = routes.match(b"GET", b"a", scenarios.middle(replace(entry, routes=10)).encode() + b"/item", None, [])
        assert found is not None
        assert found.name == "r00005"


def test_pairs_are_made_of_our_own_rows() -> None:
    names = {name: [entry.key for entry in pairs.ours(each)] for name, each in scenarios.SCENARIOS.items()}
    assert names["small"] == ["gateway"]
    assert names["regex"] == ["gateway-regex-1", "gateway-regex-10", "gateway-regex-1000"]


def place(directory: Path) -> upstream.Place:
    return upstream.Place(directory, ROOT, 0, {})


@pytest.mark.parametrize("name", ["nginx", "haproxy", "caddy", "traefik"])
def test_every_configured_peer_gets_port_and_upstream(name: str, tmp_path: Path) -> None:
    words, _ = systems.SYSTEMS[name].prepare(place(tmp_path), 1234, "127.0.0.1:5678", 0)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert any("1234" in text for text in written.values())
    assert any("127.0.0.1:5678" in text for text in written.values())
    assert any(str(tmp_path) in word for word in words)
    for file, text in written.items():
        if file.endswith((".yaml", ".json")):
            assert yaml.safe_load(text)


def test_what_is_missing_is_told() -> None:
    assert "no-such-program" in systems.needs("no-such-program", "sh")()
    assert systems.needs("sh")() == ""
    assert "no-such-package" in systems.imports("no-such-package", "pytest")()


# -- the run ----------------------------------------------------------------------------


class Silent:
    """An upstream that only has to be stopped."""

    stopped = False

    def stop(self) -> None:
        self.stopped = True


def entry(key: str) -> scenarios.Entry:
    return scenarios.Entry(key, key.upper(), systems.System(key, key, lambda: "", stay, lambda: "1.0"))


def stay(_: upstream.Place, __: int, ___: str, ____: int) -> systems.Command:
    raise AssertionError("not started in this test")


def test_rounds_are_interleaved_and_a_failure_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []

    def measure(_: scenarios.Run, measured: scenarios.Entry) -> scenarios.Figures:
        order.append(measured.key)
        if order == ["a", "b"]:
            raise BenchError("a wrong answer")
        return {"cpu_us": float(len(order))}

    entries = [entry("a"), entry("b"), entry("left out")]
    silent = Silent()
    scenario = scenarios.Scenario(
        "small",
        "test",
        lambda _: (cast(proc.Program, silent), 1),
        measure,
        (scenarios.Column("cpu_us", "µs"),),
        lambda: entries,
    )
    monkeypatch.setattr(machine, "versions", lambda names: dict.fromkeys(names, "1.0"))
    session = command.Session(place(tmp_path), 0, 2, 1.0, {"date": "2026-01-01"})
    table = session.table(scenario, {"a", "b"})
    assert order == ["a", "b", "a", "b"]
    assert silent.stopped
    assert [len(row.rounds) for row in table.rows] == [2, 1]
    assert session.failed == ["small 1/2 B: a wrong answer"]
    assert "FAILED: a wrong answer" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--only", "nobody"], ["--scenario", "small,nothing"]])
def test_unknown_names_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.arguments(words)
    assert ended.value.code == 2
    assert "not one of" in capsys.readouterr().err


def test_all_means_every_scenario() -> None:
    assert command.arguments(["--scenario", "all"]).scenario == list(scenarios.SCENARIOS)
    assert command.arguments([]).scenario == ["small"]


# -- the report -------------------------------------------------------------------------


def row(key: str, *cpu: float) -> report.Row:
    rounds = [{"cpu_us": value, "rate": 1e6 / value, "p50_ms": 1.0, "p99_ms": 2.0, "peak_mib": 30.0} for value in cpu]
    return report.Row(key, systems.SYSTEMS[key].title, "1.2.3", rounds)


def table(*rows: report.Row) -> report.Table:
    return report.Table("small", 5.0, {"date": "2026-01-01", "kernel": "Linux"}, list(rows))


def test_figures_are_medians_and_ratios_of_them() -> None:
    lines = report.cells(table(row("go", 80, 100, 300), row("gateway", 10, 70, 75), row("naive", 900)))
    assert [line[0] for line in lines[1:]] == [
        "wsgi-gateway",
        "Go httputil.ReverseProxy",
        systems.SYSTEMS["naive"].title,
    ]
    assert lines[0][-1] == "÷ Go"
    assert [line[1] for line in lines[1:]] == ["70.0", "100.0", "900.0"]
    assert [line[-1] for line in lines[1:]] == ["0.70", "1.00", "9.00"]


def test_without_the_base_there_is_no_ratio() -> None:
    assert report.cells(table(row("gateway", 70)))[0][-1] == "peak MiB"


def test_a_system_without_rounds_has_no_row() -> None:
    assert len(report.cells(table(row("go", 80), row("gateway")))) == 2


def test_what_others_do_better_is_listed() -> None:
    told = report.losses([table(row("go", 80), row("gateway", 70), row("nginx", 20))])
    assert len(told) == 1
    assert "nginx 20.0" in told[0]
    assert "Go" not in told[0]


def test_the_page_keeps_its_prose_and_what_is_kept_comes_back() -> None:
    first = table(row("go", 80), row("gateway", 70))
    assert report.from_json(json.loads(json.dumps(first.to_json()))) == first
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.replace(page, report.page([first]))
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert "old" not in new
    assert "| **wsgi-gateway** | 70.0 |" in new
    assert report.replace(new, report.page([first])) == new


def test_a_page_without_marks_is_not_touched() -> None:
    with pytest.raises(ValueError):
        report.replace("no marks", "x")


def test_the_page_in_the_tree_has_its_marks() -> None:
    assert report.replace(command.PAGE.read_text(), "x").count("x") >= 1


def test_bars_are_in_proportion_and_text_is_escaped() -> None:
    drawing = ElementTree.fromstring(chart.svg("a < b", [chart.Bar("x & y", 50), chart.Bar("z", 100, ours=True)]))
    space = "{http://www.w3.org/2000/svg}"
    bars = drawing.findall(f"{space}rect")
    assert [float(bar.attrib["width"]) for bar in bars] == [chart.BARS / 2, chart.BARS]
    assert [bar.attrib["class"] for bar in bars] == ["peer", "ours"]
    assert "x & y" in [text.text for text in drawing.findall(f"{space}text")]


# -- pairs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "low", "high"),
    # Order statistics of the sign test at 95 %, as in Conover, Practical Nonparametric Statistics, table A3.
    [(15, 4, 12), (10, 2, 9), (20, 6, 15), (6, 1, 6), (5, 1, 5), (1, 1, 1)],
)
def test_an_interval_is_made_of_order_statistics(number: int, low: int, high: int) -> None:
    values = [float(value) for value in range(number, 0, -1)]
    assert pairs.interval(values) == (low, high)


def test_pairs_are_compared_within_themselves() -> None:
    """A machine that becomes twice as slow in the middle changes no ratio."""
    told = pairs.summary("small", "v1", [(50.0, 100.0), (100.0, 200.0), (60.0, 100.0)])
    assert told == "small: 60.0 against 100.0 at v1: ratio 0.500 (95 %: 0.500 to 0.600, 3 pairs)"
