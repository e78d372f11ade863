"""Whether an installed gateway serves: scripts/serves.py FOLDER PROGRAM.

Rule: FOLDER is empty, and nothing of this checkout is in reach of the program: neither its folder
nor PYTHONPATH. Ends with 1, and what the gateway said, when it does not answer as it should.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

DOCUMENT = """\
version: 1
admin: null
routes:
  - {name: hello, match: {prefix: /hello}, respond: {body: hello, headers: {Content-Type: text/plain}}}
"""
# Seconds for the gateway to start, and to end.
PATIENCE = 30.0
EXPECTED = {"/-/healthz": (200, None), "/hello/x": (200, b"hello"), "/other": (404, None)}


def main(folder: Path, program: str) -> int:
    (folder / "gateway.yaml").write_text(DOCUMENT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GATEWAY_"))}
    log = folder / "log"
    with log.open("wb") as output:
        command = [program, "run", "-c", "gateway.yaml", "-b", f"127.0.0.1:{port}", "-w", "1"]
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=output, stderr=output)
    try:
        wrong = [told for path, expected in EXPECTED.items() if (told := check(process, port, path, expected))]
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(PATIENCE)
    if status:
        wrong.append(f"it ended with status {status}")
    for told in wrong:
        print(f"scripts/serves.py: {told}", file=sys.stderr)
    if wrong:
        print(log.read_text(errors="replace"), file=sys.stderr)
    else:
        print(f"scripts/serves.py: {', '.join(EXPECTED)} answered as they should", file=sys.stderr)
    return 1 if wrong else 0


def check(process: subprocess.Popen[bytes], port: int, path: str, expected: tuple[int, bytes | None]) -> str:
    """What is wrong with an answer, or nothing."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
                got = answer.status, answer.read()
            break
        except urllib.error.HTTPError as error:
            got = error.code, error.read()
            break
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                return f"{path}: {error}"
            time.sleep(0.1)
    status, body = expected
    fits = got[0] == status and body in (None, got[1])
    return "" if fits else f"{path}: {got[0]} {got[1][:200]!r}, not {status}"


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2]))
