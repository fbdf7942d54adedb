"""The room on nodes: what pods reserve, as a table, and what two watches make of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from services.scheduler.cloud.kubernetes.identity import AttemptKey, attempt_labels
from services.scheduler.cloud.kubernetes.nodes import Nodes
from services.scheduler.cloud.kubernetes.room import (
    Amount,
    HoldingSpec,
    NodeSeen,
    PodHeld,
    node_seen,
    node_states,
    requested,
)
from services.scheduler.model import Demand, NodeState
from shared.errors import Unavailable
from shared.kube import Cluster
from shared.kube.names import labels_of
from shared.kube.objects import Node
from shared.kube.resources import NODES, PODS
from shared.kube.settings import ProjectSettings
from tests.support.kube_life import ClusterLife
from tests.support.kube_server import KubeServer

GIB = 2**30
EVERYWHERE = ProjectSettings()
SOME = ProjectSettings(kubernetes_create_namespaces=False, kubernetes_projects=("a", "b"))


def box(cpu: str = "0", memory: str = "0", gpus: int = 0, *, sidecar: bool = False) -> dict[str, Any]:
    asked: dict[str, Any] = {"requests": {"cpu": cpu, "memory": memory}}
    if gpus:
        asked["limits"] = {"nvidia.com/gpu": str(gpus)}
    return {"name": "x", "resources": asked, **({"restartPolicy": "Always"} if sidecar else {})}


@pytest.mark.parametrize(
    ("spec", "cpu", "memory", "gpu"),
    [
        ({"containers": [box("500m", "1Gi"), box("1", "1Gi", 2)]}, 1500, 2 * GIB, 2),
        ({"containers": [box()]}, 0, 0, 0),
        ({"containers": [{"name": "x", "resources": {"limits": {"cpu": "2", "memory": "1Gi"}}}]}, 2000, GIB, 0),
        ({"containers": [box("1", "1Gi")], "initContainers": [box("3", "1Mi"), box("2", "2Gi")]}, 3000, 2 * GIB, 0),
        ({"containers": [box("1")], "initContainers": [box("1", sidecar=True)]}, 2000, 0, 0),
        ({"containers": [box("1")], "initContainers": [box("1", sidecar=True), box("3")]}, 4000, 0, 0),
        ({"containers": [box("1")], "initContainers": [box("3"), box("1", sidecar=True)]}, 3000, 0, 0),
        ({"containers": [box("1", "1Gi")], "overhead": {"cpu": "250m", "memory": "1Gi"}}, 1250, 2 * GIB, 0),
        ({"containers": [box("1", "1Gi", 1)], "resources": {"requests": {"cpu": "5"}}}, 5000, GIB, 1),
        ({"containers": [box("100u")]}, 1, 0, 0),
    ],
)
def test_what_a_pod_reserves(spec: dict[str, Any], cpu: int, memory: int, gpu: int) -> None:
    assert requested(msgspec.convert(spec, HoldingSpec)) == Amount(cpu, memory, gpu)


@pytest.mark.parametrize(
    ("spec", "ready", "usable"),
    [
        ({}, "True", True),
        ({}, "False", False),
        ({}, "Unknown", False),
        ({"unschedulable": True}, "True", False),
        ({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}, "True", True),
        ({"taints": [{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]}, "True", False),
        ({"taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}, "True", False),
        ({"taints": [{"key": "slow", "effect": "PreferNoSchedule"}]}, "True", True),
    ],
)
def test_which_nodes_are_usable(spec: dict[str, Any], ready: str, usable: bool) -> None:
    document = {
        "metadata": {"name": "n1", "labels": {"nvidia.com/gpu.product": "NVIDIA-H200"}},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "7910m", "memory": "131072Ki", "nvidia.com/gpu": "8", "pods": "110"},
            "conditions": [{"type": "Ready", "status": ready}],
        },
    }
    seen = node_seen(msgspec.convert(document, Node))
    assert (seen.usable, seen.gpu_type, seen.total) == (usable, "NVIDIA-H200", Amount(7910, 2**27, 8))


def test_what_others_hold_and_what_is_ours() -> None:
    def node(name: str, *, usable: bool = True) -> NodeSeen:
        return NodeSeen(name=name, total=Amount(8000, 8 * GIB, 1), usable=usable, gpu_type="T4")

    def pod(name: str, holder: str, cpu: int) -> PodHeld:
        return PodHeld(node=name, holder=holder, amount=Amount(cpu, GIB))

    pods = [
        pod("n1", "pods of kube-system", 100),
        pod("n1", "pods of kube-system", 200),
        pod("n1", "", 4000),
        pod("cordoned", "", 2000),
        pod("cordoned", "pods of kube-system", 100),
        pod("gone", "", 1000),
    ]
    states = node_states([node("n2"), node("n1"), node("cordoned", usable=False), node("bad", usable=False)], pods)
    whole = Demand(cpu=8, memory=8 * GIB, gpu=1)
    assert states == (
        # It takes nothing new; what our trainings hold there is not looked for on other nodes.
        NodeState(name="cordoned", total=Demand(cpu=2, memory=GIB), gpu_type="T4"),
        NodeState(
            name="n1", total=whole, others={"pods of kube-system": Demand(cpu=0.3, memory=2 * GIB)}, gpu_type="T4"
        ),
        NodeState(name="n2", total=whole, gpu_type="T4"),
    )


# -- over the API -----------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def looking(
    cluster: Cluster, settings: ProjectSettings = EVERYWHERE, patience: float = 5.0
) -> AsyncIterator[Nodes]:
    nodes = Nodes(cluster, settings, patience=patience)
    running = asyncio.create_task(nodes.run())
    try:
        yield nodes
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(nodes: Nodes, others: dict[str, float]) -> tuple[NodeState, ...]:
    """Until the first node's CPU is held like that."""
    async with asyncio.timeout(5):
        while True:
            states: tuple[NodeState, ...] = ()
            with contextlib.suppress(Unavailable):
                states = await nodes.capacity()
            if states and {holder: each.cpu for holder, each in states[0].others.items()} == others:
                return states
            await asyncio.sleep(0.005)


