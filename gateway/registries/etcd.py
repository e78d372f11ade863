"""etcd v3 over its JSON gateway: what stands at a key or below a prefix, and what happens there.

Rule: any member answers for the cluster. The one that answered last is asked first; one that
is dead, hangs, has no leader or is no etcd is passed over for the next, and only when none
is left it is an error. Reads are linearizable, so that a member that lags says so instead
of something old. One instance serves all that ask one cluster: `shared`.
"""

from __future__ import annotations

import functools
import json
import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import gevent
import urllib3
from gevent.lock import BoundedSemaphore
from urllib3.exceptions import HTTPError

from gateway.model import EtcdSettings
from gateway.registries import RegistryError, one_line
from gateway.registries.etcd_watch import Watch, opened
from gateway.registries.etcd_wire import Compacted, Event, Page, Refusal, encode, page, range_end, refused, token
from gateway.runtime.hub import Slices

__all__ = ["Compacted", "EtcdApi", "Event", "KeyValue", "Range", "Watch", "shared"]

Answer = TypeVar("Answer")

# In seconds: to connect, to the first byte and between two of them, and for the whole of one
# answer. etcd answers in milliseconds; what takes longer than this is tried at another member.
CONNECT, READ, WHOLE = 1.0, 2.0, 10.0
# Questions to one member at the same time; more of them wait their turn.
MOST_QUESTIONS = 4
# Keys of one answer, so that neither it nor the reading of it takes long.
PAGE = 1000
MOST_KEYS = 100_000
MOST_BYTES = 64 * 1024 * 1024

# A login that was refused is not tried again for so long: etcd takes its time over passwords.
DENIED = 3.0

_HEADERS = {"Content-Type": "application/json", "User-Agent": "wsgi-gateway"}
_WATCH = {"progress_notify": True, "fragment": True}
_NOT_ENABLED = "authentication is not enabled"


class Range(NamedTuple):
    """What stands below a prefix. `revision`: of the whole store, at the time."""

    pairs: dict[bytes, bytes]
    revision: int
    cluster: str


class KeyValue(NamedTuple):
    """What a key holds; `value` None: there is no such key."""

    value: bytes | None
    revision: int


@dataclass(slots=True)
class Member:
    """One member of the cluster. `answered`, `failed`: when it last did (monotonic)."""

    url: str
    pool: urllib3.HTTPConnectionPool
    answered: float = 0.0
    failed: float = 0.0
    error: str = ""
    turn: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(MOST_QUESTIONS))
    # Whether it is alive is asked by one, for all that wonder.
    knock: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(1))


