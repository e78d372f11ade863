"""A steady load on one route of a gateway: what came of each request, one JSON list a line, as it ends.

python -m tests.chaos.load PORT PREFIX RATE NAME KIND=WEIGHT... >RECORDS

RATE requests a second, each begun when it is due whatever became of those before it (an open loop), of each KIND (get,
post, stream) its share, until SIGTERM; those under way are waited for. A line is a `Record`.

Rule: latency counts from the moment at which a request was due. A body is compared byte by byte with what whoever
answered has to say to this request (`said`): `failed` is one that did not get that, and knows it; `wrong` is one that
got something else and cannot know.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import sys
import time
from collections import deque
from typing import NamedTuple

from tests.chaos import said

# Longer than anything that a gateway is configured to wait for.
PATIENCE = 10.0
# A connection is used so often, so that every worker gets its share, and not when it has rested too long.
_USES = 50
_RESTED = 4.0
OK, FAILED, WRONG = "ok", "failed", "wrong"


class Record(NamedTuple):
    """One request. Times are monotonic seconds; `late`: after it was due it began; `reason`: Gateway-Error, or
    what the client saw; `instance`: who answered."""

    number: int
    kind: str
    due: float
    late: float
    latency: float
    verdict: str
    status: int
    reason: str
    instance: str


def read(line: str) -> Record:
    return Record(*json.loads(line))


class Broken(Exception):
    """The connection ended before the answer did, or what came is no HTTP."""


class Answer:
    """As much of an answer as came."""

    def __init__(self) -> None:
        self.status = 0
        self.fields: dict[str, str] = {}
        self.body = b""

    @property
    def instance(self) -> str:
        return self.fields.get("x-instance", "")


class Wire:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.used = 0
        self.rested_since = 0.0

    async def ask(self, request: bytes, answer: Answer) -> bool:
        """Fill in the answer; whether the connection may be used again. Raises Broken, OSError."""
        self.used += 1
        self._writer.write(request)
        try:
            await self._head(answer)
            await self._body(answer)
        except asyncio.IncompleteReadError as error:
            raise Broken("cut" if answer.status or error.partial else "closed") from error
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise Broken("malformed") from error
        return answer.fields.get("connection", "").lower() != "close" and self.used < _USES

    async def _head(self, answer: Answer) -> None:
        line, *fields = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")[:-4].split("\r\n")
        version, status, *_ = line.split(" ")
        if version != "HTTP/1.1":
            raise ValueError(line)
        for field in fields:
            name, _, value = field.partition(":")
            answer.fields[name.lower()] = value.strip()
        answer.status = int(status)

    async def _body(self, answer: Answer) -> None:
        if answer.fields.get("transfer-encoding") == "chunked":
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                await self._data(answer, size)
                if await self._reader.readexactly(2) != b"\r\n":
                    raise ValueError("a chunk is longer than it says")
            await self._reader.readexactly(2)
        elif "content-length" in answer.fields:
            await self._data(answer, int(answer.fields["content-length"]))
        else:
            raise ValueError("only the end of the connection would tell where the answer ends")

    async def _data(self, answer: Answer, size: int) -> None:
        """Whatever comes of it counts: what there was before it broke off has to be right, too."""
        try:
            answer.body += await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            answer.body += error.partial
            raise

    def close(self) -> None:
        self._writer.transport.abort()


class Load:
    def __init__(self, port: int, prefix: str, rate: float, name: str, kinds: dict[str, float]) -> None:
        self._port = port
        self._prefix = prefix
        self._rate = rate
        self._name = name
        self._kinds = kinds
        self._idle: deque[Wire] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._over.set)
        # Of the same name the same row of kinds; at random, so that no instance always gets the same kind.
        kinds = random.Random(self._name)
        names, weights = list(self._kinds), list(self._kinds.values())
        start = time.monotonic()
        for number in itertools.count():
            due = start + number / self._rate
            while (wait := due - time.monotonic()) > 0 and not self._over.is_set():
                await asyncio.sleep(min(wait, 0.1))
            if self._over.is_set():
                break
            task = asyncio.create_task(self._one(number, kinds.choices(names, weights)[0], due))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        await asyncio.gather(*self._under_way)
        for wire in self._idle:
            wire.close()

    async def _one(self, number: int, kind: str, due: float) -> None:
        late = time.monotonic() - due
        ident = f"{kind}-{self._name}-{number}"
        answer = Answer()
        try:
            async with asyncio.timeout(PATIENCE):
                broken = await self._ask(self._request(kind, ident), answer)
        except TimeoutError:
            broken = "no end"
        except OSError as error:
            broken = "reset" if answer.status else f"{type(error).__name__}"
        verdict, reason = judge(kind, ident, answer, broken)
        latency = time.monotonic() - due
        record = Record(
            number,
            kind,
            round(due, 6),
            round(late, 6),
            round(latency, 6),
            verdict,
            answer.status,
            reason,
            answer.instance,
        )
        print(json.dumps(record), flush=True)

    def _request(self, kind: str, ident: str) -> bytes:
        body = said.upload(ident) if kind == "post" else b""
        method, framing = ("POST", f"Content-Length: {len(body)}\r\n") if body else ("GET", "")
        return f"{method} {self._prefix}/{ident} HTTP/1.1\r\nHost: chaos.test\r\n{framing}\r\n".encode() + body

    async def _ask(self, request: bytes, answer: Answer) -> str:
        """How it broke off; "" when it did not."""
        wire = self._rested() or Wire(*await asyncio.open_connection("127.0.0.1", self._port))
        keep = False
        try:
            keep = await wire.ask(request, answer)
        except Broken as error:
            return str(error)
        finally:
            if keep:
                wire.rested_since = time.monotonic()
                self._idle.append(wire)
            else:
                wire.close()
        return ""

    def _rested(self) -> Wire | None:
        while self._idle:
            wire = self._idle.popleft()
            if time.monotonic() - wire.rested_since < _RESTED:
                return wire
            wire.close()
        return None


def judge(kind: str, ident: str, answer: Answer, broken: str) -> tuple[str, str]:
    """(verdict, reason) of an answer, or of what there was of it."""
    reason = answer.fields.get("gateway-error", "")
    if answer.status == 0:
        return FAILED, broken
    if not answer.instance:
        # Nobody behind the gateway said this. It must not look like a success.
        if answer.status == 200:
            return WRONG, "200 of nobody"
        return FAILED, broken or reason or "no reason told"
    expected = said.answer(kind, answer.instance, ident, answer.status)
    if answer.fields.get("x-id") != ident:
        return WRONG, f"the answer to {answer.fields.get('x-id')}"
    if broken:
        return (FAILED, broken) if expected.startswith(answer.body) else (WRONG, "another body, cut")
    if answer.body != expected:
        return WRONG, "another body"
    return (OK, "") if answer.status == 200 else (FAILED, "the instance's own")


async def main(port: int, prefix: str, rate: float, name: str, kinds: dict[str, float]) -> None:
    await Load(port, prefix, rate, name, kinds).run()


if __name__ == "__main__":
    _, port, prefix, rate, name, *kinds = sys.argv
    shares = {kind: float(weight) for kind, _, weight in (each.partition("=") for each in kinds)}
    asyncio.run(main(int(port), prefix, float(rate), name, shares))
