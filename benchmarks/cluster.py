"""Trainings on a cluster: submit to all Jobs accepted, over a bare client; chief's end to the deletes.

The product runs as `elearn up` runs it, over an emulated API server in this process (``tests/support/kube_server.py``),
which takes as long for each request as told: 5 ms is about what a small real one takes, 0 shows elearn's own part.
"""

import asyncio
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from benchmarks.product import running
from benchmarks.report import report, summary
from elearn import Client
from shared.kube.resources import NAMESPACES, PODS, Resource
from tests.support.kube_life import ClusterLife
from tests.support.kube_server import KubeServer
from tests.support.kube_trainings import TaskKubelet

Document = dict[str, Any]

_RUNS = 20
_ENDING = ((100, 1), (100, 4), (240, 12))
"""So many trainings, of which so many end at the same instant."""
_DELAYS = (0.0, 0.005)
_TRAINING = "elearn.dev/training"
_ROLES: Document = {"chief": {"cpu": 0.1}, "worker": {"cpu": 0.1, "replicas": 2}, "ps": {"cpu": 0.1}}
_MADE = ("services", "secrets", "jobs")
_BARE = "elearn-bare"
_SECONDS = 60.0


class Api(KubeServer):
    """The emulated API server, which keeps when it was asked what.

    Attributes:
        delay: seconds that each request but a watch takes besides its own work.
        made: what was created for a training, in its order: path and document, and when it was answered.
        ended: when a training's chief had ended, by training.
        deleted: when each of its pods that ran was asked to be deleted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.delay = 0.0
        self.made: dict[str, list[tuple[str, Document, float]]] = {}
        self.ended: dict[str, float] = {}
        self.deleted: dict[str, list[float]] = {}
        self.changed = threading.Condition()
        self.store.on_write.append(self._written)

    def _written(self, resource: Resource, _: Document | None, after: Document | None) -> None:
        if resource == PODS and after is not None and after["status"].get("phase") == "Succeeded":
            self.ended.setdefault(after["metadata"]["labels"].get(_TRAINING, ""), time.perf_counter())

    async def _route(self, request: web.Request) -> Any:
        parts = request.path.rstrip("/").split("/")
        if request.method == "DELETE" and parts[-2] == "pods":
            pod = self.store.find(PODS, parts[-1], parts[-3])
            if pod is not None and pod["status"].get("phase") == "Running":
                self._keep(self.deleted, pod["metadata"]["labels"].get(_TRAINING, ""), time.perf_counter())
        if self.delay and "watch" not in request.query:
            await asyncio.sleep(self.delay)
        answer = await super()._route(request)
        if request.method == "POST" and parts[-1] in _MADE and _BARE not in parts:
            document = await request.json()
            name = document["metadata"].get("labels", {}).get(_TRAINING, "")
            self._keep(self.made, name, (request.path, document, time.perf_counter()))
        return answer

    def _keep(self, kept: dict[str, list[Any]], name: str, value: object) -> None:
        with self.changed:
            kept.setdefault(name, []).append(value)
            self.changed.notify_all()

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something that is kept.

        Raises:
            RuntimeError: it does not come.
        """
        with self.changed:
            if not self.changed.wait_for(holds, _SECONDS):
                raise RuntimeError(f"not within {_SECONDS:g} s: {what}")


class Emulated(NamedTuple):
    """A cluster in a thread of its own, whose tasks run until they are told to end."""

    api: Api
    life: ClusterLife
    loop: asyncio.AbstractEventLoop
    over: asyncio.Event

    def end_chiefs(self, names: Sequence[str]) -> None:
        """The chiefs of these trainings end well, all at once."""

        async def end() -> None:
            for pod in self.api.store.all(PODS):
                labels = pod["metadata"]["labels"]
                if labels.get(_TRAINING) in names and labels["elearn.dev/role"] == "chief":
                    self.life.ended(pod, code=0)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(_SECONDS)


@contextmanager
def _cluster() -> Iterator[Emulated]:
    up: Future[Emulated] = Future()

    async def serve() -> None:
        over = asyncio.Event()
        async with Api() as api:
            life = ClusterLife(api.store)
            life.node("n1", cpu="1000", memory="4000Gi")
            api.store.add(NAMESPACES, {"metadata": {"name": _BARE}})
            kubelet = TaskKubelet(api, life)
            up.set_result(Emulated(api, life, asyncio.get_running_loop(), over))
            await over.wait()
            await kubelet.aclose()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="cluster")
    thread.start()
    emulated = up.result(_SECONDS)
    try:
        yield emulated
    finally:
        emulated.loop.call_soon_threadsafe(emulated.over.set)
        thread.join()


