"""A cluster's pods: what 1,000 trainings of 8 tasks cost the scheduler, over bare decoding of the same events.

The emulated API server runs in a process of its own. What is counted is the CPU and the memory of the watching one,
which does all that the scheduler does with what it is told: the watches of trainings down to the tasks of each
attempt, and the watches of nodes and of all pods down to the room on them, asked for once a second. A pod event is
one change of one pod; both watches are told of it.
"""

import asyncio
import gc
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from benchmarks.report import report
from services.scheduler.cloud.kubernetes.identity import INDEX, AttemptKey, groups_of
from services.scheduler.cloud.kubernetes.manifests import (
    Attempt,
    Setting,
    job_manifest,
    roster_text,
    service_manifest,
)
from services.scheduler.cloud.kubernetes.mounts import PodMounts
from services.scheduler.cloud.kubernetes.nodes import Nodes
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.watching import watch_attempts
from services.scheduler.cloud.port import AttemptSeen, Launch
from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.spec import plan_tasks
from shared.contracts.training import Role, Roles, TrainingSpec
from shared.kube import Cluster
from shared.kube.credentials import Fixed, Grant
from shared.kube.kubeconfig import Access
from shared.kube.manifest import marked
from shared.kube.objects import Partial
from shared.kube.resources import JOBS, NAMESPACES, NODES, PODS, SERVICES
from shared.kube.settings import ProjectSettings

_SIZES = (250, 500, 1_000)
_TASKS = 8
_NAMESPACE = "elearn-default"
_NODES = 100
_SECONDS = 300.0
_ROLES = Roles(chief=Role(), worker=Role(replicas=6), ps=Role())
_STAMP = "2026-11-24T08:00:00Z"
_SETTING = Setting(
    installation="elearn", projects=ProjectSettings(), options=TrainingOptions(), restarts=10, grace=10.0
)

Document = dict[str, Any]


def _objects(number: int) -> tuple[Document, list[Document], list[Document]]:
    """One training as the driver and the cluster's controllers make it: its Service, its Jobs, its pods."""
    spec = TrainingSpec(
        name="train",
        command=("python", "train.py", "--ps", "{ps_hosts}"),
        image="tensorflow/tensorflow:2.21.0",
        env={f"VARIABLE_{each}": "some value" for each in range(10)},
        roles=_ROLES,
    )
    key = AttemptKey("default", f"train-{number}", 1)
    plan = plan_tasks(spec, TensorFlow())
    launch = Launch(project=key.project, name=key.name, attempt=1, spec=spec, plan=plan, mounts=())
    groups = groups_of(plan)
    service = _marked(service_manifest(key, groups, _NAMESPACE, _SETTING), f"service-{number}")
    service["metadata"]["annotations"] = {"elearn.dev/roster": roster_text(groups, _SETTING, released=True)}
    attempt = Attempt(key=key, launch=launch, groups=groups, namespace=_NAMESPACE, mounts=PodMounts())
    jobs, pods = [], []
    for group in groups:
        job = _marked(job_manifest(attempt, group, TensorFlow(), {}, _SETTING), f"job-{number}-{group.role}")
        job["spec"]["suspend"] = False
        job["status"] = {"startTime": _STAMP, "active": group.count}
        jobs.append(job)
        pods += [_pod(job, index, number) for index in range(group.count)]
    return service, jobs, pods


def _marked(manifest: Any, uid: str) -> Document:
    document: Document = msgspec.json.decode(msgspec.json.encode(marked(manifest, "elearn")))
    document["metadata"] |= {"uid": uid, "ownerReferences": []}
    return document


def _pod(job: Document, index: int, number: int) -> Document:
    about, template = job["metadata"], job["spec"]["template"]
    manager = {"manager": "kube-controller-manager", "operation": "Update", "fieldsType": "FieldsV1"}
    return {
        "metadata": {
            "name": f"{about['name']}-{index}-abcde",
            "uid": f"{about['uid']}-{index}",
            "labels": {
                **template["metadata"]["labels"],
                INDEX: str(index),
                "batch.kubernetes.io/job-name": about["name"],
            },
            "annotations": {INDEX: str(index), "batch.kubernetes.io/job-index-failure-count": "0"},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": about["name"], "uid": about["uid"]}],
            "managedFields": [{**manager, "fieldsV1": {f"f:field{each}": {"f:sub": {}} for each in range(60)}}],
        },
        "spec": {**template["spec"], "nodeName": f"node-{number % _NODES}"},
        "status": _status("Pending", {}),
    }


def _status(phase: str, state: Document) -> Document:
    known = [{"type": each, "status": "True", "lastTransitionTime": _STAMP} for each in ("Initialized", "PodScheduled")]
    box = {"name": "task", "ready": phase == "Running", "imageID": f"sha256:{'a' * 64}", "state": state}
    return {"phase": phase, "conditions": known, "containerStatuses": [box], "startTime": _STAMP, "podIP": "10.1.2.3"}


