"""From a TensorBoard to the objects that run it. Pure.

Service       where it is reached
Deployment    one pod, which mounts the volume read-only; another folder, prefix or image replaces it
"""

import posixpath
from typing import Final

import msgspec

from services.scheduler.cloud.kubernetes.identity import BOARD_WORK, ROOM_NAME, TRAINING, TRAINING_WORK, WORK
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.port import BoardPlan
from shared.contracts.datastore import ClaimVolume
from shared.errors import Unsupported
from shared.kube.names import INSTALLATION, PROJECT, ROOM, digest, label_value, object_name
from shared.kube.own_pods import LEAST_LIMITED, container_security, escaped, pod_security, resources_of
from shared.kube.settings import ProjectSettings
from shared.kube.single_node import Neighbours, near, neighbours

Document = dict[str, object]

PLAN: Final = "elearn.dev/plan"
"""Label of a board's pod: which plan it was made for."""
CONTAINER: Final = "tensorboard"
PORT: Final = 6006

_EVENTS: Final = "/elearn/events"
_MAIN: Final = """\
import socket, sys
from tensorboard.main import run_main
try:
    socket.socket(socket.AF_INET6).close()
    sys.argv.append("--bind_all")
except OSError:
    sys.argv.append("--host=0.0.0.0")
run_main()
"""
"""By whatever addresses a pod has: some clusters have IPv6 alone, and on a node without it binding to all fails."""
_POD_SUFFIX: Final = len("-0123456789-abcde")
_GRACE: Final = 2


def board_name(project: str, name: str, installation: str) -> str:
    """What Deployment and Service of a training's TensorBoard are called."""
    return object_name(installation, project, name, "board", room=_POD_SUFFIX)


def board_labels(project: str, name: str) -> dict[str, str]:
    """The labels of everything of a TensorBoard."""
    return {ROOM: ROOM_NAME, WORK: BOARD_WORK, PROJECT: project, TRAINING: name}


def image_of(options: TrainingOptions, projects: ProjectSettings) -> str:
    """What TensorBoards run in."""
    return options.kubernetes_board_image or projects.kubernetes_image


class BoardObjects(msgspec.Struct, frozen=True, kw_only=True):
    """What one TensorBoard is made of.

    Attributes:
        labels: of everything of it.
        pod_labels: of the pod that was made for this plan, with this image, and of no earlier one.
    """

    name: str
    namespace: str
    labels: dict[str, str]
    pod_labels: dict[str, str]
    service: Document
    deployment: Document


def board_objects(
    board: BoardPlan, namespace: str, installation: str, projects: ProjectSettings, options: TrainingOptions
) -> BoardObjects:
    """Deployment and Service.

    Raises:
        Unsupported: the events lie in no claim of this namespace.
    """
    name = board_name(board.project, board.name, installation)
    labels = board_labels(board.project, board.name)
    selector = {**labels, INSTALLATION: label_value(installation)}
    about: Document = {"name": name, "namespace": namespace, "labels": labels}
    claim = _claim_of(board, namespace)
    beside = neighbours([claim.claim_name] if claim.single_node else [])
    pod = _pod(board, claim, beside, installation, projects, options)
    pod_labels = {**labels, **beside.labels, PLAN: digest(msgspec.json.encode(pod, order="sorted").decode())}
    service: Document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": about,
        "spec": {
            "type": "ClusterIP",
            "selector": selector,
            "ports": [{"name": "http", "port": PORT, "targetPort": PORT, "protocol": "TCP"}],
        },
    }
    deployment: Document = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": about,
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 0,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": pod_labels}, "spec": pod},
        },
    }
    return BoardObjects(
        name=name, namespace=namespace, labels=labels, pod_labels=pod_labels, service=service, deployment=deployment
    )


def events_folder(board: BoardPlan) -> str:
    """Where the event files lie in the pod.

    Raises:
        Unsupported: that is outside of what is mounted.
    """
    folder = posixpath.normpath(posixpath.join(_EVENTS, board.path))
    if folder != _EVENTS and not folder.startswith(f"{_EVENTS}/"):
        raise Unsupported(f"{board.path!r} leaves datastore {board.mount.datastore!r}: TensorBoard can't show it")
    return folder


def _pod(
    board: BoardPlan,
    claim: ClaimVolume,
    beside: Neighbours,
    installation: str,
    projects: ProjectSettings,
    options: TrainingOptions,
) -> Document:
    # The whole volume is mounted, read-only: of a folder below it that is not there yet, the kubelet would make one of
    # root's, in which the training could write nothing.
    events: Document = {"name": "events", "mountPath": _EVENTS, "readOnly": True}
    if claim.sub_path:
        events["subPath"] = claim.sub_path
    prefix = board.path_prefix.rstrip("/")
    container: Document = {
        "name": CONTAINER,
        "image": image_of(options, projects),
        "imagePullPolicy": projects.kubernetes_image_pull_policy,
        "command": ["python3", "-P", "-c", _MAIN],
        "args": [
            f"--logdir={escaped(events_folder(board))}",
            f"--port={PORT}",
            f"--path_prefix={escaped(prefix)}",
            "--load_fast=false",
        ],
        "env": [
            {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the container's own
            {"name": "NVIDIA_VISIBLE_DEVICES", "value": "none"},
        ],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {
            "httpGet": {"path": f"{prefix}/data/environment", "port": PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
        },
        "resources": resources_of(projects, cpu="100m", memory="512Mi", most_memory="2Gi", least_limited=LEAST_LIMITED),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [events, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - the container's own
    }
    pod: Document = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE,
        "securityContext": pod_security(projects.kubernetes_run_as),
        **beside.affinity(_near_the_training(board, installation)),
        "containers": [container],
        "volumes": [
            # Not read-only as a volume: some storage is then attached in a way that no pod that writes can share.
            {"name": "events", "persistentVolumeClaim": {"claimName": claim.claim_name}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    }
    if projects.kubernetes_image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in projects.kubernetes_image_pull_secrets]
    return pod


def _near_the_training(board: BoardPlan, installation: str) -> Document:
    """Beside the training while it runs: some claims that many nodes may mount have a volume of one node."""
    return near(
        {
            ROOM: ROOM_NAME,
            WORK: TRAINING_WORK,
            PROJECT: board.project,
            TRAINING: board.name,
            INSTALLATION: label_value(installation),
        }
    )


def _claim_of(board: BoardPlan, namespace: str) -> ClaimVolume:
    volume = board.mount.volume
    if not isinstance(volume, ClaimVolume):
        raise Unsupported(f"datastore {board.mount.datastore!r} is no claim of this cluster: TensorBoard can't show it")
    if volume.namespace not in ("", namespace):
        raise Unsupported(
            f"datastore {board.mount.datastore!r} lies in namespace {volume.namespace}, its project in {namespace}"
        )
    return volume
