"""The end of an attempt: what runs is deleted at once, what has ended after its log was read, the rest with it."""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final, NoReturn

import msgspec
import structlog

from services.scheduler.cloud.kubernetes.attempt import Attempt
from services.scheduler.cloud.kubernetes.attempts import Attempts, SeenService, listed_attempt
from services.scheduler.cloud.kubernetes.identity import HELD_BACK, QUEUE, AttemptKey, attempt_labels
from services.scheduler.cloud.kubernetes.log_rest import Rest
from services.scheduler.cloud.kubernetes.log_sources import writer_seen, writers_of
from services.scheduler.cloud.kubernetes.logs import TaskLogs
from services.scheduler.cloud.kubernetes.manifests import Setting
from services.scheduler.cloud.kubernetes.seen import pod_seen
from services.scheduler.cloud.kubernetes.silence import Silent, given_up, silent_among, why_unended
from shared.clock import now
from shared.contracts.training import Task
from shared.errors import Conflict, ElearnError, Invalid, NotFound, Unavailable
from shared.kube.client import Cluster
from shared.kube.errors import NamespaceMissing
from shared.kube.merge import Mirror
from shared.kube.objects import HasMetadata, Job, Node, Pod
from shared.kube.resources import JOBS, NODES, PODS, SERVICES, Resource
from shared.kube.sending import side_by_side
from shared.kube.states import is_over
from shared.kube.watch import watch

_log = structlog.get_logger(__name__)

_OPEN_SECONDS: Final = 0.05
"""Deleting waits so long at the most until the logs of what is deleted are being read."""
_OTHERS_SECONDS: Final = 0.5
"""Who has ended its tasks waits so long at the most for others that are about to."""
_GONE_SECONDS: Final = 20.0
"""Beyond the grace of its pods, an attempt may take so long to go; then freeing it is tried again."""