_CHANGES = (
    _status("Running", {"running": {"startedAt": _STAMP}}),
    _status(
        "Succeeded",
        {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": _STAMP, "finishedAt": _STAMP}},
    ),
)


async def _serve(count: int) -> None:
    """The server: prints its port, and on a line of input lets every pod run and succeed."""
    from tests.support.kube_server import KubeServer

    async with KubeServer() as server:
        store = server.store
        store.add(NAMESPACES, {"metadata": {"name": _NAMESPACE}, "status": {"phase": "Active"}})
        room = {"cpu": "96", "memory": "512Gi", "pods": "250"}
        for number in range(_NODES):
            ready = [{"type": "Ready", "status": "True"}]
            store.add(
                NODES, {"metadata": {"name": f"node-{number}"}, "status": {"allocatable": room, "conditions": ready}}
            )
        names = []
        for number in range(count):
            service, jobs, pods = _objects(number)
            store.add(SERVICES, service, _NAMESPACE)
            for job in jobs:
                store.add(JOBS, job, _NAMESPACE)
            for pod in pods:
                store.add(PODS, pod, _NAMESPACE)
                names.append(pod["metadata"]["name"])
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for status in _CHANGES:
            for number, name in enumerate(names):
                store.change(PODS, name, _NAMESPACE, status=status)
                if number % 50 == 0:
                    await asyncio.sleep(0)
        await asyncio.to_thread(sys.stdin.readline)


def _resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:  # noqa: PTH123 - a file of the kernel
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _bare(events: int) -> float:
    """Seconds of CPU for decoding such events, and nothing else."""
    pod = _objects(0)[2][0] | {"status": _CHANGES[0]}
    line = msgspec.json.encode({"type": "MODIFIED", "object": pod})
    decoder = msgspec.json.Decoder(dict[str, Any])
    began = time.process_time()
    for _ in range(events):
        decoder.decode(line)
    return time.process_time() - began


class _Picture:
    """How the attempts stand."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.states: dict[str, dict[str, int]] = {}
        self.observations = 0

    async def read(self) -> None:
        async with aclosing(watch_attempts(self._cluster, ProjectSettings(), TrainingOptions())) as told:
            async for each in told:
                if isinstance(each, AttemptSeen):
                    self.observations += 1
                    states: dict[str, int] = {}
                    for task in each.tasks:
                        states[task.state] = states.get(task.state, 0) + 1
                    self.states[each.name] = states

    async def until(self, state: str, count: int) -> None:
        """Every task of so many trainings is in a state.

        Raises:
            TimeoutError: they do not come to it.
        """
        async with asyncio.timeout(_SECONDS):
            while sum(states == {state: _TASKS} for states in self.states.values()) < count:
                await asyncio.sleep(0.05)


async def _ask(nodes: Nodes) -> None:
    while True:
        await asyncio.sleep(1.0)
        await nodes.capacity()


async def _measure(count: int) -> dict[str, float]:
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.pods", str(count), stdin=pipe, stdout=pipe
    )
    assert server.stdin is not None
    assert server.stdout is not None
    port = int(await server.stdout.readline())

    def find() -> Access:
        return Access(server=f"http://127.0.0.1:{port}", namespace="default", credential=Fixed(Grant()))

    tasks: list[asyncio.Task[None]] = []
    try:
        async with Cluster(find=find) as cluster:
            await cluster.get(PODS, "none", Partial)  # what a first connection costs is not counted
            before, began_all = _resident(), time.process_time()
            picture, nodes = _Picture(cluster), Nodes(cluster, ProjectSettings(), patience=60.0)
            tasks = [asyncio.create_task(work) for work in (picture.read(), nodes.run(), _ask(nodes))]
            await picture.until("starting", count)
            room = await nodes.capacity()
            listed = time.process_time() - began_all
            server.stdin.write(b"go\n")
            began, seen = time.process_time(), picture.observations
            wall = time.perf_counter()
            await picture.until("succeeded", count)
            used, wall = time.process_time() - began, time.perf_counter() - wall
            kept = _resident() - before
            for task in tasks:
                if task.done():
                    task.result()
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        server.kill()
        await server.wait()
    assert len(room) == _NODES
    pods = count * _TASKS
    events = len(_CHANGES) * pods
    return {
        "cpu_ms_per_event": 1000 * used / events,
        "first_list_ms_per_pod": 1000 * listed / pods,
        "memory_kb_per_pod": kept / 1000 / pods,
        "observations_per_event": (picture.observations - seen) / events,
        "events_per_second": events / wall,
    }


def _measured(count: int) -> dict[str, float]:
    return asyncio.run(_measure(count))


def main() -> None:
    """Measure at growing sizes, so that growth can be seen."""
    bare = 1000 * _bare(5_000) / 5_000
    spawn = multiprocessing.get_context("spawn")  # each size in a fresh process: none profits from another's memory
    for count in _SIZES:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            figures = pool.submit(_measured, count).result()
        report(
            "pods",
            wanted="CPU per pod event under 1 ms, memory linear and under 20 kB a pod, state converges",
            trainings=count,
            pods=count * _TASKS,
            **{name: round(value, 4) for name, value in figures.items()},
            bare_decoding_ms=round(bare, 4),
        )


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
