"""What the cluster is told of TensorBoards, and of what a project's namespace needs."""

import errno
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from services.scheduler.cloud.kubernetes.board_manifests import BoardObjects, board_objects
from services.scheduler.cloud.kubernetes.furniture import account_manifest, policy_manifests
from services.scheduler.cloud.kubernetes.identity import AttemptKey, attempt_labels, attempt_of
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.port import BoardPlan
from services.scheduler.model import MountPlan
from services.scheduler.spec import find_output
from shared.contracts.datastore import ClaimVolume, HostPathVolume, LocalVolume
from shared.errors import Unsupported
from shared.kube.manifest import marked
from shared.kube.settings import ProjectSettings
from tests.support.kube import assert_valid

MOUNT = MountPlan(
    datastore="runs", path="out", read_only=False, folder="ctr-7", volume=ClaimVolume(claim_name="runs", sub_path="top")
)
BOARD = BoardPlan(
    project="search", name="ctr-7", mount=MOUNT, path="ctr-7/logs", path_prefix="/v1/p/search/t/ctr-7/board/"
)
NAMESPACE = "elearn-search"


def objects(
    board: BoardPlan = BOARD, projects: ProjectSettings | None = None, options: TrainingOptions | None = None
) -> BoardObjects:
    return board_objects(board, NAMESPACE, "elearn", projects or ProjectSettings(), options or TrainingOptions())


def pod_of(made: BoardObjects) -> dict[str, Any]:
    deployment: dict[str, Any] = marked(made.deployment, "elearn")
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return pod


def test_everything_is_what_kubernetes_takes() -> None:
    projects = ProjectSettings(kubernetes_image_pull_secrets=("registry",))
    made = objects(projects=projects)
    assert_valid(marked(made.service, "elearn"), marked(made.deployment, "elearn"))
    assert pod_of(made)["imagePullSecrets"] == [{"name": "registry"}]
    for control in (None, "", "elearn"):
        policies = policy_manifests("search", NAMESPACE, "elearn", control=control)
        assert_valid(*(marked(each, "elearn") for each in policies))
    assert_valid(marked(account_manifest(NAMESPACE), "elearn"))


def test_a_board_reads_one_volume_and_may_do_nothing() -> None:
    pod = pod_of(objects())
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    events, _ = container["volumeMounts"]
    assert events == {"name": "events", "mountPath": "/elearn/events", "readOnly": True, "subPath": "top"}
    assert pod["volumes"][0] == {"name": "events", "persistentVolumeClaim": {"claimName": "runs"}}
    assert container["command"][:3] == ["python3", "-P", "-c"]
    assert "--logdir=/elearn/events/ctr-7/logs" in container["args"]
    assert "--path_prefix=/v1/p/search/t/ctr-7/board" in container["args"]
    assert container["readinessProbe"]["httpGet"]["path"].startswith("/v1/p/search/t/ctr-7/board/")


