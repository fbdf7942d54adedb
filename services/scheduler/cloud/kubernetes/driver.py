"""The Kubernetes training cloud: an attempt is a Service that owns a Job for each group of tasks."""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Final

import msgspec

from services.scheduler.cloud.kubernetes import examining
from services.scheduler.cloud.kubernetes.attempts import SeenService
from services.scheduler.cloud.kubernetes.boards import Boards
from services.scheduler.cloud.kubernetes.code import CodeDelivery, code_secrets
from services.scheduler.cloud.kubernetes.code_server import CodeServer
from services.scheduler.cloud.kubernetes.freeing import Freeing
from services.scheduler.cloud.kubernetes.furniture import Furniture
from services.scheduler.cloud.kubernetes.identity import (
    ROSTER,
    AttemptKey,
    Group,
    attempt_labels,
    groups_of,
    job_name,
    service_name,
)
from services.scheduler.cloud.kubernetes.logs import TaskLogs
from services.scheduler.cloud.kubernetes.manifests import (
    Attempt,
    Setting,
    job_manifest,
    queue_of,
    roster_text,
    service_manifest,
)
from services.scheduler.cloud.kubernetes.mounts import pod_mounts
from services.scheduler.cloud.kubernetes.nodes import Nodes
from services.scheduler.cloud.kubernetes.watching import watch_attempts
from services.scheduler.cloud.port import BoardPlan, Examination, Launch, LogPart, Observation, Work
from services.scheduler.errors import CannotLaunch, NoRoomLeft
from services.scheduler.frameworks.port import Framework
from services.scheduler.model import Capabilities, Demand, NodeState
from shared.contracts.training import Task, TrainingSpec
from shared.errors import Conflict, Forbidden, Invalid, TooLarge, Unavailable, Unsupported
from shared.kube.access import Right, server_version
from shared.kube.client import Cluster
from shared.kube.errors import AlreadyExists, MissingRight, NamespaceMissing, QuotaExceeded, Terminating
from shared.kube.manifest import Manifest
from shared.kube.objects import Metadata, owner_reference
from shared.kube.projects import Projects
from shared.kube.resources import EVENTS, JOBS, NODES, PODS, SECRETS, SERVICES
from shared.kube.rights import rights_to, tell_missing
from shared.kube.sending import side_by_side

_BOUNDLESS: Final = NodeState(name="cluster", total=Demand(cpu=1e6, memory=2**60, gpu=10**6))
_PER_INDEX_SINCE: Final = (1, 29)


