"""Commands about a configuration that Consul holds."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from gateway.commands import cli
from tests.services import Consul

DOCUMENT = {
    "version": 1,
    "upstreams": {"u": {"endpoints": ["http://10.0.0.1"]}},
    "routes": [{"name": "r", "match": {"prefix": "/r"}, "upstream": "u"}],
}


def gateway(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(one) for one in arguments], env={"GATEWAY_CONFIG": None})


def test_a_key_of_consul(consul: Consul, tmp_path: Path) -> None:
    consul.call("PUT", "/v1/kv/commands/config", DOCUMENT)
    local = tmp_path / "local.yaml"
    local.write_text(f"version: 1\nserver: {{name: gw}}\ndiscovery: {{consul: {{address: '{consul.address}'}}}}\n")
    key = f"consul://{consul.address.removeprefix('http://')}/commands/config"

    explained = gateway("explain", "GET", "/r/x", "-c", f"{local},{key}")
    assert explained.exit_code == 0
    assert f"route      r  {key}:1  (* /r)" in explained.stdout
    assert "  Via: 1.1 gw\n" in explained.stdout

    consul.call("PUT", "/v1/kv/commands/next", DOCUMENT | {"routes": []})
    changed = gateway("diff", key, key.replace("/config", "/next"))
    assert (changed.exit_code, changed.stdout) == (1, "-  route r    * /r to u\n")
    assert gateway("diff", key, key.replace("/config", "/none")).exit_code == 2
