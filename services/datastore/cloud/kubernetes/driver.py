"""The Kubernetes storage cloud: a datastore is a claim in the namespace of its project.

What is provided is remembered by a ConfigMap each, written before anything else and deleted after everything else, so
that a crash in between is seen and taken up. Files are worked on by agents (:mod:`shared.kube.agents`).
"""

from collections.abc import AsyncGenerator
from typing import Final

import msgspec
import structlog

from services.datastore.cloud.kubernetes import questions
from services.datastore.cloud.kubernetes.admission import refusals
from services.datastore.cloud.kubernetes.manifests import (
    RECORD,
    ROOM_NAME,
    UID,
    Objects,
    Record,
    labels_for,
    objects_of,
    record_manifest,
)
from services.datastore.cloud.kubernetes.observing import (
    Pending,
    SeenClaim,
    claim_seen,
    decide_pending,
    observe,
)
from services.datastore.cloud.kubernetes.options import StorageOptions, options_problem
from services.datastore.cloud.port import (
    Capabilities,
    Directory,
    Observation,
    Removed,
    Synced,
)
from shared.clock import now
from shared.contracts.common import Chunk, Done
from shared.contracts.datastore import ClaimVolume, DatastoreSpec, FileEntry, Probe, Volume
from shared.contracts.problem import FieldError
from shared.errors import Conflict, Forbidden, Internal, Invalid, NotFound, Unavailable, Unsupported
from shared.kube.access import Right
from shared.kube.agents import Agents, NotUp
from shared.kube.client import Cluster
from shared.kube.errors import MissingRight, NamespaceMissing, Terminating
from shared.kube.follow import Follower
from shared.kube.merge import Mirror
from shared.kube.names import ROOM, object_name
from shared.kube.objects import Claim, Metadata, Partial, StorageClass, View
from shared.kube.own_pods import Mounted, OwnJob
from shared.kube.projects import Projects, list_ours, watch_all
from shared.kube.resources import (
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    NAMESPACES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    STORAGE_CLASSES,
)
from shared.kube.rights import rights_to
from shared.kube.said import last_words
from shared.kube.settings import ProjectSettings
from shared.kube.volumes import apply_storage

_log = structlog.get_logger(__name__)

_LOOK: Final = 30.0
_REFUSALS: Final = (Invalid, Forbidden, NotFound, Conflict, Unsupported)
"""Answers of the cluster after which asking again would not help; an operator can."""

AGENT_MODULE: Final = "services.datastore.cloud.kubernetes.agent"


class _ConfigMap(View, frozen=True, kw_only=True):
    metadata: Metadata
    data: dict[str, str] = msgspec.field(default_factory=dict)


