"""The gateway with conf/gateway.yaml and the services behind it, until it is told to stop.

Rule: it starts whole or not at all, and nothing is left behind. A service that ends later is
told and lived without: that is what a gateway is for. When the gateway ends, or SIGINT or
SIGTERM comes, all of it ends; the exit status is 0 when it was asked for, else 1.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Instance -> port, as in conf/gateway.yaml.
SERVICES = {"hello-1": 9101, "hello-2": 9102, "echo": 9103}

# A worker may take `discovery.wait` before it answers, a slow machine its time to import.
START = 30.0

# Above server.graceful: gunicorn ends its workers by itself before that.
STOP = 35.0

# How often it is looked whether a process or the wish to go on has ended.
TICK = 0.1


def main() -> int:
    told = os.environ.get("PORT")
    if told and not (told.isascii() and told.isdigit() and 0 < int(told) < 65536):
        print(f"scripts/run: PORT: {told!r} will not do (a whole number from 1 to 65535)", file=sys.stderr)
        return 1
    host, port = ("0.0.0.0", int(told)) if told else ("127.0.0.1", 8000)
    taken = [f"{port} (for {name})" for name, host, port in listeners(host, port) if not free(host, port)]
    if taken:
        print(f"scripts/run: port {', '.join(taken)} is taken; stop what listens there", end="", file=sys.stderr)
        print(", or choose the gateway's with PORT=" if "gateway" in taken[-1] else "", file=sys.stderr)
        return 1
    # Only noted: an exception out of a signal's handler could come between the start of a
    # process and its being known.
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    with running(commands()) as processes:
        if not wait_until_ready(f"http://127.0.0.1:{port}/-/readyz", processes, asked):
            if not asked:
                print(f"scripts/run: not ready; ended: {', '.join(ended(processes)) or 'none'}", file=sys.stderr)
            return 0 if asked else 1
        print(welcome(port), flush=True)
        return watch(processes, asked)


def listeners(host: str, port: int) -> list[tuple[str, str, int]]:
    return [(name, "127.0.0.1", each) for name, each in SERVICES.items()] + [("gateway", host, port)]


def free(host: str, port: int) -> bool:
    """Could a server listen there? As servers do, connections of the past are not minded."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def commands() -> dict[str, list[str]]:
    service = str(ROOT / "scripts" / "demo_service.py")
    found = {name: [sys.executable, service, name, str(port)] for name, port in SERVICES.items()}
    found["gateway"] = [sys.executable, "-m", "gateway", "run", "-c", str(ROOT / "conf" / "gateway.yaml")]
    return found


@contextmanager
def running(commands: dict[str, list[str]]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The processes; on the way out every one of them has ended, the gateway first."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            # Sessions of their own: a terminal's Ctrl-C is for this process, which ends them in order.
            processes[name] = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
        yield processes
    finally:
        for process in reversed(processes.values()):
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(url: str, processes: dict[str, subprocess.Popen[bytes]], asked: list[int]) -> bool:
    """Whether the gateway says in time that it is ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and not asked and not ended(processes):
        try:
            with opener.open(url, timeout=1):
                return True
        except OSError:
            time.sleep(TICK)
    return False


def ended(processes: dict[str, subprocess.Popen[bytes]]) -> list[str]:
    """Those that are no more."""
    return [f"{name} (status {each.returncode})" for name, each in processes.items() if each.poll() is not None]


def watch(processes: dict[str, subprocess.Popen[bytes]], asked: list[int]) -> int:
    """Until a signal asks for the end, or the gateway ends by itself, which is a failure."""
    told: set[str] = set()
    while not asked:
        gone = ended(processes)
        if any(each.startswith("gateway ") for each in gone):
            print(f"scripts/run: ended by itself: {', '.join(gone)}", file=sys.stderr)
            return 1
        for each in gone:
            if each not in told:
                told.add(each)
                name = each.split(" ", 1)[0]
                again = f"{sys.executable} scripts/demo_service.py {name} {SERVICES[name]}"
                print(f"scripts/run: {each} is gone, the gateway goes on; to start it again: {again}", file=sys.stderr)
        time.sleep(TICK)
    return 0


def welcome(port: int) -> str:
    base = f"http://127.0.0.1:{port}"
    return f"""
The gateway listens on {base} (conf/gateway.yaml). Try:

  curl {base}/hello/world                       # two instances take turns; /hello is stripped
  curl -H 'X-Forwarded-For: 6.6.6.6' {base}/echo/%2Fraw?q=1   # the headers that the service saw
  curl -i {base}/nowhere                        # how the gateway answers for itself

Kill a service (they run on ports 9101 to 9103) and go on asking. Ctrl-C stops all of it.
"""


if __name__ == "__main__":
    sys.exit(main())
