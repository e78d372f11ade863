"""A client stays with its endpoint, which a cookie names.

Rule: the cookie holds 24 bytes in hex: a name of the endpoint and a signature of it, both
HMAC-SHA256 with a secret, so that it tells no address and nobody can make one. Whoever brings
a good one for an endpoint that gets requests goes there. Everybody else takes turns (round
robin), and the answer sets the cookie; also when the endpoint failed and another answered.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Mapping, Sequence

from gateway.balancers.keys import cookie
from gateway.balancers.round_robin import RoundRobin
from gateway.health.candidate import Candidate
from gateway.http.messages import Request, Response
from gateway.model import Key
from gateway.runtime.hub import parts

# Where the master of some workers leaves a secret for them, in hex.
SHARED_KEY = "GATEWAY_STICKY_KEY"

# Bytes: how many endpoints can be told apart, and how hard one is to guess.
_NAME = 8
_SIGNATURE = 16

_own = secrets.token_hex(32)

# http or https, as a request's client sees it.
SchemeOf = Callable[[Request], str]


def spoken(request: Request) -> str:
    """The scheme of the connection itself."""
    return request.scheme


def shared_key(environ: Mapping[str, str] = os.environ) -> str:
    """The secret where none is configured: all workers' or, without a master, this process's."""
    return environ.get(SHARED_KEY) or _own


class Sticky:
    """`scheme`: a cookie of a client that speaks https is `Secure` (RFC 6265 §4.1.2.5), also where a
    trusted proxy ends TLS."""

    __slots__ = ("_named", "_of", "_read", "_ready", "_scheme", "_secret", "_set", "_turns", "_values")

    def __init__(self, name: str, secret: str, random: Callable[[], float], scheme: SchemeOf = spoken) -> None:
        self._secret = secret.encode()
        self._scheme = scheme
        self._read = cookie(name)
        self._set = name.encode("latin-1") + b"=%b; Path=/; HttpOnly; SameSite=Lax"
        self._turns = RoundRobin(random)
        # The candidates of first tries; `_named` finds them by the name in the cookie.
        self._of: Sequence[Candidate] = ()
        self._named: dict[bytes, Candidate] = {}
        self._values: dict[Key, bytes] = {}
        # The same as `_of` and `_named` of candidates to come.
        self._ready: tuple[Sequence[Candidate], dict[bytes, Candidate]] = ((), {})

    def prepare(self, candidates: Sequence[Candidate], turn: Callable[[], object]) -> None:
        self._turns.prepare(candidates, turn)
        values: dict[Key, bytes] = {}
        named: dict[bytes, Candidate] = {}
        for candidate in parts(candidates, turn):
            key = candidate.endpoint.key
            value = values[key] = self._value(key)
            named[value[: 2 * _NAME]] = candidate
        # What is not among them is made again when it is asked for.
        self._values = values
        self._ready = (candidates, named)

    def pick(self, candidates: Sequence[Candidate], request: Request) -> Candidate:
        again = request.attempts > 1
        if candidates is not self._of and not again:
            self._look(candidates)
        pinned = self._pinned(self._read(request))
        if pinned is None or (again and pinned not in candidates):
            return self._turns.pick(candidates, request)
        return pinned

    def watch(self, candidate: Candidate, request: Request, response: Response | None, took: float) -> None:
        if response is None:
            return
        given, value = self._read(request), self._value(candidate.endpoint.key)
        if hmac.compare_digest(given, value):
            return
        if request.attempts == 1 and self._pinned(given) is not None:
            # It was taken to try an endpoint that had been out. That is no reason to move.
            return
        pair = self._set % value
        response.headers.append((b"Set-Cookie", pair + b"; Secure" if self._scheme(request) == "https" else pair))

    def _look(self, candidates: Sequence[Candidate]) -> None:
        self._of = candidates
        of, named = self._ready
        if of is candidates:
            self._named = named
            return
        self._named = {self._value(candidate.endpoint.key)[: 2 * _NAME]: candidate for candidate in candidates}
        if len(self._values) > 2 * len(self._named):
            keys = {candidate.endpoint.key for candidate in candidates}
            self._values = {key: value for key, value in self._values.items() if key in keys}

    def _pinned(self, given: bytes) -> Candidate | None:
        """Whom a cookie names; None when it is not good."""
        candidate = self._named.get(given[: 2 * _NAME])
        if candidate is None or not hmac.compare_digest(given, self._value(candidate.endpoint.key)):
            return None
        return candidate

    def _value(self, key: Key) -> bytes:
        value = self._values.get(key)
        if value is None:
            scheme, host, port, base_path = key
            name = self._mac(b"name %b://%b:%d%b" % (scheme.encode(), host.encode(), port, base_path))[:_NAME]
            value = self._values[key] = (name + self._mac(b"signature " + name)[:_SIGNATURE]).hex().encode()
        return value

    def _mac(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data, "sha256")
