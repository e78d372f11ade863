"""What hosts, the file and the machine make of gunicorn's settings."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import resource
import ssl
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from gateway.errors import ConfigError
from gateway.hosting import gunicorn_settings
from gateway.model import ServerLimits, ServerSettings, ServerTimeouts

SERVER = ServerSettings()


@pytest.fixture
def cfg(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """gunicorn's configuration as a hook sees it, with no flag given."""
    monkeypatch.setattr(sys, "argv", ["gunicorn", "gateway:create_app()"])
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)
    settings = Config()
    for name, value in gunicorn_settings.gunicorn_settings(SERVER, {}).items():
        settings.set(name, value)
    return settings


# -- where to listen -----------------------------------------------------------------


def test_bind_is_loopback_unless_port_says_otherwise() -> None:
    assert gunicorn_settings.bind({}) == ["127.0.0.1:8000"]
    assert gunicorn_settings.bind({"PORT": ""}) == ["127.0.0.1:8000"]
    assert gunicorn_settings.bind({"PORT": "5000"}) == ["0.0.0.0:5000"]
    assert gunicorn_settings.bind({"PORT": "0"}) == ["0.0.0.0:0"]


@pytest.mark.parametrize("port", ["http", "65536", "-1", "80 ", "8_0", "٨٠", "²"])
def test_a_bad_port_is_named(port: str) -> None:
    with pytest.raises(ConfigError, match="PORT"):
        gunicorn_settings.bind({"PORT": port})


def test_inherited_sockets_are_those_for_this_process() -> None:
    assert gunicorn_settings.disinherit({}, 7) == []
    assert gunicorn_settings.disinherit({"LISTEN_PID": "8", "LISTEN_FDS": "2"}, 7) == []
    assert gunicorn_settings.disinherit({"LISTEN_PID": "7", "LISTEN_FDS": "2"}, 7) == [3, 4]


# -- how many -------------------------------------------------------------------------


def test_workers_are_web_concurrency() -> None:
    assert gunicorn_settings.workers({"WEB_CONCURRENCY": "3"}) == 3
    assert gunicorn_settings.workers({}) >= 1


@pytest.mark.parametrize("number", ["0", "two", "-2", "1.5"])
def test_a_bad_web_concurrency_is_named(number: str) -> None:
    with pytest.raises(ConfigError, match="WEB_CONCURRENCY"):
        gunicorn_settings.workers({"WEB_CONCURRENCY": number})


@pytest.mark.parametrize(
    ("usable", "cpu_max", "expected"),
    [
        (8, "", 8),
        (8, "max 100000\n", 8),
        (8, "200000 100000\n", 2),
        (8, "150000 100000\n", 2),
        (8, "50000 100000\n", 1),
        (2, "800000 100000\n", 2),
        (8, "100000 0\n", 8),
    ],
)
def test_processors_are_bounded_by_the_quota(usable: int, cpu_max: str, expected: int) -> None:
    assert gunicorn_settings.processors(usable, cpu_max) == expected


def test_a_successor_takes_the_lowest_free_slot() -> None:
    assert gunicorn_settings.free_slot(set()) == 0
    assert gunicorn_settings.free_slot({0, 1}) == 2
    assert gunicorn_settings.free_slot({0, 2, 3}) == 1


# -- what the file says ---------------------------------------------------------------


def test_settings_come_from_the_file() -> None:
    server = replace(
        SERVER,
        limits=ServerLimits(connections=123, request_line=4000, headers=7, header=900),
        timeouts=replace(SERVER.timeouts, keepalive=12.5),
        graceful=8.2,
    )
    found = gunicorn_settings.gunicorn_settings(server, {})
    assert found["worker_connections"] == 123
    assert found["limit_request_line"] == 4000
    assert found["limit_request_fields"] == 7
    assert found["limit_request_field_size"] == 900
    assert found["keepalive"] == 13
    assert found["graceful_timeout"] == 9


