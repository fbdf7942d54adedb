"""What becomes of attempts, as the cluster tells it: three watches, and questions about what does not start."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import structlog

from services.scheduler.cloud.kubernetes.attempt import Question
from services.scheduler.cloud.kubernetes.attempts import Attempts
from services.scheduler.cloud.kubernetes.identity import ROOM_NAME, TRAINING_WORK, WORK, AttemptKey, attempt_labels
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.seen import (
    Seen,
    SeenService,
    job_seen,
    pod_seen,
    service_seen,
)
from services.scheduler.cloud.port import AttemptGone, AttemptSeen, Observation, Synced
from shared.clock import now
from shared.errors import ElearnError
from shared.kube.changes import Synced as AllTold
from shared.kube.changes import Told
from shared.kube.client import Cluster
from shared.kube.merge import merged
from shared.kube.names import ROOM
from shared.kube.objects import Job, Pod
from shared.kube.projects import watch_all
from shared.kube.resources import JOBS, PODS, SERVICES
from shared.kube.said import last_words
from shared.kube.settings import ProjectSettings
from shared.supervise import Wake

_log = structlog.get_logger(__name__)

_LABELS: Final = {ROOM: ROOM_NAME, WORK: TRAINING_WORK}
_IDLE: Final = 60.0
_LOOK_EVERY: Final = 1.0
_QUESTIONS: Final = 10
"""How many at the most are asked at each look."""


async def watch_attempts(
    cluster: Cluster,
    settings: ProjectSettings,
    options: TrainingOptions,
    *,
    attempts: Attempts | None = None,
    look_every: float = _LOOK_EVERY,
) -> AsyncGenerator[Observation, None]:
    """Every attempt that is there, then :class:`Synced`, then those that stand otherwise, for ever.

    Nothing is told before all kinds of objects were seen: half of them make no attempt. Iterate under ``aclosing``.

    Args:
        attempts: where what is told is noted, for others to look at; empty.
        look_every: seconds between two looks for what time alone makes of attempts.
    """
    if attempts is None:
        attempts = Attempts(options, installation=cluster.installation)
    async with _Watcher(cluster, settings, attempts, look_every) as watcher, aclosing(watcher.observations()) as seen:
        async for each in seen:
            yield each


class _Watcher:
    """Takes in what is told, asks about the rest, and tells what is new of it."""

    def __init__(self, cluster: Cluster, settings: ProjectSettings, attempts: Attempts, look_every: float) -> None:
        self._cluster = cluster
        self._settings = settings
        self._look_every = look_every
        self._attempts = attempts
        self._touched: dict[AttemptKey, None] = {}
        self._synced = False
        self._wake = Wake()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "_Watcher":
        for name, work in (("read watches of trainings", self._read()), ("ask about trainings", self._ask())):
            task = asyncio.create_task(work, name=name)
            task.add_done_callback(lambda _: self._wake.ring())
            self._tasks.append(task)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def observations(self) -> AsyncGenerator[Observation, None]:
        """What is new, without an end."""
        told: dict[AttemptKey, AttemptSeen] = {}
        synced = False
        while True:
            await self._wake.wait(_IDLE)
            for task in self._tasks:
                if task.done():
                    task.result()
                    raise RuntimeError(f"{task.get_name()} ended by itself")
            if not self._synced:
                continue
            while self._touched:
                key = next(iter(self._touched))
                del self._touched[key]
                seen = self._attempts.observe(key, now())
                if isinstance(seen, AttemptGone):
                    if told.pop(key, None) is not None:
                        yield seen
                elif told.get(key) != seen:
                    told[key] = seen
                    yield seen
            if not synced:
                synced = True
                yield Synced()

    # -- what is told

    async def _read(self) -> None:
        async with aclosing(merged(self._watches())) as told:
            async for each in told:
                if isinstance(each, AllTold):
                    self._synced = True
                    self._wake.ring()
                else:
                    self._touch(self._attempts.take(each))

    def _watches(self) -> list[AsyncGenerator[Told[Seen | None], None]]:
        cluster, settings = self._cluster, self._settings
        return [
            watch_all(cluster, settings, SERVICES, SeenService, project=service_seen, labels=_LABELS),
            watch_all(cluster, settings, JOBS, Job, project=job_seen, labels=_LABELS),
            watch_all(cluster, settings, PODS, Pod, project=pod_seen, labels=_LABELS),
        ]

    def _touch(self, key: AttemptKey | None) -> None:
        if key is not None:
            self._touched[key] = None
            if self._synced:
                self._wake.ring()

    # -- what is asked

    async def _ask(self) -> None:
        while True:
            await asyncio.sleep(self._look_every)
            if not self._synced:
                continue
            for key in self._attempts.due(now()):
                await self._confirm(key)
            for question in self._attempts.questions(now(), _QUESTIONS):
                await self._answer(question)

    async def _confirm(self, key: AttemptKey) -> None:
        """Look whether an attempt still stands as it did, before its time is called up."""
        namespace, at = self._attempts.namespace(key), now()
        labels = attempt_labels(key)
        try:
            jobs, pods = await asyncio.gather(
                self._cluster.list(JOBS, Job, namespace=namespace, labels=labels),
                self._cluster.list(PODS, Pod, namespace=namespace, labels=labels),
            )
        except ElearnError as error:
            _log.info("can't look a training up again, later", training=key, error=error.detail)
            self._attempts.put_off(key, at)
            return
        self._attempts.confirm(
            key,
            [seen for job in jobs if (seen := job_seen(job)) is not None],
            [living for pod in pods if (living := pod_seen(pod)) is not None],
            at,
        )
        self._touch(key)

    async def _answer(self, question: Question) -> None:
        try:
            words = await last_words(self._cluster, question.resource, question.name, question.namespace)
        except ElearnError as error:
            _log.debug("can't ask why a task does not start", training=question.key, error=error.detail)
            return
        if words:
            self._attempts.answer(question, words)
            self._touch(question.key)
