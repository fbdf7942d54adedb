"""Claims that one node alone can mount: what leads the pods that mount them to one node, of whatever room."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from services.registry.cloud.kubernetes import JobOptions
from services.registry.cloud.kubernetes.manifests import archive_job, remove_job, save_job
from services.registry.cloud.port import SaveJob
from services.registry.model import Key
from services.registry.reconcile import Job
from services.scheduler.cloud.kubernetes.board_manifests import board_objects
from services.scheduler.cloud.kubernetes.identity import AttemptKey, groups_of
from services.scheduler.cloud.kubernetes.manifests import Attempt, Setting, job_manifest
from services.scheduler.cloud.kubernetes.mounts import pod_mounts
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.port import BoardPlan
from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.model import MountPlan
from services.serving.cloud.kubernetes import ServerOptions, ServingOptions
from services.serving.cloud.kubernetes.manifests import deployment_manifest, where_of
from services.serving.cloud.port import Deployment
from services.serving.model import Source
from shared.contracts.datastore import ClaimVolume
from shared.kube.manifest import marked
from shared.kube.names import LONGEST_LABEL
from shared.kube.objects import Pod
from shared.kube.own_pods import own_job
from shared.kube.settings import ProjectSettings
from shared.kube.single_node import claim_label, claims_named, neighbours, single_node, single_pod_problem
from shared.kube.states import no_room
from tests.support.kube import assert_valid
from tests.support.kube_trainings import NAMESPACE, PROJECT, launch_of
from tests.support.trainings import cluster

KEY = Key(PROJECT, "digits", 1)
RUNS = ClaimVolume(claim_name="runs", namespace=NAMESPACE)
MODELS = ClaimVolume(claim_name="models", namespace=NAMESPACE)
SETTINGS = ProjectSettings()
OWNER: dict[str, object] = {"apiVersion": "v1", "kind": "Service", "name": "s", "uid": "1"}
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"

Make = Callable[[ClaimVolume, ClaimVolume], Any]
"""What a room makes of a datastore's volume and of the model store."""


@pytest.mark.parametrize(
    ("modes", "single"),
    [
        ((), False),
        (("ReadWriteMany",), False),
        (("ReadOnlyMany",), False),
        (("ReadWriteOnce",), True),
        (("ReadWriteOnce", "ReadOnlyMany"), True),
        (("ReadWriteOnce", "ReadWriteMany"), False),
        (("ReadWriteOncePod",), False),
    ],
)
def test_how_many_nodes_can_mount_a_claim(modes: tuple[str, ...], single: bool) -> None:
    assert single_node(modes) is single
    assert bool(single_pod_problem(modes)) is ("ReadWriteOncePod" in modes)


@pytest.mark.parametrize("claim", ["runs", "team.runs-1", "0", "a" * 253, "a." * 126 + "b"])
def test_a_label_names_the_claim_and_is_legal(claim: str) -> None:
    job = own_job(archive_job(installation="e", namespace=NAMESPACE, store=store(claim)), SETTINGS)
    assert_valid(job)
    prefix, name = claim_label(claim).split("/")
    assert (prefix, len(name) <= LONGEST_LABEL) == ("claim.elearn.dev", True)
    assert name == claim or name[:40] == claim[:40]
    assert claim_label(f"{claim}x") != claim_label(claim)
    assert claims_named({"elearn.dev/room": "registry", claim_label(claim): "mounted"}) == [name]


def store(claim: str) -> ClaimVolume:
    return ClaimVolume(claim_name=claim, single_node=True)


@pytest.mark.parametrize(
    ("claims", "labels", "demands", "wishes"),
    [
        ([], [], [], []),
        (["a"], ["a"], ["a"], []),
        (["a", "a"], ["a"], ["a"], []),
        (["b", "a", "b"], ["b", "a"], ["b"], ["a"]),
    ],
)
def test_one_claim_is_a_demand_and_the_others_are_wishes(
    claims: list[str], labels: list[str], demands: list[str], wishes: list[str]
) -> None:
    found = neighbours(claims)
    assert list(found.labels) == [claim_label(claim) for claim in labels]
    assert [next(iter(_labels(term))) for term in found.demands] == [claim_label(claim) for claim in demands]
    assert [next(iter(_labels(term))) for term in found.wishes] == [claim_label(claim) for claim in wishes]
    assert bool(found.affinity()) is bool(claims)


def _labels(term: Any) -> dict[str, str]:
    assert set(term) == {"labelSelector", "topologyKey"}  # no namespaces: the pod's own
    assert term["topologyKey"] == "kubernetes.io/hostname"
    return dict(term["labelSelector"]["matchLabels"])


def _training(runs: ClaimVolume, _: ClaimVolume) -> Any:
    plans = (
        MountPlan(datastore="digits", path="data", volume=ClaimVolume(claim_name="digits"), read_only=True),
        MountPlan(datastore="runs", path="out", volume=runs),
    )
    launch = launch_of(roles=cluster(workers=2), plans=plans)
    attempt = Attempt(
        key=AttemptKey(launch.project, launch.name, 1),
        launch=launch,
        groups=groups_of(launch.plan),
        namespace=NAMESPACE,
        mounts=pod_mounts(plans, NAMESPACE),
    )
    setting = Setting(installation="e", projects=SETTINGS, options=TrainingOptions(), restarts=1, grace=1.0)
    return job_manifest(attempt, attempt.groups[-1], TensorFlow(), OWNER, setting)


