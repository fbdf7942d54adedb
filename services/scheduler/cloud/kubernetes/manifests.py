"""From an attempt to the objects that run it. Pure.

Service    headless, the peers' names; owns everything else, so that deleting it leaves nothing behind
Secrets    code, or where it is; only the init container sees them
Jobs       one for each group of tasks, made suspended and let go together
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from services.scheduler.cloud.kubernetes.identity import (
    CONTAINER,
    INDEX,
    PREPARING,
    QUEUE,
    QUEUE_PRIORITY,
    ROSTER,
    TASK_PORT,
    AttemptKey,
    Group,
    Roster,
    address_of,
    attempt_labels,
    group_labels,
    job_name,
    service_name,
)
from services.scheduler.cloud.kubernetes.mounts import PodMounts
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.preparation import CODE, MODULE, VARIABLE, WORKSPACE, Preparation
from services.scheduler.cloud.port import Launch
from services.scheduler.frameworks.port import Framework
from services.scheduler.model import Demand
from shared.contracts.common import parse_duration
from shared.contracts.training import RoleName
from shared.kube.names import INSTALLATION, label_value
from shared.kube.nodes import GPU, GPU_TOLERATION
from shared.kube.own_pods import container_security, escaped, pod_security, resources_of
from shared.kube.quantities import cpu_quantity, memory_quantity
from shared.kube.settings import ProjectSettings

Document = dict[str, object]

SERVICE_ACCOUNT: Final = "elearn-task"
_HOME: Final = "/home/elearn"
_LATE_INDEX: Final = "$(ELEARN_INDEX)"
_DEADLINE_SLACK: Final = 60
"""Seconds after the deadline at which the cluster itself ends tasks, should the scheduler be away by then."""
_FIRST_ROLES: Final[tuple[RoleName, ...]] = ("chief", "ps", "worker")
_MOST_PEERS: Final = 64
_OF_KUEUE: Final = frozenset({QUEUE, QUEUE_PRIORITY})
_DISRUPTED: Final[Document] = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for every training.

    Attributes:
        restarts: how often a task that may be restarted is, within one attempt.
        grace: seconds between SIGTERM and SIGKILL.
        per_index: the cluster counts failures of each task by itself (Kubernetes 1.29 and later).
    """

    installation: str
    projects: ProjectSettings
    options: TrainingOptions
    restarts: int
    grace: float
    per_index: bool = True


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, with all that its objects are made of.

    Attributes:
        code_secrets: the Secrets that hold the code or say where it is.
    """

    key: AttemptKey
    launch: Launch
    groups: tuple[Group, ...]
    namespace: str
    mounts: PodMounts
    code_secrets: tuple[str, ...] = ()

    @property
    def in_workspace(self) -> bool:
        """Tasks start in a working directory of ours, not in the image's own."""
        return self.launch.spec.code is not None or any(not mount.path.startswith("/") for mount in self.launch.mounts)

    @property
    def prepared(self) -> bool:
        """There is something to do before the task starts."""
        alone = sum(group.count for group in self.groups) == 1
        return bool(self.code_secrets or self.mounts.folders or self.mounts.points) or not alone


def service_manifest(key: AttemptKey, groups: tuple[Group, ...], namespace: str, setting: Setting) -> Document:
    """The Service, not released yet."""
    labels = attempt_labels(key)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": service_name(key, setting.installation),
            "namespace": namespace,
            "labels": labels,
            "annotations": {ROSTER: roster_text(groups, setting, released=False)},
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {**labels, INSTALLATION: label_value(setting.installation)},
            "ports": [{"name": "tensorflow", "port": TASK_PORT, "targetPort": TASK_PORT, "protocol": "TCP"}],
        },
    }


def roster_text(groups: tuple[Group, ...], setting: Setting, *, released: bool) -> str:
    """The Service's annotation."""
    return msgspec.json.encode(Roster(groups=groups, restarts=setting.restarts, released=released)).decode()


def job_manifest(attempt: Attempt, group: Group, framework: Framework, owner: Document, setting: Setting) -> Document:
    """The Job of a group, suspended; where it has a queue, Kueue lets it go.

    Args:
        owner: a reference to the Service.
    """
    own = attempt.launch.spec.labels
    labels = {key: own[key] for key in own if key not in _OF_KUEUE} | group_labels(attempt.key, group)
    spec: Document = {
        "suspend": True,
        "completionMode": "Indexed",
        "completions": group.count,
        "parallelism": group.count,
        **_failures(group, setting),
        "template": {
            "metadata": {
                "labels": {**labels, **attempt.mounts.beside.labels},
                "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
            },
            "spec": _pod(attempt, group, framework, setting),
        },
    }
    if attempt.launch.spec.deadline is not None:
        spec["activeDeadlineSeconds"] = math.ceil(parse_duration(attempt.launch.spec.deadline)) + _DEADLINE_SLACK
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(attempt.key, group, setting.installation),
            "namespace": attempt.namespace,
            # Not the pods: Kueue would take each for work of its own.
            "labels": labels | _queued(own, setting.options),
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