def test_tls_1_2_has_suites_with_authenticated_encryption_alone() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(gunicorn_settings.gunicorn_settings(SERVER, {})["ciphers"])
    found = context.get_ciphers()
    assert any(one["protocol"] == "TLSv1.2" for one in found)
    assert all(one["aead"] and one["name"].startswith(("TLS_", "ECDHE-", "DHE-")) for one in found)


def test_what_is_off_in_the_file_is_off_in_gunicorn() -> None:
    server = replace(
        SERVER,
        limits=ServerLimits(connections=0, request_line=0, headers=0, header=0),
        timeouts=ServerTimeouts(keepalive=None),
        graceful=0,
    )
    found = gunicorn_settings.gunicorn_settings(server, {})
    # gunicorn would read 0 as "no keep-alive" and as "no client at all".
    assert found["keepalive"] > 3600
    assert found["worker_connections"] > 10_000
    assert found["limit_request_line"] == 8190
    assert found["graceful_timeout"] == 1


@pytest.mark.parametrize("limits", [ServerLimits(), ServerLimits(request_line=0, headers=99999, header=0)])
def test_gunicorn_accepts_every_setting(limits: ServerLimits) -> None:
    settings = Config()
    for name, value in gunicorn_settings.gunicorn_settings(replace(SERVER, limits=limits), {"PORT": "80"}).items():
        settings.set(name, value)


