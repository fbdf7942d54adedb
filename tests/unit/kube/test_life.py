"""The emulated cluster itself: drivers are judged by it, so it is judged first."""

from typing import Any

import pytest

from shared.kube import Cluster
from shared.kube.objects import Claim, Deployment, Job, Partial, Pod, is_true, owner_reference
from shared.kube.resources import (
    DEPLOYMENTS,
    JOBS,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SERVICES,
)
from shared.kube.storage import fixed_claim, fixed_volume
from tests.support.kube_life import ClusterLife
from tests.support.kube_server import KubeServer

INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture
def life(server: KubeServer) -> ClusterLife:
    return ClusterLife(server.store)


def job(replicas: int = 3, *, gpus: int = 0, **spec: Any) -> dict[str, Any]:
    container: dict[str, Any] = {"name": "main", "image": "busybox"}
    if gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train"},
        "spec": {
            "completionMode": "Indexed",
            "completions": replicas,
            "parallelism": replicas,
            **spec,
            "template": {
                "metadata": {"labels": {"role": "worker"}},
                "spec": {"restartPolicy": "Never", "subdomain": "train", "containers": [container]},
            },
        },
    }


async def phases(cluster: Cluster) -> list[str]:
    return sorted(pod.status.phase for pod in await cluster.list(PODS, Pod))


async def status(cluster: Cluster) -> Job:
    found = await cluster.get(JOBS, "train", Job)
    assert found is not None
    return found


async def test_a_suspended_job_has_no_pods_until_it_is_released(cluster: Cluster, life: ClusterLife) -> None:
    await cluster.apply(job(suspend=True))
    assert await phases(cluster) == []
    await cluster.apply(job(suspend=False))
    pods = await cluster.list(PODS, Pod, labels={"role": "worker"})
    assert [pod.spec.hostname for pod in sorted(pods, key=lambda pod: pod.metadata.name)] == [
        "train-0",
        "train-1",
        "train-2",
    ]
    assert {pod.metadata.labels[INDEX] for pod in pods} == {"0", "1", "2"}
    assert {pod.metadata.annotations[INDEX] for pod in pods} == {"0", "1", "2"}
    assert {pod.metadata.owner_references[0].kind for pod in pods} == {"Job"}


async def test_a_job_is_complete_when_every_index_is(cluster: Cluster, life: ClusterLife) -> None:
    await cluster.apply(job())
    life.run("train")
    assert await phases(cluster) == ["Running"] * 3
    for index in range(3):
        life.exit("train", index)
    done = await status(cluster)
    assert is_true(done.status.conditions, "Complete")
    assert done.status.completed_indexes == "0,1,2"


async def test_a_failed_index_fails_the_job_without_a_retry(cluster: Cluster, life: ClusterLife) -> None:
    await cluster.apply(job(backoffLimitPerIndex=0))
    life.run("train")
    life.out_of_memory("train", 1)
    failed = await status(cluster)
    assert failed.status.failed_indexes == "1"
    assert not is_true(failed.status.conditions, "Failed")  # the others go on
    life.exit("train", 0)
    life.exit("train", 2)
    assert is_true((await status(cluster)).status.conditions, "Failed")


async def test_the_failure_policy_tells_disruptions_from_exit_codes(cluster: Cluster, life: ClusterLife) -> None:
    rules = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onPodConditions": [], "onExitCodes": {"operator": "In", "values": [3]}},
    ]
    await cluster.apply(job(2, backoffLimit=0, podFailurePolicy={"rules": rules}))
    life.run("train")
    first = life.pod("train", 0)["metadata"]["uid"]
    life.evict("train", 0)
    assert life.pod("train", 0)["metadata"]["uid"] != first
    assert await phases(cluster) == ["Pending", "Running"]
    life.preempt("train", 1)
    life.run("train")
    assert await phases(cluster) == ["Running", "Running"]
    life.exit("train", 1, code=3)
    failed = await status(cluster)
    assert [(each.type, each.reason) for each in failed.status.conditions] == [("Failed", "PodFailurePolicy")]
    assert await phases(cluster) == ["Failed"]