def _submit(client: Client) -> str:
    return client.trainings.submit(
        {"name": "bench", "command": ["python", "train.py"], "image": "example/image", "roles": _ROLES}
    ).name


def _accepted(api: Api, name: str) -> float:
    """When the last Job was accepted."""

    def jobs() -> list[float]:
        return [at for path, _, at in api.made.get(name, ()) if path.endswith("/jobs")]

    api.until(lambda: len(jobs()) == len(_ROLES), f"all Jobs of {name}")
    return max(jobs())


async def _apply(port: int, objects: list[tuple[str, Document, float]], number: int) -> float:
    """Seconds that one bare client takes to create the same objects, one after the other."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get("/version") as answer:  # connects
            await answer.read()
        started = time.perf_counter()
        for path, document, _ in objects:
            folders = path.split("/")
            folders[folders.index("namespaces") + 1] = _BARE
            about = {**document["metadata"], "namespace": _BARE, "name": f"{document['metadata']['name']}-{number}"}
            about.pop("ownerReferences", None)
            async with session.post("/".join(folders), json={**document, "metadata": about}) as answer:
                body = await answer.read()
                if answer.status != 201:
                    raise RuntimeError(f"{answer.status} {body!r}")
        return time.perf_counter() - started


def _run_to_end(client: Client, cluster: Emulated, names: Sequence[str]) -> None:
    for name in names:
        client.trainings.wait(name, until="running", timeout=_SECONDS)
    cluster.end_chiefs(names)
    for name in names:
        ended = client.trainings.wait(name, until="freed", timeout=_SECONDS)
        if ended.state != "succeeded":
            raise RuntimeError(f"{name}: {ended.reason}")


def _accepting(client: Client, cluster: Emulated, delay: float) -> None:
    through, bare, made = [], [], 0
    for number in range(_RUNS + 1):
        cluster.api.delay = delay
        started = time.perf_counter()
        name = _submit(client)
        took = _accepted(cluster.api, name) - started
        objects = cluster.api.made[name]
        bare_took = asyncio.run(_apply(cluster.api.port, objects, number))
        cluster.api.delay = 0.0
        if number:  # the first one makes the namespace and what is in it
            through.append(took)
            bare.append(bare_took)
            made = len(objects)
        _run_to_end(client, cluster, [name])
    report(
        "submit_to_jobs",
        wanted="ratio at most 1.3",
        delay_ms=delay * 1000,
        objects=made,
        ratio=round(statistics.median(through) / statistics.median(bare), 2),
        seconds=summary(through),
        baseline_seconds=summary(bare),
    )


def _freeing(client: Client, cluster: Emulated, count: int, at_once: int) -> None:
    took = []
    for _ in range(count // at_once):
        names = [_submit(client) for _ in range(at_once)]
        _run_to_end(client, cluster, names)
        took += [max(cluster.api.deleted[name]) - cluster.api.ended[name] for name in names]
    report(
        "chief_to_deletes",
        wanted="under 0.2 s at the 99th percentile",
        at_once=at_once,
        pods_deleted=sum(map(len, cluster.api.deleted.values())) // len(cluster.api.deleted),
        seconds=summary(took),
    )


def main() -> None:
    """Measure and report."""
    with _cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        kubeconfig = Path(folder) / "kubeconfig"
        kubeconfig.write_text(cluster.api.kubeconfig())
        os.environ |= {
            "KUBECONFIG": str(kubeconfig),
            "ELEARN_CLOUD": "kubernetes",
            "ELEARN_KUBERNETES_MODEL_STORE": "host:/models",
        }
        try:
            with running() as (client, _):
                for delay in _DELAYS:
                    _accepting(client, cluster, delay)
                cluster.api.delay = _DELAYS[-1]
                for count, at_once in _ENDING:
                    _freeing(client, cluster, count, at_once)
        finally:
            for variable in ("KUBECONFIG", "ELEARN_CLOUD", "ELEARN_KUBERNETES_MODEL_STORE"):
                del os.environ[variable]


if __name__ == "__main__":
    main()
