"""Tasks whose logs an emulated API serves as a kubelet does, and the room that keeps them in a real database."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.scheduler import log_store
from services.scheduler.cloud.kubernetes.identity import AttemptKey, attempt_labels
from services.scheduler.cloud.kubernetes.log_rest import Rest
from services.scheduler.cloud.kubernetes.log_sources import writers_of
from services.scheduler.cloud.kubernetes.logs import TaskLogs
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.log_store import LogKey, LogStore
from shared.kube.client import Cluster
from shared.kube.names import labels_of
from shared.kube.objects import Pod
from shared.kube.projects import Projects
from shared.kube.resources import PODS
from shared.kube.settings import ProjectSettings
from shared.postgres import Database
from tests.support.kube_logs import SECOND
from tests.support.kube_rights import ChartRights
from tests.support.kube_server import KubeServer
from tests.support.servers import FreshDatabase

KEY = AttemptKey("search", "ctr-7", 1)
NAMESPACE = "elearn-search"
LOG = LogKey(*KEY, "worker-0")
T = 1_795_507_200 * SECOND
LONG = 600 * 2**10


async def _migrate(url: str) -> None:
    await Database(url, name="scheduler").migrate(Path(log_store.__file__).parent / "migrations")


@pytest.fixture
async def store(fresh_database: FreshDatabase) -> AsyncIterator[LogStore]:
    url = await fresh_database(_migrate)
    database = Database(url, name="scheduler")
    await database.open()
    async with database:
        yield LogStore(database)


@pytest.fixture
async def server() -> AsyncIterator[KubeServer]:
    async with KubeServer() as running:
        running.rights = ChartRights("scheduler")
        yield running


@pytest.fixture
async def cluster(server: KubeServer) -> AsyncIterator[Cluster]:
    settings = server.settings(kubernetes_timeout=2.0, kubernetes_patience=0.3)
    async with Cluster(settings, find=server.access, first_pause=0.01, longest_pause=0.05) as connected:
        yield connected


@pytest.fixture
async def logs(cluster: Cluster, store: LogStore) -> AsyncIterator[TaskLogs]:
    async with replica(cluster, store) as one:
        yield one


@contextlib.asynccontextmanager
async def replica(cluster: Cluster, store: Any, *, limit: int = 2**26) -> AsyncIterator[TaskLogs]:
    options = TrainingOptions(kubernetes_log_seconds=0.0)
    one = TaskLogs(cluster, Projects(cluster, ProjectSettings()), store, options, limit=limit, pause=0.0)
    try:
        yield one
    finally:
        await one.aclose()


class Task:
    """A pod of a task, and what its container writes."""

    def __init__(self, server: KubeServer, name: str = "w-0-x", *, earlier: int = 0, key: AttemptKey = KEY) -> None:
        self.server, self.name = server, name
        about = {"batch.kubernetes.io/job-index-failure-count": str(earlier)}
        labels = {**attempt_labels(key), "elearn.dev/role": "worker", "elearn.dev/first-index": "0"}
        labels |= {"batch.kubernetes.io/job-completion-index": "0", **labels_of("elearn")}
        self.document = server.store.add(
            PODS,
            {
                "metadata": {"name": name, "labels": labels, "annotations": about},
                "spec": {"nodeName": "n1"},
                "status": {"phase": "Pending"},
            },
            NAMESPACE,
        )

    def state(self, phase: str, **state: object) -> None:
        status = {"phase": phase, "containerStatuses": [{"name": "task", "state": state}]}
        self.server.store.change(PODS, self.name, NAMESPACE, status=status)

    def run(self) -> "Task":
        self.state("Running", running={})
        return self

    def end(self, code: int = 0) -> None:
        self.server.logs.end(NAMESPACE, self.name)
        self.state("Failed" if code else "Succeeded", terminated={"exitCode": code})

    def delete(self) -> None:
        self.server.store.delete(PODS, NAMESPACE, self.name, {"gracePeriodSeconds": 0})

    async def write(self, data: bytes, *stamps: int, container: str = "task") -> None:
        await self.server.logs.write((NAMESPACE, self.name, container), data, stamps=list(stamps))

    @property
    def pod(self) -> Pod:
        return msgspec.convert(self.server.store.need(PODS, self.name, NAMESPACE), Pod)


async def rest_of(logs: TaskLogs, *tasks: Task, within: float = 5) -> Rest:
    rest = logs.rest(KEY)
    await rest.open(writers_of([task.pod for task in tasks]), within=within)
    return rest


async def text(logs: TaskLogs, offset: int = 0, length: int = LONG) -> bytes:
    return (await logs.read(*LOG, offset=offset, length=length)).data