async def test_pods_wait_where_no_node_has_room(cluster: Cluster, life: ClusterLife) -> None:
    life.node("n1", gpus=2)
    await cluster.apply(job(3, gpus=1))
    pods = sorted(await cluster.list(PODS, Pod), key=lambda pod: pod.metadata.name)
    assert [pod.spec.node_name for pod in pods] == ["n1", "n1", ""]
    assert pods[2].status.conditions[0].reason == "Unschedulable"


def beside(*labels: str, wish: str = "", cpu: int = 1) -> dict[str, Any]:
    terms = [
        {"labelSelector": {"matchLabels": {label: "yes"}}, "topologyKey": "kubernetes.io/hostname"}
        for label in (*labels, wish)
    ]
    affinity: dict[str, Any] = {"requiredDuringSchedulingIgnoredDuringExecution": terms[:-1]}
    if wish:
        wished = [{"weight": 100, "podAffinityTerm": terms[-1]}]
        affinity = {"preferredDuringSchedulingIgnoredDuringExecution": wished}
    container = {"name": "main", "resources": {"requests": {"cpu": cpu}}}
    return {"containers": [container], "affinity": {"podAffinity": affinity}}


@pytest.mark.parametrize(
    ("pods", "nodes"),
    [
        # Nothing leads them together: they lie apart.
        ([("x", beside()), ("x", beside())], ["n1", "n2"]),
        # The first goes anywhere, the others beside it, as long as there is room.
        ([("a", beside("a")), ("a", beside("a"))], ["n1", "n1"]),
        ([("a", beside("a", cpu=3)), ("a", beside("a", cpu=3))], ["n1", ""]),
        ([("x", beside()), ("a", beside("a")), ("a", beside("a"))], ["n1", "n2", "n2"]),
        # Who does not meet its own terms is not its own first neighbour.
        ([("b", beside("a"))], [""]),
        # Neighbours count only where they meet all terms: those with one label each lead nobody.
        ([("a", beside()), ("b", beside()), ("ab", beside("a", "b"))], ["n1", "n2", "n1"]),
        ([("a", beside()), ("ab", beside("a", "b")), ("ab", beside("a", "b"))], ["n1", "n2", "n2"]),
        # A wish is followed where there is room.
        ([("a", beside()), ("x", beside(wish="a"))], ["n1", "n1"]),
        ([("a", beside(cpu=4)), ("x", beside(wish="a"))], ["n1", "n2"]),
    ],
)
def test_pods_are_placed_beside_those_that_they_must_be_near(
    server: KubeServer, life: ClusterLife, pods: list[tuple[str, dict[str, Any]]], nodes: list[str]
) -> None:
    life.node("n1", cpu="4")
    life.node("n2", cpu="4")
    for number, (letters, spec) in enumerate(pods):
        about = {"name": f"p{number}", "labels": dict.fromkeys(letters, "yes")}
        server.store.add(PODS, {"metadata": about, "spec": spec, "status": {"phase": "Pending"}}, "default")
    placed = [server.store.need(PODS, f"p{number}", "default")["spec"] for number in range(len(pods))]
    assert [each.get("nodeName", "") for each in placed] == nodes


async def test_pods_of_a_lost_node_are_made_anew(cluster: Cluster, life: ClusterLife) -> None:
    life.node("n1")
    await cluster.apply(job(1))
    life.run("train")
    life.lose_node("n1")
    assert await phases(cluster) == ["Pending"]