class KubernetesStorage:
    """Claims in a cluster.

    Args:
        look_every: seconds between two looks at what has not become bound.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: ProjectSettings,
        options: StorageOptions,
        *,
        look_every: float = _LOOK,
        agent_patience: float = 7.0,
    ) -> None:
        if problem := options_problem(options):
            raise Unsupported(problem)
        self.capabilities = Capabilities(
            cloud="kubernetes",
            backends=options.backends(),
            keeps_files="what lies in it stays where it is; a volume that was made for it is kept, released",
            hints=options.hints(),
        )
        self._cluster = cluster
        self._settings = settings
        self._options = options
        self._look_every = look_every
        self._projects = Projects(cluster, settings)
        self._agents = Agents(
            cluster,
            settings,
            room=ROOM_NAME,
            patience=agent_patience,
            idle=options.kubernetes_files_idle_seconds,
        )

    def rights(self) -> list[Right]:
        """What RBAC has to let us do."""
        own, places = [self._cluster.namespace], self._settings.places
        needed = [
            *rights_to("get list watch create patch delete", CONFIG_MAPS, places=places),
            *rights_to("get list watch create patch delete", PERSISTENT_VOLUME_CLAIMS, places=places),
            *rights_to("get list create patch delete", PERSISTENT_VOLUMES),
            *rights_to("get list", STORAGE_CLASSES),
            *rights_to("get create delete", JOBS, places=places),
            *rights_to("list watch", PODS, places=places),
            *rights_to("create", PODS, places=places, subresource="proxy"),
            *rights_to("list", EVENTS, places=places),
            *rights_to("get list create patch delete", SECRETS, places=own),
        ]
        if self._options.kubernetes_nfs_own:
            needed += rights_to("create patch delete", STORAGE_CLASSES)
        if self._settings.kubernetes_create_namespaces:
            needed += rights_to("get create patch", NAMESPACES)
        return needed

    # -- directories ------------------------------------------------------------------------------------------------

    async def admit(self, spec: DatastoreSpec) -> list[FieldError]:
        """See :class:`services.datastore.cloud.port.StorageCloud`."""
        errors = refusals(spec, self._options, self._cluster.installation)
        if not errors and spec.claim is not None and spec.claim.storage_class is not None:
            found = await self._storage_class(spec.claim.storage_class)
            if found is None:
                words = f"this cluster has no storage class {spec.claim.storage_class}"
                errors = [FieldError(field="claim.storage_class", message=words)]
        return errors

    async def provision(self, directory: Directory) -> None:
        """See the port."""
        namespace = self._projects.namespace(directory.project)
        objects = objects_of(
            directory,
            self._options,
            installation=self._cluster.installation,
            namespace=namespace,
            own_namespace=self._cluster.namespace,
        )
        record = objects.record
        found = await self._record(record)
        if found is not None and (found.settled or found.refused):
            return
        try:
            await self._projects.ensure(directory.project)
            await self._apply(objects)
        except (NamespaceMissing, Terminating) as error:
            self._projects.forget(namespace)
            raise Unavailable(error.detail, retry=10) from error
        except MissingRight as error:
            raise Unavailable(error.detail, retry=30) from error  # an operator can give it

    async def release(self, uid: str) -> None:
        """See the port."""
        for found in await self._records(uid):
            await self._release(found)
        await self._release_rest(uid)

    async def watch(self) -> AsyncGenerator[Observation, None]:
        """See the port."""
        told: dict[str, Observation] = {}
        records: Mirror[Record | None] = Mirror()
        claims: Mirror[SeenClaim] = Mirror()
        synced = False
        async with Follower() as follower:
            follower.follow(
                records,
                watch_all(
                    self._cluster,
                    self._settings,
                    CONFIG_MAPS,
                    _ConfigMap,
                    project=_record_of,
                    labels={ROOM: ROOM_NAME},
                ),
            )
            follower.follow(
                claims,
                watch_all(
                    self._cluster,
                    self._settings,
                    PERSISTENT_VOLUME_CLAIMS,
                    Claim,
                    project=claim_seen,
                    ours=False,
                ),
            )
            pause = self._look_every
            while True:
                await follower.changed(pause)
                if not follower.synced:
                    continue
                pause = self._look_every
                seen = [record for record in records if record is not None]
                for uid in told.keys() - {record.uid for record in seen}:
                    del told[uid]
                    yield Removed(uid=uid)
                for record in seen:
                    observation, look_in = await self._look(record, claims.named(record.claim, record.namespace))
                    pause = min(pause, look_in)
                    if observation is not None and told.get(record.uid) != observation:
                        told[record.uid] = observation
                        yield observation
                if not synced:
                    synced = True
                    yield Synced()

    # -- files ------------------------------------------------------------------------------------------------------

    async def probe(self, volume: Volume, *, read_only: bool) -> Probe:
        """See the port."""
        try:
            return await self._ask(volume, questions.TryIt(read_only=read_only), Probe)
        except NotUp as error:
            if not error.trouble:
                raise
            return Probe(ok=False, message=error.trouble, seconds=0.0, writable=False)

    async def list(self, volume: Volume, path: str, *, after: str | None, limit: int) -> list[FileEntry]:
        """See the port."""
        return await self._ask(volume, questions.ListFolder(path=path, after=after, limit=limit), questions.Entries)

    async def stat(self, volume: Volume, path: str) -> FileEntry:
        """See the port."""
        return await self._ask(volume, questions.Stat(path=path), FileEntry)

    async def read(self, volume: Volume, path: str, *, offset: int, length: int) -> Chunk:
        """See the port."""
        return await self._ask(volume, questions.Read(path=path, offset=offset, length=length), Chunk)

    async def write(self, volume: Volume, path: str, *, upload: str, offset: int, data: bytes, end: bool) -> None:
        """See the port."""
        part = questions.Write(path=path, upload=upload, offset=offset, data=data, end=end)
        await self._ask(volume, part, Done)

    async def delete(self, volume: Volume, path: str) -> None:
        """See the port."""
        await self._ask(volume, questions.Delete(path=path), Done)

    async def sweep(self, volume: Volume, *, older_than: float) -> int:
        """See the port; for this alone no pod is started, as each sweeps when it starts."""
        question: questions.Question = questions.Sweep(older_than=older_than)
        return await self._agents.call_running(self._agent(volume), question, int) or 0

    # -- putting together and taking apart --------------------------------------------------------------------------

    async def _apply(self, objects: Objects) -> None:
        record = objects.record
        await self._cluster.apply(record_manifest(record))
        try:
            await apply_storage(self._cluster, objects.manifests)
        except MissingRight:
            raise
        except _REFUSALS as error:
            if isinstance(error, NamespaceMissing | Terminating):
                raise
            record = msgspec.structs.replace(record, refused=f"the cluster refuses it: {error.detail}")
        await self._cluster.apply(record_manifest(msgspec.structs.replace(record, settled=not record.refused)))

    async def _release(self, record: Record) -> None:
        # No longer settled: that its claim goes is our own doing, and tells nothing.
        await self._cluster.apply(record_manifest(msgspec.structs.replace(record, settled=False, refused="")))
        await self._agents.end(record.namespace, _agent_name(self._cluster.installation, record.claim))
        if not record.theirs:
            if not record.volume:
                await self._keep_volume(record)
            await self._cluster.delete(PERSISTENT_VOLUME_CLAIMS, record.claim, namespace=record.namespace)
        if record.volume:
            await self._cluster.delete(PERSISTENT_VOLUMES, record.name)
        if record.storage_class:
            await self._cluster.delete(STORAGE_CLASSES, record.name)
        if record.secret:
            await self._cluster.delete(SECRETS, record.name)
        await self._cluster.delete(CONFIG_MAPS, record.name, namespace=record.namespace)

    async def _release_rest(self, uid: str) -> None:
        """What lies outside the project's namespace, where that is gone and the record with it.

        Not the volume of :meth:`_keep_volume`: it bears no label of an installation, and is nobody's.
        """
        labels = {ROOM: ROOM_NAME, UID: uid}
        for kind in (PERSISTENT_VOLUMES, STORAGE_CLASSES, SECRETS):
            for found in await self._cluster.list(kind, Partial, labels=labels):
                await self._cluster.delete(kind, found.metadata.name, uid=found.metadata.uid)

    async def _keep_volume(self, record: Record) -> None:
        """A volume that a storage class made would go with its claim, and the files with it: let it stay."""
        claim = await self._cluster.get(PERSISTENT_VOLUME_CLAIMS, record.claim, Claim, namespace=record.namespace)
        if claim is None or not claim.spec.volume_name:
            return
        keep = {
            "metadata": {"labels": labels_for(record)},
            "spec": {"persistentVolumeReclaimPolicy": "Retain"},
        }
        try:
            await self._cluster.patch(PERSISTENT_VOLUMES, claim.spec.volume_name, keep)
        except NotFound:
            return  # it is gone already

    async def _record(self, wanted: Record) -> Record | None:
        try:
            found = await self._cluster.get(CONFIG_MAPS, wanted.name, _ConfigMap, namespace=wanted.namespace)
        except NamespaceMissing:
            return None
        return _record_of(found) if found is not None else None

    async def _records(self, uid: str) -> tuple[Record, ...]:
        labels = {ROOM: ROOM_NAME, UID: uid}
        found = await list_ours(self._cluster, self._settings, CONFIG_MAPS, _ConfigMap, labels)
        return tuple(record for each in found if (record := _record_of(each)) is not None)

    # -- looking ----------------------------------------------------------------------------------------------------

    async def _look(self, record: Record, claim: SeenClaim | None) -> tuple[Observation | None, float]:
        """How a datastore stands, and in how many seconds to look again."""
        if claim is None and record.settled:
            # The two watches are not in step with each other: what one has not told may be there.
            found = await self._cluster.get(PERSISTENT_VOLUME_CLAIMS, record.claim, Claim, namespace=record.namespace)
            if found is None:
                record = await self._record(record) or msgspec.structs.replace(record, settled=False)
            claim = claim_seen(found) if found is not None else None
        seen = observe(record, claim)
        if not isinstance(seen, Pending):
            return seen, self._look_every
        age = (now() - seen.since).total_seconds() if seen.since else 0.0
        patience = self._options.kubernetes_claim_seconds
        said = (
            await last_words(self._cluster, PERSISTENT_VOLUME_CLAIMS, record.claim, record.namespace)
            if age >= patience
            else ""
        )
        observation = decide_pending(
            record,
            seen,
            waits_for_pod=await self._waits_for_pod(seen.claim.storage_class),
            age=age,
            patience=patience,
            said=said,
        )
        return observation, max(0.1, patience - age) if age < patience else self._look_every

    async def _waits_for_pod(self, storage_class: str) -> bool:
        if not storage_class:
            return False
        try:
            found = await self._storage_class(storage_class)
        except Forbidden as error:
            _log.warning("can't see how a storage class binds", storage_class=storage_class, error=error.detail)
            return False
        return found is not None and found.volume_binding_mode == "WaitForFirstConsumer"

    async def _storage_class(self, name: str) -> StorageClass | None:
        return await self._cluster.get(STORAGE_CLASSES, name, StorageClass)

    # -- agents -----------------------------------------------------------------------------------------------------

    async def _ask(self, volume: Volume, ask: questions.Question, kind: type[questions.T]) -> questions.T:
        return await self._agents.call(self._agent(volume), ask, kind)

    def _agent(self, volume: Volume) -> OwnJob:
        if not isinstance(volume, ClaimVolume) or not volume.namespace:
            raise Internal("the Kubernetes cloud was handed a volume of another one")
        return OwnJob(
            name=_agent_name(self._cluster.installation, volume.claim_name),
            namespace=volume.namespace,
            labels={},
            module=AGENT_MODULE,
            mounts=(
                Mounted(
                    claim=volume.claim_name,
                    path=questions.MOUNTED_AT,
                    sub_path=volume.sub_path,
                    single_node=volume.single_node,
                ),
            ),
        )


def _agent_name(installation: str, claim: str) -> str:
    return object_name(installation, "files", claim, room=6)


def _record_of(found: _ConfigMap) -> Record | None:
    try:
        return msgspec.json.decode(found.data.get(RECORD, ""), type=Record)
    except msgspec.DecodeError:
        _log.warning("a record of a datastore can't be read", config_map=found.metadata.name)
        return None
