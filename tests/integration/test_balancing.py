"""What workers agree on without a word: where a key belongs, and whose cookie that is."""

from __future__ import annotations

import http.client
import signal
from contextlib import ExitStack
from pathlib import Path

from gateway.testing import FakeUpstream, answer
from tests.gateway_process import GatewayProcess
from tests.services import wait_until

CONFIG = """
version: 1
server: {{overload: 0}}
upstreams:
  hashed: {{endpoints: {endpoints}, balance: {{hash: {{by: "header:X-User"}}}}}}
  pinned: {{endpoints: {endpoints}, balance: {{sticky: {{cookie: gw}}}}}}
routes:
  - {{name: hashed, match: {{prefix: /hashed}}, upstream: hashed}}
  - {{name: pinned, match: {{prefix: /pinned}}, upstream: pinned}}
"""


def ask(port: int, path: str, **headers: str) -> tuple[str, str]:
    """The endpoint that answered, and the cookie it set, on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"Connection": "close", **headers})
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode(), response.getheader("Set-Cookie", "")
    finally:
        connection.close()


def test_all_workers_send_a_key_and_a_cookie_to_the_same_endpoint(tmp_path: Path) -> None:
    with ExitStack() as stack:
        services = [stack.enter_context(FakeUpstream(answer(b"%d" % number))) for number in range(4)]
        path = tmp_path / "gateway.yaml"
        text = CONFIG.format(endpoints=[service.url for service in services])
        path.write_text(text)
        with GatewayProcess(tmp_path, str(path)) as gateway:
            homes = {user: ask(gateway.port, "/hashed", **{"X-User": user})[0] for user in map(str, range(40))}
            assert len(set(homes.values())) > 1
            pinned, told = ask(gateway.port, "/pinned")
            cookie, _, attributes = told.partition("; ")
            assert attributes == "Path=/; HttpOnly; SameSite=Lax"

            def hold() -> None:
                for user, home in homes.items():
                    assert ask(gateway.port, "/hashed", **{"X-User": user})[0] == home
                    assert ask(gateway.port, "/pinned", Cookie=cookie) == (pinned, "")

            hold()
            gateway.server.send(signal.SIGHUP)
            gateway.logged("Door: ", 4)
            hold()
            # Two before, two after, and each was asked.
            wait_until(lambda: len({line["worker"] for line in gateway.requests()}) == 4, "requests to every worker")
