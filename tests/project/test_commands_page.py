"""docs/commands.md shows what the commands print: each is run again."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.commands import cli

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")
FILES = re.findall(r"```yaml\n(# (\S+)\n.*?)```", PAGE, re.DOTALL)
LOG = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = re.findall(r"```console\n\$ gateway (.*?)\n(.*?)```", PAGE, re.DOTALL)


def test_there_is_something_to_run() -> None:
    assert [name for _, name in FILES] == ["gateway.yaml", "new.yaml", "odd.yaml"]
    assert len(LOG) == 1
    assert {command.split()[0] for command, _ in COMMANDS} == {"explain", "diff", "check"}


@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_the_page_shows_what_is_printed(
    command: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text, name in FILES:
        (tmp_path / name).write_text(text)
    (tmp_path / "access.log").write_text(LOG[0])
    monkeypatch.chdir(tmp_path)
    # As an ordinary user, whoever runs the tests.
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = CliRunner().invoke(cli.main, shlex.split(command))
    assert found.stdout + found.stderr == shown