def _board(runs: ClaimVolume, _: ClaimVolume) -> Any:
    mount = MountPlan(datastore="runs", path="out", volume=runs)
    board = BoardPlan(project=PROJECT, name="t-1", mount=mount, path="logs", path_prefix="/board/")
    return board_objects(board, NAMESPACE, "e", SETTINGS, TrainingOptions()).deployment


def _save(runs: ClaimVolume, models: ClaimVolume) -> Any:
    asked = SaveJob(job=Job(KEY, 1), volume=runs, path="export", shown="export")
    return own_job(save_job(asked, installation="e", namespace=NAMESPACE, store=models, options=JobOptions()), SETTINGS)


def _serving(_: ClaimVolume, models: ClaimVolume) -> Any:
    source = Source(number=1, volume=models, path="p/digits/1")
    one = Deployment(
        uid="u", project=PROJECT, name="d", model="digits", revision=1, replicas=2, sources=(source,), traffic={1: 100},
        labels={},
    )  # fmt: skip
    server = ServerOptions(cpu=1.0, memory=2**30, start_seconds=9.0, grace_seconds=1.0, max_batch=1, batch_micros=0)
    where = where_of(one, installation="e", namespace=NAMESPACE)
    return deployment_manifest(one, where, replicas=2, settings=SETTINGS, options=ServingOptions(), server=server)


def _remove(_: ClaimVolume, models: ClaimVolume) -> Any:
    return own_job(remove_job(KEY, installation="e", namespace=NAMESPACE, store=models), SETTINGS)


def _archive(_: ClaimVolume, models: ClaimVolume) -> Any:
    return own_job(archive_job(installation="e", namespace=NAMESPACE, store=models), SETTINGS)


ROOMS: list[tuple[Make, list[str]]] = [
    (_training, ["runs"]),
    (_board, ["runs"]),
    (_save, ["models", "runs"]),
    (_remove, ["models"]),
    (_archive, ["models"]),
    (_serving, ["models"]),
]


@pytest.mark.parametrize(("make", "claims"), ROOMS, ids=[make.__name__ for make, _ in ROOMS])
def test_every_pod_that_mounts_such_a_claim_names_it_and_wants_to_be_beside_it(make: Make, claims: list[str]) -> None:
    replace = msgspec.structs.replace
    made = make(replace(RUNS, single_node=True), replace(MODELS, single_node=True))
    assert_valid(marked(made, "e"))
    template = made["spec"]["template"]
    named = [claim_label(claim) for claim in claims]
    assert [label for label in template["metadata"]["labels"] if label.startswith("claim.")] == named
    affinity = template["spec"]["affinity"]["podAffinity"]
    assert [_labels(term) for term in affinity[REQUIRED]] == [{named[0]: "mounted"}]
    wished = [_labels(each["podAffinityTerm"]) for each in affinity.get(PREFERRED, ())]
    assert [labels for labels in wished if "elearn.dev/room" not in labels] == [{name: "mounted"} for name in named[1:]]
    assert not any(label.startswith("claim.") for label in made["metadata"]["labels"])
    # Such pods are not told to keep apart from each other as well.
    assert "topologySpreadConstraints" not in template["spec"]
    if "selector" in made["spec"]:
        assert made["spec"]["selector"] == make(RUNS, MODELS)["spec"]["selector"]  # it can't be changed later


@pytest.mark.parametrize("make", [make for make, _ in ROOMS], ids=[make.__name__ for make, _ in ROOMS])
def test_pods_on_claims_that_every_node_can_mount_go_where_they_fit(make: Make) -> None:
    template = make(RUNS, MODELS)["spec"]["template"]
    assert not any(label.startswith("claim.") for label in template["metadata"]["labels"])
    assert REQUIRED not in template["spec"].get("affinity", {}).get("podAffinity", {})


@pytest.mark.parametrize(
    ("labels", "message", "told"),
    [
        ({claim_label("runs"): "mounted"}, "0/2 nodes are available: 2 Insufficient cpu.", "2 Insufficient cpu."),
        (
            {claim_label("runs"): "mounted"},
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match pod affinity rules.",
            "1 node(s) didn't match pod affinity rules; it has to run on the node where others mount its storage, runs",
        ),
        ({}, "1 node(s) didn't match pod affinity rules.", "1 node(s) didn't match pod affinity rules."),
    ],
)
def test_a_node_that_is_full_is_told_as_the_one_with_the_storage(
    labels: dict[str, str], message: str, told: str
) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    pod = {"metadata": {"name": "p", "labels": labels}, "status": {"conditions": [condition]}}
    assert no_room(msgspec.convert(pod, Pod)).endswith(told)
