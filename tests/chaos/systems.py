"""The systems that are put before failing instances: the gateway, nginx and HAProxy, each as a real process.

Rule: each with its defaults plus the health checking that it has, and all with the same limits in time, because the
defaults of these (30 s and more, or none) would only make a run longer. What each says of an instance's state is read
from its log, by the moment at which the line came.

nginx takes an instance out for `fail_timeout` (10 s) after `max_fails` (1) failures and sends a request on to the next
after an error or a timeout (`proxy_next_upstream`), a POST only when it was not sent. HAProxy connects to each every
2 s (`check`), counts what becomes of requests (`observe layer7`), takes an instance out after 10 errors in a row
(`error-limit`, `on-error mark-down`), and tries a connection that is not made three times more, the last time at another
(`option redispatch`).
"""

from __future__ import annotations

import os
import re
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests import services
from tests.gateway_process import GatewayProcess
from tests.services import Server

WORKERS = 2
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that every system waits for an instance of `main`: for a connection, for the head of an answer, between
    two pieces of it. `other` has the defaults of each."""

    connect: float = 1.0
    response: float = 2.0
    idle: float = 2.0


@dataclass(frozen=True, slots=True)
class Behind:
    """What a system stands before: where the instances of `main` are, by name, and the port of the only one of `other`.
    `authority`: the instances of `main` speak TLS, with certificates of this one. `dns`, `consul`: where they are
    looked up, else they are in the configuration. `enter`: what a command begins with, to run on the system's side."""

    main: Mapping[str, tuple[str, int]]
    other: int
    limits: Limits
    authority: Path | None = None
    dns: str = ""
    consul: str = ""
    # Lines that the gateway's `main` has besides, for the short form.
    settings: str = ""
    enter: Sequence[str] = ()


SRV = "_main._tcp.chaos.test"
# nginx verifies names and no addresses.
TLS_NAME = "main.chaos.test"


@dataclass(frozen=True, slots=True)
class Event:
    """A line that says that an instance is out, or back; `port` is 0 where the line does not tell. `who`: the worker."""

    out: bool
    port: int
    who: str
    why: str


class System(ABC):
    """Started before the instances of a `Behind`, in a folder of its own."""

    name: ClassVar[str]
    # How many say for themselves that an instance is out.
    voices: ClassVar[int] = 1
    # What it can be told to find instances by.
    finds: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, folder: Path, behind: Behind, port: int) -> None:
        self.port = port
        self.server = self._server(folder, behind)
        self.server.command[:0] = behind.enter

    @abstractmethod
    def _server(self, folder: Path, behind: Behind) -> Server: ...

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be started; "" when it can."""
        return ""

    @classmethod
    def can(cls, needs: str) -> bool:
        """Whether it is a system for that (`Fault.needs`)."""
        return needs in ("", "tls", "network") or needs in cls.finds

    def start(self) -> None:
        self.server.start()
        self.server.wait_until(self._listens, f"{self.name} listens")

    def stop(self) -> None:
        """SIGTERM: a master that is killed leaves its workers behind."""
        try:
            if self.server.process is not None:
                self.server.stop(signal.SIGTERM)
        finally:
            self.server.close()

    def _listens(self) -> bool:
        """Whether anything listens on its port, on its side of the network."""
        assert self.server.process is not None
        table = Path(f"/proc/{self.server.process.pid}/net/tcp").read_text()
        return f":{self.port:04X} 00000000:0000 0A" in table

    @abstractmethod
    def event(self, line: str) -> Event | None: ...


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f}ms"


class Gateway(System):
    """`gateway run` with its defaults."""

    name = "gateway"
    voices = WORKERS
    finds = frozenset({"dns", "consul"})

    _SAID = re.compile(r"\[(\d+)\] \[\w+\] upstream main: \S+:(\d+) (?:(ejected) for|is back:?) (.*)")

    def _server(self, folder: Path, behind: Behind) -> Server:
        limits = behind.limits
        scheme = "https" if behind.authority else "http"
        if behind.consul:
            source = "consul: main"
        elif behind.dns:
            source = f"dns_srv: {SRV}"
        else:
            urls = (f'"{scheme}://{address}:{port}"' for address, port in behind.main.values())
            source = f"endpoints: [{', '.join(urls)}]"
        timeouts = (
            f"timeouts: {{connect: {_seconds(limits.connect)}, response: {_seconds(limits.response)}, "
            f"idle: {_seconds(limits.idle)}}}"
        )
        lines = [
            "version: 1",
            f'access_log: {{path: "{folder}/access.log"}}',
            f'discovery: {{consul: {{address: "{behind.consul}", poll: 1s}}}}' if behind.consul else "",
            f'discovery: {{dns: {{servers: ["{behind.dns}"], ttl: 1s}}}}' if behind.dns else "",
            "upstreams:",
            "  main:",
            f"    {source}",
            f"    {timeouts}",
            f"    tls: {{ca: {behind.authority}}}" if behind.authority else "",
            f"    {behind.settings}" if behind.settings else "",
            "  other:",
            f'    endpoints: ["http://127.0.0.1:{behind.other}"]',
            "routes:",
            "  - {name: main, match: {prefix: /main}, upstream: main}",
            "  - {name: other, match: {prefix: /other}, upstream: other}",
        ]
        path = folder / "gateway.yaml"
        path.write_text("\n".join(line for line in lines if line) + "\n")
        self._process = GatewayProcess(folder, str(path), WORKERS)
        self.port = self._process.port
        return self._process.server

    def start(self) -> None:
        self._process.__enter__()

    def event(self, line: str) -> Event | None:
        said = self._SAID.search(line)
        return said and Event(said[3] is not None, int(said[2]), said[1], said[4])


class Nginx(System):
    name = "nginx"

    _SAID = re.compile(r'upstream server temporarily disabled (.*?), client: .* upstream: "\w+://[^/]*:(\d+)/')
    _WHOLE = """\