async def test_deleting_the_owner_of_jobs_ends_their_pods(
    server: KubeServer, cluster: Cluster, life: ClusterLife
) -> None:
    server.store.graceful = True
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "train"}, "spec": {"clusterIP": "None"}}
    owner = await cluster.apply(service)
    owned = job()
    owned["metadata"]["ownerReferences"] = [{**owner_reference("v1", "Service", owner), "blockOwnerDeletion": True}]
    await cluster.apply(owned)
    life.run("train")
    await cluster.delete(SERVICES, "train", propagation="Foreground")
    pods = await cluster.list(PODS, Pod)
    assert len(pods) == 3
    assert all(pod.metadata.deletion_timestamp for pod in pods)
    assert await cluster.get(SERVICES, "train", Partial) is not None
    for pod in pods:
        server.store.finish(PODS, pod.metadata.name, "default")
    assert await cluster.get(SERVICES, "train", Partial) is None
    assert await cluster.get(JOBS, "train", Job) is None


async def test_a_deployment_rolls(server: KubeServer, cluster: Cluster, life: ClusterLife) -> None:
    def deployment(image: str) -> dict[str, Any]:
        labels = {"app": "serve"}
        template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": image}]}}
        spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "serve"}, "spec": spec}

    await cluster.apply(deployment("one"))
    assert await phases(cluster) == ["Running", "Running"]
    life.deploying = False
    await cluster.apply(deployment("two"))
    assert await phases(cluster) == ["Pending", "Pending", "Running", "Running"]
    found = await cluster.get(DEPLOYMENTS, "serve", Deployment)
    assert found is not None
    assert (found.metadata.generation, found.status.ready_replicas) == (2, 0)
    life.deployed("serve")
    assert await phases(cluster) == ["Running", "Running"]
    assert {pod.spec.containers[0].image for pod in await cluster.list(PODS, Pod)} == {"two"}


async def test_claims_are_bound(cluster: Cluster, life: ClusterLife) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    await cluster.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": spec}
    )
    found = await cluster.get(PERSISTENT_VOLUME_CLAIMS, "data", Claim)
    assert found is not None
    assert (found.status.phase, found.status.capacity) == ("Bound", {"storage": "1Gi"})


@pytest.mark.parametrize(
    ("held", "phase"),
    [
        ({"namespace": "default", "name": "data"}, "Bound"),
        ({"namespace": "default", "name": "data", "uid": "of an earlier one"}, "Pending"),
        ({"namespace": "default", "name": "other"}, "Pending"),
        ({"namespace": "elearn", "name": "data"}, "Pending"),
        (None, "Bound"),
    ],
)
async def test_a_volume_of_another_claim_is_not_bound(
    server: KubeServer, cluster: Cluster, life: ClusterLife, held: dict[str, str] | None, phase: str
) -> None:
    spec = {"hostPath": {"path": "/srv"}, **({"claimRef": held} if held else {})}
    server.store.add(PERSISTENT_VOLUMES, {"metadata": {"name": "v"}, "spec": spec})
    await cluster.apply(fixed_claim("data", namespace="default", volume="v", labels={}))
    found = await cluster.get(PERSISTENT_VOLUME_CLAIMS, "data", Claim, namespace="default")
    assert found is not None
    assert found.status.phase == phase


async def test_a_volume_outlives_its_claim_and_waits_for_somebody_to_free_it(
    server: KubeServer, cluster: Cluster, life: ClusterLife
) -> None:
    await cluster.apply(
        fixed_volume("v", claim="data", namespace="default", labels={}, source={"hostPath": {"path": "/srv"}})
    )
    claim = fixed_claim("data", namespace="default", volume="v", labels={})
    await cluster.apply(claim)
    assert server.store.need(PERSISTENT_VOLUMES, "v")["status"]["phase"] == "Bound"
    await cluster.delete(PERSISTENT_VOLUME_CLAIMS, "data")
    assert server.store.need(PERSISTENT_VOLUMES, "v")["status"]["phase"] == "Released"
    await cluster.apply(claim)
    assert server.store.need(PERSISTENT_VOLUME_CLAIMS, "data", "default")["status"]["phase"] == "Pending"
    await cluster.patch(PERSISTENT_VOLUMES, "v", {"spec": {"claimRef": {"uid": None}}})
    assert server.store.need(PERSISTENT_VOLUME_CLAIMS, "data", "default")["status"]["phase"] == "Bound"
