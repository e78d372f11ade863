"""What is this gateway itself, and what is somebody else."""

from __future__ import annotations

import pytest

from gateway.listeners import Listeners
from gateway.model import Endpoint


@pytest.mark.parametrize(
    ("bind", "host", "port", "own"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, True),
        ("http://127.0.0.1:8000", "127.0.0.1", 8001, False),
        ("http://127.0.0.1:8000", "127.0.0.2", 8000, False),
        ("https://[::1]:8000", "::1", 8000, True),
        ("http://0.0.0.0:8000", "127.0.0.1", 8000, True),
        ("http://0.0.0.0:8000", "127.9.9.9", 8000, True),
        ("http://0.0.0.0:8000", "::1", 8000, False),
        ("http://0.0.0.0:8000", "192.0.2.1", 8000, False),
        ("http://[::]:8000", "127.0.0.1", 8000, True),
        ("http://[::]:8000", "192.0.2.1", 8000, False),
        ("unix:/run/gateway.sock", "127.0.0.1", 8000, False),
        ("", "127.0.0.1", 8000, False),
        ("http://127.0.0.1:8000", "a.example", 8000, False),
    ],
)
def test_own(bind: str, host: str, port: int, own: bool) -> None:
    told = Listeners([bind, "unix:/x"]).refusal(Endpoint("http", host, port))
    assert bool(told) == own
    assert not own or "is this gateway itself" in told


def test_no_probe_where_the_port_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.listeners._reaches", lambda *_: pytest.fail("asked"))
    assert Listeners(["http://0.0.0.0:8000"]).refusal(Endpoint("http", "127.0.0.1", 1)) == ""
