"""YAML as the 1.2 core schema has it, with places."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import document
from gateway.config.document import Leaf, Mapping, Sequence, locate, parse, resolve


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("True", True),
        ("TRUE", True),
        ("false", False),
        ("null", None),
        ("Null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("010", 10),
        ("0o17", 15),
        ("0xfF", 255),
        ("1.10", 1.1),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("-1.5E-3", -0.0015),
        (".inf", math.inf),
        ("-.INF", -math.inf),
    ],
)
def test_core_schema_resolves(text: str, value: object) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "on",
        "off",
        "yes",
        "no",
        "y",
        "n",
        "On",
        "YES",
        "10:20",
        "1:20:30.5",
        "2020-01-01",
        "2020-01-01T00:00:00Z",
        "1_000",
        "0b101",
        "0x",
        "0o8",
        "-0x1",
        "-0o7",
        "tRUE",
        "nULL",
        "<<",
        "=",
        ".",
        "+",
        "-",
        "e3",
        "1e",
        "1.5.2",
        "0.0.0.0",
        "inf",
        "nan",
        "5s",
        "20%",
        " 5",
        "١٢",
    ],
)
def test_everything_else_is_text(text: str) -> None:
    assert resolve(text) == text


def test_nan_is_a_number() -> None:
    assert all(math.isnan(resolve(text)) for text in (".nan", ".NaN", ".NAN"))  # type: ignore[arg-type]


def test_absurdly_long_numbers_are_text() -> None:
    assert resolve("9" * 5000) == "9" * 5000


def leaves(text: str) -> dict[str, object]:
    root, mistakes = parse(text.encode())
    assert mistakes == []
    assert isinstance(root, Mapping)
    return {key: entry.node.value for key, entry in root.entries.items() if isinstance(entry.node, Leaf)}


def test_only_plain_scalars_are_resolved() -> None:
    told = leaves("a: 1\nb: '1'\nc: \"true\"\nd: |-\n  null\ne: >-\n  2\nf: on\n")
    assert told == {"a": 1, "b": "1", "c": "true", "d": "null", "e": "2", "f": "on"}


def test_keys_are_their_text() -> None:
    assert leaves("1: a\ntrue: b\n~: c\n<<: d\n1.10: e\n") == {"1": "a", "true": "b", "~": "c", "<<": "d", "1.10": "e"}


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), max_size=40))
def test_quoted_text_comes_back_as_it_was(text: str) -> None:
    assert leaves(yaml.safe_dump({"a": text}, default_style='"', allow_unicode=True)) == {"a": text}


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    root, mistakes = parse(data)
    assert root is not None or mistakes or not data.strip() or b"#" in data or data.strip() in (b"...", b"\xef\xbb\xbf")


def only(text: str | bytes) -> str:
    mistakes = parse(text.encode() if isinstance(text, str) else text)[1]
    assert len(mistakes) == 1, mistakes
    return mistakes[0].told("f")


def test_a_key_given_twice_is_told_with_both_places() -> None:
    assert only("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n") == "f:5:3: b.c: given twice (the first is at 3:3)"


def test_each_repetition_is_told() -> None:
    _, mistakes = parse(b"a: 1\na: 2\na: 3\n")
    assert [(one.line, one.col, one.message) for one in mistakes] == [
        (2, 1, "given twice (the first is at 1:1)"),
        (3, 1, "given twice (the first is at 1:1)"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: !!str 5", "f:1:4: a: tag tag:yaml.org,2002:str (tags are not allowed)"),
        ("a: ! 5", "f:1:4: a: tag ! (tags are not allowed)"),
        ("a: [!x {}]", "f:1:5: a[0]: tag !x (tags are not allowed)"),
        ("!!str a: 5", "f:1:1: a: tag tag:yaml.org,2002:str (tags are not allowed)"),
        (
            "a: !!python/object/apply:os.system [x]",
            "f:1:4: a: tag tag:yaml.org,2002:python/object/apply:os.system (tags are not allowed)",
        ),
        ("a: 1\n---\nb: 1", "f:2:1: several documents in one file (one is allowed)"),
        ("a: 1\n...\n---\n", "f:3:1: several documents in one file (one is allowed)"),
        ("%YAML 1.1\n---\na: 1", "f:1:1: is read as YAML 1.2 (leave the %YAML line out)"),
        ("? [a]\n: 1", "f:1:3: a key must be a plain or quoted word"),
        ("a: *b", "f:1:4: alias *b has no anchor &b before it"),
        ("a: &b [*b]", "f:1:8: alias *b stands inside what it names"),
        ("&b a: 1", "f:1:1: a: anchor on a key (put it on the value)"),
        (b"a: 1\nb: \xc3\xa9\xff", "f:2:5: is not UTF-8"),
        ("a: 1\nb: x\x07", "f:2:5: is not YAML: control characters are not allowed"),
    ],
)
def test_what_is_not_allowed(text: str | bytes, told: str) -> None:
    assert only(text) == told


@pytest.mark.parametrize(
    ("text", "line", "col"),
    [("a: [1,\n", 2, 1), ("a: b: c\n", 1, 5), ("\ta: 1\n", 1, 1), ("a: 1\n b: 2\n", 2, 3), ("a: @x", 1, 4)],
)
def test_syntax_errors_have_a_place(text: str, line: int, col: int) -> None:
    root, mistakes = parse(text.encode())
    assert root is None
    assert [(one.line, one.col) for one in mistakes] == [(line, col)]
    assert mistakes[0].message.startswith("is not YAML: ")


def test_what_was_found_before_a_syntax_error_is_told_too() -> None:
    _, mistakes = parse(b"a: 1\na: 2\nb: [\n")
    assert [one.line for one in mistakes] == [2, 4]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n...\n", "\ufeff"])
def test_nothing_is_no_mapping(text: str) -> None:
    root, mistakes = parse(text.encode())
    assert mistakes == []
    assert root is None or (isinstance(root, Leaf) and root.value is None)


def test_a_byte_order_mark_is_no_text() -> None:
    assert leaves("\ufeffa: 1") == {"a": 1}


@pytest.mark.parametrize("text", ["%YAML 1.2\n---\na: 1\n", "a: 1\n...\n", "a: 1\r\n", "{a: 1}"])
def test_forms_that_are_fine(text: str) -> None:
    assert leaves(text) == {"a": 1}


def test_at_most_eight_mebibytes() -> None:
    fits = b"a: 1 #" + b"x" * (document.LIMIT - 6)
    root, mistakes = parse(fits)
    assert (type(root), mistakes) == (Mapping, [])
    root, mistakes = parse(fits + b"x")
    assert root is None
    assert mistakes[0].message == "is longer than a configuration may be (8 MiB)"


def test_aliases_share_what_they_name() -> None:
    root, mistakes = parse(b"a: &x {b: 1}\nc: *x\n")
    assert mistakes == []
    assert isinstance(root, Mapping)
    assert root.entries["c"].node is root.entries["a"].node


def test_an_anchor_may_be_used_again() -> None:
    root, mistakes = parse(b"a: &x 1\nb: *x\nc: &x 2\nd: *x\n")
    assert mistakes == []
    assert isinstance(root, Mapping)
    assert [entry.node.value for entry in root.entries.values() if isinstance(entry.node, Leaf)] == [1, 1, 2, 2]


def laughs(levels: int) -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    return "\n".join(lines).encode()


def test_aliases_unfold_to_a_bounded_size() -> None:
    assert parse(laughs(4))[1] == []
    told = only(laughs(40))
    assert told.endswith("aliases unfold to more than 100000 nodes")


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 10_000, "{a: " * 10_000])
def test_depth_is_bounded(text: str) -> None:
    assert only(text).endswith("nested too deep (at most 64 levels)")


def test_depth_that_is_allowed() -> None:
    assert parse(b"[" * 64 + b"]" * 64)[1] == []


def test_places_are_of_characters() -> None:
    root, _ = parse("é: {ü: 1}".encode())
    assert root is not None
    assert locate(root, ("é", "ü")) == document.Place(1, 8, ("é", "ü"))
    assert locate(root, ("é", "ü"), key=True) == document.Place(1, 5, ("é", "ü"))


def test_a_path_that_the_file_does_not_have_leads_to_what_is_around_it() -> None:
    root, _ = parse(b"routes:\n  - match: {host: a}\n")
    assert isinstance(root, Mapping)
    assert isinstance(root.entries["routes"].node, Sequence)
    assert locate(root, ("routes", 0, "match", 0, "host")) == document.Place(2, 19, ("routes", 0, "match", "host"))
    assert locate(root, ("routes", 7, "name")).path == ("routes",)
    assert locate(root, ("server", "name")) == document.Place(1, 1, ())


def test_dotted() -> None:
    assert document.dotted(("routes", 0, "match", "host")) == "routes[0].match.host"
    assert document.dotted(()) == ""
