"""The Kubernetes job cloud: saving and removing are Jobs, a download is read by a pod; no model passes through here."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final, TypeVar

import structlog

from services.registry.cloud.kubernetes.agent import ReadArchive
from services.registry.cloud.kubernetes.manifests import (
    ATTEMPT,
    ROOM_NAME,
    WORK,
    archive_job,
    job_of,
    key_labels,
    remove_job,
    save_job,
)
from services.registry.cloud.kubernetes.observing import (
    LookAgain,
    ReadLog,
    Stuck,
    concluded,
    in_use_elsewhere,
    lost,
    observe,
)
from services.registry.cloud.kubernetes.options import (
    JobOptions,
    made_for_one_node,
    store_manifests,
)
from services.registry.cloud.kubernetes.work import unpack
from services.registry.cloud.port import Gone, Observation, Refused, Running, SaveJob, Synced
from services.registry.model import Key
from services.registry.model_store import relative_path
from services.registry.reconcile import Job
from shared.clock import now
from shared.contracts.common import Chunk
from shared.contracts.datastore import ClaimVolume
from shared.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable, Unsupported
from shared.kube.access import Right
from shared.kube.agents import Agents
from shared.kube.changes import Deleted
from shared.kube.changes import Synced as KubeSynced
from shared.kube.client import Cluster
from shared.kube.errors import AlreadyExists, MissingRight, NamespaceMissing, Terminating
from shared.kube.follow import Follower
from shared.kube.merge import Mirror
from shared.kube.model_store import store_claim, store_kind
from shared.kube.names import PROJECT, ROOM
from shared.kube.objects import Claim, Partial, Pod, condition, is_true
from shared.kube.objects import Job as KubeJob
from shared.kube.own_pods import OwnJob, own_job
from shared.kube.projects import Projects, as_it_is, watch_all
from shared.kube.resources import (
    EVENTS,
    JOBS,
    NAMESPACES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
)
from shared.kube.rights import rights_to
from shared.kube.said import last_words
from shared.kube.settings import ProjectSettings
from shared.kube.single_node import single_node, single_pod_problem
from shared.kube.states import is_over, trouble
from shared.kube.volumes import apply_storage
from shared.kube.watch import watch

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_LOOK: Final = 30.0
_REFUSALS: Final = (Invalid, Forbidden, Conflict, Unsupported)
"""Answers of the cluster after which asking again would not help."""
_LOG_BYTES: Final = 4 * 2**20


class KubernetesJobs:
    """Save jobs in a cluster.

    Args:
        patience: seconds that a removal may take; then it is tried again.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: ProjectSettings,
        options: JobOptions,
        *,
        patience: float = 120.0,
        look_every: float = _LOOK,
        agent_patience: float = 7.0,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._options = options
        self._store = store_kind(options.kubernetes_model_store)
        self._claim = store_claim(self._store, cluster.installation)
        self._patience = patience
        self._look_every = look_every
        self._projects = Projects(cluster, settings)
        self._agents = Agents(
            cluster,
            settings,
            room=ROOM_NAME,
            patience=agent_patience,
            idle=options.kubernetes_archive_idle_seconds,
        )
        self._with_store: set[str] = set()
        self._stores: dict[str, ClaimVolume] = {}
        self._refused: dict[Job, Refused] = {}
        self._followers: set[Follower] = set()

    def rights(self) -> list[Right]:
        """What RBAC has to let us do."""
        places = self._settings.places
        needed = [
            *rights_to("get list watch create delete", JOBS, places=places),
            *rights_to("list watch", PODS, places=places),
            *rights_to("get", PODS, places=places, subresource="log"),
            *rights_to("create", PODS, places=places, subresource="proxy"),
            *rights_to("list", EVENTS, places=places),
            *rights_to("get", PERSISTENT_VOLUME_CLAIMS, places=places),
            *rights_to("get create", SECRETS, places=[self._cluster.namespace]),
        ]
        if self._store.kind != "claim":
            needed += rights_to("create patch", PERSISTENT_VOLUME_CLAIMS, places=places)
        if self._store.kind in ("nfs", "host"):
            needed += rights_to("get create patch", PERSISTENT_VOLUMES)
        if self._settings.kubernetes_create_namespaces:
            needed += rights_to("get create patch", NAMESPACES)
        return needed

    async def volume(self, project: str) -> ClaimVolume:
        """See :class:`services.registry.cloud.port.JobCloud`."""
        return await self._store_in(self._projects.namespace(project))

    def path(self, key: Key) -> str:
        """See the port."""
        return relative_path(key)

    async def save(self, job: SaveJob) -> None:
        """See the port."""
        key = job.job.key
        namespace = self._projects.namespace(key.project)
        try:
            await self._ensure_store(key.project)
            wanted = save_job(
                job,
                installation=self._cluster.installation,
                namespace=namespace,
                store=await self._store_in(namespace),
                options=self._options,
            )
            with contextlib.suppress(AlreadyExists):
                await self._cluster.create(own_job(wanted, self._settings))
        except (MissingRight, NamespaceMissing, Terminating) as error:
            self._forget(namespace)
            raise Unavailable(error.detail, retry=30) from error  # an operator can help
        except _REFUSALS as error:
            self._refused[job.job] = Refused(job=job.job, reason=f"the cluster refuses the save job: {error.detail}")
            self._ring()

    async def finish(self, job: Job) -> None:
        """See the port."""
        self._refused.pop(job, None)
        labels = {**key_labels(job.key), WORK: "save", ATTEMPT: str(job.attempt)}
        with contextlib.suppress(NamespaceMissing):
            await self._delete_jobs(labels, self._projects.namespace(job.key.project))
        self._ring()

    async def remove(self, key: Key) -> None:
        """See the port."""
        for job in [job for job in self._refused if job.key == key]:
            del self._refused[job]
        namespace = self._projects.namespace(key.project)
        if not await self._has_store(namespace):
            return  # nothing can ever have been saved here
        labels = {**key_labels(key), WORK: "save"}
        await self._delete_jobs(labels, namespace)
        try:
            async with asyncio.timeout(self._patience):
                await self._until_no_pod(namespace, labels)
                await self._clean_up(
                    remove_job(
                        key,
                        installation=self._cluster.installation,
                        namespace=namespace,
                        store=await self._store_in(namespace),
                    )
                )
        except TimeoutError:
            raise Unavailable(f"the files of version {key} could not be removed yet; trying again", retry=30) from None
        self._ring()

    async def open_archive(self, key: Key, *, offset: int, length: int) -> Chunk:
        """See the port."""
        namespace = self._projects.namespace(key.project)
        store = await self._store_in(namespace)
        job = archive_job(installation=self._cluster.installation, namespace=namespace, store=store)
        ask = ReadArchive(project=key.project, model=key.model, number=key.number, offset=offset, length=length)
        return await self._agents.call(job, ask, Chunk)

    async def watch(self) -> AsyncGenerator[Observation, None]:
        """See the port."""
        told: dict[Job, Observation] = {}
        jobs: Mirror[KubeJob] = Mirror()
        pods: Mirror[Pod] = Mirror()
        labels = {ROOM: ROOM_NAME, WORK: "save"}
        over: dict[str, Observation] = {}
        synced = False
        async with Follower() as follower:
            for_jobs = watch_all(self._cluster, self._settings, JOBS, KubeJob, project=as_it_is, labels=labels)
            for_pods = watch_all(self._cluster, self._settings, PODS, Pod, project=as_it_is, labels=labels)
            follower.follow(jobs, for_jobs)
            follower.follow(pods, for_pods)
            self._followers.add(follower)
            try:
                while True:
                    await follower.changed(self._look_every)
                    if not follower.synced:
                        continue
                    seen = await self._look(jobs, pods, over)
                    for job in [job for job in told if job not in seen]:
                        del told[job]
                        yield Gone(job=job)
                    for job, observation in seen.items():
                        if told.get(job) != observation:
                            told[job] = observation
                            yield observation
                    if not synced:
                        synced = True
                        yield Synced()
            finally:
                self._followers.discard(follower)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def _look(
        self, jobs: Mirror[KubeJob], pods: Mirror[Pod], over: dict[str, Observation]
    ) -> dict[Job, Observation]:
        """How every save stands; ``over`` keeps by uid how a Job ended, whatever becomes of its pod."""
        for uid in [uid for uid in over if jobs.get(uid) is None]:
            del over[uid]
        of_job: dict[Job, list[Pod]] = {}
        for pod in pods:
            if (owner := job_of(pod.metadata.labels)) is not None:
                of_job.setdefault(owner, []).append(pod)
        seen: dict[Job, Observation] = dict(self._refused)
        for kube in jobs:
            job = job_of(kube.metadata.labels)
            if job is None or kube.metadata.deletion_timestamp is not None:
                continue
            uid = kube.metadata.uid
            if uid not in over:
                seen[job] = await self._settle(job, kube, of_job.get(job, []))
                if isinstance(seen[job], Running):
                    continue
                over[uid] = seen[job]
            seen[job] = over[uid]
        return seen

    async def _settle(self, job: Job, kube: KubeJob, pods: list[Pod]) -> Observation:
        start = self._options.kubernetes_save_start_seconds
        seen = observe(job, kube, pods, now=now(), start_seconds=start)
        if isinstance(seen, LookAgain):
            # The two watches are not in step with each other: what one has not told may be there.
            labels = {**key_labels(job.key), WORK: "save", ATTEMPT: str(job.attempt)}
            found = await self._cluster.list(PODS, Pod, namespace=kube.metadata.namespace, labels=labels)
            seen = observe(job, kube, found, now=now(), start_seconds=start)
        if isinstance(seen, Stuck):
            resource, name = (PODS, seen.pod) if seen.pod is not None else (JOBS, kube.metadata.name)
            words = await last_words(self._cluster, resource, name, kube.metadata.namespace)
            if in_use_elsewhere(words):
                return Running(job=job)
            return Refused(job=job, reason=f"the save job could not start: {words}") if words else Running(job=job)
        if isinstance(seen, ReadLog):
            return await self._from_log(job, kube, seen.pod)
        return lost(job, kube) if isinstance(seen, LookAgain) else seen

    async def _from_log(self, job: Job, kube: KubeJob, pod: str) -> Observation:
        text = bytearray()
        try:
            async with self._cluster.logs(
                pod, namespace=kube.metadata.namespace, tail=1, limit_bytes=_LOG_BYTES, idle=10.0
            ) as chunks:
                async for chunk in chunks:
                    text += chunk
        except (NotFound, Invalid):
            return lost(job, kube)
        result = unpack(text.decode(errors="replace"))
        return concluded(job, result) if result is not None else lost(job, kube)

    # -- the store ----------------------------------------------------------------------------------------------------

    async def _ensure_store(self, project: str) -> None:
        namespace = await self._projects.ensure(project)
        if namespace in self._with_store and await self._has_store(namespace):
            return  # looked up all the same: the namespace may have been made anew by somebody else
        wanted = store_manifests(
            self._store,
            installation=self._cluster.installation,
            namespace=namespace,
            options=self._options,
            labels={ROOM: ROOM_NAME, PROJECT: project},
        )
        await apply_storage(self._cluster, wanted)
        self._with_store.add(namespace)

    async def _store_in(self, namespace: str) -> ClaimVolume:
        """The store's claim; on how many nodes it can be mounted, the claim itself says once it is there.

        Raises:
            Unsupported: several pods can't mount it.
        """
        if self._store.kind in ("nfs", "host"):
            return ClaimVolume(claim_name=self._claim)
        if (known := self._stores.get(namespace)) is not None:
            return known
        try:
            found = await self._cluster.get(PERSISTENT_VOLUME_CLAIMS, self._claim, Claim, namespace=namespace)
        except NamespaceMissing:
            found = None
        if found is None:
            one_node = made_for_one_node(self._store, self._options)
            return ClaimVolume(claim_name=self._claim, single_node=one_node)
        if problem := single_pod_problem(found.spec.access_modes):
            raise Unsupported(f"the model store, claim {self._claim} in namespace {namespace}: {problem}")
        volume = ClaimVolume(claim_name=self._claim, single_node=single_node(found.spec.access_modes))
        self._stores[namespace] = volume
        return volume

    async def _has_store(self, namespace: str) -> bool:
        found = await self._cluster.get(PERSISTENT_VOLUME_CLAIMS, self._claim, Partial, namespace=namespace)
        return found is not None

    def _forget(self, namespace: str) -> None:
        self._projects.forget(namespace)
        self._with_store.discard(namespace)
        self._stores.pop(namespace, None)

    async def _delete_jobs(self, labels: dict[str, str], namespace: str) -> None:
        """One by one: deleting them as a collection would be one more right."""
        for found in await self._cluster.list(JOBS, Partial, namespace=namespace, labels=labels):
            about = found.metadata
            await self._cluster.delete(JOBS, about.name, namespace=namespace, uid=about.uid)

    async def _until_no_pod(self, namespace: str, labels: dict[str, str]) -> None:
        """Wait until nothing writes any more."""
        writing: Mirror[Pod] = Mirror()
        async with contextlib.aclosing(watch(self._cluster, PODS, Pod, namespace=namespace, labels=labels)) as told:
            async for each in told:
                writing.take(each)
                if writing.synced and all(is_over(pod) for pod in writing):
                    return

    async def _clean_up(self, wanted: OwnJob) -> None:
        with contextlib.suppress(AlreadyExists):
            await self._cluster.create(own_job(wanted, self._settings))
        labels = dict(wanted.labels)
        try:
            await self._until_done(wanted, labels)
        except TimeoutError:
            pods = await self._cluster.list(PODS, Pod, namespace=wanted.namespace, labels=labels)
            words = [text for pod in pods if (text := trouble(pod))]
            words = words or [await last_words(self._cluster, JOBS, wanted.name, wanted.namespace)]
            _log.warning("a clean-up does not end", job=wanted.name, because=words[0])
            raise
        await self._delete_jobs(labels, wanted.namespace)

    async def _until_done(self, wanted: OwnJob, labels: dict[str, str]) -> None:
        async with contextlib.aclosing(
            watch(self._cluster, JOBS, KubeJob, namespace=wanted.namespace, labels=labels)
        ) as told:
            async for each in told:
                if isinstance(each, KubeSynced | Deleted):
                    continue
                job = each.object
                if is_true(job.status.conditions, "Complete"):
                    return
                failed = condition(job.status.conditions, "Failed")
                if failed is not None and failed.status == "True":
                    await self._delete_jobs(labels, wanted.namespace)
                    raise Unavailable(f"a clean-up failed: {failed.message or failed.reason}; trying again", retry=10)

    def _ring(self) -> None:
        for follower in self._followers:
            follower.ring()