@pytest.mark.parametrize(("families", "flag"), [("both", "--bind_all"), ("IPv4 alone", "--host=0.0.0.0")])
def test_a_board_answers_by_every_address_of_its_pod(families: str, flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard itself ends where its node was started without IPv6."""
    ran: list[list[str]] = []
    main = SimpleNamespace(run_main=lambda: ran.append(sys.argv))
    monkeypatch.setitem(sys.modules, "tensorboard.main", main)
    monkeypatch.setitem(sys.modules, "tensorboard", SimpleNamespace(main=main))
    monkeypatch.setattr(sys, "argv", ["-c", "--port=6006"])

    def opened(family: socket.AddressFamily) -> SimpleNamespace:
        assert family == socket.AF_INET6
        if families != "both":
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(socket, "socket", opened)
    (container,) = pod_of(objects())["containers"]
    exec(container["command"][3], {})  # noqa: S102 - the program of the pod
    assert ran == [["-c", "--port=6006", flag]]


def test_a_board_gets_enough_cpu_to_start_where_it_is_limited() -> None:
    (container,) = pod_of(objects(projects=ProjectSettings(kubernetes_cpu_limits=True)))["containers"]
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "512Mi"},
        "limits": {"memory": "2Gi", "cpu": "500m"},
    }


def test_the_service_finds_the_pod_and_no_training_does() -> None:
    made = objects()
    deployment: dict[str, Any] = marked(made.deployment, "elearn")
    service: dict[str, Any] = marked(made.service, "elearn")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert made.pod_labels.items() <= labels.items()
    assert attempt_of(labels) is None


def selector(of: BoardObjects) -> object:
    deployment: dict[str, Any] = of.deployment
    return deployment["spec"]["selector"]


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"path": "other"}, TrainingOptions()),
        ({"path_prefix": "/x"}, TrainingOptions()),
        ({"mount": replace(MOUNT, volume=ClaimVolume(claim_name="other"))}, TrainingOptions()),
        ({}, TrainingOptions(kubernetes_board_image="tensorflow/tensorflow:2.21.0")),
    ],
)
def test_another_plan_is_another_pod_of_the_same_board(change: dict[str, Any], options: TrainingOptions) -> None:
    before, after = objects(), objects(replace(BOARD, **change), options=options)
    assert before.name == after.name
    assert before.pod_labels != after.pod_labels
    assert selector(before) == selector(after)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mount": replace(MOUNT, volume=LocalVolume(path="/x"))}, "no claim"),
        ({"mount": replace(MOUNT, volume=HostPathVolume(path="/x"))}, "no claim"),
        ({"mount": replace(MOUNT, volume=ClaimVolume(claim_name="a", namespace="b"))}, "lies in namespace b"),
        ({"path": "../other"}, "leaves datastore"),
        ({"path": "/etc"}, "leaves datastore"),
    ],
)
def test_what_can_not_be_shown(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        objects(replace(BOARD, **change))


def test_the_path_is_the_one_in_the_volume() -> None:
    mount = replace(MOUNT, path="out/x")
    found = find_output((mount,), "out/x/logs")
    assert found is not None
    args = pod_of(objects(replace(BOARD, mount=found[0], path=found[1])))["containers"][0]["args"]
    assert args[0] == "--logdir=/elearn/events/ctr-7/logs"


def test_names_are_taken_as_they_are() -> None:
    args = pod_of(objects(replace(BOARD, path="$(HOME)/a b")))["containers"][0]["args"]
    assert args[0] == "--logdir=/elearn/events/$$(HOME)/a b"


# -- furniture -------------------------------------------------------------------------------------------------------


def _matches(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    selector: dict[str, str] = policy["spec"]["podSelector"]["matchLabels"]
    return selector.items() <= labels.items()


def _policies(control: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    training, board = policy_manifests("search", NAMESPACE, "elearn", control=control)
    return training, board


def _labels(manifest: dict[str, Any], installation: str = "elearn") -> dict[str, str]:
    made: dict[str, Any] = marked({"metadata": manifest}, installation)
    labels: dict[str, str] = made["metadata"]["labels"]
    return labels


def test_policies_are_about_our_tasks_and_boards_alone() -> None:
    task = {"labels": attempt_labels(AttemptKey("search", "ctr-7", 2))}
    board = {"labels": objects().pod_labels}
    training_policy, board_policy = _policies("elearn")
    assert _matches(training_policy, _labels(task))
    assert not _matches(training_policy, _labels(board))
    assert _matches(board_policy, _labels(board))
    assert not _matches(board_policy, _labels(task))
    for policy in (training_policy, board_policy):
        assert not _matches(policy, _labels(task, "other"))
        assert policy["spec"]["policyTypes"] == ["Ingress"]


@pytest.mark.parametrize(
    ("control", "ingress"),
    [
        ("", []),
        (None, [{"ports": [{"protocol": "TCP", "port": 6006}]}]),
        (
            "control",
            [
                {
                    "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "control"}}}],
                    "ports": [{"protocol": "TCP", "port": 6006}],
                }
            ],
        ),
    ],
)
def test_who_may_reach_boards(control: str | None, ingress: list[Any]) -> None:
    assert _policies(control)[1]["spec"]["ingress"] == ingress


def test_tasks_hear_from_tasks_of_their_project_alone() -> None:
    """Several projects may share a namespace."""
    task = _labels({"labels": attempt_labels(AttemptKey("search", "ctr-7", 2))})
    stranger = _labels({"labels": attempt_labels(AttemptKey("ads", "ctr-7", 2))})
    policy = _policies("elearn")[0]
    ((peer,),) = (rule["from"] for rule in policy["spec"]["ingress"])
    assert peer["podSelector"]["matchLabels"].items() <= task.items()
    assert "namespaceSelector" not in peer
    assert not peer["podSelector"]["matchLabels"].items() <= stranger.items()
    assert not _matches(policy, stranger)
    others = policy_manifests("ads", NAMESPACE, "elearn", control=None)
    names = {each["metadata"]["name"] for each in (*_policies(None), *others)}
    assert len(names) == 4


def test_the_account_of_tasks_has_no_token() -> None:
    assert account_manifest(NAMESPACE)["automountServiceAccountToken"] is False
