"""Ports for test servers: nobody else takes them, neither the kernel nor another test process."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel.bins import TESTS
from tests.services import _Ports, free_ports


def test_each_is_given_once() -> None:
    assert len(set(free_ports(200))) == 200


def test_they_lie_below_what_the_kernel_gives() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if lowest < 14_000:
        pytest.skip("the kernel gives every port here")
    assert all(port < lowest for port in free_ports(50))


def test_one_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        ports = _Ports()
        with socket.socket(type=kind) as taken:
            taken.bind(("127.0.0.1", ports.give()))
            port = taken.getsockname()[1]
            monkeypatch.setattr(ports, "_all", [port])
            monkeypatch.setattr(ports, "_next", 0)
            monkeypatch.setattr(ports, "_given", set())
            with pytest.raises(RuntimeError, match="no free port"):
                ports.give()


def test_another_process_does_not_give_them() -> None:
    """It begins where this one has, so that it would."""
    mine = free_ports(20)
    program = (
        "from tests.services import _ports, free_ports\n"
        f"ports = _ports()\nports._next = ports._all.index({mine[0]})\n"
        "print(*free_ports(20))\n"
    )
    told = subprocess.run([sys.executable, "-c", program], cwd=TESTS.parent, capture_output=True, text=True, check=True)
    assert not set(mine) & {int(port) for port in told.stdout.split()}
