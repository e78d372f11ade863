"""A registry for the harness: Consul's health API with blocking queries, as many services as asked for.

Rule: one process, no threads, answers made anew only for what changed. `GET /stats` tells the
health requests answered so far, `POST /change?service=N` gives one instance another weight; with
`all=1` all of them, with `count=N` the service has so many instances from then on. Its own port is
the port of every instance, on addresses of this machine, and `GET /item` is what they all answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from urllib.parse import parse_qs, urlsplit

ITEM = b'{"id": 4711}'


def service_name(number: int) -> str:
    return f"svc-{number:05d}"


def instances(service: int, count: int, heavy: int, usual: int = 1, port: int = 8080) -> bytes:
    """The health API's answer for one service; the first instance has the weight `heavy`, all others `usual`."""
    found = []
    for number in range(count):
        place = service + number // 250
        address = f"127.{place // 250}.{place % 250}.{number % 250 + 1}"
        found.append(
            {
                "Node": {"Node": f"node-{number}", "Address": address, "Datacenter": "dc1", "Meta": {}},
                "Service": {
                    "ID": f"{service_name(service)}-{number}",
                    "Service": service_name(service),
                    "Tags": ["http"],
                    "Address": address,
                    "Port": port,
                    "Weights": {"Passing": heavy if number == 0 else usual, "Warning": 1},
                    "Meta": {"version": "1"},
                },
                "Checks": [{"CheckID": "serfHealth", "Status": "passing", "Output": "Agent alive and reachable"}],
            }
        )
    return json.dumps(found).encode()


def seconds(duration: str) -> float:
    """Of `5000ms` or `5s`."""
    return float(duration[:-2]) / 1000 if duration.endswith("ms") else float(duration[:-1])


class Registry:
    """`services` groups of `count` instances each; every change has an index of its own."""

    def __init__(self, services: int, count: int, port: int) -> None:
        self._port = port
        self._counts: dict[int, int] = defaultdict(lambda: count)
        self._heavy: dict[int, int] = defaultdict(lambda: 1)
        self._usual: dict[int, int] = defaultdict(lambda: 1)
        self._indexes: dict[int, int] = defaultdict(lambda: 1)
        self._bodies = {service: instances(service, count, 1, port=port) for service in range(services)}
        self._moved = {service: asyncio.Event() for service in range(services)}
        self._index = 1
        self.answered = 0

    def change(self, service: int, all_weights: bool = False, count: int | None = None) -> None:
        self._index += 1
        self._heavy[service] += 1
        self._usual[service] += all_weights
        self._counts[service] = self._counts[service] if count is None else count
        self._indexes[service] = self._index
        self._bodies[service] = instances(
            service, self._counts[service], self._heavy[service], self._usual[service], self._port
        )
        self._moved[service].set()
        self._moved[service] = asyncio.Event()

    async def health(self, service: int, index: int, wait: float) -> tuple[bytes, int]:
        """The answer, at once or when it is another than that of `index`."""
        if index >= self._indexes[service]:
            try:
                await asyncio.wait_for(self._moved[service].wait(), wait)
            except TimeoutError:
                pass  # nothing changed: the same answer again
        self.answered += 1
        return self._bodies[service], self._indexes[service]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept until the other side ends it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                body, index = await self._answer(method, target)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Consul-Index: %d\r\n"
                    b"X-Consul-KnownLeader: true\r\nContent-Length: %d\r\n\r\n%b" % (index, len(body), body)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the other side is done
        finally:
            writer.close()

    async def _answer(self, method: str, target: str) -> tuple[bytes, int]:
        url = urlsplit(target)
        query = parse_qs(url.query)
        if method == "POST":
            count = int(query["count"][0]) if "count" in query else None
            self.change(int(query["service"][0]), "all" in query, count)
        if url.path == "/item":
            return ITEM, self._index
        if url.path == "/stats" or method == "POST":
            return json.dumps({"answered": self.answered}).encode(), self._index
        service = int(url.path.rsplit("-", 1)[1])
        wait = seconds(query.get("wait", ["0s"])[0])
        return await self.health(service, int(query.get("index", ["0"])[0]), wait)


async def run(port: int, services: int, count: int) -> None:
    registry = Registry(services, count, port)
    server = await asyncio.start_server(registry.serve, "0.0.0.0", port, backlog=4096, limit=64 * 1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(run(*map(int, sys.argv[1:4])))
