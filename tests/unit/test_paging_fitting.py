"""A page never grows past what one message takes."""

from shared.paging import fitting


def test_fitting() -> None:
    assert fitting([], 10) == []
    assert fitting(["x" * 100], 10) == ["x" * 100]
    assert fitting(["a" * 8, "b", "c"], 12) == ["a" * 8, "b"]
    assert fitting(["a", "b"], 100) == ["a", "b"]
