"""Names, quantities, manifests, pauses: rules as tables."""

import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Internal
from shared.kube.backoff import Backoff
from shared.kube.changes import Identity
from shared.kube.errors import Asked, error_of, read_status
from shared.kube.known import Known, News, older
from shared.kube.manifest import head_of, marked
from shared.kube.names import INSTALLATION, field_manager, label_value, labels_of, object_name, selector_text
from shared.kube.objects import Metadata, owner_reference
from shared.kube.quantities import cores, cpu_quantity, memory_quantity, quantity, whole
from shared.kube.resources import ALL, JOBS, NODES, PODS, resource_of
from tests.support.kube import schema_errors

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")


# -- names ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4), st.integers(0, 20))
def test_names_are_legal_and_stable(parts: list[str], room: int) -> None:
    name = object_name("elearn", *parts, room=room)
    assert len(name) <= 63 - room
    assert DNS_1035.fullmatch(name)
    assert name == object_name("elearn", *parts, room=room)


def test_a_name_is_the_same_in_every_release() -> None:
    assert object_name("elearn", "default", "digits-1", "worker") == NAME
    assert object_name("elearn", "2022", "-") == DIGITS


NAME = "default-digits-1-worker-dfsrwchn"
DIGITS = "e2022-vkmppssj"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("elearn", "a", "b-c"), ("elearn", "a-b", "c")),
        (("elearn", "a"), ("staging", "a")),
        (("elearn", "A"), ("elearn", "a")),
        (("elearn", "x" * 80 + "1"), ("elearn", "x" * 80 + "2")),
    ],
)
def test_different_things_have_different_names(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert object_name(*one) != object_name(*other)


def test_a_name_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="no name of"):
        object_name("elearn", "a", room=60)


@given(st.text(max_size=100))
def test_label_values_are_legal(text: str) -> None:
    value = label_value(text)
    assert len(value) <= 63
    assert LABEL.fullmatch(value)


def test_legal_label_values_stay() -> None:
    assert label_value("search-1.0_x") == "search-1.0_x"
    assert label_value("") == ""
    assert label_value("a b") != label_value("a/b")


def test_labels_and_managers_of_installations() -> None:
    assert labels_of("staging", {"team": "a b"})[INSTALLATION] == "staging"
    assert field_manager("elearn") == "elearn"
    assert field_manager("staging") == "elearn:staging"


def test_selectors() -> None:
    assert selector_text({"b": ("x", "y"), "a": "1", "c": None}) == "a=1,b in (x,y),c"


# -- quantities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("250m", 0.25), ("2", 2.0), (2, 2.0), (0.5, 0.5), ("1500m", 1.5), ("0", 0.0), ("100u", 0.0001), ("1e1", 10.0)],
)
def test_cores(text: Any, value: float) -> None:
    assert cores(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("128974848", 128974848),
        ("129e6", 129000000),
        ("129M", 129000000),
        ("128974848000m", 128974848),
        ("123Mi", 123 * 2**20),
        ("15Ei", 15 * 2**60),
        ("0.5Gi", 2**29),
        ("1500m", 2),
        (8, 8),
        ("1E", 10**18),
        ("1E3", 1000),
    ],
)
def test_whole(text: Any, value: int) -> None:
    assert whole(text) == value


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "1.2.3", "1Zi", "--1", "1e", "nan"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        quantity(text)


@given(st.integers(0, 10**6))
def test_cpu_there_and_back(thousandths: int) -> None:
    assert cores(cpu_quantity(thousandths / 1000)) == pytest.approx(thousandths / 1000)


@given(st.integers(0, 2**50))
def test_memory_there_and_back(size: int) -> None:
    assert whole(memory_quantity(size)) == size


def test_quantities_as_written() -> None:
    assert (cpu_quantity(2.0), cpu_quantity(0.25), cpu_quantity(0.0001)) == ("2", "250m", "1m")
    assert (memory_quantity(2**31), memory_quantity(1500 * 2**20), memory_quantity(1000001)) == (
        "2Gi",
        "1500Mi",
        "1000001",
    )


# -- manifests --------------------------------------------------------------------------------------------------------


