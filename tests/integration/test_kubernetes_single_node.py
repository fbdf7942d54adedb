"""Stories of claims that one node alone can mount, on an emulated cluster of two nodes.

Its scheduler takes the emptiest node, as that of Kubernetes does, so that pods which nothing leads together lie apart.
"""

import asyncio
import contextlib
from pathlib import Path

import pytest
from msgspec.structs import replace

from services.datastore.cloud.kubernetes import agent
from services.datastore.cloud.kubernetes.driver import AGENT_MODULE
from services.datastore.cloud.port import Directory, Provided
from services.registry.cloud.kubernetes.manifests import WORK_MODULE
from services.registry.cloud.port import JobCloud, Observation, Refused, Running, SaveJob, Succeeded
from services.registry.model import Key
from services.registry.reconcile import Job
from services.scheduler.cloud.kubernetes.identity import attempt_of
from services.scheduler.model import MountPlan
from services.serving.cloud.port import Deployment
from services.serving.model import Source
from shared.contracts.datastore import Claim, ClaimVolume, DatastoreSpec
from shared.contracts.training import Role, Roles
from shared.kube.names import ROOM
from shared.kube.resources import NAMESPACES, PERSISTENT_VOLUME_CLAIMS, PODS
from tests.contract.job_cloud_models import write_saved_model
from tests.contract.test_serving_cloud import leading, settled
from tests.contract.training_clouds import Watch
from tests.support.kube_datastores import storage_on
from tests.support.kube_kubelet import emulated
from tests.support.kube_registry import NAMESPACE, jobs_on, work_here
from tests.support.kube_servings import ModelServers, servings_on
from tests.support.kube_store import KubeStore
from tests.support.kube_trainings import launch_of, training_cluster
from tests.support.logs_in_memory import LogsInMemory

EVERYWHERE = ClaimVolume(claim_name="shared")
ON_ONE_NODE = replace(EVERYWHERE, single_node=True)
JOB = Job(Key("default", "digits", 1), 1)


def nodes_of(store: KubeStore, room: str) -> list[str]:
    """Where the pods of a room are; "" for one that no node takes."""
    pods = [pod for pod in store.all(PODS) if pod["metadata"]["labels"].get(ROOM) == room]
    return sorted(pod["spec"].get("nodeName", "") for pod in pods)


@pytest.mark.parametrize(("volume", "nodes"), [(EVERYWHERE, ["n1", "n2"]), (ON_ONE_NODE, ["n1", "n1"])])
async def test_the_replicas_of_a_serving_share_the_node_of_the_model_store(
    tmp_path: Path, volume: ClaimVolume, nodes: list[str]
) -> None:
    (tmp_path / "1").mkdir()
    async with emulated(tmp_path, deploying=False) as (server, life, _, cluster):
        life.node("n2")
        ModelServers(server, life, tmp_path)
        cloud = servings_on(cluster)
        async with leading(cloud) as watching:
            await cloud.apply(serving(volume))
            await watching.until(settled(1, 2))
            assert nodes_of(server.store, "serving") == nodes


