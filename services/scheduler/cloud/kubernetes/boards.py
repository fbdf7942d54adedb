"""TensorBoards in a cluster: a Deployment and a Service each, made when somebody looks."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Final

from services.scheduler.cloud.kubernetes.board_forward import BoardForward
from services.scheduler.cloud.kubernetes.board_manifests import (
    CONTAINER,
    PORT,
    BoardObjects,
    board_name,
    board_objects,
    image_of,
)
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.port import BoardPlan
from shared.errors import Unavailable, Unsupported
from shared.kube.access import Right
from shared.kube.client import Cluster
from shared.kube.errors import MissingRight, NamespaceMissing, Terminating
from shared.kube.merge import Mirror
from shared.kube.objects import Deployment, Pod, Terminated, condition
from shared.kube.projects import Projects
from shared.kube.resources import DEPLOYMENTS, PODS, SERVICES
from shared.kube.rights import rights_to
from shared.kube.said import last_words
from shared.kube.settings import ProjectSettings
from shared.kube.states import ended_words, is_over, is_ready, trouble
from shared.kube.watch import watch

Connect = Callable[[str, int], Awaitable[None]]
"""Opens a connection to a host's port and closes it again; raises OSError where that can't be done."""

_UP_SECONDS: Final = 8.0  # a request waits this long; TensorBoard goes on starting when it is over
_LOOK_EVERY: Final = 0.2
_NO_TENSORBOARD: Final = re.compile(r"No module named '?tensorboard|exec: \"python3\": executable file not found")


async def connect(host: str, port: int) -> None:
    """Is there somebody? See :data:`Connect`."""
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


class Boards:
    """Opens and closes TensorBoards.

    Args:
        patience: seconds that opening one waits until it answers.
        reach: how it is seen that a Service answers.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: ProjectSettings,
        options: TrainingOptions,
        projects: Projects,
        *,
        patience: float = _UP_SECONDS,
        reach: Connect = connect,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._options = options
        self._projects = projects
        self._patience = patience
        self._reach = reach
        self._opening: dict[tuple[str, str], asyncio.Lock] = {}
        self._forwards: dict[tuple[str, str], BoardForward] = {}

    def rights(self) -> list[Right]:
        """What RBAC has to let us do."""
        places = self._settings.places
        needed = [
            *rights_to("get create patch delete", DEPLOYMENTS, SERVICES, places=places),
            *rights_to("list watch", PODS, places=places),
        ]
        if self._forwarding:
            # Which of the two is asked for changed between releases.
            needed += rights_to("get create", PODS, places=places, subresource="portforward")
        return needed

    async def open(self, board: BoardPlan) -> str:
        """Start it unless it runs, and wait until it answers; its base URL.

        Raises:
            Unavailable: it does not answer yet; the sentence says what it waits for.
            Unsupported: its events can't be shown here, or the image holds no TensorBoard.
        """
        until = asyncio.get_running_loop().time() + self._patience
        namespace = self._projects.namespace(board.project)
        objects = board_objects(board, namespace, self._cluster.installation, self._settings, self._options)
        key = (board.project, board.name)
        async with self._opening.setdefault(key, asyncio.Lock()):
            try:
                await self._cluster.apply(objects.service)
                # By force: whoever has scaled it or stopped it has done so to the one that nobody looked at.
                await self._cluster.apply(objects.deployment, force=True)
            except (MissingRight, NamespaceMissing, Terminating) as error:
                self._projects.forget(namespace)
                raise Unavailable(error.detail, retry=30) from error  # an operator can help
        await self._until_ready(objects, until)
        if not self._forwarding:
            return await self._until_reached(f"{objects.name}.{namespace}.svc", until)
        forward = self._forwards.get(key)
        if forward is None or forward.over:
            forward = self._forwards[key] = BoardForward(self._cluster, objects.name, namespace, objects.labels)
        return await forward.url()

    async def close(self, project: str, name: str) -> None:
        """End it; none is success."""
        key = (project, name)
        async with self._opening.setdefault(key, asyncio.Lock()):
            forward = self._forwards.pop(key, None)
            if forward is not None:
                await forward.close()
            namespace = self._projects.namespace(project)
            object_name = board_name(project, name, self._cluster.installation)
            await self._cluster.delete(DEPLOYMENTS, object_name, namespace=namespace)
            await self._cluster.delete(SERVICES, object_name, namespace=namespace)
        self._opening.pop(key, None)

    async def aclose(self) -> None:
        """Let go of what this process holds; TensorBoards go on."""
        forwards = tuple(self._forwards.values())
        self._forwards.clear()
        await asyncio.gather(*(forward.close() for forward in forwards))

    @property
    def _forwarding(self) -> bool:
        access = self._options.kubernetes_board_access
        return access == "forward" or (access == "" and not self._cluster.home)

    async def _until_ready(self, objects: BoardObjects, until: float) -> None:
        pods: Mirror[Pod] = Mirror()
        watching = watch(self._cluster, PODS, Pod, namespace=objects.namespace, labels=objects.pod_labels)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until), contextlib.aclosing(watching) as told:
                async for each in told:
                    pods.take(each)
                    if any(is_ready(pod) for pod in pods):
                        return
                    self._refuse_empty(pods)
        words = await self._waiting_for(list(pods), objects)
        raise Unavailable(f"TensorBoard is not up yet: {words}; try again in a moment", retry=3)

    def _refuse_empty(self, pods: Mirror[Pod]) -> None:
        for pod in pods:
            ended = _ended(pod)
            if ended is not None and _NO_TENSORBOARD.search(ended.message):
                image = image_of(self._options, self._settings)
                raise Unsupported(
                    f"image {image} holds no TensorBoard: name one that does as ELEARN_KUBERNETES_BOARD_IMAGE"
                )

    async def _waiting_for(self, pods: list[Pod], objects: BoardObjects) -> str:
        living = [pod for pod in pods if pod.metadata.deletion_timestamp is None and not is_over(pod)]
        if not living:
            found = await self._cluster.get(DEPLOYMENTS, objects.name, Deployment, namespace=objects.namespace)
            failure = condition(found.status.conditions, "ReplicaFailure") if found is not None else None
            if failure is not None and failure.status == "True":
                return f"its pod can't be made: {failure.message}"
            return "its pod is not there yet"
        (pod, *_) = living
        if any(each.state.running is not None for each in pod.status.container_statuses):
            return "it is starting"
        ended = _ended(pod)
        return (
            trouble(pod)
            or (f"it ended: {ended_words(ended)}" if ended is not None else "")
            or await last_words(self._cluster, PODS, pod.metadata.name, objects.namespace)
            or "it is starting"
        )

    async def _until_reached(self, host: str, until: float) -> str:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(max(_LOOK_EVERY, until - loop.time())):
                    await self._reach(host, PORT)
            except (OSError, TimeoutError) as error:
                if loop.time() + _LOOK_EVERY > until:
                    raise Unavailable(
                        f"TensorBoard is up, but {host}:{PORT} can't be reached from here ({error or 'no answer'});"
                        " outside the cluster set ELEARN_KUBERNETES_BOARD_ACCESS to forward"
                    ) from error
                await asyncio.sleep(_LOOK_EVERY)
            else:
                return f"http://{host}:{PORT}"


def _ended(pod: Pod) -> Terminated | None:
    """How its program ended the last time."""
    for each in pod.status.container_statuses:
        if each.name == CONTAINER:
            return each.state.terminated or each.last_state.terminated
    return None
