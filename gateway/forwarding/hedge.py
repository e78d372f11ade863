"""Two tries of one request at once: the second begins when the first takes unusually long.

Rule (Dean and Barroso, "The Tail at Scale", CACM 2013): the answer that comes first is the
answer; the other try is broken off. The second is asked for only when it is due, so that
whoever allows it (the retry budget) is not asked for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import gevent
from gevent import GreenletExit
from gevent.event import Event

Answer = TypeVar("Answer")


class _Try(Generic[Answer]):
    """One of the two, in a greenlet of its own."""

    def __init__(self, ask: Callable[[], Answer], done: Event, discard: Callable[[Answer], None]) -> None:
        self.answer: Answer | None = None
        self.error: Exception | None = None
        # It has ended, perhaps with neither of the two because it was killed.
        self.over = False
        self._discard = discard
        self._unwanted = False
        self._greenlet = gevent.spawn(self._run, ask, done)

    def _run(self, ask: Callable[[], Answer], done: Event) -> None:
        try:
            answer = ask()
        except GreenletExit:
            pass  # broken off; raised again it would keep its traceback, and that this object
        except Exception as error:
            # `race` raises it in the request's own greenlet.
            self.error = error
        else:
            self.answer = answer
            if self._unwanted:
                self._discard(answer)
        finally:
            self.over = True
            done.set()

    def break_off(self) -> None:
        """Nobody wants it any more. Does not wait, so that nothing comes in between."""
        if self._unwanted:
            return
        self._unwanted = True
        self._greenlet.kill(block=False)
        if self.answer is not None:
            self._discard(self.answer)

    def join(self) -> None:
        self._greenlet.join()
        # Frames of its traceback lead back here: only the collector would find them.
        self.error = None

    def take_error(self) -> Exception:
        """The error, which is not kept here (see `join`)."""
        error, self.error = self.error, None
        return error or RuntimeError("an attempt was killed")


def race(
    first: Callable[[], Answer],
    second: Callable[[], Callable[[], Answer] | None],
    after: float,
    discard: Callable[[Answer], None],
) -> tuple[bool, Answer]:
    """The answer of `first`, or of what `second` gives when `after` seconds have passed without
    one (None: there is no second try), and whether it is the second's.

    The first's error is raised when neither has an answer. `discard` is given an answer that
    came too late, or to nobody.
    """
    done = Event()
    tries = [_Try(first, done, discard)]
    try:
        if not done.wait(after):
            other = second()
            if other is not None:
                tries.append(_Try(other, done, discard))
            while True:
                done.wait()
                done.clear()
                if any(one.answer is not None for one in tries) or all(one.over for one in tries):
                    break
        winner = next((one for one in tries if one.answer is not None), tries[0])
        for one in tries:
            if one is not winner:
                one.break_off()
                one.join()
    except BaseException:
        # The winner's too, if there is one: whoever asked is thrown out of here.
        for one in tries:
            one.break_off()
        for one in tries:
            one.join()
        raise
    if winner.answer is None:
        raise winner.take_error()
    return winner is not tries[0], winner.answer
