"""The Kubernetes training cloud on an emulated cluster, and the node's side of its pods.

async with training_cluster() as it:
    driver = it.driver(logs)
    await driver.launch(launch_of("t-1", roles=…))     its pods are placed, prepared, and run
    it.kubelet.end(launch, "chief-0", 0)               a task's program ends with an exit code
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from aiohttp import web
from msgspec.structs import replace

from services.scheduler.cloud.kubernetes.boards import Boards
from services.scheduler.cloud.kubernetes.code import CodeDelivery
from services.scheduler.cloud.kubernetes.code_tokens import CodeTokens
from services.scheduler.cloud.kubernetes.driver import KubernetesTrainings
from services.scheduler.cloud.kubernetes.furniture import Furniture
from services.scheduler.cloud.kubernetes.identity import (
    CONTAINER,
    TRAINING_WORK,
    WORK,
    AttemptKey,
    attempt_of,
    groups_of,
    job_name,
    service_name,
    task_of,
)
from services.scheduler.cloud.kubernetes.logs import TaskLogs
from services.scheduler.cloud.kubernetes.manifests import Setting
from services.scheduler.cloud.kubernetes.nodes import Nodes
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.port import Launch
from services.scheduler.errors import NoSuchCode
from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.spec import plan_tasks
from shared.kube.client import Cluster
from shared.kube.projects import Projects
from shared.kube.resources import JOBS, PODS, SECRETS, SERVICES, Resource
from shared.kube.settings import KubernetesSettings, ProjectSettings
from shared.supervise import Supervisor
from tests.support.kube_fields import Document
from tests.support.kube_life import ClusterLife
from tests.support.kube_rights import FORWARDING, ChartRights
from tests.support.kube_server import KubeServer
from tests.support.trainings import spec

PROJECT = "p"
NAMESPACE = "elearn-p"
KINDS = (SERVICES, SECRETS, JOBS, PODS)
IMPATIENT = TrainingOptions(kubernetes_start_seconds=300.0, kubernetes_log_seconds=0.5)

Task = tuple[str, str, int, str]
"""Project, training, attempt, and the task's name."""


def launch_of(name: str = "t-1", attempt: int = 1, *, plans: Any = (), project: str = PROJECT, **fields: Any) -> Launch:
    """One attempt; fields of its spec by keyword."""
    asked = spec(**{"command": ("python", "train.py"), **fields})
    return Launch(
        project=project,
        name=name,
        attempt=attempt,
        spec=asked,
        plan=plan_tasks(asked, TensorFlow()),
        mounts=plans,
    )


def job_of(launch: Launch, role: str = "chief", installation: str = "elearn") -> str:
    """The Job of a role."""
    key = AttemptKey(launch.project, launch.name, launch.attempt)
    group = next(group for group in groups_of(launch.plan) if group.role == role)
    return job_name(key, group, installation)


def service_of(launch: Launch, installation: str = "elearn") -> str:
    """The Service that owns an attempt."""
    return service_name(AttemptKey(launch.project, launch.name, launch.attempt), installation)