def _failures(group: Group, setting: Setting) -> Document:
    """How often the cluster itself starts tasks again; what it takes away does not count."""
    restarts = setting.restarts if group.on_failure == "restart" else 0
    policy: Document = {"podFailurePolicy": {"rules": [_DISRUPTED]}} if restarts else {}
    if setting.per_index:
        return {"backoffLimitPerIndex": restarts, **policy}
    return {"backoffLimit": restarts * group.count, **policy}


def _pod(attempt: Attempt, group: Group, framework: Framework, setting: Setting) -> Document:
    projects, options = setting.projects, setting.options
    pod: Document = {
        "restartPolicy": "Never",
        # The first process of a container is not ended by SIGTERM unless it has a handler, and most programs have none:
        # here the pause container's is the first, and tasks end, and give back their GPUs, when they are told to.
        "shareProcessNamespace": True,
        "subdomain": service_name(attempt.key, setting.installation),
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": math.ceil(setting.grace),
        "securityContext": _pod_security(attempt.key.project, projects),
        "containers": [_task(attempt, group, framework, setting)],
        "volumes": _volumes(attempt, group),
        **attempt.mounts.beside.affinity(),
    }
    if attempt.prepared:
        pod["initContainers"] = [_preparing(attempt, group, setting)]
    if projects.kubernetes_image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in projects.kubernetes_image_pull_secrets]
    if options.kubernetes_priority_class:
        pod["priorityClassName"] = options.kubernetes_priority_class
    if group.demand.gpu:
        pod["tolerations"] = [GPU_TOLERATION]
    return pod


def _pod_security(project: str, projects: ProjectSettings) -> Document:
    security = pod_security(projects.kubernetes_run_as)
    if projects.may_be_root(project):
        # As the image says; files of mounted volumes are still open to our group.
        return {key: security[key] for key in ("fsGroup", "fsGroupChangePolicy", "seccompProfile")}
    return security


def _task(attempt: Attempt, group: Group, framework: Framework, setting: Setting) -> Document:
    spec, projects = attempt.launch.spec, setting.projects
    index = str(group.first) if group.first else _LATE_INDEX
    addresses = addresses_of(attempt.key, attempt.groups, attempt.namespace, setting.installation)
    words = framework.command([escaped(word) for word in spec.command], addresses, group.role, index)
    mounts: list[Document] = [{"name": "home", "mountPath": _HOME}]
    if attempt.in_workspace:
        mounts.append({"name": "workspace", "mountPath": WORKSPACE})
    if group.demand.gpu:
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108 - the container's own
    root = projects.may_be_root(attempt.key.project)
    task: Document = {
        "name": CONTAINER,
        "image": image_of(attempt.launch.spec.image, setting),
        "imagePullPolicy": projects.kubernetes_image_pull_policy,
        "command": list(words),
        "env": _environment(attempt, group, framework, setting),
        "ports": [{"name": "tensorflow", "containerPort": TASK_PORT, "protocol": "TCP"}],
        "resources": _resources(group.demand, projects),
        "securityContext": ({"allowPrivilegeEscalation": False} if root else container_security(read_only_root=False)),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*mounts, *attempt.mounts.task],
    }
    return {**task, "workingDir": WORKSPACE} if attempt.in_workspace else task


