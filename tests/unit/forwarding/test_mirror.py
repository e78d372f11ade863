"""The body of a request that is copied while it is read, and how many copies there may be."""

from __future__ import annotations

import pytest

from gateway.errors import ClientClosed
from gateway.forwarding.mirror import Tee
from gateway.http.messages import BufferedBody
from tests.exchanges import Pieces


class Kept:
    """A tee and what came of it."""

    def __init__(self, *pieces: object, length: int | None = None, most: int = 10) -> None:
        self.whole: list[bytes] = []
        self.lost = 0
        self.tee = Tee(Pieces(*pieces), length, most, self.whole.append, self._lose)

    def _lose(self) -> None:
        self.lost += 1

    def read(self) -> bytes:
        return b"".join(iter(self.tee.read, b""))


@pytest.mark.parametrize("pieces", [(b"abc", b"def"), (b"0123456789",), (b"0" * 9, b"1"), ()])
def test_a_body_is_kept_as_it_is_read(pieces: tuple[bytes, ...]) -> None:
    kept = Kept(*pieces)
    assert kept.read() == b"".join(pieces)
    kept.tee.give_up()
    assert (kept.whole, kept.lost) == ([b"".join(pieces)], 0)


def test_nothing_is_whole_before_its_end() -> None:
    kept = Kept(b"abc", b"def")
    assert [kept.tee.read(), kept.tee.read(), kept.whole] == [b"abc", b"def", []]
    kept.tee.give_up()
    assert (kept.whole, kept.lost) == ([], 1)
    # Whoever reads on gets the rest, and nothing is decided twice.
    assert kept.tee.read() == b""
    assert (kept.whole, kept.lost) == ([], 1)


def test_a_length_that_was_told_is_an_end() -> None:
    """The forwarder need not read on."""
    kept = Kept(b"abc", b"def", length=6)
    assert kept.tee.read() == b"abc"
    assert kept.whole == []
    assert kept.tee.read() == b"def"
    assert kept.whole == [b"abcdef"]
    kept.tee.give_up()
    assert kept.lost == 0


@pytest.mark.parametrize("pieces", [(b"x" * 11,), (b"x" * 10, b"y"), (b"x",) * 30])
def test_a_larger_one_is_lost_once_and_goes_on(pieces: tuple[bytes, ...]) -> None:
    kept = Kept(*pieces)
    assert kept.read() == b"".join(pieces)
    kept.tee.give_up()
    assert (kept.whole, kept.lost) == ([], 1)


def test_one_that_breaks_off_is_lost() -> None:
    kept = Kept(b"abc", ClientClosed("gone"))
    with pytest.raises(ClientClosed):
        kept.read()
    kept.tee.give_up()
    assert (kept.whole, kept.lost) == ([], 1)


def test_it_says_of_itself_what_the_body_says() -> None:
    expecting = Tee(Pieces(b"a", expects_continue=True), None, 10, lambda data: None, lambda: None)
    assert (expecting.complete, expecting.expects_continue) == (False, True)
    expecting.read()
    assert expecting.expects_continue is False
    assert Tee(BufferedBody(b"a"), 1, 10, lambda data: None, lambda: None).complete is True
