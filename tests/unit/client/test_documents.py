"""Spec files: YAML 1.2, several documents, lines in errors, --set."""

from pathlib import Path
from typing import Any

import pytest

from elearn.client.documents import Document, parse_documents, read_documents
from shared.contracts.training import TrainingSpec
from shared.errors import Invalid, Malformed

TRAINING = """\
kind: training
name: digits
command: [python, train.py]
env: {MODE: on, DAY: 2026-01-31, TIME: 12:30, LEVEL: "2"}
roles:
  worker: &worker
    replicas: 2
    cpu: .5
  ps:
    <<: *worker
    replicas: 1
"""


def one(text: str) -> Document:
    (document,) = parse_documents(text, "digits.yaml", Path("/specs"))
    return document


def test_words_stay_words_and_numbers_become_numbers() -> None:
    spec = one(TRAINING).spec("training", TrainingSpec)
    assert spec.env == {"MODE": "on", "DAY": "2026-01-31", "TIME": "12:30", "LEVEL": "2"}
    assert spec.roles.worker is not None
    assert spec.roles.worker.cpu == 0.5
    assert spec.roles.ps is not None
    assert (spec.roles.ps.replicas, spec.roles.ps.cpu) == (1, 0.5)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("yes", "yes"),
        ("off", "off"),
        ("~", None),
        ("", None),
        ("012", 12),
        ("0o17", 15),
        ("0x10", 16),
        ("-3", -3),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("1:30", "1:30"),
        ("2h", "2h"),
        ("'1'", "1"),
        ("=", "="),
        ("[1, a]", [1, "a"]),
    ],
)
def test_scalars_are_read_as_yaml_1_2_has_them(text: str, value: object) -> None:
    assert one(f"x: {text}").data == {"x": value}


def test_several_documents_and_empty_ones() -> None:
    found = parse_documents("---\nname: a\n---\n# nothing\n---\nname: b\n---\n", "x.yaml", Path())
    assert [each.data["name"] for each in found] == ["a", "b"]
    assert found[1].place("name") == "x.yaml:6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"x\.yaml:1: while parsing a flow sequence"),
        ("a: 1\nb: 2\na: 3", r"x\.yaml:3: the field 'a' is there twice"),
        ("a: 1\n\tb: 2", r"x\.yaml:2: .*'\\t'"),
        ("a: *b", r"x\.yaml:1: found undefined alias 'b'"),
        ("a: &a {b: *a}", r"x\.yaml:1: an alias holds itself"),
        ("a: !!python/object:os.system x", r"x\.yaml:1: the tag 'python/object:os.system' is not known"),
        ("? [a]\n: 1", r"x\.yaml:1: a field's name must be a word"),
        ("<<: 3", r"x\.yaml:1: `<<` takes a mapping"),
        ("a: \x01", r"x\.yaml: "),
        (f"a: {'9' * 5000}", r"x\.yaml:1: a number this long"),
        ("", "no document"),
        ("[" * 5000, r"x\.yaml: nested too deeply"),
    ],
)
def test_what_is_not_yaml_is_told_with_its_line(text: str, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        parse_documents(text, "x.yaml", Path())


def test_a_document_is_a_mapping() -> None:
    with pytest.raises(Invalid, match=r"x\.yaml:2: a spec is a mapping"):
        parse_documents("\n- a", "x.yaml", Path())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bogus: 1", r"digits\.yaml:12: bogus: unknown field"),
        ("retries: many", r"digits\.yaml:12: retries: expected `int`"),
        ("mounts:\n- datastore: d\n  path: p\n  read-only: true", r"digits\.yaml:15: mounts\.0\.read-only: unknown"),
        ("labels: {a: 1, b: x, c: true}", r"digits\.yaml:12: labels\.a: must be text.*labels\.c: must be text"),
        ("save: {model: m}", r"digits\.yaml:12: save\.path: required"),
    ],
)
def test_refused_fields_are_told_with_their_lines(change: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        one(TRAINING + change).spec("training", TrainingSpec)


def test_the_kind_is_checked() -> None:
    with pytest.raises(Invalid, match=r"digits\.yaml:1: kind: expected a serving, got 'training'"):
        one(TRAINING).spec("serving", TrainingSpec)


def within(document: Document, *path: str | int) -> object:
    at: Any = document.data
    for part in path:
        at = at[part]
    return at


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("roles.worker.replicas=3", ("roles", "worker", "replicas"), 3),
        ("roles.chief.memory=2Gi", ("roles", "chief", "memory"), "2Gi"),
        ("command.1=other.py", ("command", 1), "other.py"),
        ("command=[a, 'b c']", ("command",), ["a", "b c"]),
        (r"labels.example\.org/team=search", ("labels", "example.org/team"), "search"),
        ("env.EXPRESSION=a=b", ("env", "EXPRESSION"), "a=b"),
        ("env.EMPTY=''", ("env", "EMPTY"), ""),
        ("deadline=", ("deadline",), None),
    ],
)
def test_set(assignment: str, path: tuple[str | int, ...], value: object) -> None:
    document = one(TRAINING)
    document.set(assignment)
    assert within(document, *path) == value


def test_set_leaves_what_an_alias_shares_alone() -> None:
    document = one(TRAINING)
    document.set("roles.worker.cpu=4")
    assert within(document, "roles", "ps", "cpu") == 0.5


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("replicas", "write it like"),
        ("=3", "write it like"),
        ("a..b=3", "write it like"),
        ("name.first=x", "name has no 'first'"),
        ("command.9=x", "command has no '9'"),
        ("a=[", "--set a: "),
    ],
)
def test_assignments_that_can_not_be_made(assignment: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        one(TRAINING).set(assignment)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="does not exist"):
        read_documents(tmp_path / "none.yaml")
    with pytest.raises(Malformed, match="is a folder"):
        read_documents(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Malformed, match="is not text"):
        read_documents(tmp_path / "binary")
    (tmp_path / "big").write_text("#" * (4 << 20) + "\n\n")
    with pytest.raises(Malformed, match="larger than 4 MiB"):
        read_documents(tmp_path / "big")


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a")
    (document,) = read_documents(tmp_path / "a.yaml")
    assert document.folder == tmp_path
