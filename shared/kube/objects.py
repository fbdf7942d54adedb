"""What elearn reads of Kubernetes objects: small structs that skip everything else. Pure.

A watch or a list decodes straight into one of these, or into a struct that a driver wrote of its own (with a
``metadata`` field), so that what nobody reads is never built. Fields keep the API's names in snake case.
"""

from datetime import datetime
from typing import Protocol

import msgspec

Quantity = str | int | float
"""As the API writes it; see :mod:`shared.kube.quantities`."""


class View(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of all that is read. ``rename`` is inherited; unknown fields are skipped, unlike at our own boundaries."""


class Owner(View, frozen=True, kw_only=True):
    """An owner reference."""

    kind: str
    name: str
    uid: str
    controller: bool = False


class Metadata(View, frozen=True, kw_only=True):
    """What every object carries; ``deletion_timestamp`` lies the grace period after the moment it was deleted."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[Owner, ...] = ()


class HasMetadata(Protocol):
    """Any struct that a list or a watch can read."""

    @property
    def metadata(self) -> Metadata: ...


class Partial(View, frozen=True, kw_only=True):
    """An object of any kind of which only the metadata matter."""

    metadata: Metadata


class Condition(View, frozen=True, kw_only=True):
    """A condition of any kind of object; ``status`` is True, False or Unknown, as text."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


# -- pods -------------------------------------------------------------------------------------------------------------


class Resources(View, frozen=True, kw_only=True):
    """What a container asks for."""

    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class Container(View, frozen=True, kw_only=True):
    name: str
    image: str = ""
    resources: Resources = Resources()
    restart_policy: str = ""  # Always, in an init container: a sidecar


class PodSpec(View, frozen=True, kw_only=True):
    node_name: str = ""
    hostname: str = ""
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    overhead: dict[str, Quantity] = {}


class Waiting(View, frozen=True, kw_only=True):
    reason: str = ""
    message: str = ""


class Running(View, frozen=True, kw_only=True):
    started_at: datetime | None = None


class Terminated(View, frozen=True, kw_only=True):
    exit_code: int
    signal: int = 0
    reason: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None


class ContainerState(View, frozen=True, kw_only=True):
    """Exactly one is set, or none before the kubelet has seen the container."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(View, frozen=True, kw_only=True):
    name: str
    ready: bool = False
    restart_count: int = 0
    image_id: str = msgspec.field(name="imageID", default="")
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class PodStatus(View, frozen=True, kw_only=True):
    """``phase`` is Pending, Running, Succeeded, Failed or Unknown."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    host_ip: str = msgspec.field(name="hostIP", default="")
    pod_ip: str = msgspec.field(name="podIP", default="")
    start_time: datetime | None = None
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class Pod(View, frozen=True, kw_only=True):
    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


# -- workloads --------------------------------------------------------------------------------------------------------


class JobSpec(View, frozen=True, kw_only=True):
    suspend: bool = False
    completions: int | None = None
    parallelism: int | None = None


class JobStatus(View, frozen=True, kw_only=True):
    active: int = 0
    ready: int = 0
    succeeded: int = 0
    failed: int = 0
    terminating: int = 0
    completed_indexes: str = ""
    failed_indexes: str = ""
    start_time: datetime | None = None
    completion_time: datetime | None = None
    conditions: tuple[Condition, ...] = ()


class Job(View, frozen=True, kw_only=True):
    metadata: Metadata
    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()


class DeploymentSpec(View, frozen=True, kw_only=True):
    replicas: int = 1
    paused: bool = False


class DeploymentStatus(View, frozen=True, kw_only=True):
    observed_generation: int = 0
    replicas: int = 0
    updated_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    unavailable_replicas: int = 0
    conditions: tuple[Condition, ...] = ()


class Deployment(View, frozen=True, kw_only=True):
    metadata: Metadata
    spec: DeploymentSpec = DeploymentSpec()
    status: DeploymentStatus = DeploymentStatus()


class AutoscalerStatus(View, frozen=True, kw_only=True):
    current_replicas: int = 0
    desired_replicas: int = 0
    conditions: tuple[Condition, ...] = ()


class Autoscaler(View, frozen=True, kw_only=True):
    metadata: Metadata
    status: AutoscalerStatus = AutoscalerStatus()


# -- the cluster ------------------------------------------------------------------------------------------------------


class Taint(View, frozen=True, kw_only=True):
    key: str
    value: str = ""
    effect: str


class NodeSpec(View, frozen=True, kw_only=True):
    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()


class NodeStatus(View, frozen=True, kw_only=True):
    capacity: dict[str, Quantity] = {}
    allocatable: dict[str, Quantity] = {}
    conditions: tuple[Condition, ...] = ()


class Node(View, frozen=True, kw_only=True):
    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ClaimSpec(View, frozen=True, kw_only=True):
    volume_name: str = ""
    storage_class_name: str | None = None
    access_modes: tuple[str, ...] = ()


class ClaimStatus(View, frozen=True, kw_only=True):
    """``phase`` is Pending, Bound or Lost."""

    phase: str = "Pending"
    capacity: dict[str, Quantity] = {}


class Claim(View, frozen=True, kw_only=True):
    metadata: Metadata
    spec: ClaimSpec = ClaimSpec()
    status: ClaimStatus = ClaimStatus()


class VolumeStatus(View, frozen=True, kw_only=True):
    """``phase`` is Pending, Available, Bound, Released or Failed."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""


class ClaimReference(View, frozen=True, kw_only=True):
    """The claim that a volume is for; ``uid`` is there once it was bound, and stays when the claim goes."""

    namespace: str = ""
    name: str = ""
    uid: str = ""


class VolumeSpec(View, frozen=True, kw_only=True):
    claim_ref: ClaimReference = ClaimReference()


class Volume(View, frozen=True, kw_only=True):
    metadata: Metadata
    spec: VolumeSpec = VolumeSpec()
    status: VolumeStatus = VolumeStatus()


class ServicePort(View, frozen=True, kw_only=True):
    port: int
    name: str = ""
    node_port: int = 0


class ServiceSpec(View, frozen=True, kw_only=True):
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    type: str = "ClusterIP"
    ports: tuple[ServicePort, ...] = ()


class Service(View, frozen=True, kw_only=True):
    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()


class StorageClass(View, frozen=True, kw_only=True):
    metadata: Metadata
    provisioner: str
    volume_binding_mode: str = "Immediate"
    reclaim_policy: str = "Delete"


class Secret(View, frozen=True, kw_only=True):
    """Values are bytes: the API's base64 is undone by msgspec."""

    metadata: Metadata
    type: str = "Opaque"
    data: dict[str, bytes] = {}


class InvolvedObject(View, frozen=True, kw_only=True):
    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""


class Event(View, frozen=True, kw_only=True):
    """Something the cluster says of an object: FailedScheduling, FailedMount, ProvisioningFailed."""

    metadata: Metadata
    type: str = "Normal"
    reason: str | None = ""
    message: str | None = ""
    count: int | None = None
    last_timestamp: datetime | None = None
    event_time: datetime | None = None
    involved_object: InvolvedObject = InvolvedObject()


def condition(conditions: tuple[Condition, ...], kind: str) -> Condition | None:
    """The condition of that type, if there is one."""
    return next((each for each in conditions if each.type == kind), None)


def is_true(conditions: tuple[Condition, ...], kind: str) -> bool:
    """Whether the condition of that type is there and True."""
    found = condition(conditions, kind)
    return found is not None and found.status == "True"


def owner_reference(api_version: str, kind: str, metadata: Metadata, *, controller: bool = False) -> dict[str, object]:
    """A manifest's reference to its owner: when that goes, it goes too.

    Nothing of ours is deleted in the foreground, so nothing blocks its owner: on some clusters that takes a right to
    the owner's finalizers.
    """
    reference: dict[str, object] = {
        "apiVersion": api_version,
        "kind": kind,
        "name": metadata.name,
        "uid": metadata.uid,
    }
    return {**reference, "controller": True} if controller else reference
