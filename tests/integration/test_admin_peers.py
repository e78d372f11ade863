"""Workers that ask one another: told here by functions, over sockets in a folder of their own."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from gateway.admin import peers
from gateway.admin.peers import Part, Peers


@pytest.fixture
def folder() -> Iterator[str]:
    # Short, as the path of a socket must be.
    with tempfile.TemporaryDirectory() as found:
        yield found


def worker(folder: str, slot: int, parts: int = 1) -> Peers:
    made = Peers(folder, slot, lambda: ({"slot": slot, "part": number} for number in range(parts)))
    made.listen()
    return made


def slots(answers: list[list[Part]]) -> list[int]:
    return [answer[0]["slot"] for answer in answers]


def test_whoever_is_asked_comes_first_and_all_are_there(folder: str) -> None:
    workers = [worker(folder, slot, parts=100) for slot in range(3)]
    assert slots(workers[1].ask()) == [1, 0, 2]
    assert [len(answer) for answer in workers[1].ask()] == [100, 100, 100]
    workers[0].close()
    assert slots(workers[2].ask()) == [2, 1]
    assert not Path(folder, "worker-0.sock").exists()
    for each in workers[1:]:
        each.close()


def test_a_successor_takes_the_place_of_one_that_was_killed(folder: str) -> None:
    own = worker(folder, 0)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(f"{folder}/worker-1.sock")
    dead.close()  # its file stays
    assert slots(own.ask()) == [0]
    successor = worker(folder, 1)
    assert slots(own.ask()) == [0, 1]
    successor.close()
    own.close()


def test_one_that_does_not_answer_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PATIENCE", 0.05)
    own = worker(folder, 0)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{folder}/worker-1.sock")
        silent.listen()
        assert own.ask()[1] == [{"slot": 1, "problem": "no answer within 0.05 s"}]
    own.close()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"{}\n{", "an answer that breaks off"),
        (b"nonsense\n", "Expecting value: line 1 column 1 (char 0)"),
        (b"x" * 2000, "an answer of more than 1000 bytes"),
    ],
)
def test_nonsense_is_named(folder: str, said: bytes, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MOST_BYTES", 1000)
    own = worker(folder, 0)
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(f"{folder}/worker-1.sock")
        odd.listen()

        def answer() -> None:
            connection, _ = odd.accept()
            connection.sendall(said)
            connection.close()

        answering = gevent.spawn(answer)
        assert own.ask()[1] == [{"slot": 1, "problem": problem}]
        answering.join()
    own.close()


def test_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    alone = worker("", 0, parts=2)
    assert alone.ask() == [[{"slot": 0, "part": 0}, {"slot": 0, "part": 1}]]
    alone.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_said_and_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    own = worker("/nonexistent", 0)
    assert "other workers cannot ask" in caplog.text
    assert slots(own.ask()) == [0]
    own.close()


def test_a_worker_that_cannot_listen_tries_again(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "AGAIN", 0.01)
    own, place = worker(folder, 0), Path(folder, "later")
    other = worker(str(place), 1)
    gevent.sleep(0.05)
    place.mkdir()
    with gevent.Timeout(10):
        while not (place / "worker-1.sock").exists():
            gevent.sleep(0.01)
    assert slots(Peers(str(place), 2, lambda: [{"slot": 2}]).ask()) == [2, 1]
    other.close()
    own.close()


def test_a_worker_that_never_could_listen_closes(folder: str) -> None:
    worker(f"{folder}/gone", 1).close()
