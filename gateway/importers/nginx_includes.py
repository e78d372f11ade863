"""`include` in nginx's configuration: what the files hold takes the directive's place.

Two sources: the output of `nginx -T`, which prints every file behind a line with its name, and
the files themselves, where the imported file stands among them.

Rule: an include that cannot be read stays in place and counts as a guard (nginx_guards), except
for a few files that come with nginx and contain no access rules. Only regular files are read,
within limits of number, size and depth.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.config.document import LIMIT
from gateway.errors import ConfigError, Mistake
from gateway.importers.nginx_syntax import Directive, parse
from gateway.importers.source_fields import decoded

# Files within files, and files in all.
DEPTH = 16
MOST_FILES = 1000
# Files of nginx and certbot without access rules.
HARMLESS = frozenset(
    {"mime.types", "fastcgi_params", "fastcgi.conf", "scgi_params", "uwsgi_params", "koi-utf", "koi-win", "win-utf",
     "options-ssl-nginx.conf"}
)  # fmt: skip
# Blocks that no directive of a location stands in.
_DATA = frozenset({"charset_map", "events", "geo", "mail", "map", "match", "split_clients", "stream", "types"})
# What Debian's file says that a gateway does not do by itself.
_PROXY_PARAMS = "proxy_params"
_MARKER = re.compile(r"# configuration file (/[^\n]*):[ \t\r]*\Z")


@dataclass(frozen=True, slots=True)
class _File:
    """`line`: where its text begins in the imported document; 0: it is another file."""

    name: str
    text: str
    line: int


# The files that an include names; None when that cannot be said.
_Source = Callable[[str], list[_File] | None]


def read(data: bytes, name: str, path: Path | None) -> tuple[list[Directive], list[str]]:
    """The directives of a document with those of included files in their place, and the names of
    files that were read from disk. `path`: where the document is, if it is a file.

    Raises `ConfigError` for what cannot be parsed, and for files that are too many or too large.
    """
    text = decoded(data, name)
    dumped = _dumped(text, name)
    if dumped is not None:
        first, *others = dumped
        found = _Dump(dumped)
        expansion = _Expansion(found.files, name, dumped=True)
        directives = expansion.expanded(parse(first.text, name, first.line), 0, 0)
        unread = [one for one in others if one.name not in found.used and _base(one.name) not in HARMLESS]
        if unread:
            message = f"{unread[0].name} is not included by any other file: give all that nginx -T prints"
            raise ConfigError.found(name, [Mistake(unread[0].line - 1, 1, "", message)])
        return directives, []
    disk = _Disk(path)
    expansion = _Expansion(disk.files, name, dumped=False)
    return expansion.expanded(parse(text, name), 0, 0), disk.read


class _Expansion:
    def __init__(self, source: _Source, name: str, *, dumped: bool) -> None:
        self._source = source
        self._name = name
        self._dumped = dumped
        self._files = 0
        self._left = LIMIT

    def expanded(self, directives: list[Directive], depth: int, line: int) -> list[Directive]:
        """The directives with every readable include replaced. `line`: the line of the include, if the
        directives come from another file; they get that line, since notes have no file name."""
        found: list[Directive] = []
        for one in directives:
            if line:
                one.line = line
            if one.name == "include" and len(one.words) == 1 and one.block is None:
                found += self._included(one, depth)
                continue
            # Data blocks guard nothing, so their files are not opened.
            if one.block and (self._dumped or one.name not in _DATA):
                one.block = self.expanded(one.block, depth, line)
            found.append(one)
        return found

    def _included(self, include: Directive, depth: int) -> list[Directive]:
        pattern = include.words[0]
        base = _base(pattern)
        files = None if base in HARMLESS else self._source(pattern)
        if files is None:
            include.known = base in HARMLESS or base == _PROXY_PARAMS
            assumed = [Directive("proxy_set_header", ["Host", "$http_host"], include.line)]
            return [include, *(assumed if base == _PROXY_PARAMS else [])]
        if depth >= DEPTH:
            raise self._wrong(include, f"include {pattern}: files within files deeper than {DEPTH} levels")
        self._files += len(files)
        if self._files > MOST_FILES:
            raise self._wrong(include, f"include {pattern}: more than {MOST_FILES} files")
        # Counted each time: one large file may be included often.
        self._left -= sum(len(file.text) for file in files)
        if self._left < 0:
            raise self._wrong(include, f"include {pattern}: included files are longer than {LIMIT // 1024 // 1024} MiB")
        found: list[Directive] = []
        for file in files:
            inner = parse(file.text, self._name if file.line else file.name, file.line or 1)
            found += self.expanded(inner, depth + 1, 0 if file.line else include.line)
        return found

    def _wrong(self, include: Directive, message: str) -> ConfigError:
        return ConfigError.found(self._name, [Mistake(include.line, 1, "", message)])


# -- the output of nginx -T ----------------------------------------------------------------


def _dumped(text: str, name: str) -> list[_File] | None:
    """The files that `nginx -T` printed; None for any other text. Before the first marker only
    comments and nginx's own messages may stand."""
    lines = text.split("\n")
    starts: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        marker = _MARKER.match(line)
        if marker is not None:
            starts.append((number, marker[1]))
        elif not starts and line.strip() and not line.lstrip().startswith(("#", "nginx: ")):
            return None
    if not starts:
        return None
    ends = [number for number, _ in starts[1:]] + [len(lines)]
    found: dict[str, _File] = {}
    for (start, file), end in zip(starts, ends, strict=True):
        one = _File(file, "\n".join(lines[start + 1 : end]), start + 2)
        # Old versions print a file each time it is included.
        if found.setdefault(file, one).text.strip() != one.text.strip():
            raise ConfigError.found(name, [Mistake(start + 1, 1, "", f"{file} is there twice, and differs")])
    return list(found.values())


