"""Which line says what."""

from __future__ import annotations

from gateway.config.origins import Origins

TEXT = b"""\
version: 1
defaults: {timeouts: {connect: 1s}}
upstreams:
  u:
    timeouts:
      response: 5s
routes:
  - name: r
    match: {prefix: /}
"""


def test_what_is_written_has_a_line() -> None:
    origins = Origins.of(TEXT, "f.yaml")
    assert origins.line(("version",)) == 1
    assert origins.place(("defaults", "timeouts", "connect")) == "f.yaml:2"
    assert origins.place(("upstreams", "u")) == "f.yaml:4"
    assert origins.place(("upstreams", "u", "timeouts", "response")) == "f.yaml:6"
    assert origins.place(("routes", 0)) == "f.yaml:8"
    assert origins.place(("routes", 0, "match")) == "f.yaml:9"


def test_what_is_not_written_has_none() -> None:
    origins = Origins.of(TEXT, "f.yaml")
    for path in (("server",), ("routes", 1), ("upstreams", "u", "timeouts", "connect"), ("version", "x"), ("routes", "0")):
        assert (origins.line(path), origins.place(path)) == (0, "")


def test_the_nearest_is_the_first_that_is_written() -> None:
    origins = Origins.of(TEXT, "f")
    route, upstream, defaults = ("routes", 0), ("upstreams", "u"), ("defaults",)
    levels = (route, upstream, defaults)
    assert origins.nearest((*level, "timeouts", "response") for level in levels) == "f:6"
    assert origins.nearest((*level, "timeouts", "connect") for level in levels) == "f:2"
    assert origins.nearest((*level, "timeouts", "idle") for level in levels) == ""


def test_an_unreadable_document_has_no_lines() -> None:
    assert Origins.of(b"a: [", "f").place(("a",)) == ""
    assert Origins().place(("a",)) == ""
