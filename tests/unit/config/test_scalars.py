"""`${NAME}`: replaced after parsing, in values only, once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.document import parse
from gateway.config.scalars import Replacer, Scalar
from tests.unit.config.reading import mistake, mistakes, read, server, upstream, with_upstream


def replaced(text: str, **environ: str) -> Scalar:
    root, _ = parse(b"a: " + text.encode())
    assert root is not None
    replacer = Replacer(environ)
    found = replacer.data(root)["a"]
    assert replacer.mistakes == []
    assert isinstance(found, Scalar)
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "1"),
        ("'${A}'", "1"),
        ("x${A}y${A}z", "x1y1z"),
        ("${A}${B}", "1"),
        ("${B}", ""),
        ("${B:-d}", "d"),
        ("${C:-d}", "d"),
        ("${C:-}", ""),
        ("${A:-d}", "1"),
        ("${C:-a:-b}", "a:-b"),
        ("${C:-$}", "$"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("$${A}${A}", "${A}1"),
        ("${C:-${A}", "${A"),
        ("'${C:-}}'", "}"),
        ("${D}", "${A}"),
        ("${_x9}", "u"),
    ],
)
def test_replacing(text: str, value: str) -> None:
    assert replaced(text, A="1", B="", D="${A}", _x9="u") == value


@pytest.mark.parametrize("text", ["$A", "$", "a$", "'{A}'", "$$", "$ {A}", "'$(A)'"])
def test_what_is_no_reference_stays(text: str) -> None:
    found = replaced(text, A="1")
    assert found == text.strip("'")
    assert not found.replaced


def test_a_block_scalar_is_a_scalar() -> None:
    assert replaced("|-\n  x\n  ${A}\n", A="1") == "x\n1"


@given(st.text())
def test_a_replaced_value_is_never_parsed(value: str) -> None:
    found = replaced('"${A:-x}"', A=value)
    assert found == (value or "x")
    assert found.value == found


def test_yaml_in_a_variable_is_text() -> None:
    told = mistake(with_upstream("${U}"), U="{endpoints: [http://h]}")
    assert told == "f:3:6: upstreams.u: must be a mapping"


@pytest.mark.parametrize("reference", ["${}", "${1A}", "${A-b}", "${A:b}", "${ A}", "${A", "${A.b}", "${A:=b}"])
def test_what_is_no_proper_reference_is_told(reference: str) -> None:
    told = mistake(server(f"name: '{reference}'"), A="1")
    assert told.startswith(f"f:3:9: server.name: {reference} is not a reference (")


def test_an_unset_name_is_told_where_it_stands_and_nothing_after_it() -> None:
    told = mistake(server("timeouts: {header: '${WAIT}'}"))
    assert told == (
        "f:3:22: server.timeouts.header: environment variable WAIT is not set (set it, or write ${WAIT:-default})"
    )


def test_every_unset_name_is_told() -> None:
    told = mistakes(server("name: ${A}${B}\nrequest_id: ${C}"))
    assert ["A is" in told[0], "B is" in told[1], "C is" in told[2]] == [True] * 3


def test_keys_and_comments_are_left_alone() -> None:
    assert mistake("version: 1 # ${NOPE}\nupstreams:\n  ${A}: {consul: x}\n", A="u").startswith(
        "f:3:3: upstreams.${A}: holds ${ (it is replaced in values only)"
    )


def test_replaced_text_becomes_what_the_key_wants() -> None:
    config = read(
        server(
            """\
            timeouts: {header: "${T}", body: "${ZERO}", half_close: "${ZERO}"}
            limits: {connections: "${N}", body: "${S}"}
            forwarded: ${YES}
            name: ${N}
            """
        ),
        T="7s",
        ZERO="0",
        N="12",
        S="1MiB",
        YES="true",
    )
    assert (config.server.timeouts.header, config.server.timeouts.body) == (7.0, None)
    assert config.server.timeouts.half_close == 0.0
    assert (config.server.limits.connections, config.server.limits.body) == (12, 1024 * 1024)
    assert config.server.forwarded is True
    assert config.server.name == "12"


def test_replaced_text_of_the_wrong_kind_is_told_as_it_is_written() -> None:
    told = mistake(server("limits: {connections: '${SECRET}'}"), SECRET="hunter2")
    assert "hunter2" not in told
    assert 'not "${SECRET}"' in told


def test_null_cannot_come_from_the_environment() -> None:
    assert "must be a duration" in mistake(server("timeouts: {header: '${T}'}"), T="null")


def test_a_whole_url() -> None:
    assert upstream("{endpoints: ['${URL}']}", URL="http://h:81/b").source.endpoints[0].port == 81  # type: ignore[union-attr]
