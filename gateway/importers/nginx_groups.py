"""The `upstream` blocks of nginx, times, and the notes on directives that are not carried over."""

from __future__ import annotations

import re
from typing import Any

from gateway.config import urls
from gateway.importers.draft import DraftUpstream, Note, duration
from gateway.importers.nginx_guards import Level
from gateway.importers.nginx_syntax import Directive

_LATER = " (not in this version)"
_TIME_PART = re.compile(r"([0-9]+)(ms|s|m|h|d|w|M|y)?\s*")
_DAY = 86_400_000
_TIME = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": _DAY, "w": 7 * _DAY, "M": 30 * _DAY, "y": 365 * _DAY}
_LONGEST = 8760 * 3_600_000
_REASONS = {
    "include": ": import what it holds with the rest (nginx -T prints all of it)",
    "gzip": _LATER, "proxy_cache": _LATER, "proxy_redirect": ": Location goes back as it came",
    "proxy_buffering": ": answers are never held back", "proxy_request_buffering": ": bodies are never held back",
    "proxy_http_version": ": HTTP/1.1 is spoken to every upstream", "limit_req": _LATER, "limit_conn": _LATER,
    "add_header": _LATER, "if": ": requests are treated as if it were not there",
    "mirror": ": its location passes requests on in another way than http://HOST$request_uri",
    "max_fails": ": eject counts failures in a row", "fail_timeout": ": see eject.for",
    "max_conns": ": see pool.max_connections and concurrency",
    "random": ": endpoints take turns", "hash": ": endpoints take turns, as its key has no counterpart",
    "listen": ": the address to listen on is given by -b or PORT", "access_log": ": see access_log in the file",
}  # fmt: skip


def lost(directive: Directive) -> str:
    return f"{directive.name} is not carried over{_REASONS.get(directive.name, '')}"


def time(text: str) -> str | None:
    parts = _TIME_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text.replace(" ", ""):
        return None
    milliseconds = sum(int(number[:15]) * _TIME[unit or "s"] for number, unit in parts)
    return duration(milliseconds) if milliseconds <= _LONGEST else None


# -- groups ----------------------------------------------------------------------------------


def tls(level: Level) -> dict[str, Any]:
    verify = level.last("proxy_ssl_verify")
    name = level.last("proxy_ssl_name")
    tls: dict[str, Any] = {}
    if verify is None or verify.words != ["on"]:
        tls["verify"] = False
    if name is not None and name.words and "$" not in name.words[0]:
        tls["server_name"] = name.words[0]
    return tls


def group(upstream: DraftUpstream, group: Directive, scheme: str) -> None:
    level = Level(group.block or [])
    endpoints = []
    for one in level.own("server"):
        address, *parameters = one.words or [""]
        if address.startswith("unix:"):
            upstream.notes.append(Note(one.line, f"server {address} is left out: endpoints are reached by TCP"))
            continue
        endpoint: dict[str, Any] = {"url": f"{scheme}://{_with_port(address)}"}
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "weight" and value.isdecimal():
                endpoint["weight"] = int(value[:9])
            elif key in ("backup", "down"):
                endpoint["weight"] = 0
                upstream.notes.append(Note(one.line, f"{key}: {address} has weight 0 and takes no traffic"))
            elif parameter != "max_fails=0":
                message = f"{key} of server {address} is not carried over{_REASONS.get(key, '')}"
                upstream.notes.append(Note(one.line, message))
        if any(parameter in ("backup", "down") for parameter in parameters):
            endpoint["weight"] = 0
        endpoints.append(endpoint)
    upstream.settings["endpoints"] = endpoints
    servers = [one.words[1:] for one in group.block or [] if one.name == "server"]
    if all("max_fails=0" in parameters for parameters in servers):
        upstream.settings["eject"] = None
    upstream.settings |= _balance(level)
    pool: dict[str, Any] = {}
    for one in level.own("keepalive"):
        if one.words and one.words[0].isdecimal():
            pool["max_idle"] = int(one.words[0][:9])
            upstream.notes.append(Note(one.line, "keepalive counts for the group in nginx, max_idle for each endpoint"))
    for one in level.own("keepalive_timeout"):
        length = time(" ".join(one.words))
        if length is not None:
            pool["idle_timeout"] = length
    if pool:
        upstream.settings["pool"] = pool
    upstream.notes += [Note(one.line, lost(one)) for one in level.rest()]


# What `hash` may go by: one variable that is one thing here.
_HASHED = re.compile(
    r"\$(?:(?P<client_ip>(?:binary_)?remote_addr)|(?P<path>uri)|http_(?P<header>\w+)|cookie_(?P<cookie>\w+)"
    r"|arg_(?P<query>\w+))\Z"
)


def _balance(level: Level) -> dict[str, Any]:
    """How the servers of a group are picked."""
    for name, balance in (("least_conn", "least_requests"), ("least_time", "ewma")):
        if level.own(name):
            return {"balance": balance}
    if level.own("ip_hash"):
        return {"balance": {"hash": {"by": "client_ip"}}}
    for one in level.block:
        words = one.words
        if one.name == "random" and words[:1] == ["two"]:
            level.own("random")
            return {"balance": "least_requests"}
        if one.name == "sticky" and words[:1] == ["cookie"] and len(words) > 1:
            level.own("sticky")
            return {"balance": {"sticky": {"cookie": words[1]}}}
        found = _HASHED.match(re.sub(r"[{}]", "", words[0])) if one.name == "hash" and words else None
        if found is not None:
            level.own("hash")
            return {"balance": {"hash": {"by": _hashed(found)}}}
    return {}


def _hashed(found: re.Match[str]) -> str:
    kind = found.lastgroup or ""
    if kind in ("client_ip", "path"):
        return kind
    # In the names of headers `_` stands for `-`.
    return f"{kind}:{found[kind].replace('_', '-') if kind == 'header' else found[kind]}"


def _with_port(address: str) -> str:
    """nginx's servers listen on 80 unless they say otherwise, whatever is spoken."""
    return address if ":" in address.rpartition("]")[2] else f"{address}:{urls.PORTS['http']}"