class _Dump:
    """Files by their names. Relative names are relative to the folder of the first file."""

    def __init__(self, files: list[_File]) -> None:
        self._folder = files[0].name.rpartition("/")[0]
        self._by_name = {file.name: file for file in files}
        self.used: set[str] = set()

    def files(self, pattern: str) -> list[_File] | None:
        whole = pattern if pattern.startswith("/") else f"{self._folder}/{pattern}"
        if glob.has_magic(whole):
            # `*` does not reach over a slash.
            parts = whole.split("/")
            found = [name for name in sorted(self._by_name) if _matches(name.split("/"), parts)]
        elif whole in self._by_name:
            found = [whole]
        else:
            return None
        self.used |= set(found)
        return [self._by_name[name] for name in found]


def _matches(name: list[str], pattern: list[str]) -> bool:
    return len(name) == len(pattern) and all(map(fnmatch.fnmatchcase, name, pattern))


# -- files ---------------------------------------------------------------------------------


class _Disk:
    """Files where nginx would look for them: relative names are relative to the folder of
    nginx.conf, which is the imported file's own or one around it."""

    def __init__(self, path: Path | None) -> None:
        self._folder = None if path is None else _folder(path)
        self.read: list[str] = []

    def files(self, pattern: str) -> list[_File] | None:
        if self._folder is None:
            return None
        whole = os.path.join(self._folder, pattern)
        if not glob.has_magic(whole):
            names = [whole]
        else:
            names = sorted(glob.glob(whole))
            folder = os.path.dirname(whole)
            if not names and (glob.has_magic(folder) or not os.access(folder, os.R_OK | os.X_OK)):
                return None
        files: list[_File] = []
        for name in names:
            text = self._text(name)
            if text is None:
                return None
            files.append(_File(name, text, 0))
        self.read += names
        return files

    def _text(self, name: str) -> str | None:
        try:
            # O_NONBLOCK: a pipe that nobody writes to is not waited for.
            with open(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
                if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                    return None
                data = opened.read(LIMIT + 1)
        except OSError:
            return None
        return decoded(data, name)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _folder(path: Path) -> str:
    folders = list(path.absolute().parents)
    return str(next((one for one in folders if (one / "nginx.conf").is_file()), folders[0]))