class EtcdApi:
    """Every method raises `RegistryError` when there is no whole answer from any member."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._members = [Member(url, self._pool(url)) for url in settings.endpoints]
        # Gateways spread over the members.
        self._first = random.randrange(len(self._members))
        # None: to be fetched; "" : none is needed.
        self._token: str | None = None if settings.username else ""
        self._login = BoundedSemaphore(1)
        # When a login was last refused, and how.
        self._denied = -DENIED, ""

    def close(self) -> None:
        for member in self._members:
            member.pool.close()

    # -- questions ----------------------------------------------------------------------

    def prefix(self, prefix: str | bytes) -> Range:
        """Every key that begins with `prefix`, all as of one revision."""
        start, end = _bytes(prefix), range_end(_bytes(prefix))
        found: dict[bytes, bytes] = {}
        size, at = 0, 0
        while True:
            got = self._range(start, {"range_end": encode(end), "limit": PAGE, "revision": at})
            found.update(got.pairs)
            size += sum(len(key) + len(value) for key, value in got.pairs)
            if len(found) > MOST_KEYS or size > MOST_BYTES:
                raise RegistryError(f"more than {MOST_KEYS} keys or {MOST_BYTES} bytes below {one_line(prefix)}")
            if not got.more or not got.pairs:
                return Range(found, at or got.revision, got.cluster)
            # Later pages tell the store's revision of their own time.
            at = at or got.revision
            start = got.pairs[-1][0] + b"\0"

    def key(self, name: str | bytes) -> KeyValue:
        got = self._range(_bytes(name), {})
        return KeyValue(got.pairs[0][1] if got.pairs else None, got.revision)

    def watch(self, key: str | bytes, revision: int, *, prefix: bool = False) -> Watch:
        """What happens to a key, or with `prefix` to all that begin with it, from `revision` on.
        To be closed; a context of its own."""
        what: dict[str, object] = {"key": encode(_bytes(key))}
        if prefix:
            what["range_end"] = encode(range_end(_bytes(key)))
        asked = {"create_request": {**what, "start_revision": revision, **_WATCH}}
        return self._of_any(lambda member: self._in_time(member, lambda: self._watch(member, what, asked)))

    def _range(self, key: bytes, more: dict[str, object]) -> Page:
        asked = {"key": encode(key), **more}
        return self._of_any(lambda member: self._ask(member, asked))

    def _watch(self, member: Member, what: Mapping[str, object], asked: Mapping[str, object]) -> Watch:
        def ask(signature: str) -> Watch:
            body, headers = json.dumps(asked).encode(), _headers(signature)
            tick, patience = self._settings.poll, CONNECT + READ
            return opened(member.url, "/v3/watch", body, headers, tick=tick, patience=patience, tls=self._tls)

        watch = self._signed(member, ask)
        watch.trust(functools.partial(self._alive, member, what))
        return watch

    def _alive(self, member: Member, what: Mapping[str, object]) -> None:
        """A watch is silent also when its member hangs or is cut off from the others: ask it
        something, at most once a poll for all watches."""
        began = time.monotonic()
        with member.knock:
            if member.failed > began:
                raise RegistryError(member.error)
            if member.answered + self._settings.poll * 0.9 > time.monotonic():
                return
            self._ask(member, {**what, "count_only": True})

    # -- members ------------------------------------------------------------------------

    def _of_any(self, question: Callable[[Member], Answer]) -> Answer:
        """The first answer that a member gives."""
        errors: list[str] = []
        for at in self._order():
            try:
                answer = question(self._members[at])
            except Refusal:
                self._first = at
                raise
            except RegistryError as error:
                errors.append(str(error))
                continue
            self._first = at
            return answer
        raise RegistryError("; ".join(errors))

    def _order(self) -> list[int]:
        """The numbers of the members: from the one that answered last on, those that failed since
        they last answered behind the others."""
        number = len(self._members)
        turned = [(self._first + at) % number for at in range(number)]
        return sorted(turned, key=lambda at: self._members[at].failed > self._members[at].answered)

    def _ask(self, member: Member, asked: Mapping[str, object]) -> Page:
        """A member's answer to a range request. Whether there was one is noted."""

        def ask(signature: str) -> Page:
            return page(self._post(member, "/v3/kv/range", asked, signature), Slices())

        began = time.monotonic()
        with member.turn:
            if member.failed > began:
                # Found out by another while this one waited its turn.
                raise RegistryError(member.error)
            try:
                found = self._in_time(member, lambda: self._signed(member, ask))
            except Refusal:
                member.answered = time.monotonic()
                raise
            except RegistryError as error:
                member.failed, member.error = time.monotonic(), str(error)
                raise
            member.answered = time.monotonic()
            return found

    def _in_time(self, member: Member, question: Callable[[], Answer]) -> Answer:
        late = gevent.Timeout(WHOLE)
        try:
            with late:
                return question()
        except gevent.Timeout as timeout:
            if timeout is not late:
                raise
            raise RegistryError(f"{member.url}: no answer in {WHOLE:g} s") from None
        except Refusal as error:
            raise type(error)(f"{member.url}: {error}", error.code) from error
        except RegistryError as error:
            raise RegistryError(f"{member.url}: {error}") from error
        except (HTTPError, OSError) as error:
            raise RegistryError(f"{member.url}: {_root(error)}") from error

    # -- who asks -----------------------------------------------------------------------

    def _signed(self, member: Member, question: Callable[[str], Answer]) -> Answer:
        """Ask with a token; with a new one when etcd has forgotten it, which it does after some
        minutes without a question and when a member is started anew."""
        signature = self._token if self._token is not None else self._signature(member, None)
        try:
            return question(signature)
        except Refusal as error:
            if not (error.login_lost and self._settings.username):
                raise
            return question(self._signature(member, signature))

    def _signature(self, member: Member, old: str | None) -> str:
        """A token that is not `old`. One asks for it, for all that need it."""
        with self._login:
            if self._token is None or self._token == old:
                self._token = None
                if time.monotonic() < self._denied[0] + DENIED:
                    raise Refusal(self._denied[1])
                self._token = self._authenticate(member)
            return self._token

    def _authenticate(self, member: Member) -> str:
        name, password = self._settings.username, self._settings.password or ""
        try:
            return token(self._post(member, "/v3/auth/authenticate", {"name": name, "password": password}, ""))
        except RegistryError as error:
            if _NOT_ENABLED in str(error):
                return ""
            # Whoever answered may have repeated what was asked.
            told = f"login as {name}: {_without(password, str(error))}"
            if not isinstance(error, Refusal):
                raise RegistryError(told) from None
            self._denied = time.monotonic(), told
            raise Refusal(told) from None

    # -- the wire -----------------------------------------------------------------------

    def _post(self, member: Member, path: str, asked: Mapping[str, object], signature: str) -> bytes:
        status, body = self._exchange(member.pool, path, json.dumps(asked).encode(), _headers(signature))
        if status != 200:
            raise refused(status, body)
        return body

    def _exchange(
        self, pool: urllib3.HTTPConnectionPool, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        answer = pool.urlopen(
            "POST",
            path,
            body=body,
            headers=headers,
            redirect=False,
            preload_content=False,
            timeout=urllib3.Timeout(connect=CONNECT, read=READ),
        )
        got = bytearray()
        try:
            for piece in Slices().over(answer.stream(65536, decode_content=False)):
                got += piece
                if len(got) > MOST_BYTES:
                    raise RegistryError(f"an answer of more than {MOST_BYTES} bytes")
        except BaseException:
            # What is left of the answer must not be read as the next one's.
            answer.close()
            raise
        finally:
            answer.release_conn()
        return answer.status, bytes(got)

    def _pool(self, url: str) -> urllib3.HTTPConnectionPool:
        # Not a proxy of the environment's: the registry is where the configuration says.
        more = {"ssl_context": self._tls()} if url.startswith("https:") else {}
        # A login for a watch may be one more.
        return urllib3.connection_from_url(url, maxsize=MOST_QUESTIONS + 1, retries=False, **more)

    @functools.cached_property
    def _context(self) -> Any:
        return ssl.create_default_context()

    def _tls(self) -> Any:
        """One for all connections: making it reads every authority of the system."""
        return self._context


def _without(secret: str, text: str) -> str:
    """A text that may hold a secret, in either of the ways it was written, without it."""
    for written in {secret, json.dumps(secret)[1:-1]} - {""}:
        text = text.replace(written, "***")
    return text


def _headers(signature: str) -> dict[str, str]:
    return {**_HEADERS, "Authorization": signature} if signature else _HEADERS


def _bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def _root(error: BaseException) -> str:
    """The cause under the layers of urllib3, whose texts name objects by address."""
    found: BaseException = error
    while found.__context__ is not None:
        found = found.__context__
    return one_line(f"{type(found).__name__}: {found}")


_shared: WeakValueDictionary[EtcdSettings, EtcdApi] = WeakValueDictionary()


def shared(settings: EtcdSettings) -> EtcdApi:
    """The client of a cluster for all in this process that ask it: one login, and one memory of
    which member answers. Gone when nobody has it any more."""
    api = _shared.get(settings)
    if api is None:
        api = _shared[settings] = EtcdApi(settings)
    return api