@pytest.mark.parametrize(
    ("version", "parser"),
    [("0.6.9", "python"), ("0.6.14", "fast"), ("0.10.0", "fast"), ("1.0", "fast"), (None, "python")],
)
def test_gunicorns_c_parser_is_used_only_where_it_is_strict(
    version: str | None, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(name: str) -> str:
        assert name == "gunicorn_h1c"
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    assert gunicorn_settings.http_parser() == parser


# -- what is forced -------------------------------------------------------------------


def test_nothing_is_overruled_when_nobody_meddled(cfg: Config) -> None:
    assert gunicorn_settings.force(cfg) == []


def test_forced_settings_hold(cfg: Config) -> None:
    hostile = {
        "forwarded_allow_ips": "*",
        "forwarder_headers": "SCRIPT_NAME",
        "secure_scheme_headers": {"X-FORWARDED-PROTO": "https"},
        "control_socket_disable": False,
        "http_protocols": "h1,h2",
        "http2_cleartext": "both",
        "accesslog": "-",
        "reuse_port": True,
    }
    assert hostile.keys() == gunicorn_settings.FORCED.keys()
    for name, value in hostile.items():
        cfg.set(name, value)
    assert set(gunicorn_settings.force(cfg)) == set(hostile)
    assert cfg.forwarded_allow_ips == []
    assert cfg.forwarded_allow_networks() == []
    assert cfg.forwarder_headers == []
    assert cfg.secure_scheme_headers == {}
    assert cfg.control_socket_disable is True
    assert cfg.http_protocols == ["h1"]
    assert cfg.http2_cleartext == "off"
    assert cfg.accesslog is None


# -- what a reload changes ------------------------------------------------------------


def test_a_reload_takes_what_the_file_changed(cfg: Config) -> None:
    old = gunicorn_settings.gunicorn_settings(SERVER, {})
    new = {**old, "graceful_timeout": 99, "keepalive": 3}
    assert set(gunicorn_settings.renew(cfg, old, new)) == {"graceful_timeout", "keepalive"}
    assert (cfg.graceful_timeout, cfg.keepalive) == (99, 3)


def test_a_reload_leaves_flags_alone(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gunicorn", "--keep-alive", "75", "gateway:create_app()"])
    monkeypatch.setitem(cfg.env_orig, "GUNICORN_CMD_ARGS", "--graceful-timeout=25")
    old = gunicorn_settings.gunicorn_settings(SERVER, {})
    assert gunicorn_settings.given(cfg) >= {"keepalive", "graceful_timeout"}
    assert gunicorn_settings.renew(cfg, old, {**old, "graceful_timeout": 99, "keepalive": 3}) == []


def test_a_reload_leaves_a_settings_file_of_ones_own_alone(cfg: Config) -> None:
    cfg.set("keepalive", 9)
    old = gunicorn_settings.gunicorn_settings(SERVER, {})
    assert gunicorn_settings.renew(cfg, old, {**old, "keepalive": 3}) == []
    assert cfg.keepalive == 9


# -- open files -----------------------------------------------------------------------


def test_too_few_files_are_warned_of() -> None:
    assert gunicorn_settings.too_few_files(20_256, 10_000) == ""
    assert gunicorn_settings.too_few_files(resource.RLIM_INFINITY, 10_000) == ""
    assert "20255" in gunicorn_settings.too_few_files(20_255, 10_000)


@pytest.mark.parametrize(("euid", "uid", "warned"), [(0, 0, True), (0, 1000, False), (1000, 1000, False)])
def test_serving_as_root_is_warned_of(euid: int, uid: int, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """gunicorn may be started by root and change its workers' user."""
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    assert bool(gunicorn_settings.root_warning(SimpleNamespace(uid=uid))) is warned


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard, 512), hard))
        gunicorn_settings.raise_open_files(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- the settings ----------------------------------------------------------------------


def settings_of(module: Any) -> set[str]:
    return {name for name in vars(module) if name in Config().settings}


def test_the_shipped_settings_name_nothing_of_gunicorns_by_accident(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gunicorn takes every global of the module whose name it knows."""
    document = tmp_path / "gateway.yaml"
    document.write_text('version: 1\nupstreams: {a: {endpoints: ["http://127.0.0.1:1"]}}\nroutes: []\n')
    monkeypatch.setenv("GATEWAY_CONFIG", str(document))
    from gateway.server import settings

    hooks = {"on_starting", "when_ready", "on_reload", "pre_fork", "post_fork", "post_worker_init", "worker_exit"}
    hooks |= {"pre_exec", "on_exit", "worker_int"}
    expected = set(gunicorn_settings.gunicorn_settings(SERVER, {})) | hooks | {"worker_class"}
    assert settings_of(settings) == expected


def test_the_master_imports_the_application_for_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "gateway.yaml"
    document.write_text("version: 1\nadmin: null\nupstreams: {}\nroutes: []\n")
    monkeypatch.setenv("GATEWAY_CONFIG", str(document))
    from gateway.server import settings

    imported: list[str] = []
    monkeypatch.setattr(settings, "importlib", SimpleNamespace(import_module=imported.append))
    monkeypatch.setattr(settings, "_open_admin", lambda server: None)
    settings.when_ready(SimpleNamespace())
    assert imported == ["gateway.app", "gateway.config.remote_key"]


def test_workers_and_the_next_master_share_a_key_for_cookies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "gateway.yaml"
    document.write_text('version: 1\nupstreams: {a: {endpoints: ["http://127.0.0.1:1"]}}\nroutes: []\n')
    monkeypatch.setenv("GATEWAY_CONFIG", str(document))
    from gateway.balancers.sticky import SHARED_KEY, shared_key
    from gateway.server import settings

    # What was there before is there again afterwards.
    monkeypatch.setenv(SHARED_KEY, "")
    monkeypatch.delenv(SHARED_KEY)
    importlib.reload(settings)
    key = os.environ[SHARED_KEY]
    assert len(bytes.fromhex(key)) == 32
    assert shared_key() == key
    passed_on: dict[str, str] = {}
    context = {0: sys.executable, "args": ["python", "gunicorn"], "cwd": str(tmp_path)}
    settings.pre_exec(SimpleNamespace(START_CTX=context, cfg=SimpleNamespace(env_orig=passed_on)))
    assert passed_on == {SHARED_KEY: key}
    # That one keeps it.
    importlib.reload(settings)
    assert os.environ[SHARED_KEY] == key