class TaskKubelet:
    """What nodes do with the pods of trainings: prepare them, run their task, and end it when they are told to.

    Attributes:
        holding: says of which pods a test tells the story itself; they are left as they are.
        says: what every task prints when it starts.
        obeys: a task ends when it is told to; one that does not is there until somebody finishes its pod.
    """

    def __init__(self, server: KubeServer, life: ClusterLife) -> None:
        self.server, self.life = server, life
        self.holding: Callable[[Document], bool] = lambda _: False
        self.says = "hello\n"
        self.obeys = True
        self._orders: dict[Task, list[int]] = {}
        self._begun: set[str] = set()
        self._told: set[str] = set()
        self._work: set[asyncio.Task[None]] = set()
        server.store.graceful = True
        server.store.on_write.append(self._written)

    def end(self, launch: Launch, task: str, code: int) -> None:
        """Let a task's program end, now or as soon as it runs."""
        key = (launch.project, launch.name, launch.attempt, task)
        pod = next((pod for pod in self.running(launch) if _task(pod) == key), None)
        if pod is None:
            self._orders.setdefault(key, []).append(code)
        else:
            self._do(self._exit(pod, code))

    def running(self, launch: Launch) -> list[Document]:
        """The pods of an attempt that run and are not on their way out."""
        key = AttemptKey(launch.project, launch.name, launch.attempt)
        return [
            pod
            for pod in self.server.store.all(PODS)
            if attempt_of(pod["metadata"].get("labels", {})) == key
            and pod["status"]["phase"] == "Running"
            and "deletionTimestamp" not in pod["metadata"]
        ]

    async def aclose(self) -> None:
        for work in tuple(self._work):
            work.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    def _do(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name="kubelet")
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def _written(self, resource: Resource, before: Document | None, after: Document | None) -> None:
        pod = after or before
        if resource != PODS or pod is None or pod["metadata"].get("labels", {}).get(WORK) != TRAINING_WORK:
            return
        uid = pod["metadata"]["uid"]
        if after is None or after["status"]["phase"] in ("Succeeded", "Failed"):
            self._do(self._end_log(pod))
        if after is None:
            return
        if "deletionTimestamp" in after["metadata"]:
            if uid not in self._told:
                self._told.add(uid)
                self._do(self._terminate(uid, after))
        elif uid not in self._begun and self._may_start(after):
            self._begun.add(uid)
            self._do(self._start(uid, after))

    def _may_start(self, pod: Document) -> bool:
        placed = pod["spec"].get("nodeName") and pod["status"]["phase"] == "Pending"
        return bool(placed) and not self.holding(pod)

    def start(self, pod: Document) -> None:
        """Run a pod that was held."""
        self._begun.add(pod["metadata"]["uid"])
        self._do(self._start(pod["metadata"]["uid"], pod))

    async def _start(self, uid: str, pod: Document) -> None:
        live = self._live(uid, pod)
        if live is None or live["status"]["phase"] != "Pending":
            return
        self.life.running(live)
        await self.server.log(
            pod["metadata"]["name"], self.says, namespace=pod["metadata"]["namespace"], container=CONTAINER
        )
        orders = self._orders.get(_task(pod))
        if orders:
            await self._exit(live, orders.pop(0))

    async def _exit(self, pod: Document, code: int) -> None:
        live = self._live(pod["metadata"]["uid"], pod)
        if live is not None and live["status"]["phase"] == "Running":
            self.life.ended(live, code=code)

    async def _terminate(self, uid: str, pod: Document) -> None:
        """SIGTERM, and the end of it."""
        live = self._live(uid, pod)
        if live is None:
            return
        if live["status"]["phase"] == "Running":
            if not self.obeys:
                return
            self.life.ended(live, code=143)
        self.server.store.finish(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])

    async def _end_log(self, pod: Document) -> None:
        about = pod["metadata"]
        await self.server.log(about["name"], b"", namespace=about["namespace"], container=CONTAINER, end=True)

    def _live(self, uid: str, pod: Document) -> Document | None:
        found = self.server.store.find(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])
        return found if found is not None and found["metadata"]["uid"] == uid else None


def _nothing() -> None:
    """Nobody dies."""


def _task(pod: Document) -> Task:
    labels = pod["metadata"]["labels"]
    key, task = attempt_of(labels), task_of(labels)
    assert key is not None
    assert task is not None
    return (*key, f"{task[0]}-{task[1]}")


class Crashing(KubeServer):
    """An API whose clients die: after their n-th write from :meth:`after` on was done, before they hear of it."""

    def __init__(self) -> None:
        super().__init__()
        self._left = 0
        self._die: Callable[[], object] = _nothing

    def after(self, writes: int, die: Callable[[], object]) -> None:
        self._left, self._die = writes, die

    async def _route(self, request: web.Request) -> Any:
        answer = await super()._route(request)
        if request.method != "GET" and self._left:
            self._left -= 1
            if not self._left:
                self._die()
                await asyncio.sleep(3600)  # nobody hears this any more
        return answer


