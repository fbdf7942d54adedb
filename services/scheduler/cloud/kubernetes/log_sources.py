"""Which containers write the log of a task, and in which order: its pods, listed no more often than needed."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from services.scheduler.cloud.kubernetes.identity import CONTAINER, PREPARING, AttemptKey, attempt_labels, task_of
from services.scheduler.cloud.kubernetes.seen import PodSeen
from services.scheduler.log_store import Source
from shared.kube.client import Cluster
from shared.kube.errors import NamespaceMissing
from shared.kube.objects import ContainerStatus, Pod
from shared.kube.resources import PODS
from shared.kube.states import is_over

_FAILURES: Final = "batch.kubernetes.io/job-index-failure-count"
_IGNORED: Final = "batch.kubernetes.io/job-index-ignored-failure-count"
_RANKS: Final = 100_000
_KEPT: Final = 1000

Stage = Literal["waiting", "running", "over"]


class Writer(msgspec.Struct, frozen=True, kw_only=True):
    """A container that writes, or wrote, a task's log.

    Attributes:
        stage: ``over`` once it will write no more.
    """

    task: str
    pod: str
    namespace: str
    container: str
    source: Source
    stage: Stage


def writer_of(pod: Pod) -> Writer | None:
    """A task's pod as a writer: its task, or what prepared it, where that failed. None where it is no task's."""
    about, status = pod.metadata, pod.status
    task = task_of(about.labels)
    if task is None:
        return None
    failed = _status(status.init_container_statuses, PREPARING)
    ran = _status(status.container_statuses, CONTAINER)
    container = CONTAINER
    stage: Stage = "waiting"
    if ran is not None and ran.state.running is not None:
        stage = "running"
    elif is_over(pod) or (ran is not None and ran.state.terminated is not None):
        stage = "over"
    if (
        (ran is None or (ran.state.running is None and ran.state.terminated is None))
        and failed is not None
        and failed.state.terminated is not None
        and failed.state.terminated.exit_code
    ):
        container, stage = PREPARING, "over"
    return Writer(
        task=f"{task[0]}-{task[1]}",
        pod=about.name,
        namespace=about.namespace,
        container=container,
        source=Source(uid=about.uid, rank=_rank(_born(pod), _earlier(pod))),
        stage=stage,
    )


def writer_seen(pod: PodSeen) -> Writer:
    """The same of a pod as a watch told of it."""
    stage: Stage = "over" if pod.stage == "ended" else "running" if pod.stage == "running" else "waiting"
    born = pod.created_at or datetime.fromtimestamp(0, UTC)
    return Writer(
        task=f"{pod.role}-{pod.index}",
        pod=pod.name,
        namespace=pod.namespace,
        container=PREPARING if stage == "over" and pod.started_at is None else CONTAINER,
        source=Source(uid=pod.uid, rank=_rank(born, pod.earlier)),
        stage=stage,
    )


def writers_of(pods: Sequence[Pod]) -> list[Writer]:
    """The writers among pods, those of each task in their order."""
    found = [writer for pod in pods if (writer := writer_of(pod)) is not None]
    return sorted(found, key=lambda writer: writer.source.order)


def _status(statuses: Sequence[ContainerStatus], name: str) -> ContainerStatus | None:
    return next((each for each in statuses if each.name == name), None)


def _born(pod: Pod) -> datetime:
    return pod.metadata.creation_timestamp or datetime.fromtimestamp(0, UTC)


def _earlier(pod: Pod) -> int:
    told = [pod.metadata.annotations.get(name, "") for name in (_FAILURES, _IGNORED)]
    return sum(int(text) for text in told if text.isdigit())


def _rank(born: datetime, earlier: int) -> int:
    """Pods are born in whole seconds; how many of its task failed before it tells those of one second apart."""
    return int(born.timestamp()) * _RANKS + min(earlier, _RANKS - 1)


class _Listing:
    """What a list said, and when it was begun."""

    __slots__ = ("begun", "writers")

    def __init__(self, begun: float, writers: list[Writer]) -> None:
        self.begun = begun
        self.writers = writers


class Writers:
    """The writers of attempts: who asks for the same at the same time is answered by one list.

    Args:
        young: seconds for which a list still tells which pod of a task runs.
    """

    def __init__(self, cluster: Cluster, namespace: Callable[[str], str], *, young: float) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._young = young
        self._listings: OrderedDict[AttemptKey, _Listing] = OrderedDict()
        self._locks: dict[AttemptKey, tuple[asyncio.Lock, int]] = {}

    async def of_task(self, key: AttemptKey, task: str) -> list[Writer]:
        """A task's writers in their order. What was listed before serves for as long as the last of them runs."""
        asked = asyncio.get_running_loop().time()
        found = [each for each in await self._listed(key, asked - self._young) if each.task == task]
        if not found or found[-1].stage != "running":
            found = [each for each in await self._listed(key, asked) if each.task == task]
        return found

    async def now(self, key: AttemptKey) -> list[Writer]:
        """All writers of an attempt, as they stand now."""
        return await self._listed(key, asyncio.get_running_loop().time())

    async def _listed(self, key: AttemptKey, since: float) -> list[Writer]:
        """A list that was begun at that time or later."""
        found = self._listings.get(key)
        if found is not None and found.begun >= since:
            return found.writers
        lock, waiting = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, waiting + 1)
        try:
            async with lock:
                found = self._listings.get(key)
                if found is None or found.begun < since:
                    found = await self._list(key)
                return found.writers
        finally:
            lock, waiting = self._locks.pop(key)
            if waiting > 1:
                self._locks[key] = (lock, waiting - 1)

    async def _list(self, key: AttemptKey) -> _Listing:
        begun = asyncio.get_running_loop().time()
        try:
            pods = await self._cluster.list(
                PODS, Pod, namespace=self._namespace(key.project), labels=attempt_labels(key)
            )
        except NamespaceMissing:
            pods = []
        listing = self._listings[key] = _Listing(begun, writers_of(pods))
        self._listings.move_to_end(key)
        while len(self._listings) > _KEPT:
            self._listings.popitem(last=False)
        return listing
