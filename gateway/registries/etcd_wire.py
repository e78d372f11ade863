"""What etcd's JSON gateway (`/v3/...`) says and is told, as values.

Rule: pure. Keys and values are base64, 64-bit numbers are text, what is zero is left out; a
watch is JSON messages, one a line, and lines come split and joined as the network likes.
Whatever else comes is a `RegistryError`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from gateway.registries import RefusedError, RegistryError, one_line
from gateway.registries.json_pieces import SMALL, Pieces

# One message of a watch holds at most what one transaction changed (128 keys of 1.5 MiB if
# nobody has set other limits), in fragments of 1.5 MiB.
MOST_LINE = 16 * 1024 * 1024

# gRPC's codes of refusals that every member of a cluster gives alike: bad argument, not found,
# no permission, no precondition, out of range (compacted), not authenticated.
_REFUSALS = frozenset({3, 5, 7, 9, 11, 16})
_OUT_OF_RANGE, _UNAUTHENTICATED = 11, 16
# What reading JSON of another shape raises; a number may be infinite.
_BROKEN = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
_LOST_LOGIN = ("user name is empty", "invalid auth token", "revision of auth store is old")


class Refusal(RefusedError):
    """etcd understood and says no; `code` is gRPC's."""

    def __init__(self, told: str, code: int = 0) -> None:
        super().__init__(told)
        self.code = code

    @property
    def login_lost(self) -> bool:
        """Another login may help: the token is too old, or its member has been started anew."""
        return self.code == _UNAUTHENTICATED or any(words in str(self) for words in _LOST_LOGIN)


class Compacted(Refusal):
    """What was to be watched from has been forgotten: read anew, then watch from there."""


class Event(NamedTuple):
    """One key changed. `value` None: it is gone."""

    key: bytes
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to a range request, or the part of it that came first."""

    pairs: tuple[tuple[bytes, bytes], ...]
    revision: int
    cluster: str
    more: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """One message of a watch. `part`: the rest of the same revision follows."""

    events: tuple[Event, ...] = ()
    created: bool = False
    part: bool = False


def encode(text: bytes) -> str:
    return base64.b64encode(text).decode()


def range_end(prefix: bytes) -> bytes:
    """The first key behind all that begin with a prefix; a zero byte is "to the end"."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def page(body: bytes, turn: Callable[[], object] = lambda: None) -> Page:
    """The answer to a range request; `turn` is called between two of its keys."""
    answer = decode(body) if len(body) <= SMALL else {}
    pairs: list[tuple[bytes, bytes]] = []
    try:
        if len(body) > SMALL:
            pieces = Pieces(body, turn, MOST_LINE)
            for name in pieces.members():
                if name == "kvs":
                    pairs += map(_pair, pieces.elements())
                else:
                    answer[name] = pieces.value()
            pieces.end()
        pairs += map(_pair, answer.get("kvs", ()))
        header = answer["header"]
        return Page(tuple(pairs), int(header["revision"]), str(header["cluster_id"]), bool(answer.get("more")))
    except RegistryError as error:
        raise RegistryError(f"{error}: {text(body)}") from error
    except _BROKEN as error:
        raise RegistryError(f"not the answer to a range request: {text(body)}") from error


def _pair(kv: Any) -> tuple[bytes, bytes]:
    return _bytes(kv["key"]), _bytes(kv.get("value", ""))


def token(body: bytes) -> str:
    # Whatever this holds is not to be quoted.
    found = decode(body, secret=True).get("token")
    if not isinstance(found, str) or not (found.isascii() and found.isprintable()):
        raise RegistryError("an answer without a token to a login")
    return found


def notice(line: bytes, turn: Callable[[], object] = lambda: None) -> Notice:
    """One line of a watch. Raises `Compacted`, `Refusal`, or `RegistryError` for what ends it. A long one is read in
    pieces, with calls of `turn` in between."""
    if len(line) > SMALL:
        return _long_notice(line, turn)
    message = decode(line)
    return _notice(message, line, lambda events: tuple(map(_event, events)))


def _long_notice(line: bytes, turn: Callable[[], object]) -> Notice:
    message: dict[str, Any] = {}
    reader = Pieces(line, turn, MOST_LINE)
    for key in reader.members():
        if key != "result" or reader.next() != "{":
            message[key] = reader.value()
            continue
        result = message[key] = {}
        for name in reader.members():
            if name == "events" and reader.next() == "[":
                result[name] = list(map(_read_event, reader.elements()))
            else:
                result[name] = reader.value()
    reader.end()
    return _notice(message, line, tuple)


def _read_event(told: Any) -> Event:
    try:
        return _event(told)
    except _BROKEN as error:
        raise RegistryError("not a message of a watch") from error


def _notice(message: dict[str, Any], line: bytes, events: Callable[[Any], tuple[Event, ...]]) -> Notice:
    try:
        if "error" in message:
            error = message["error"]
            raise RegistryError(f"the watch failed: {one_line(error.get('message'))}")
        result = message["result"]
        if result.get("canceled"):
            _ended(int(result.get("compact_revision", 0)), result.get("cancel_reason", ""))
        return Notice(
            events=events(result.get("events", ())),
            created=bool(result.get("created")),
            part=bool(result.get("fragment")),
        )
    except _BROKEN as error:
        raise RegistryError(f"not a message of a watch: {text(line)}") from error


def _ended(compacted: int, reason: object) -> None:
    if compacted:
        raise Compacted(f"the revision to watch from was compacted (up to {compacted})", _OUT_OF_RANGE)
    told = f"the watch was cancelled: {one_line(reason) or 'no reason given'}"
    # An unauthenticated watch is told from a forbidden one by nothing.
    raise Refusal(told, _UNAUTHENTICATED if "PermissionDenied" in str(reason) else 0)


def _event(told: Mapping[str, Any]) -> Event:
    kv = told["kv"]
    gone = told.get("type") == "DELETE"
    return Event(_bytes(kv["key"]), None if gone else _bytes(kv.get("value", "")), int(kv["mod_revision"]))


def refused(status: int, body: bytes) -> RegistryError:
    """What an answer that is not 200 means."""
    try:
        answer = decode(body)
        code, told = int(answer["code"]), answer.get("message") or answer.get("error")
    except (RegistryError, *_BROKEN):
        return RegistryError(f"HTTP {status}: {text(body)}")
    if code in _REFUSALS:
        return Refusal(one_line(told), code)
    return RegistryError(f"HTTP {status}: {one_line(told)}")


def decode(body: bytes, secret: bool = False) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RegistryError("not JSON" if secret else f"not JSON: {text(body)}") from error
    if not isinstance(found, dict):
        raise RegistryError("not an object" if secret else f"not an object: {text(body)}")
    return found


def _bytes(told: str) -> bytes:
    return base64.b64decode(told, validate=True)


def text(body: bytes) -> str:
    """The beginning of a foreign text, fit for a log line."""
    return one_line(body[:1000].decode("utf-8", "replace"))


class Lines:
    """Bytes in, whole lines out."""

    def __init__(self, most: int = MOST_LINE) -> None:
        self._most = most
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, without empty ones."""
        # Only what is new is searched: a long line comes in many pieces.
        searched = len(self._rest)
        self._rest += data
        end = self._rest.rfind(b"\n", searched) + 1
        if len(self._rest) - end > self._most:
            raise RegistryError(f"a message of more than {self._most} bytes")
        if not end:
            return []
        whole = bytes(self._rest[:end])
        del self._rest[:end]
        return [line for line in whole.split(b"\n") if line.strip()]

    @property
    def partial(self) -> bool:
        """A line has begun and not ended."""
        return bool(self._rest)