class CodeInMemory:
    """Archives of code.

    Attributes:
        archives: by digest.
    """

    def __init__(self) -> None:
        self.archives: dict[str, bytes] = {}

    async def size(self, project: str, digest: str) -> int:
        if digest not in self.archives:
            raise NoSuchCode(project, digest)
        return len(self.archives[digest])

    async def parts(self, project: str, digest: str) -> AsyncGenerator[bytes, None]:
        await self.size(project, digest)
        yield self.archives[digest]

    async def signing_key(self) -> bytes:
        return b"key"


class TrainingCluster:
    """An emulated cluster, and drivers over it.

    Attributes:
        code: the archives of code that there are.
    """

    def __init__(self, server: KubeServer, life: ClusterLife, cluster: Cluster, supervisor: Supervisor) -> None:
        self.server, self.life, self.cluster = server, life, cluster
        self.store = server.store
        self.kubelet = TaskKubelet(server, life)
        self.code = CodeInMemory()
        self._supervisor = supervisor

    def driver(
        self,
        log_store: Any,
        *,
        cluster: Cluster | None = None,
        options: TrainingOptions = IMPATIENT,
        settings: ProjectSettings | None = None,
        restarts: int = 3,
        grace: float = 2.0,
        background: bool = True,
    ) -> KubernetesTrainings:
        """A driver that knows nothing of earlier ones; what has to go on beside it does, unless it dies soon."""
        cluster, settings = cluster or self.cluster, settings or ProjectSettings()
        projects = Projects(cluster, settings)
        driver = KubernetesTrainings(
            cluster,
            Setting(
                installation=cluster.installation, projects=settings, options=options, restarts=restarts, grace=grace
            ),
            TensorFlow(),
            projects=projects,
            furniture=Furniture(cluster, settings, projects),
            code=CodeDelivery(options, self.code, CodeTokens(self.code.signing_key).sign),
            logs=TaskLogs(cluster, projects, log_store, options, limit=2**20),
            nodes=Nodes(cluster, settings),
            boards=Boards(cluster, settings, options, projects),
        )
        if background:
            for name, work in {**driver.everywhere(), **driver.leading()}.items():
                self._supervisor.forever(name, work())
        return driver

    def left(self, namespace: str = NAMESPACE) -> dict[str, int]:
        """How many objects of each kind there are."""
        return {kind.kind: len(found) for kind in KINDS if (found := self.store.all(kind, namespace))}

    def writes(self) -> list[tuple[str, str]]:
        """Requests that changed something, in their order: method and path."""
        return [(method, path) for method, path, _ in self.server.requests if method != "GET"]


@contextlib.asynccontextmanager
async def training_cluster(
    *, cpu: str = "16", gpus: int = 0, server: KubeServer | None = None, installation: str = "elearn", **life: bool
) -> AsyncIterator[TrainingCluster]:
    """A cluster with one node."""
    async with server or KubeServer() as api:
        controllers = ClusterLife(api.store, **life)
        controllers.node("n1", cpu=cpu, gpus=gpus)
        api.rights = ChartRights("scheduler", beyond=[FORWARDING])
        async with connected(api, installation) as cluster, Supervisor() as supervisor:
            made = TrainingCluster(api, controllers, cluster, supervisor)
            try:
                yield made
                await supervisor.wait(asyncio.sleep(0))  # raises what has ended a driver's work
            finally:
                await made.kubelet.aclose()


@contextlib.asynccontextmanager
async def connected(server: KubeServer, installation: str = "elearn", **settings: Any) -> AsyncIterator[Cluster]:
    """A client of an installation."""
    chosen = KubernetesSettings(kubernetes_timeout=5.0, kubernetes_patience=1.0, kubernetes_installation=installation)
    async with Cluster(replace(chosen, **settings), find=server.access, first_pause=0.01) as cluster:
        yield cluster


def held(*names: str) -> Callable[[Document], bool]:
    """Pods of these tasks are held (``chief-0``); none named: of all."""
    return lambda pod: not names or _task(pod)[3] in names
