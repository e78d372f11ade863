"""Sticky: a signed cookie names the endpoint; whoever has none, or one for nobody, gets one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.app import Gateway
from gateway.balancers import sticky
from gateway.balancers.sticky import Sticky
from gateway.health.candidate import Candidate
from gateway.http.messages import Request, Response
from gateway.model import Balance, Config, Match, Route, ServerSettings, StaticSource, Upstream
from tests.unit.balancers.picking import ask, candidates, others


class Client:
    """Keeps its cookie, as a browser does."""

    def __init__(self, cookie: bytes = b"") -> None:
        self.cookie = cookie

    def request(self, attempts: int = 1, scheme: str = "http") -> Request:
        headers = [(b"Host", b"h"), (b"Cookie", b"theme=dark; " + self.cookie)] if self.cookie else [(b"Host", b"h")]
        return ask(headers=headers, attempts=attempts, scheme=scheme)

    def take(self, response: Response) -> bytes:
        """The cookie that an answer sets; empty when it sets none."""
        found = [value for name, value in response.headers if name == b"Set-Cookie"]
        assert len(found) <= 1
        if not found:
            return b""
        self.cookie = found[0].partition(b";")[0]
        return found[0]

    def visit(self, balancer: Sticky, among: tuple[Candidate, ...]) -> tuple[Candidate, bytes]:
        """Where one request goes, and what it is told."""
        request = self.request()
        picked = balancer.pick(among, request)
        return picked, answered(balancer, picked, request, self)


def answered(balancer: Sticky, picked: Candidate, request: Request, client: Client) -> bytes:
    response = Response(200, b"OK", [], block=b"Content-Type: text/plain\r\nX-A: b")
    balancer.watch(picked, request, response, 0.01)
    return client.take(response)


def make(secret: str = "secret", name: str = "gw", seed: int = 1) -> Sticky:
    return Sticky(name, secret, Random(seed).random)


def test_a_client_stays_and_is_told_once() -> None:
    balancer, among, client = make(), candidates(1, 1, 1), Client()
    first, told = client.visit(balancer, among)
    assert re.fullmatch(rb"gw=[0-9a-f]{48}; Path=/; HttpOnly; SameSite=Lax", told)
    for _ in range(10):
        assert client.visit(balancer, among) == (first, b"")


def test_the_other_fields_of_the_answer_stay() -> None:
    balancer, among = make(), candidates(1)
    response = Response(200, b"OK", [], block=b"Content-Type: text/plain\r\nSet-Cookie: theirs=1")
    balancer.watch(among[0], ask(), response, 0.01)
    assert response.headers[:2] == [(b"Content-Type", b"text/plain"), (b"Set-Cookie", b"theirs=1")]
    assert len(response.headers) == 3


def test_over_tls_the_cookie_is_for_tls_alone() -> None:
    balancer, among, client = make(), candidates(1, 1), Client()
    request = client.request(scheme="https")
    told = answered(balancer, balancer.pick(among, request), request, client)
    assert told.endswith(b"; Path=/; HttpOnly; SameSite=Lax; Secure")


@pytest.mark.parametrize(
    ("peer", "proto", "secure"),
    [
        ("10.0.0.1", b"https", True),
        ("10.0.0.1", b"HTTPS, http", True),
        ("10.0.0.1", b"http", False),
        ("10.0.0.1", None, False),
        ("192.0.2.1", b"https", False),
    ],
)
def test_behind_a_trusted_proxy_that_ends_tls_too(peer: str, proto: bytes | None, secure: bool) -> None:
    """What the proxy says counts; what anybody else says does not."""
    upstream = Upstream("u", StaticSource(()), balance=Balance("sticky", name="gw"))
    routes = (Route("r", "u", (Match(prefix="/"),)),)
    server = ServerSettings(trusted_proxies=("10.0.0.0/8",))
    gateway = Gateway(Config("v", {"u": upstream}, routes, server=server, admin=None, access_log=None))
    given = [] if proto is None else [(b"X-Forwarded-Proto", proto)]
    request = Request(b"GET", b"/", [(b"Host", b"h"), *given], started=0.0, peer=peer)
    among, response = candidates(1), Response(200, b"OK", [])
    found = gateway._balancer(upstream)
    assert isinstance(found, Sticky)
    found.watch(found.pick(among, request), request, response, 0.01)
    (cookie,) = [value for name, value in response.headers if name == b"Set-Cookie"]
    assert cookie.endswith(b"; Secure") is secure


@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 2, 4)])
def test_new_clients_take_turns_by_weight(weights: tuple[int, ...]) -> None:
    balancer, among = make(), candidates(*weights)
    got = Counter(Client().visit(balancer, among)[0].endpoint.weight for _ in range(7 * 12))
    if len(set(weights)) == 1:
        assert set(got.values()) == {7 * 12}
    else:
        assert got == {1: 12, 2: 24, 4: 48}


def test_whose_endpoint_is_gone_gets_another() -> None:
    balancer, among, client = make(), candidates(1, 1, 1), Client()
    first, _ = client.visit(balancer, among)
    left = others(among, first)
    second, told = client.visit(balancer, left)
    assert second in left
    assert told
    # And stays there when the first one is back.
    assert client.visit(balancer, among) == (second, b"")


def test_another_snapshot_and_another_worker_know_the_cookie() -> None:
    client = Client()
    first, _ = client.visit(make(), candidates(1, 1, 1, 1))
    for seed in range(8):
        again, told = client.visit(make(seed=seed), candidates(2, 1, 3, 1))
        assert (again.endpoint.address, told) == (first.endpoint.address, b"")


# -- second tries ---------------------------------------------------------------------


def test_whose_endpoint_failed_moves_to_the_one_that_answered() -> None:
    balancer, among, client = make(), candidates(1, 1, 1), Client()
    first, _ = client.visit(balancer, among)
    request = client.request()
    assert balancer.pick(among, request) is first
    balancer.watch(first, request, None, 2.0)
    request.attempts = 2
    second = balancer.pick(others(among, first), request)
    assert second is not first
    assert answered(balancer, second, request, client)
    assert client.visit(balancer, among) == (second, b"")


def test_second_tries_of_others_change_nothing_for_a_request_under_way() -> None:
    balancer, among, client = make(), candidates(1, 1, 1), Client()
    first, _ = client.visit(balancer, among)
    request = client.request()
    assert balancer.pick(among, request) is first
    balancer.pick(others(among, first), ask(attempts=2))
    assert answered(balancer, first, request, client) == b""


def test_who_is_taken_to_try_an_endpoint_does_not_move_there() -> None:
    """A request tries an endpoint that was out: the balancer was not asked."""
    balancer, among, client = make(), candidates(1, 1, 1), Client()
    first, _ = client.visit(balancer, among)
    tried = next(candidate for candidate in among if candidate is not first)
    balancer.pick(others(among, tried), ask())
    assert answered(balancer, tried, client.request(), client) == b""
    # Nor while somebody else is at a second try, for which the client's endpoint is not there.
    balancer.pick(others(among, first), ask(attempts=2))
    assert answered(balancer, tried, client.request(), client) == b""
    # It fails: the second try goes where the client belongs, and tells nothing.
    request = client.request(attempts=2)
    assert balancer.pick(others(among, tried), request) is first
    assert answered(balancer, first, request, client) == b""
    # Who belongs nowhere stays where it was answered.
    newcomer = Client()
    assert answered(balancer, tried, newcomer.request(), newcomer)
    assert newcomer.visit(balancer, among) == (tried, b"")


# -- cookies of others ----------------------------------------------------------------


def test_a_cookie_tells_no_address_and_is_nobody_elses() -> None:
    """Not a hash of the address: of those there are few enough to try them all."""
    values = set()
    for secret in ("one", "another"):
        balancer = make(secret)
        for candidate in candidates(1, 1, 1):
            client = Client()
            answered(balancer, candidate, client.request(), client)
            values.add(client.cookie)
    assert len({value[:19] for value in values}) == len({value[19:] for value in values}) == 6


@pytest.mark.parametrize("other", [make("another"), make(name="gw2")])
def test_of_another_secret_or_another_name(other: Sticky) -> None:
    client, among = Client(), candidates(1, 1, 1)
    client.visit(other, among)
    balancer = make()
    got = {Client(client.cookie).visit(balancer, among) for _ in range(30)}
    assert {picked for picked, _ in got} == set(among)
    assert all(told for _, told in got)


@settings(deadline=None)
@given(st.integers(0, 47), st.sampled_from(b"0123456789abcdefABCDEF\x80\xff "))
def test_one_other_digit_is_no_cookie(at: int, digit: int) -> None:
    balancer, among, client = make(), candidates(1), Client()
    client.visit(balancer, among)
    changed = bytearray(client.cookie)
    if changed[3 + at] == digit:
        return
    changed[3 + at] = digit
    assert Client(bytes(changed)).visit(balancer, among)[1]


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_whatever_is_sent(value: bytes) -> None:
    _, told = Client(b"gw=" + value).visit(make(), candidates(1, 1))
    assert told.startswith(b"gw=")


# -- the secret -----------------------------------------------------------------------


def test_without_a_secret_it_is_the_masters_or_a_key_of_this_process() -> None:
    assert sticky.shared_key({sticky.SHARED_KEY: "ab" * 32}) == "ab" * 32
    own = sticky.shared_key({})
    assert len(own) == 64
    assert sticky.shared_key({}) == own
    told = "from gateway.balancers.sticky import shared_key; print(shared_key({}))"
    another = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout.strip()
    assert len(another) == 64
    assert another != own


def test_what_is_remembered_of_endpoints_does_not_grow() -> None:
    balancer = make()
    for generation in range(50):
        among = candidates(*[1] * 300)[generation * 3 : generation * 3 + 3]
        Client().visit(balancer, among)
    assert len(balancer._values) <= 9