def add_pod(
    server: KubeServer, name: str, namespace: str, *, node: str = "n1", phase: str = "Running", **labels: str
) -> None:
    spec = {"nodeName": node, "containers": [box("1", "1Gi")]}
    about = {"name": name, "labels": labels}
    server.store.add(PODS, {"metadata": about, "spec": spec, "status": {"phase": phase}}, namespace)


async def test_nodes_and_their_pods_are_followed(server: KubeServer, cluster: Cluster) -> None:
    life = ClusterLife(server.store, scheduling=False)
    life.node("n1", gpus=8, **{"nvidia.com/gpu.product": "NVIDIA-H200"})
    ours = attempt_labels(AttemptKey("a", "t", 1))
    add_pod(server, "dns", "kube-system")
    add_pod(server, "over", "kube-system", phase="Succeeded")
    add_pod(server, "nowhere", "kube-system", node="")
    add_pod(server, "mine", "elearn-a", **labels_of("elearn", ours))
    add_pod(server, "theirs", "elearn-a", **labels_of("staging", ours))
    async with looking(cluster) as nodes:
        (state,) = await until(nodes, {"pods of kube-system": 1, "pods of elearn-a": 1})
        assert (state.total.cpu, state.total.gpu, state.gpu_type) == (16, 8, "NVIDIA-H200")
        assert await nodes.capacity() == (state,)
        server.store.change(PODS, "theirs", "elearn-a", status={"phase": "Failed"})
        server.store.finish(PODS, "dns", "kube-system")
        await until(nodes, {})
        life.node("n0")
        async with asyncio.timeout(5):
            while [each.name for each in await nodes.capacity()] != ["n0", "n1"]:
                await asyncio.sleep(0.005)
        server.store.finish(NODES, "n0")
        await until(nodes, {})
        assert not nodes.blind


async def test_who_may_not_see_nodes_says_so(server: KubeServer, cluster: Cluster) -> None:
    ClusterLife(server.store).node("n1")
    server.deny("list", "nodes")
    async with looking(cluster) as nodes:
        assert await nodes.capacity() == ()
        assert nodes.blind
        server.allow()
        async with asyncio.timeout(5):
            while not await nodes.capacity():
                await asyncio.sleep(0.005)
        assert [each.name for each in await nodes.capacity()] == ["n1"]


async def test_who_may_not_see_all_pods_counts_those_of_projects(server: KubeServer, cluster: Cluster) -> None:
    ClusterLife(server.store).node("n1")
    add_pod(server, "dns", "kube-system")
    add_pod(server, "notebook", "elearn-a")
    words = 'pods is forbidden: User "elearn" cannot list resource "pods" in API group "" at the cluster scope'
    server.fail(403, "Forbidden", words, times=1000, path=r"^/api/v1/pods$")
    async with looking(cluster, SOME) as nodes:
        await until(nodes, {"pods of elearn-a": 1})


async def test_what_could_not_be_seen_yet_is_not_told(server: KubeServer, cluster: Cluster) -> None:
    ClusterLife(server.store).node("n1")
    server.deny("list", "pods")
    async with looking(cluster, patience=0.2) as nodes:
        with pytest.raises(Unavailable, match=r"nodes of the cluster have not been seen yet.*verb list on pods"):
            await nodes.capacity()
        server.allow()
        await until(nodes, {})
    with pytest.raises(Unavailable, match="not been seen yet; try again soon"):
        await Nodes(cluster, EVERYWHERE, patience=0.01).capacity()
