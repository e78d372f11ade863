"""Two network namespaces and a wire between them, so that the packets of an instance can really go nowhere.

The near side has the system, its clients and what must stay well; the far side has an address for each instance that
can fail. They are reached through the far end of the wire as through a router: nobody asks by ARP for an address that
is gone, and nobody answers for it.

Rule: nothing of the machine's own network is touched, or can be reached from here, and the namespaces end with their
processes, at the latest with the process that made them. The addresses are those of RFC 5737.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
from collections.abc import Sequence
from typing import Self

_NEAR, _FAR = "198.51.100.1", "198.51.100.2"
_INSTANCES = "203.0.113"


class Side:
    """A namespace. `enter`: what a command begins with that is to run there. `user`: whether its owner is a user
    namespace. Raises OSError and subprocess.SubprocessError where it is not allowed."""

    def __init__(self, unshare: Sequence[str], user: bool) -> None:
        # It ends with its standard input, which nobody else has.
        holder = subprocess.Popen(
            [*unshare, "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._holder = holder
        self.pid = holder.pid
        self.enter = ["nsenter", f"--target={self.pid}", "--net", *(["--user"] if user else [])]
        assert holder.stdout is not None
        if holder.stdout.readline() != b"up\n":
            self.close()
            raise subprocess.SubprocessError(f"{unshare[-1]}: refused")

    def ip(self, arguments: str) -> None:
        subprocess.run([*self.enter, "ip", *arguments.split()], check=True, capture_output=True, timeout=10)

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


class Network:
    """Both sides. Raises as a `Side`."""

    def __init__(self, user: bool) -> None:
        with contextlib.ExitStack() as closing:
            own = ["--user", "--map-root-user"] if user else []
            self.near = Side(["unshare", *own, "--net"], user)
            closing.callback(self.near.close)
            self.far = Side([*self.near.enter, "unshare", "--net"], user)
            closing.callback(self.far.close)
            self.near.ip(f"link add near type veth peer name far netns {self.far.pid}")
            for side, name, address in ((self.near, "near", _NEAR), (self.far, "far", _FAR)):
                side.ip(f"address add {address}/30 dev {name}")
                side.ip(f"link set {name} up")
            self.near.ip(f"route add {_INSTANCES}.0/24 via {_FAR}")
            self._closing = closing.pop_all()

    @classmethod
    def make(cls) -> Self:
        """As root, else as the root of a user namespace."""
        try:
            return cls(user=False)
        except (OSError, subprocess.SubprocessError):
            return cls(user=True)

    def close(self) -> None:
        self._closing.close()

    def appear(self, address: str) -> None:
        self.far.ip(f"address add {address}/32 dev far")

    def vanish(self, address: str) -> None:
        """What is sent to it is dropped without a word, and what its sockets have to send is not sent."""
        self.far.ip(f"address del {address}/32 dev far")


def instance_address(number: int) -> str:
    """That of an instance, counted from 1."""
    return f"{_INSTANCES}.{number}"


@functools.cache
def missing() -> str:
    """Why there can be no network of our own; "" when there can."""
    for program in ("ip", "unshare", "nsenter"):
        if not shutil.which(program):
            return f"no {program}: apt-get install iproute2 util-linux"
    try:
        Network.make().close()
    except (OSError, subprocess.SubprocessError):
        return "neither root nor user namespaces may make one here"
    return ""
