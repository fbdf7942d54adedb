"""Claims, volumes and paths: rules as tables."""

import pytest
from msgspec.structs import replace

from shared.kube.names import INSTALLATION
from shared.kube.objects import ClaimReference, Metadata, Volume, VolumeSpec
from shared.kube.storage import freeing, lies_in

OURS = {INSTALLATION: "elearn"}
HELD = ClaimReference(namespace="n", name="data", uid="old")


@pytest.mark.parametrize(
    ("labels", "held", "freed"),
    [
        (OURS, HELD, True),
        (OURS, replace(HELD, uid="new"), False),
        (OURS, replace(HELD, uid=""), False),
        (OURS, replace(HELD, name="other"), False),
        (OURS, replace(HELD, namespace="other"), False),
        ({INSTALLATION: "other"}, HELD, False),
        ({}, HELD, False),
    ],
)
def test_a_volume_of_ours_is_freed_from_an_earlier_claim_of_the_same_name(
    labels: dict[str, str], held: ClaimReference, freed: bool
) -> None:
    volume = Volume(metadata=Metadata(name="v", labels=labels, resource_version="7"), spec=VolumeSpec(claim_ref=held))
    claim = Metadata(name="data", namespace="n", uid="new")
    change = {
        "metadata": {"resourceVersion": "7"},
        "spec": {"claimRef": {"uid": None, "resourceVersion": None}},
    }
    assert freeing(volume, claim, "elearn") == (change if freed else None)


@pytest.mark.parametrize(
    ("path", "folder", "lies"),
    [
        ("/a", "/a", True),
        ("/a/b", "/a", True),
        ("//a//b/", "/a/", True),
        ("/a/../b", "/b", True),
        ("/ab", "/a", False),
        ("/", "/a", False),
        ("/a", "/", True),
        ("/a/../..", "/a", False),
    ],
)
def test_where_a_path_lies(path: str, folder: str, lies: bool) -> None:
    assert lies_in(path, folder) is lies