def _preparing(attempt: Attempt, group: Group, setting: Setting) -> Document:
    mounted, projects = attempt.mounts, setting.projects
    told = Preparation(
        code=attempt.launch.spec.code or "",
        folders=mounted.folders,
        points=mounted.points,
        peers=_peers(attempt, setting),
    )
    mounts: list[Document] = [*attempt.mounts.preparing, {"name": "preparing", "mountPath": "/tmp"}]  # noqa: S108
    if attempt.code_secrets:
        mounts.append({"name": "code", "mountPath": CODE, "readOnly": True})
    if attempt.in_workspace:
        mounts.append({"name": "workspace", "mountPath": WORKSPACE})
    run_as = projects.kubernetes_run_as
    return {
        "name": PREPARING,
        "image": projects.kubernetes_image,
        "imagePullPolicy": projects.kubernetes_image_pull_policy,
        "command": ["python3", "-P", "-m", MODULE],
        "env": [{"name": VARIABLE, "value": escaped(msgspec.json.encode(told).decode())}],
        # It ends before its task begins: a pod holds the most that one of the two asks for.
        "resources": resources_of(
            projects, cpu="50m", memory="64Mi", most_memory="512Mi", least_limited=cpu_quantity(group.demand.cpu)
        ),
        "securityContext": {**container_security(), "runAsNonRoot": True, "runAsUser": run_as, "runAsGroup": run_as},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _peers(attempt: Attempt, setting: Setting) -> tuple[str, ...]:
    """Names to be known before a task starts; of very many, those that all others depend on."""
    addresses = addresses_of(attempt.key, attempt.groups, attempt.namespace, setting.installation)
    hosts = [address.rpartition(":")[0] for role in _FIRST_ROLES for address in addresses.get(role, ())]
    return tuple(hosts[:_MOST_PEERS]) if len(hosts) > 1 else ()


def _volumes(attempt: Attempt, group: Group) -> list[Document]:
    volumes: list[Document] = [*attempt.mounts.volumes, {"name": "home", "emptyDir": {}}]
    if attempt.in_workspace:
        volumes.append({"name": "workspace", "emptyDir": {}})
    if attempt.prepared:
        volumes.append({"name": "preparing", "emptyDir": {}})
    if attempt.code_secrets:
        sources = [{"secret": {"name": name}} for name in attempt.code_secrets]
        volumes.append({"name": "code", "projected": {"defaultMode": 0o444, "sources": sources}})
    if group.demand.gpu:
        # What a container gets by itself, 64 MiB, is too little for GPUs that talk to each other.
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    return volumes


def _environment(attempt: Attempt, group: Group, framework: Framework, setting: Setting) -> list[Document]:
    """The index first: what follows refers to it."""
    key, spec = attempt.key, attempt.launch.spec
    annotation = f"metadata.annotations['{INDEX}']"
    late: Document = {"name": "ELEARN_INDEX", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": annotation}}}
    known: Document = {"name": "ELEARN_INDEX", "value": str(group.first)}
    addresses = addresses_of(key, attempt.groups, attempt.namespace, setting.installation)
    values = {
        "HOME": _HOME,
        "USER": "elearn",
        "LOGNAME": "elearn",
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **{name: escaped(value) for name, value in spec.env.items()},
        "ELEARN_PROJECT": key.project,
        "ELEARN_TRAINING": key.name,
        "ELEARN_ROLE": group.role,
        "ELEARN_ATTEMPT": str(key.attempt),
        **framework.environment(addresses, group.role, group.first or _LATE_INDEX),
    }
    for name in spec.secrets:
        values.pop(name, None)
    if not group.demand.gpu:
        # An image may ask for all GPUs by itself, and gets them where the runtime hands them out.
        values |= {"NVIDIA_VISIBLE_DEVICES": "none", "CUDA_VISIBLE_DEVICES": ""}
    told: list[Document] = [{"name": name, "value": value} for name, value in values.items()]
    secrets: list[Document] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}
        for name, secret in spec.secrets.items()
    ]
    return [known if group.first else late, *told, *secrets]


def _resources(demand: Demand, projects: ProjectSettings) -> Document:
    gpus = {GPU: str(demand.gpu)} if demand.gpu else {}
    return resources_of(projects, cpu=cpu_quantity(demand.cpu), memory=memory_quantity(demand.memory), gpus=gpus)


def queue_of(labels: Mapping[str, str], options: TrainingOptions) -> str:
    """Kueue's queue in which a training's Jobs wait; "": none."""
    return labels.get(QUEUE, "") or options.kubernetes_queue


def _queued(labels: Mapping[str, str], options: TrainingOptions) -> dict[str, str]:
    """What Kueue reads of a Job."""
    queue = queue_of(labels, options)
    queued = {QUEUE: queue} if queue else {}
    return {**queued, QUEUE_PRIORITY: labels[QUEUE_PRIORITY]} if queue and QUEUE_PRIORITY in labels else queued


def image_of(image: str | None, setting: Setting) -> str:
    """The image that a training runs in."""
    return image or setting.options.kubernetes_training_image or setting.projects.kubernetes_image


def addresses_of(
    key: AttemptKey, groups: Sequence[Group], namespace: str, installation: str
) -> dict[RoleName, tuple[str, ...]]:
    """Where every task of an attempt is reached, by role and index."""
    addresses: dict[RoleName, list[str]] = {}
    for group in groups:
        addresses.setdefault(group.role, []).extend(
            address_of(key, group, index, installation=installation, namespace=namespace)
            for index in range(group.first, group.first + group.count)
        )
    return {role: tuple(hosts) for role, hosts in addresses.items()}