def test_paths() -> None:
    assert PODS.path("ns", "a", "log") == "/api/v1/namespaces/ns/pods/a/log"
    assert JOBS.path() == "/apis/batch/v1/jobs"
    assert NODES.path("ignored", "n1") == "/api/v1/nodes/n1"
    assert {resource_of(each.api_version, each.kind) for each in ALL} == set(ALL)


def test_marking_leaves_the_drivers_own_document_alone() -> None:
    given_: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "a", "labels": {"x": "y"}},
        "spec": {"selector": {"matchLabels": {"x": "y"}}, "template": {"metadata": {"labels": {"x": "y"}}, "spec": {}}},
    }
    sent: dict[str, Any] = marked(given_, "staging")
    assert sent["metadata"]["labels"] == {"x": "y", INSTALLATION: "staging", "app.kubernetes.io/managed-by": "elearn"}
    assert sent["spec"]["template"]["metadata"]["labels"][INSTALLATION] == "staging"
    assert sent["spec"]["selector"] == {"matchLabels": {"x": "y"}}
    assert given_["metadata"]["labels"] == {"x": "y"}
    assert head_of(given_, "ns").namespace == "ns"


@pytest.mark.parametrize("broken", [{}, {"apiVersion": "v9", "kind": "Pod", "metadata": {"name": "a"}}])
def test_a_manifest_of_no_kind_is_our_own_fault(broken: dict[str, Any]) -> None:
    with pytest.raises(Internal, match="manifest of ours"):
        head_of(broken, "ns")


def test_an_owner_waits_for_nobody() -> None:
    """Whoever says that it does needs ``update`` on its finalizers where OwnerReferencesPermissionEnforcement is on."""
    reference = owner_reference("v1", "Service", Metadata(name="a", uid="1"))
    assert reference == {"apiVersion": "v1", "kind": "Service", "name": "a", "uid": "1"}


def test_schemas_of_the_oldest_and_the_newest_are_checked() -> None:
    fine = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
    assert schema_errors(fine) == []
    errors = schema_errors({**fine, "dada": {}})
    assert [error.partition(":")[0] for error in errors] == ["1.28.0", "1.36.0"]


# -- what is known ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "than", "is_older"),
    [("9", "10", True), ("10", "9", False), ("10", "10", False), ("", "1", False), ("abc", "1", False)],
)
def test_older(version: str, than: str, is_older: bool) -> None:
    assert older(version, than) is is_older


def test_only_newer_states_are_news() -> None:
    known, a = Known(), Identity("ns", "a", "1")
    assert known.told(a, "5") == (None, News.ADDED)
    assert known.told(a, "5") == (None, News.NONE)
    assert known.told(a, "4") == (None, News.NONE)
    assert known.told(a, "11") == (None, News.MODIFIED)
    assert known.told(Identity("ns", "a", "2"), "12") == (a, News.ADDED)
    assert not known.gone(a)
    assert known.gone(Identity("ns", "a", "2"))
    assert not known.gone(Identity("ns", "a", "2"))


def test_a_whole_list_tells_what_has_gone() -> None:
    known = Known()
    for name in "cab":
        known.told(Identity("ns", name, name), "1")
    known.begin_list()
    known.told(Identity("ns", "b", "b"), "1")
    assert [identity.name for identity in known.end_list()] == ["a", "c"]
    assert len(known) == 1


# -- pauses and words -------------------------------------------------------------------------------------------------


def test_pauses_grow_to_a_limit_with_jitter_and_begin_again() -> None:
    backoff = Backoff(first=1.0, longest=8.0, chance=random.Random(1))
    pauses = [backoff.next() for _ in range(6)]
    for pause, step in zip(pauses, (1, 2, 4, 8, 8, 8), strict=True):
        assert step / 2 <= pause <= step
    assert len(set(pauses)) == 6
    assert backoff.next(at_least=30) == 30
    backoff.reset()
    assert backoff.next() <= 1.0


def test_an_answer_that_is_no_status_is_told_in_one_line() -> None:
    error = error_of(read_status(502, b"<html>\n\n Bad\nGateway</html>"), Asked(verb="list", plural="pods"))
    assert error.detail == "Kubernetes, asked to list pods: <html> Bad Gateway</html>"
    assert error.status == 503