daemon off; {user} worker_processes {workers}; pid {folder}/nginx.pid; error_log stderr warn;
worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  proxy_http_version 1.1; proxy_set_header Connection "";
  upstream main {{ zone main 128k; {servers} keepalive 32; }}
  upstream other {{ zone other 128k; server 127.0.0.1:{other}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location /main {{
      proxy_pass {scheme}://main; {tls}
      proxy_connect_timeout {connect}; proxy_read_timeout {response}; proxy_send_timeout {response};
    }}
    location /other {{ proxy_pass http://other; }}
  }}
}}
"""

    @classmethod
    def missing(cls) -> str:
        return "" if services.find("nginx") else services.HOW["nginx"]

    def _server(self, folder: Path, behind: Behind) -> Server:
        limits = behind.limits
        tls = f"proxy_ssl_trusted_certificate {behind.authority}; proxy_ssl_verify on; proxy_ssl_name {TLS_NAME};"
        path = folder / "nginx.conf"
        path.write_text(
            self._WHOLE.format(
                user="user root;" if os.getuid() == 0 else "",
                workers=WORKERS,
                folder=folder,
                port=self.port,
                other=behind.other,
                servers=" ".join(f"server {address}:{port};" for address, port in behind.main.values()),
                scheme="https" if behind.authority else "http",
                tls=tls if behind.authority else "",
                connect=_seconds(limits.connect),
                response=_seconds(limits.response),
            )
        )
        return Server([str(services.find("nginx")), "-p", str(folder), "-e", "stderr", "-c", str(path)])

    def event(self, line: str) -> Event | None:
        said = self._SAID.search(line)
        return said and Event(True, int(said[2]), "", said[1])


class Haproxy(System):
    name = "HAProxy"
    finds = frozenset({"dns"})

    _SAID = re.compile(r"Server main/main-(\d+) is (DOWN|UP), reason: (.*?)(?:, check duration|\. \d+ active)")
    _WHOLE = """\
global
    maxconn 8000
    nbthread {workers}
{resolvers}
defaults
    mode http
    option redispatch
    timeout connect {connect}
    timeout client 30s
    timeout server {response}
    timeout http-request 5s
    timeout http-keep-alive 75s

frontend edge
    bind 127.0.0.1:{port} backlog 4096
    use_backend other if {{ path_beg /other }}
    default_backend main

backend main
    balance roundrobin
    default-server check observe layer7 error-limit 10 on-error mark-down {tls}
{servers}

backend other
    timeout server 60s
    server other 127.0.0.1:{other}
"""
    _RESOLVERS = """
resolvers here
    nameserver one {dns}
    accepted_payload_size 8192
    hold valid 1s
"""

    @classmethod
    def missing(cls) -> str:
        return "" if services.find("haproxy") else "apt-get install haproxy"

    def _server(self, folder: Path, behind: Behind) -> Server:
        limits = behind.limits
        self._ports = [port for _, port in behind.main.values()]
        if behind.dns:
            servers = [f"server-template main- {len(self._ports)} {SRV} resolvers here init-addr none"]
        else:
            servers = [f"server {name} {address}:{port}" for name, (address, port) in behind.main.items()]
        path = folder / "haproxy.cfg"
        path.write_text(
            self._WHOLE.format(
                workers=WORKERS,
                port=self.port,
                other=behind.other,
                connect=_seconds(limits.connect),
                response=_seconds(limits.response),
                tls=f"ssl verify required ca-file {behind.authority} verifyhost {TLS_NAME}" if behind.authority else "",
                servers="\n".join(f"    {server}" for server in servers),
                resolvers=self._RESOLVERS.format(dns=behind.dns) if behind.dns else "",
            )
        )
        return Server([str(services.find("haproxy")), "-db", "-f", str(path)])

    def event(self, line: str) -> Event | None:
        said = self._SAID.search(line)
        if not said:
            return None
        number = int(said[1])
        return Event(said[2] == "DOWN", self._ports[number - 1], "", said[3].replace(", info:", ":"))


SYSTEMS: dict[str, type[System]] = {"gateway": Gateway, "nginx": Nginx, "haproxy": Haproxy}
