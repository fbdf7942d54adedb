"""Readings of quantities, paths, labels and subjects."""

import pytest

from shared.contracts.common import (
    format_memory,
    label_errors,
    parse_cpu,
    parse_duration,
    parse_memory,
    relative_path_problem,
)
from shared.contracts.datastore import Claim, DatastoreSpec, Local, Nfs, datastore_errors
from shared.contracts.event import NOUNS, subject_filter_problem, subject_of


@pytest.mark.parametrize(
    ("text", "size"),
    [("2Gi", 2**31), ("512M", 512_000_000), ("1.5Ki", 1536), (4096, 4096), ("10", 10), ("1 Gi", 2**30)],
)
def test_memory(text: str | int, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "2GB", "-1", "Gi", "1e9", "2gi", -5, "9" * 30])
def test_no_memory(text: str | int) -> None:
    with pytest.raises(ValueError, match="memory"):
        parse_memory(text)


@pytest.mark.parametrize(("text", "cores"), [("500m", 0.5), ("2", 2.0), (0.25, 0.25), ("0.5", 0.5), (0, 0.0)])
def test_cpu(text: str | float, cores: float) -> None:
    assert parse_cpu(text) == cores


@pytest.mark.parametrize("text", ["", "two", "1 core", -1, "-1", 1e9, float("nan"), float("inf")])
def test_no_cpu(text: str | float) -> None:
    with pytest.raises(ValueError, match="CPU"):
        parse_cpu(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("2d", 172800), (30, 30), ("250ms", 0.25), ("1.5h", 5400)]
)
def test_duration(text: str | int, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", 0, -3, "1h 30m", "h", "1w", "1h30", float("nan"), "99999d"])
def test_no_duration(text: str | float) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("size", "words"), [(2**31, "2Gi"), (1536 * 2**20, "1.5Gi"), (300 * 2**20, "300Mi"), (12, "12")]
)
def test_memory_in_words(size: int, words: str) -> None:
    assert format_memory(size) == words


@pytest.mark.parametrize("path", ["a", "a/b", "./a", "a/../b", "a//b"])
def test_relative_path(path: str) -> None:
    assert relative_path_problem(path) is None


@pytest.mark.parametrize("path", ["", "/a", "..", "a/../../b", "../a", "a/../..", "a\0b"])
def test_no_relative_path(path: str) -> None:
    assert relative_path_problem(path)


def test_labels() -> None:
    legal = {"team": "search", "example.org/owner": "Ada_1", "x": ""}
    assert label_errors("labels", legal) == []
    errors = label_errors("labels", {"-x": "a", "team": "no spaces", "y": "a" * 64})
    assert [error.field for error in errors] == ["labels.-x", "labels.team", "labels.y"]


def test_exactly_one_backend() -> None:
    local = Local(path="/data")
    assert datastore_errors(DatastoreSpec(name="a", local=local)) == []
    assert [e.field for e in datastore_errors(DatastoreSpec(name="a"))] == ["local"]
    two = DatastoreSpec(name="a", local=local, nfs=Nfs(server="s", path="/p"))
    assert [e.field for e in datastore_errors(two)] == ["nfs"]
    assert [e.field for e in datastore_errors(DatastoreSpec(name="a", local=Local(path="data")))] == ["local.path"]
    assert [e.field for e in datastore_errors(DatastoreSpec(name="a", claim=Claim()))] == ["claim"]


def test_subjects() -> None:
    assert subject_of("training", "running", "default", "digits-7") == "elearn.v1.training.running.default.digits-7"
    with pytest.raises(ValueError, match=r"training\.exploded"):
        subject_of("training", "exploded", "default", "digits-7")
    assert len({event for events in NOUNS.values() for event in events}) > 10


@pytest.mark.parametrize(
    "subject", [">", "elearn.>", "elearn.v1.training.failed.>", "elearn.v1.*.*.search.>", "*.v1.>"]
)
def test_subject_filter(subject: str) -> None:
    assert subject_filter_problem(subject) is None


@pytest.mark.parametrize(
    "subject", ["", "elearn..x", "elearn.>.x", "$JS.>", "other.v1", "elearn.v2.>", "elearn.v1.a b"]
)
def test_no_subject_filter(subject: str) -> None:
    assert subject_filter_problem(subject)
