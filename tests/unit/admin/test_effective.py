"""The configuration as it is shown: whole, and without its secrets."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from gateway import config
from gateway.admin import effective
from gateway.model import Config

SECRET = "s3cr3t"
TEXT = f"""
version: 1
admin: {{bind: "127.0.0.1:9901", token: {SECRET}-admin-token}}
access_log: {{redact: [mine, token]}}
discovery:
  consul: {{address: "http://consul.example:8500", token: {SECRET}}}
  etcd: {{endpoints: ["http://etcd.example:2379"], username: reader, password: {SECRET}}}
upstreams:
  a:
    endpoints: ["http://10.0.0.9:8080/base?mine={SECRET}&k=v", {{url: "http://10.0.0.10?token={SECRET}", weight: 3}}]
  b: {{consul: b, host: b.example, retry: {{statuses: [503]}}}}
  c: {{consul: c, balance: {{sticky: {{cookie: gw, secret: {SECRET}-0123456789abcdef}}}}, health: {{headers: {{Authorization: {SECRET}, X-Probe: "1"}}}}}}
routes:
  - name: r
    upstream: a
    match: {{prefix: /r, headers: {{X-Api-Key: {SECRET}, Authorization: Bearer {SECRET}, X-Beta: "1"}},
             query: {{session_token: {SECRET}, v: "2"}}}}
  - {{name: s, upstream: b, match: {{regex: "/u/[0-9]+"}}, rewrite: {{regex: '^/u/(\\d+)', to: '/users/\\1'}}}}
  - {{name: fixed, match: {{path: /fixed}}, respond: {{body: ok, headers: {{X-Auth-Token: {SECRET}, X-Plain: shown}}}}}}
"""


def shown() -> dict[str, Any]:
    found = effective.shown(config.loads(TEXT.encode(), "file.yaml", {}))
    # What JSON makes of it.
    plain: dict[str, Any] = json.loads(json.dumps(found))
    assert plain == found
    return plain


def test_no_secret_is_in_it() -> None:
    assert SECRET in TEXT
    assert SECRET not in json.dumps(shown())


def test_everything_else_is() -> None:
    found = shown()
    assert set(found) == {field.name for field in fields(Config)} - {"warnings"}
    assert found["path"] == "file.yaml"
    assert len(found["version"]) == 12
    assert found["admin"] == {"bind": "127.0.0.1:9901", "token": "***"}
    assert found["discovery"]["consul"]["address"] == "http://consul.example:8500"
    assert found["discovery"]["etcd"]["username"] == "reader"
    assert found["upstreams"]["a"]["source"]["endpoints"] == [
        {"url": "http://10.0.0.9:8080/base?mine=***&k=v", "weight": 1},
        {"url": "http://10.0.0.10:80?token=***", "weight": 3},
    ]
    assert found["upstreams"]["b"]["retry"]["statuses"] == [503]
    match = found["routes"][0]["matches"][0]
    assert match["headers"] == {"x-api-key": "***", "authorization": "***", "x-beta": "1"}
    assert match["query"] == {"session_token": "***", "v": "2"}
    assert found["routes"][1]["rewrite"]["regex"] == "^/u/(\\d+)"


def test_a_secret_that_is_not_set_is_told_as_such() -> None:
    found = effective.shown(config.loads(b"version: 1\n", "f", {}))
    assert found["admin"]["token"] == ""
    assert found["discovery"]["consul"]["token"] == ""


def test_credentials_in_urls_are_masked_wherever_they_stand() -> None:
    found = effective._plain({"x": ["https://user:pw@host/p?token=1", "user:pw@host"]}, lambda url: "masked")
    assert found == {"x": ["masked", "user:pw@host"]}
