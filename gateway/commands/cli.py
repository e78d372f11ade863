"""The `gateway` command.

Rule: a command says what is wrong and ends with 1. `run` validates and then becomes
gunicorn: nothing of this process is left, so neither ssl nor urllib3 may be imported here
before gevent has patched them there.
"""

from __future__ import annotations

import gzip
import ipaddress
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import click

from gateway import config
from gateway.commands import wording
from gateway.config import environment, source
from gateway.config.document import LIMIT
from gateway.config.schema import json_schema
from gateway.errors import ConfigError
from gateway.hosting import gunicorn_settings
from gateway.model import Config, Match, Route
from gateway.routing import match_text, router
from gateway.upstreams import own_addresses

# HOST:PORT, [IPv6]:PORT, :PORT; gunicorn takes unix sockets and inherited ones too.
_BIND = re.compile(r"((?P<host>[^:\[\]/]*|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})|unix:.+|fd://[0-9]+)\Z")

# More than a record with the longest target can have.
_LONGEST_LINE = 1024 * 1024

_file = click.argument("file")
_config = click.option("-c", "--config", "path", metavar="FILE", help="The configuration; see GATEWAY_CONFIG.")
_json = click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
_header = click.option(
    "-H",
    "--header",
    "headers",
    metavar="'K: V'",
    multiple=True,
    callback=lambda *given: _headers(given[2]),
    help="A header of the request; may be repeated.",
)

_bound = click.option(
    "-b", "--bind", metavar="HOST:PORT", callback=lambda *given: _bind(given[2]), help="Where to listen."
)

Headers = tuple[tuple[str, str], ...]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wsgi-gateway", prog_name="gateway")
def main() -> None:
    """A microservice API gateway."""


@main.command()
@_file
@click.option("--live", is_flag=True, help="Ask registries and endpoints whether they are there.")
@_bound
def check(file: str, live: bool, bind: str | None) -> None:
    """Tell every mistake in FILE at once."""
    if live:
        _patch()
    found = _loaded(file)
    own = own_addresses.planned(found, _binds(bind))
    _warn_of(own, found)
    if os.geteuid() == 0:
        click.echo(f"warning: {gunicorn_settings.AS_ROOT}", err=True)
    click.echo(f"ok: {_count(found.routes, 'route')}, {_count(found.upstreams, 'upstream')}")
    if live:
        from gateway.commands import live_check

        checked = live_check.check(found, refusal=own.refusal)
        for line in live_check.told(checked):
            click.echo(wording.printable(line))
        raise SystemExit(1 if any(one.wrong for one in checked) else 0)


def _binds(bind: str | None) -> list[str]:
    """Where `gateway run` with the same flag and environment listens for clients."""
    try:
        return [bind] if bind is not None else gunicorn_settings.bind(os.environ)
    except ConfigError as error:
        _fail(str(error))


def _warn_of(own: own_addresses.Listeners, found: Config) -> None:
    """Print the endpoints of the file that are listeners of the gateway."""
    warnings = list(own_addresses.warnings(found, own))
    if not warnings:
        return
    origins = config.origins(found)
    for path, message in warnings:
        click.echo(f"warning: {origins.told(path, message)}", err=True)


def _patch() -> None:
    """Make what waits cooperative, before anything imports what would wait otherwise."""
    from gevent import monkey

    monkey.patch_all()


@main.command()
@_config
def routes(path: str | None) -> None:
    """Print the routes in the order in which they are tried."""
    found = _loaded(path)
    rows = [_row(route, match) for route, match in router.Router(found.routes).ordered()]
    for line in _table(("PRIORITY", "HOST", "PATH", "METHODS", "CONDITIONS", "ROUTE", "UPSTREAM"), rows):
        click.echo(line)


@main.command()
@click.argument("method")
@click.argument("url")
@_config
@_header
@click.option(
    "--peer",
    metavar="ADDRESS",
    callback=lambda *given: _peer(given[2]),
    help="Who connects; by default somebody who is trusted by nobody.",
)
@_json
def explain(method: str, url: str, path: str | None, headers: Headers, peer: str | None, as_json: bool) -> None:
    """Tell what would become of a request: the route that wins, why others lose, what the upstream gets."""
    from gateway.commands import explain, imagined_request

    found = _loaded(path)
    given = imagined_request.question(method, url, headers, imagined_request.SOMEWHERE if peer is None else peer)
    try:
        told = explain.explain(found, given, config.origins(found))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _print(explain.told(told), told, as_json)
    raise SystemExit(0 if told.forwarded else 2)


@main.command()
@click.argument("old")
@click.argument("new")
@click.option("--requests", "log", metavar="ACCESS_LOG", help="Replay the requests of this log (also gzipped).")
@_json
def diff(old: str, new: str, log: str | None, as_json: bool) -> None:
    """Tell what changes from OLD to NEW. Ends with 0: nothing, 1: something, 2: trouble."""
    from gateway.commands import diff

    before, after = _loaded(old, 2), _loaded(new, 2)
    found = diff.Difference(tuple(diff.changes(before, after)))
    if log is not None:
        try:
            found = replace(found, replay=diff.replay(before, after, _lines(log)))
        except (OSError, EOFError, zlib.error) as error:
            _fail(f"{log}: cannot be read: {error}", 2)
    _print(diff.told(found), found, as_json)
    raise SystemExit(1 if found.changes else 0)


