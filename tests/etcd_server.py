"""etcd as one member or as a cluster of them, with its state on disk, and its API as tests need it.

Rule: everything is the real server's; the process is `services.Server`'s.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tests import services


class Etcd:
    """One member. It keeps its ports and its state through restarts."""

    def __init__(self, name: str, folder: Path, client: int, peer: int, cluster: str) -> None:
        self.url = f"http://127.0.0.1:{client}"
        self.token = ""
        self.server = services.Server(
            [
                str(services.require("etcd")), "--name", name, "--data-dir", str(folder / name),
                "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
                "--listen-peer-urls", f"http://127.0.0.1:{peer}",
                "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
                "--initial-cluster", cluster, "--logger", "zap", "--log-level", "error",
                # Elections on loopback need not take a second.
                "--heartbeat-interval", "50", "--election-timeout", "500",
            ]
        )  # fmt: skip

    # -- the process --------------------------------------------------------------------

    def up(self) -> None:
        """Start it (again) and wait until it can read."""
        self.server.start()
        self.ready()

    def ready(self) -> None:
        self.server.wait_until(self._reads, "etcd has a leader")

    def kill(self) -> None:
        """SIGKILL: no good-bye, open connections reset."""
        self.server.stop(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self.server.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.server.send(signal.SIGCONT)

    def _reads(self) -> bool:
        try:
            self.call("kv/range", {"key": coded("x")}, within=1)
        except urllib.error.HTTPError as error:
            return error.code in (400, 401)  # it asks who that is
        except (OSError, ValueError):
            return False
        return True

    # -- what stands in it --------------------------------------------------------------

    def call(self, path: str, body: object, within: float = 10) -> Any:
        """One call of the JSON gateway; the decoded answer."""
        headers = {"Authorization": self.token} if self.token else {}
        request = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(body).encode(), headers, method="POST")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=within) as answer:
            return json.loads(answer.read())

    def put(self, key: str, value: str, lease: str | None = None) -> int:
        """Set a key; the revision that this made."""
        told = {"key": coded(key), "value": coded(value)} | ({"lease": lease} if lease else {})
        return int(self.call("kv/put", told)["header"]["revision"])

    def delete(self, key: str, end: str | None = None) -> int:
        told = {"key": coded(key)} | ({"range_end": coded(end)} if end else {})
        return int(self.call("kv/deleterange", told)["header"]["revision"])

    def change(self, **keys: str | None) -> int:
        """Set (or, with None, delete) several keys in one transaction."""
        done = [
            {"request_delete_range": {"key": coded(key)}}
            if value is None
            else {"request_put": {"key": coded(key), "value": coded(value)}}
            for key, value in keys.items()
        ]
        return int(self.call("kv/txn", {"success": done})["header"]["revision"])

    def lease(self, seconds: int) -> str:
        return str(self.call("lease/grant", {"TTL": seconds})["ID"])

    def revoke(self, lease: str) -> None:
        self.call("kv/lease/revoke", {"ID": lease})

    def compact(self, revision: int) -> None:
        self.call("kv/compaction", {"revision": revision, "physical": True})

    # -- who may ------------------------------------------------------------------------

    def add_user(self, name: str, password: str, prefix: str | None = None) -> None:
        """A user of a role of the same name, which may read what begins with `prefix`."""
        self.call("auth/user/add", {"name": name, "password": password})
        self.call("auth/role/add", {"name": name})
        if prefix is not None:
            end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
            perm = {"permType": "READ", "key": coded(prefix), "range_end": coded(end)}
            self.call("auth/role/grant", {"name": name, "perm": perm})
        self.call("auth/user/grant", {"user": name, "role": name})

    def login(self, name: str, password: str) -> None:
        self.token = ""
        self.token = self.call("auth/authenticate", {"name": name, "password": password})["token"]


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Cluster:
    """Some members that are one cluster."""

    def __init__(self, folder: Path, number: int) -> None:
        ports = services.free_ports(2 * number)
        peers = ",".join(f"m{at}=http://127.0.0.1:{ports[2 * at + 1]}" for at in range(number))
        self.members = [Etcd(f"m{at}", folder, ports[2 * at], ports[2 * at + 1], peers) for at in range(number)]

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(member.url for member in self.members)

    @classmethod
    @contextlib.contextmanager
    def start(cls, number: int = 1) -> Iterator[Self]:
        with tempfile.TemporaryDirectory() as folder:
            cluster = cls(Path(folder), number)
            try:
                for member in cluster.members:
                    member.server.start()
                for member in cluster.members:
                    member.ready()
                yield cluster
            finally:
                for member in cluster.members:
                    member.server.close()