class Freeing:
    """Frees attempts.

    What a watch has told is enough to delete what runs; only then is it listed what there is, so that nothing is left
    that the watch did not know.
    """

    def __init__(self, cluster: Cluster, setting: Setting, logs: TaskLogs) -> None:
        self._cluster = cluster
        self._setting = setting
        self._lost_after = timedelta(seconds=setting.options.kubernetes_lost_node_seconds)
        self._logs = logs
        self._told: Attempts | None = None
        self._ending = 0
        self._all_ended = asyncio.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[Attempts]:
        """Where a watch notes what it is told, for as long as it is read."""
        told = self._told = Attempts(self._setting.options, installation=self._setting.installation)
        try:
            yield told
        finally:
            if self._told is told:
                self._told = None

    async def free(self, key: AttemptKey, namespace: str) -> tuple[Task, ...]:
        """See :class:`services.scheduler.cloud.port.TrainingCloud`."""
        labels = attempt_labels(key)
        rest = self._logs.rest(key)
        told = await self._end_told(key, rest)
        await self._others_ended()
        try:
            services, jobs, pods = await asyncio.gather(
                self._cluster.list(SERVICES, SeenService, namespace=namespace, labels=labels),
                self._cluster.list(JOBS, Job, namespace=namespace, labels=labels),
                self._cluster.list(PODS, Pod, namespace=namespace, labels=labels),
            )
        except NamespaceMissing:
            return ()
        if not (services or jobs or pods):
            return ()
        moment = now()
        listed = listed_attempt(key, services[0] if services else None, jobs, pods)
        seen = _newest(told, self._look(listed) if listed is not None else (), pods)
        unfinished = {job.uid for job in listed.unfinished} if listed is not None else set()
        await rest.open(writers_of(pods), within=_OPEN_SECONDS)
        await side_by_side(
            [
                *(self._delete(PODS, pod, namespace) for pod in pods if not _has_ended(pod)),
                *(self._suspend(job, namespace) for job in jobs if job.metadata.uid in unfinished),
            ]
        )
        await rest.drain(self._setting.grace + _GONE_SECONDS)
        await side_by_side(
            [
                *(
                    self._delete(PODS, pod, namespace, grace=0 if is_over(pod) else None)
                    for pod in pods
                    if _has_ended(pod)
                ),
                *(self._delete(JOBS, job, namespace) for job in jobs),
                *(self._delete(SERVICES, service, namespace) for service in services),
            ]
        )
        await self._until_gone(labels, namespace)
        return tuple(
            task if task.finished_at else msgspec.structs.replace(task, state="stopped", finished_at=moment, reason="")
            for task in seen
        )

    async def _end_told(self, key: AttemptKey, rest: Rest) -> tuple[Task, ...]:
        """Delete what runs as far as the watch has told of it, and hold back what would start it again.

        Returns:
            The tasks as they stood before that.
        """
        attempt = self._told.get(key) if self._told is not None else None
        if attempt is None:
            return ()
        self._ending += 1
        self._all_ended.clear()
        try:
            return await self._end(attempt, rest)
        finally:
            self._ending -= 1
            if not self._ending:
                self._all_ended.set()

    async def _others_ended(self) -> None:
        """Let those go first whose tasks still run: what is left to do here can wait."""
        if self._ending:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_OTHERS_SECONDS):
                    await self._all_ended.wait()

    async def _end(self, attempt: Attempt, rest: Rest) -> tuple[Task, ...]:
        tasks = self._look(attempt)
        attempt.end()
        there = [pod for pod in attempt.pods if pod.stage != "ended" and pod.going_at is None]
        running = {pod.task for pod in there if pod.stage == "running"}
        writers = sorted(
            (writer_seen(pod) for pod in attempt.pods if pod.task in running), key=lambda each: each.source.order
        )
        await rest.open(writers, within=_OPEN_SECONDS)
        # A cluster takes a second to start anew what is deleted; until then it is held back.
        await side_by_side(
            [
                *(self._cluster.delete(PODS, pod.name, namespace=pod.namespace, uid=pod.uid) for pod in there),
                *(
                    self._hold_back(job.name, job.uid, job.namespace)
                    for job in attempt.unfinished
                    if not (job.going or job.held_back or (job.suspended and not job.queue))
                ),
            ]
        )
        return tasks

    def _look(self, attempt: Attempt) -> tuple[Task, ...]:
        return attempt.look(now(), self._setting.options, self._setting.installation)

    async def _suspend(self, job: Job, namespace: str) -> None:
        about = job.metadata
        held = HELD_BACK in about.annotations or (job.spec.suspend and QUEUE not in about.labels)
        if about.deletion_timestamp is None and not held:
            await self._hold_back(about.name, about.uid, namespace)

    async def _hold_back(self, name: str, uid: str, namespace: str) -> None:
        """By uid: another of its name is none of ours to touch."""
        change = {"metadata": {"uid": uid, "annotations": {HELD_BACK: "true"}}, "spec": {"suspend": True}}
        with contextlib.suppress(NotFound, Conflict, Invalid):  # gone, or over: nothing to hold back
            await self._cluster.patch(JOBS, name, change, namespace=namespace)

    async def _delete(
        self, resource: Resource, found: HasMetadata, namespace: str, *, grace: int | None = None
    ) -> None:
        about = found.metadata
        if about.deletion_timestamp is None or grace == 0:
            await self._cluster.delete(resource, about.name, namespace=namespace, uid=about.uid, grace=grace)

    async def _until_gone(self, labels: dict[str, str], namespace: str) -> None:
        """Wait until there is no pod left: only then are its resources somebody else's.

        One that has ended is not waited for: nothing of it runs, and its log was read.
        """
        left: Mirror[Pod] = Mirror()
        ended: set[str] = set()
        try:
            async with (
                asyncio.timeout(self._setting.grace + _GONE_SECONDS),
                contextlib.aclosing(watch(self._cluster, PODS, Pod, namespace=namespace, labels=labels)) as told,
            ):
                async for each in told:
                    left.take(each)
                    for pod in left:
                        if is_over(pod) and pod.metadata.uid not in ended:
                            ended.add(pod.metadata.uid)
                            await self._delete(PODS, pod, namespace, grace=0)
                    if left.synced and not len(left):
                        return
        except TimeoutError:
            if not left.synced:
                raise Unavailable("the cluster does not tell which pods are left", retry=5) from None
            await self._give_up_or_wait(list(left))

    async def _give_up_or_wait(self, left: Sequence[Pod]) -> NoReturn:
        """Take pods for ended that are not waited for any longer, as their nodes do not answer.

        Raises:
            Unavailable: always, with what is waited for.
        """
        silent: Silent = {}
        try:
            nodes = await self._cluster.list(NODES, Node, ours=False)
        except ElearnError as error:  # where we may not see nodes, we can but wait
            _log.info("nodes of pods that do not end can't be seen", error=error.detail)
        else:
            silent = silent_among(nodes, {pod.spec.node_name for pod in left})
        for pod in given_up(left, silent, self._lost_after, now()):
            _log.warning("a pod is given up with its node", pod=pod.metadata.name, node=pod.spec.node_name)
            await self._delete(PODS, pod, pod.metadata.namespace, grace=0)
        raise Unavailable(why_unended(left, silent, self._lost_after), retry=5)


def _has_ended(pod: Pod) -> bool:
    """Its task has; the node says a moment later that the pod has as well."""
    seen = pod_seen(pod)
    return is_over(pod) or (seen is not None and seen.stage == "ended")


def _newest(told: tuple[Task, ...], listed: tuple[Task, ...], pods: Sequence[Pod]) -> list[Task]:
    """Tasks as they were listed last; those whose pods were gone by then as they stood when these were deleted."""
    before = {task.name: task for task in told}
    there = {writer.task for writer in writers_of(pods)}
    return [task if task.name in there else before.get(task.name, task) for task in listed]
