"""A cluster's pods: what watching 1,000 trainings of 8 costs, over bare decoding of the same events.

The emulated API server runs in a process of its own; what is counted is the CPU and the memory of the watching one.
"""

import asyncio
import gc
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import aclosing
from typing import Any

import msgspec

from benchmarks.report import report
from shared.kube import Cluster, Mirror, Synced, watch
from shared.kube.credentials import Fixed, Grant
from shared.kube.kubeconfig import Access
from shared.kube.names import labels_of
from shared.kube.objects import Partial, Pod
from shared.kube.resources import PODS

_SIZES = (2_000, 4_000, 8_000)
_PHASES = ("Running", "Succeeded")


def _pod(number: int) -> dict[str, Any]:
    training, index = divmod(number, 8)
    labels = {"elearn.dev/project": "default", "batch.kubernetes.io/job-completion-index": str(index)}
    manager = {"manager": "kube-controller-manager", "operation": "Update", "fieldsType": "FieldsV1"}
    container = {
        "name": "main",
        "image": "tensorflow/tensorflow:2.21.0",
        "command": ["python", "train.py"],
        "env": [{"name": f"VARIABLE_{each}", "value": "some value"} for each in range(20)],
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}},
        "volumeMounts": [{"name": f"v{each}", "mountPath": f"/data/{each}"} for each in range(5)],
    }
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": f"train-{training}", "uid": f"uid-{training}"}
    return {
        "metadata": {
            "name": f"train-{training}-{index}",
            "labels": labels_of("elearn", labels),
            "ownerReferences": [owner],
            "managedFields": [{**manager, "fieldsV1": {f"f:field{each}": {"f:sub": {}} for each in range(60)}}],
        },
        "spec": {
            "nodeName": "n1",
            "containers": [container],
            "volumes": [{"name": f"v{each}", "persistentVolumeClaim": {"claimName": "c"}} for each in range(5)],
        },
        "status": {
            "phase": "Pending",
            "conditions": [{"type": each, "status": "True"} for each in ("Ready", "Initialized", "PodScheduled")],
            "containerStatuses": [{"name": "main", "ready": True, "imageID": f"sha256:{'a' * 64}", "state": {}}],
        },
    }


async def _serve(count: int) -> None:
    """The server: prints its port, and on a line of input lets every pod run and succeed."""
    from tests.support.kube_server import KubeServer

    async with KubeServer() as server:
        for number in range(count):
            server.store.add(PODS, _pod(number), "default")
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await server.watched(1)
        for phase in _PHASES:
            for number in range(count):
                name = _pod(number)["metadata"]["name"]
                server.store.change(PODS, name, "default", status={"phase": phase})
                if number % 50 == 0:
                    await asyncio.sleep(0)
        await asyncio.to_thread(sys.stdin.readline)


def _resident() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:  # noqa: PTH123 - a file of the kernel
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _bare(events: int) -> float:
    """Seconds of CPU for decoding such events, and nothing else."""
    line = msgspec.json.encode({"type": "MODIFIED", "object": _pod(0)})
    decoder = msgspec.json.Decoder(dict[str, Any])
    began = time.process_time()
    for _ in range(events):
        decoder.decode(line)
    return time.process_time() - began


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

    events = len(_PHASES) * count
    mirror: Mirror[Pod] = Mirror()
    try:
        async with Cluster(find=find) as cluster:
            await cluster.get(PODS, "none", Partial)  # what a first connection costs is not counted
            before = _resident()
            async with aclosing(watch(cluster, PODS, Pod)) as told:
                async for each in told:
                    mirror.take(each)
                    if isinstance(each, Synced):
                        break
                server.stdin.write(b"go\n")
                began, heard = time.process_time(), 0
                async for each in told:
                    mirror.take(each)
                    heard += 1
                    if heard == events:
                        break
                used = time.process_time() - began
            kept = _resident() - before
    finally:
        server.kill()
        await server.wait()
    assert all(pod.status.phase == "Succeeded" for pod in mirror)
    assert len(mirror) == count
    return {"ms_per_event": 1000 * used / events, "kb_per_pod": kept / 1000 / count}


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
            pods=count,
            cpu_ms_per_event=round(figures["ms_per_event"], 4),
            bare_decoding_ms=round(bare, 4),
            memory_kb_per_pod=round(figures["kb_per_pod"], 2),
        )


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
