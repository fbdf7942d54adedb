"""Nodes that do not answer, as tables."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from services.scheduler.cloud.kubernetes.silence import given_up, silent_among, why_unended
from shared.kube.objects import Node, Pod
from tests.support.kube_attempts import at, stamp

NEVER = timedelta()


def node(name: str, status: str, since: float | None = 0) -> Node:
    ready = {"type": "Ready", "status": status, **({"lastTransitionTime": stamp(since)} if since is not None else {})}
    return msgspec.convert({"metadata": {"name": name}, "spec": {}, "status": {"conditions": [ready]}}, Node)


def pod(name: str, on: str) -> Pod:
    document: dict[str, Any] = {"metadata": {"name": name}, "spec": {"nodeName": on, "containers": []}, "status": {}}
    return msgspec.convert(document, Pod)


def test_silent_is_whom_the_cluster_has_not_heard_of() -> None:
    nodes = [
        node("a", "Unknown", 5),
        node("b", "False"),
        node("c", "True"),
        node("d", "Unknown"),
        node("e", "Unknown", None),
    ]
    assert silent_among(nodes, {"a", "b", "c", "e", "gone"}) == {"a": at(5), "e": None}


@pytest.mark.parametrize(
    ("lost_after", "now", "names"),
    [(NEVER, 10_000, []), (timedelta(seconds=60), 64, []), (timedelta(seconds=60), 65, ["x"])],
)
def test_only_what_has_been_silent_for_long_enough_is_given_up(
    lost_after: timedelta, now: float, names: list[str]
) -> None:
    left, silent = [pod("x", "a"), pod("y", "b"), pod("z", "e")], {"a": at(5), "e": None}
    assert [each.metadata.name for each in given_up(left, silent, lost_after, at(now))] == names


@pytest.mark.parametrize(
    ("silent", "lost_after", "words"),
    [
        ({}, NEVER, "pods do not end: x, y"),
        (
            {"a": at(5)},
            NEVER,
            "node a does not answer, and may still run tasks: an operator has to bring it back, or delete it once off "
            "for good",
        ),
        (
            {"b": None, "a": at(5)},
            NEVER,
            "nodes a, b do not answer, and may still run tasks: an operator has to bring them back, or delete them "
            "once off for good",
        ),
        (
            {"a": at(5)},
            timedelta(minutes=10),
            "node a does not answer; what may still run there is given up after 600 s",
        ),
    ],
)
def test_what_is_said_of_pods_that_do_not_end(silent: Any, lost_after: timedelta, words: str) -> None:
    assert why_unended([pod("y", "b"), pod("x", "a")], silent, lost_after) == words