@main.command("import")
@click.argument("source", type=click.Choice(["traefik", "kong", "fabio", "nginx"]))
@_file
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="OUT", help="Write there.  [default: stdout]")
def import_(source: str, file: str, output: str | None) -> None:
    """Turn FILE, a configuration of another gateway, into ours.

    What could not be carried over stands in the result as comments.
    """
    from gateway import importers

    try:
        with open(file, "rb") as opened:
            text = importers.imported(source, opened.read(LIMIT + 1), file, Path(file))
        if output is None:
            click.echo(text, nl=False)
        else:
            with open(output, "w", encoding="utf-8") as written:
                written.write(text)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    except ConfigError as error:
        _fail(str(error))


@main.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file."""
    click.echo(json.dumps(json_schema(), indent=2))


@main.command()
@_config
@_bound
@click.option("-w", "--workers", type=click.IntRange(min=1), metavar="N", help="Number of worker processes.")
@click.option(
    "--admin",
    metavar="HOST:PORT|inline|off",
    callback=lambda *given: _admin(given[2]),
    help="Where status and metrics are told.",
)
def run(path: str | None, bind: str | None, workers: int | None, admin: str | None) -> None:
    """Check the configuration, then serve it with gunicorn."""
    if admin is not None:
        os.environ["GATEWAY_ADMIN"] = admin
    found = _loaded(path, load=_on_this_machine)
    try:
        gunicorn_settings.gunicorn_settings(found.server, os.environ)
    except ConfigError as error:
        _fail(str(error))
    os.environ["GATEWAY_CONFIG"] = source.parse(found.path).absolute()
    # Output that waits in this process would be lost with it.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command(bind, workers))


def command(bind: str | None, workers: int | None) -> list[str]:
    """The command line of gunicorn that serves."""
    given = [sys.executable, "-m", "gunicorn", "-c", "python:gateway.server.settings"]
    if bind is not None:
        given += ["-b", bind]
    if workers is not None:
        given += ["-w", str(workers)]
    return [*given, "gateway:create_app()"]


def _on_this_machine(path: str | None) -> Config:
    """What can be said without a registry: one that is away stops no gateway from starting."""
    return config.starting(os.environ if path is None else {**os.environ, "GATEWAY_CONFIG": path})


def _loaded(path: str | None, trouble: int = 1, load: Callable[[str | None], Config] = config.load) -> Config:
    """The configuration, its warnings told; ends the command when there are mistakes."""
    try:
        found = load(path)
        router.Router(found.routes)
    except ConfigError as error:
        _fail(str(error), trouble)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    return found


def _fail(told: str, status: int = 1) -> NoReturn:
    click.echo(told, err=True)
    raise SystemExit(status)


def _lines(path: str) -> Iterator[bytes]:
    """The lines of a log, whether it was gzipped or not; a very long one in pieces."""
    with open(path, "rb") as plain:
        zipped = plain.read(2) == b"\x1f\x8b"
        plain.seek(0)
        with gzip.open(plain) if zipped else plain as file:
            yield from iter(partial(file.readline, _LONGEST_LINE), b"")


def _print(lines: Iterable[str], told: Any, as_json: bool) -> None:
    """What a command found, as text or as JSON."""
    if as_json:
        click.echo(json.dumps(asdict(told), indent=2))
        return
    for line in lines:
        click.echo(wording.printable(line))


def _headers(given: tuple[str, ...]) -> Headers:
    fields = [header.partition(":") for header in given]
    if not all(name and colon for name, colon, _ in fields):
        raise click.BadParameter("a header is 'Name: value'")
    return tuple((name, value.strip(" \t")) for name, _, value in fields)


def _peer(given: str | None) -> str | None:
    try:
        return given and str(ipaddress.ip_address(given))
    except ValueError as error:
        raise click.BadParameter(f"{error}") from None


def _bind(given: str | None) -> str | None:
    if given is None:
        return None
    found = _BIND.match(given)
    if found is None or int(found["port"] or 0) > 65535:
        raise click.BadParameter(f"{given} is no HOST:PORT")
    return given


def _admin(given: str | None) -> str | None:
    try:
        return None if given is None else environment.admin(given)
    except ValueError as error:
        raise click.BadParameter(f"{error}") from None


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}" if len(things) == 1 else f"{len(things)} {noun}s"


def _row(route: Route, match: Match) -> tuple[str, ...]:
    return (
        str(route.priority),
        match.host or "*",
        match_text.told_path(match),
        ",".join(sorted(match.methods)) or "*",
        "; ".join(match_text.told_conditions(match)) or "-",
        route.name,
        wording.told_end(route) + ("" if route.mirror is None else f", {wording.told_mirror(route.mirror)}"),
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
