"""boto3 against moto's S3 server through the gateway."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from tests.gateway_process import GatewayProcess
from tests.s3_server import S3
from tests.services import ROOT, wait_until

KEY = "a folder/ä+b%2f.bin"
SIZE = 8 * 1024 * 1024
# Its names hold encoded slashes.
CONFIG = """
version: 1
server: {{ambiguous_paths: forward}}
upstreams: {{s3: {{endpoints: ["http://127.0.0.1:{port}"]{more}}}}}
routes: [{{name: s3, upstream: s3, match: {{prefix: /}}}}]
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with S3() as server:
        yield server


def boto3(s3: S3, port: int, step: str) -> dict[str, Any]:
    """What a step of tests/s3_client.py saw. In an environment without credentials, profiles and proxies."""
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true"}
    command = [str(s3.python), str(ROOT / "tests" / "s3_client.py"), f"http://127.0.0.1:{port}", step]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


WANTED: dict[str, dict[str, Any]] = {
    "multipart": {"same": True, "length": SIZE, "parts": "2"},
    "single": {
        "same": True, "etag": True, "type": "image/png", "metadata": {"a": "b"}, "part": True,
        "range": f"bytes 1000-1999/{SIZE}", "unchanged": 304, "keys": [KEY],
    },
    "presigned": {"status": 200, "body": "signed"},
    "missing": {"code": "NoSuchKey", "status": 404},
}  # fmt: skip


@pytest.mark.parametrize("step", WANTED)
def test_through_the_gateway(step: str, s3: S3, tmp_path: Path) -> None:
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG.format(port=s3.port, more=""))
    with GatewayProcess(tmp_path, str(path), workers=1) as gateway:
        assert boto3(s3, gateway.port, step) == WANTED[step]
        reasons = {one["reason"] for one in gateway.requests()}
    assert reasons <= {None}


def test_a_reload_during_a_multipart_upload(s3: S3, tmp_path: Path) -> None:
    """With each request of it that is logged another configuration comes into force."""
    path = tmp_path / "gateway.yaml"
    path.write_text(CONFIG.format(port=s3.port, more=""))
    with GatewayProcess(tmp_path, str(path), workers=1) as gateway:
        working = gevent.spawn(boto3, s3, gateway.port, "multipart")
        for number in range(1, 4):
            wait_until(lambda: gateway.output().count("uploadId=") >= number or working.dead, "a request of the upload")  # noqa: B023
            text = CONFIG.format(port=s3.port, more=f", timeouts: {{idle: {40 + number}s}}")
            path.write_text(text)
            gateway.follows(text)
        assert working.get(timeout=180) == WANTED["multipart"]
        assert {one["reason"] for one in gateway.requests()} == {None}