class KubernetesTrainings:
    """Trainings in a cluster.

    Args:
        setting: what holds for every training; which version the cluster has is found out here.
        code_server: what pods fetch code from, unless somebody else serves it or Secrets hold it.
    """

    name = "kubernetes"

    def __init__(
        self,
        cluster: Cluster,
        setting: Setting,
        framework: Framework,
        *,
        projects: Projects,
        furniture: Furniture,
        code: CodeDelivery,
        logs: TaskLogs,
        nodes: Nodes,
        boards: Boards,
        code_server: CodeServer | None = None,
    ) -> None:
        self._cluster = cluster
        self._setting = setting
        self._framework = framework
        self._projects = projects
        self._furniture = furniture
        self._code = code
        self._logs = logs
        self._nodes = nodes
        self._boards = boards
        self._code_server = code_server
        self._freeing = Freeing(cluster, setting, logs)
        self._version: tuple[int, int] | None = None

    def rights(self) -> list[Right]:
        """What RBAC has to let us do."""
        places = self._setting.projects.places
        return [
            *rights_to("get list watch create patch delete", SERVICES, places=places),
            *rights_to("list watch create patch delete", JOBS, places=places),
            *rights_to("list watch delete", PODS, places=places),
            *rights_to("get", PODS, places=places, subresource="log"),
            *rights_to("create", SECRETS, places=places),
            *rights_to("list", EVENTS, places=places),
            *rights_to("list watch", NODES, PODS),
            *self._furniture.rights(),
            *self._boards.rights(),
        ]

    def leading(self) -> Mapping[str, Work]:
        """See :class:`services.scheduler.cloud.port.TrainingCloud`."""
        return {
            "logs of tasks": self._logs.rota,
            "rights in Kubernetes": lambda: tell_missing(self._cluster, self.rights()),
        }

    def everywhere(self) -> Mapping[str, Work]:
        """See the port."""
        work: dict[str, Work] = {"nodes": self._nodes.run}
        return work if self._code_server is None else {**work, "code server": self._code_server.run}

    async def capabilities(self) -> Capabilities:
        """See the port."""
        return Capabilities(absolute_mounts=True, images=True, volumes=frozenset({"claim"}))

    async def examine(self, project: str, spec: TrainingSpec) -> Examination:
        """See the port."""
        errors = [
            *examining.spec_errors(spec, self._setting.options.kubernetes_queue),
            *await self._code.examine(project, spec),
        ]
        return Examination(errors=tuple(errors), notes=examining.notes(project, spec, self._setting))

    async def capacity(self) -> tuple[NodeState, ...]:
        """See the port. Where we may not see nodes, the cluster alone knows what fits."""
        found = await self._nodes.capacity()
        return (_BOUNDLESS,) if self._nodes.blind else found

    # -- launch

    async def launch(self, launch: Launch) -> None:
        """See the port."""
        key = AttemptKey(launch.project, launch.name, launch.attempt)
        try:
            await self._launch(key, launch)
        except (MissingRight, NamespaceMissing, Terminating) as error:
            self._furniture.forget(self._projects.namespace(key.project))
            raise Unavailable(error.detail, retry=30) from error  # an operator can help
        except QuotaExceeded as error:
            await self.free(*key)
            raise NoRoomLeft(error.detail) from error
        except (Invalid, Forbidden, Conflict, Unsupported, TooLarge, CannotLaunch) as error:
            await self.free(*key)
            words = error.detail if isinstance(error, CannotLaunch) else f"the cluster refuses it: {error.detail}"
            raise CannotLaunch(words, error.errors) from error

    async def _launch(self, key: AttemptKey, launch: Launch) -> None:
        namespace = await self._furniture.ensure(key.project)
        setting = await self._known_setting()
        groups = groups_of(launch.plan)
        service = await self._make_service(key, groups, namespace, setting)
        if service is None:
            return  # let go already: what is missing now was deleted by somebody, and is not made again
        owner = owner_reference("v1", "Service", service)
        attempt = Attempt(
            key=key,
            launch=launch,
            groups=groups,
            namespace=namespace,
            mounts=pod_mounts(launch.mounts, namespace),
            code_secrets=await self._make_code(key, launch, namespace, owner),
        )
        jobs = [job_manifest(attempt, group, self._framework, owner, setting) for group in groups]
        await side_by_side(self._make(job) for job in jobs)
        if not queue_of(launch.spec.labels, setting.options):
            await side_by_side(self._release(key, group, namespace) for group in groups)
        released = {ROSTER: roster_text(groups, setting, released=True)}
        await self._cluster.patch(SERVICES, service.name, {"metadata": {"annotations": released}}, namespace=namespace)

    async def _known_setting(self) -> Setting:
        if self._version is None:
            self._version = await server_version(self._cluster)
        return msgspec.structs.replace(self._setting, per_index=self._version >= _PER_INDEX_SINCE)

    async def _make_service(
        self, key: AttemptKey, groups: tuple[Group, ...], namespace: str, setting: Setting
    ) -> Metadata | None:
        """The Service of an attempt that is not released yet; None where it is."""
        manifest = service_manifest(key, groups, namespace, setting)
        try:
            return await self._cluster.create(manifest)
        except AlreadyExists:
            name = service_name(key, setting.installation)
            found = await self._cluster.get(SERVICES, name, SeenService, namespace=namespace)
        if found is None or found.metadata.deletion_timestamp is not None:
            raise Unavailable("what was there before of this attempt is still being deleted", retry=1)
        roster = found.roster
        return None if roster is not None and roster.released else found.metadata

    async def _make_code(
        self, key: AttemptKey, launch: Launch, namespace: str, owner: dict[str, object]
    ) -> tuple[str, ...]:
        """The Secrets that deliver the code, by name."""
        if launch.spec.code is None:
            return ()
        contents = await self._code.contents(launch)
        prefix = f"{service_name(key, self._setting.installation)}-code"
        secrets = code_secrets(prefix, contents, namespace=namespace, labels=attempt_labels(key), owner=owner)
        await side_by_side(self._make(secret.manifest) for secret in secrets)
        return tuple(secret.name for secret in secrets)

    async def _make(self, manifest: Manifest) -> None:
        with contextlib.suppress(AlreadyExists):  # by an earlier try
            await self._cluster.create(manifest)

    async def _release(self, key: AttemptKey, group: Group, namespace: str) -> None:
        name = job_name(key, group, self._setting.installation)
        await self._cluster.patch(JOBS, name, {"spec": {"suspend": False}}, namespace=namespace)

    # -- free

    async def free(self, project: str, name: str, attempt: int) -> tuple[Task, ...]:
        """See the port."""
        return await self._freeing.free(AttemptKey(project, name, attempt), self._projects.namespace(project))

    async def settle(self, holding: frozenset[tuple[str, str, int]]) -> None:
        """Nothing is handed out here but by objects, and every object is shown by the watch."""

    async def forget(self, project: str, name: str) -> None:
        """See the port."""
        await self._logs.forget(project, name)

    # -- looking

    async def logs(self, project: str, name: str, attempt: int, task: str, *, offset: int, length: int) -> LogPart:
        """See the port."""
        return await self._logs.read(project, name, attempt, task, offset=offset, length=length)

    async def watch(self) -> AsyncGenerator[Observation, None]:
        """See the port."""
        with self._freeing.watching() as told:
            watching = watch_attempts(self._cluster, self._setting.projects, self._setting.options, attempts=told)
            async with contextlib.aclosing(watching) as seen:
                async for each in seen:
                    yield each

    # -- TensorBoard

    async def open_board(self, board: BoardPlan) -> str:
        """See the port."""
        await self._furniture.ensure(board.project)
        return await self._boards.open(board)

    async def close_board(self, project: str, name: str) -> None:
        """See the port."""
        await self._boards.close(project, name)

    async def close(self) -> None:
        """See the port."""
        await self._boards.aclose()
        await self._logs.aclose()
        await self._cluster.close()