async def test_a_replica_for_which_that_node_has_no_room_says_so(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    async with emulated(tmp_path, deploying=False) as (server, life, _, cluster):
        life.node("n2")
        ModelServers(server, life, tmp_path)
        cloud = servings_on(cluster)
        async with leading(cloud) as watching:
            await cloud.apply(replace(serving(ON_ONE_NODE), cpu=10.0))
            seen = await watching.until(lambda seen: bool(seen.waiting))
            assert seen.waiting.endswith("it has to run on the node where others mount its storage, shared")
            assert nodes_of(server.store, "serving") == ["", "n1"]


def serving(volume: ClaimVolume) -> Deployment:
    return Deployment(
        uid="0123456789abcdef",
        project="default",
        name="digits",
        model="digits",
        revision=1,
        replicas=2,
        sources=(Source(number=1, volume=volume, path="default/digits/1"),),
        traffic={1: 100},
        labels={},
    )


async def test_a_save_runs_beside_the_pod_that_shows_its_files(tmp_path: Path) -> None:
    classes = ("standard",)
    async with emulated(tmp_path / "claims") as (server, life, kubelet, cluster):
        life.node("n2")
        kubelet.serve[AGENT_MODULE] = lambda folder: agent.handler(str(folder))
        kubelet.run[WORK_MODULE] = work_here
        storage = storage_on(cluster, tmp_path, kubernetes_single_node_classes=classes)
        store = "class:standard:1Gi"
        jobs = jobs_on(cluster, tmp_path, kubernetes_model_store=store, kubernetes_single_node_classes=classes)
        spec = DatastoreSpec(name="runs", claim=Claim(storage_class="standard", size="1Gi"))
        await storage.provision(Directory(uid="u1", project="default", name="runs", spec=spec))
        async with contextlib.aclosing(storage.watch()) as watch:
            told = await anext(watch)
        assert isinstance(told, Provided)
        assert isinstance(told.volume, ClaimVolume)
        assert told.volume.single_node
        write_saved_model(kubelet.folder_of(told.volume.claim_name, NAMESPACE) / "export")
        assert (await storage.stat(told.volume, "export")).kind == "directory"
        assert nodes_of(server.store, "datastore") == ["n1"]
        await jobs.save(SaveJob(job=JOB, volume=told.volume, path="export", shown="export in datastore runs"))
        assert isinstance(await outcome(jobs), Succeeded)
        assert nodes_of(server.store, "registry") == ["n1"]
        assert (await jobs.volume("default")).single_node


async def test_a_save_runs_where_the_store_is_mounted_and_waits_for_its_source(tmp_path: Path) -> None:
    async with emulated(tmp_path / "claims") as (server, life, kubelet, cluster):
        life.node("n2")
        (tmp_path / "1").mkdir()
        ModelServers(server, life, tmp_path)
        kubelet.run[WORK_MODULE] = work_here
        kubelet.holding = True
        server.store.add(NAMESPACES, {"metadata": {"name": NAMESPACE}, "status": {"phase": "Active"}})
        claim = {"metadata": {"name": "shared"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
        server.store.add(PERSISTENT_VOLUME_CLAIMS, claim, NAMESPACE)
        await servings_on(cluster).apply(replace(serving(ON_ONE_NODE), replicas=1))
        assert nodes_of(server.store, "serving") == ["n1"]
        jobs = jobs_on(cluster, tmp_path, kubernetes_model_store="claim:shared", kubernetes_save_start_seconds=0.0)
        server.store.add(PERSISTENT_VOLUME_CLAIMS, {"metadata": {"name": "runs"}, "spec": {}}, NAMESPACE)
        source = ClaimVolume(claim_name="runs", namespace=NAMESPACE, single_node=True)
        write_saved_model(kubelet.folder_of("runs", NAMESPACE) / "export")
        await jobs.save(SaveJob(job=JOB, volume=source, path="export", shown="export in datastore runs"))
        assert nodes_of(server.store, "registry") == ["n1"]
        (pod,) = [each for each in server.store.all(PODS) if each["metadata"]["labels"][ROOM] == "registry"]
        words = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) files-runs'
        life.event(PODS, pod["metadata"]["name"], "FailedAttachVolume", words, namespace=NAMESPACE)
        async with contextlib.aclosing(jobs.watch()) as watch:
            assert await anext(watch) == Running(job=JOB)
            kubelet.start(pod)
            assert isinstance(await outcome(jobs), Succeeded)


async def test_a_store_that_one_pod_alone_can_mount_is_refused(tmp_path: Path) -> None:
    async with emulated(tmp_path / "claims") as (server, _, _, cluster):
        server.store.add(NAMESPACES, {"metadata": {"name": NAMESPACE}, "status": {"phase": "Active"}})
        claim = {"metadata": {"name": "shared"}, "spec": {"accessModes": ["ReadWriteOncePod"]}}
        server.store.add(PERSISTENT_VOLUME_CLAIMS, claim, NAMESPACE)
        jobs = jobs_on(cluster, tmp_path, kubernetes_model_store="claim:shared")
        await jobs.save(SaveJob(job=JOB, volume=EVERYWHERE, path="export", shown="export"))
        seen = await outcome(jobs)
        assert isinstance(seen, Refused)
        assert "make it ReadWriteOnce or ReadWriteMany" in seen.reason


async def outcome(cloud: JobCloud) -> Observation:
    async with asyncio.timeout(10), contextlib.aclosing(cloud.watch()) as watch:
        async for seen in watch:
            if isinstance(seen, Succeeded | Refused):
                return seen
    raise AssertionError("the watch ended")


THREE = Roles(chief=Role(cpu=1), worker=Role(cpu=1, replicas=2))


@pytest.mark.parametrize(("volume", "nodes"), [(EVERYWHERE, {"n1", "n2"}), (ON_ONE_NODE, {"n1"})])
async def test_the_tasks_of_a_training_share_the_node_of_their_datastore(volume: ClaimVolume, nodes: set[str]) -> None:
    async with training_cluster(cpu="4") as it:
        it.life.node("n2", cpu="4")
        driver = it.driver(LogsInMemory())
        plans = (MountPlan(datastore="runs", path="out", volume=volume),)
        async with Watch(driver) as watch:
            await driver.launch(launch_of("t-1", roles=THREE, plans=plans))
            placed = {(await watch.until_task(name, "running")).node for name in ("chief-0", "worker-0", "worker-1")}
            assert placed == nodes


async def test_a_second_training_waits_for_room_on_that_node_in_words() -> None:
    async with training_cluster(cpu="4") as it:
        it.life.node("n2", cpu="4")
        driver = it.driver(LogsInMemory())
        plans = (MountPlan(datastore="runs", path="out", volume=ON_ONE_NODE),)
        first = launch_of("t-1", roles=THREE, plans=plans)
        async with Watch(driver) as watch:
            await driver.launch(first)
            for name in ("chief-0", "worker-0", "worker-1"):
                await watch.until_task(name, "running")
            await driver.launch(launch_of("t-2", roles=Roles(chief=Role(cpu=2)), plans=plans))
            waiting = await watch.until(
                lambda seen: next((task for task in seen.tasks.get(("t-2", 1), {}).values() if task.reason), None)
            )
            assert "1 node(s) didn't match pod affinity rules; it has to run on the node where" in waiting.reason
            await driver.free(first.project, "t-1", 1)
            await watch.until_task("chief-0", "running", "t-2")
            assert [attempt_of(pod["metadata"]["labels"]) for pod in it.store.all(PODS)] == [("p", "t-2", 1)]
