"""How much room nodes have, and who else has some of it. Pure."""

import math
from collections.abc import Callable, Iterable
from sys import intern
from typing import Final

import msgspec

from services.scheduler.cloud.kubernetes.identity import TRAINING_WORK, WORK
from services.scheduler.model import Demand, NodeState
from shared.kube.names import INSTALLATION, label_value
from shared.kube.nodes import GPU, is_usable
from shared.kube.objects import Container, Metadata, Node, Quantity, Resources, View
from shared.kube.quantities import quantity, whole

_GPU_TYPE: Final = "nvidia.com/gpu.product"


class HoldingSpec(View, frozen=True, kw_only=True):
    """What a pod asks for; ``resources`` are the whole pod's, where it names them."""

    node_name: str = ""
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] = ()
    overhead: dict[str, Quantity] = msgspec.field(default_factory=dict)
    resources: Resources = Resources()


class HoldingStatus(View, frozen=True, kw_only=True):
    phase: str = "Pending"


class HoldingPod(View, frozen=True, kw_only=True):
    """A pod, as far as it takes room."""

    metadata: Metadata
    spec: HoldingSpec = HoldingSpec()
    status: HoldingStatus = HoldingStatus()


class Amount(msgspec.Struct, frozen=True, gc=False):
    """Thousandths of cores, bytes, GPUs: whole numbers, of which sums are exact."""

    cpu: int = 0
    memory: int = 0
    gpu: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.cpu + other.cpu, self.memory + other.memory, self.gpu + other.gpu)

    def __or__(self, other: "Amount") -> "Amount":
        """The greater of each."""
        return Amount(max(self.cpu, other.cpu), max(self.memory, other.memory), max(self.gpu, other.gpu))

    @property
    def demand(self) -> Demand:
        return Demand(cpu=self.cpu / 1000, memory=self.memory, gpu=self.gpu)


class NodeSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of a node; ``usable``: new tasks may go there."""

    name: str
    total: Amount
    usable: bool
    gpu_type: str


class PodHeld(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a pod holds of a node.

    Attributes:
        holder: whose it is, in words; "" for our own trainings.
    """

    node: str
    holder: str
    amount: Amount


def node_seen(node: Node) -> NodeSeen:
    """What matters of a node. One that only pods with GPUs may use is usable: no others are sent there."""
    about, status = node.metadata, node.status
    return NodeSeen(
        name=intern(about.name),
        total=_amount(status.allocatable),
        usable=is_usable(node),
        gpu_type=about.labels.get(_GPU_TYPE, ""),
    )


def holds(installation: str) -> Callable[[HoldingPod], PodHeld | None]:
    """Reads what a pod holds; None where it is nothing: it is over, or has no node.

    Args:
        installation: whose trainings are our own.
    """
    ours = label_value(installation)

    def read(pod: HoldingPod) -> PodHeld | None:
        about = pod.metadata
        if not pod.spec.node_name or pod.status.phase in ("Succeeded", "Failed"):
            return None
        own = about.labels.get(INSTALLATION) == ours and about.labels.get(WORK) == TRAINING_WORK
        holder = "" if own else intern(f"pods of {about.namespace}")
        return PodHeld(node=intern(pod.spec.node_name), holder=holder, amount=requested(pod.spec))

    return read


def requested(spec: HoldingSpec) -> Amount:
    """What the scheduler reserves for a pod: init containers run one after the other, sidecars stay."""
    running = _sum(_asked(each.resources) for each in spec.containers)
    sidecars, most = Amount(), Amount()
    for each in spec.init_containers:
        if each.restart_policy == "Always":
            sidecars += _asked(each.resources)
            most |= sidecars
        else:
            most |= sidecars + _asked(each.resources)
    total = (running + sidecars) | most
    whole_pod = {**spec.resources.limits, **spec.resources.requests}
    named = _amount(whole_pod)
    total = Amount(
        named.cpu if "cpu" in whole_pod else total.cpu,
        named.memory if "memory" in whole_pod else total.memory,
        total.gpu,
    )
    return total + _amount(spec.overhead)


def node_states(nodes: Iterable[NodeSeen], pods: Iterable[PodHeld]) -> tuple[NodeState, ...]:
    """The nodes as admission takes them.

    A node that takes no new tasks is as large as what our trainings hold there: what they hold must not be looked
    for on the others.
    """
    held: dict[str, dict[str, Amount]] = {}
    for pod in pods:
        if pod.amount == Amount():
            continue
        by_holder = held.setdefault(pod.node, {})
        by_holder[pod.holder] = by_holder.get(pod.holder, Amount()) + pod.amount
    states = []
    for node in sorted(nodes, key=lambda each: each.name):
        by_holder = held.get(node.name, {})
        own = by_holder.get("", Amount())
        if node.usable:
            others = {holder: each.demand for holder, each in sorted(by_holder.items()) if holder}
            total = node.total.demand
        elif "" in by_holder:
            others, total = {}, own.demand
        else:
            continue
        states.append(NodeState(name=node.name, total=total, others=others, gpu_type=node.gpu_type))
    return tuple(states)


def _sum(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())


def _asked(resources: Resources) -> Amount:
    return _amount({**resources.limits, **resources.requests})


def _amount(quantities: dict[str, Quantity]) -> Amount:
    return Amount(
        math.ceil(quantity(quantities.get("cpu", 0)) * 1000),
        whole(quantities.get("memory", 0)),
        whole(quantities.get(GPU, 0)),
    )
