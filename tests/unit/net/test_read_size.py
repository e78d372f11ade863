"""Portions: how much of a body is read at once."""

from __future__ import annotations

import pytest

from gateway.net.read_size import PIECE, Portions

KIB = 1024
MIB = 1024 * KIB


class Sink:
    """Stands in for a Stream that takes what it is given."""

    def __init__(self, space: int = 8 * MIB) -> None:
        self.space = space
        self.asked = 0
        self.held_up = False
        self.further_ahead = 0

    def room(self) -> int:
        self.asked += 1
        return self.space

    def go_further_ahead(self) -> None:
        self.further_ahead += 1


def portions(sink: Sink, first: int = PIECE) -> Portions:
    return Portions(sink, first)  # type: ignore[arg-type]


def pass_on(body: Portions, *sizes: int) -> list[bool]:
    """Pieces of these sizes; after which of them others have a turn."""
    turns = []
    for size in sizes:
        assert size <= body.next()
        turns.append(body.passed(size))
    return turns


@pytest.mark.parametrize("first", [PIECE, 120 * KIB])
def test_pieces_grow_while_they_are_full(first: int) -> None:
    body = portions(Sink(), first)
    assert body.next() == first
    body.passed(first)
    assert body.next() == MIB
    body.passed(MIB)
    assert body.next() == MIB


@pytest.mark.parametrize("size", [1, PIECE - 1])
def test_one_that_is_not_full_was_all_that_was_there(size: int) -> None:
    body = portions(Sink())
    pass_on(body, PIECE, MIB, size)
    assert body.next() == PIECE


@pytest.mark.parametrize(
    ("space", "wanted"),
    [(10 * MIB, PIECE), (PIECE, PIECE), (PIECE - 1, PIECE - 1), (KIB, KIB), (KIB - 1, KIB), (0, KIB), (-MIB, KIB)],
)
def test_no_more_than_the_sink_would_take(space: int, wanted: int) -> None:
    assert portions(Sink(space)).next() == wanted


def test_a_small_piece_that_is_full_is_followed_by_a_large_one_where_there_is_room() -> None:
    sink = Sink(2 * KIB)
    body = portions(sink)
    pass_on(body, 2 * KIB)
    sink.space = 300 * KIB
    assert body.next() == 300 * KIB


def test_the_sink_is_asked_once_for_what_it_has_room_for() -> None:
    sink = Sink(4 * PIECE)
    body = portions(sink)
    pass_on(body, *[PIECE - 1] * 4)
    assert sink.asked == 1
    # What is left of its room is less than would be read now.
    body.next()
    assert sink.asked == 2


def test_others_have_a_turn_after_each_megabyte() -> None:
    body = portions(Sink())
    assert pass_on(body, PIECE, MIB - PIECE - 1, 1, PIECE) == [False, False, True, False]


def test_a_sink_that_keeps_up_is_given_more_ahead_after_each_turn() -> None:
    sink = Sink()
    body = portions(sink)
    pass_on(body, PIECE, MIB - PIECE - 1)
    assert sink.further_ahead == 0
    pass_on(body, 1)
    assert sink.further_ahead == 1


def test_but_not_after_one_in_which_it_was_waited_for() -> None:
    sink = Sink()
    body = portions(sink)
    sink.held_up = True
    assert pass_on(body, PIECE, MIB - PIECE) == [False, True]
    assert sink.further_ahead == 0
    assert pass_on(body, PIECE, MIB - PIECE) == [False, True]
    assert sink.further_ahead == 1
