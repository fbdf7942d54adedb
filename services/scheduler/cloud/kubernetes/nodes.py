"""The nodes of the cluster, and what anything but our trainings takes of them, as two watches show it."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, Generic, TypeVar

import structlog

from services.scheduler.cloud.kubernetes.room import HoldingPod, NodeSeen, PodHeld, holds, node_seen, node_states
from services.scheduler.model import NodeState
from shared.errors import ElearnError, Unavailable
from shared.kube.changes import Deleted, Synced, Told
from shared.kube.client import Cluster
from shared.kube.errors import MissingRight
from shared.kube.objects import Node
from shared.kube.projects import watch_all
from shared.kube.resources import NODES, PODS
from shared.kube.settings import ProjectSettings
from shared.kube.watch import watch

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_PATIENCE: Final = 5.0
_LOOK_AGAIN: Final = 600.0


class _Picture(Generic[T]):
    """What there is, by uid."""

    def __init__(self) -> None:
        self.there: dict[str, T] = {}
        self.synced = False

    def take(self, told: Told[T | None]) -> None:
        if isinstance(told, Synced):
            self.synced = True
        elif isinstance(told, Deleted) or told.object is None:
            self.there.pop(told.identity.uid, None)
        else:
            self.there[told.identity.uid] = told.object


class Nodes:
    """Nodes and the room on them; :meth:`run` has to run.

    Pods are watched in all namespaces. Where we may not see those, only what lies in the namespaces of projects is
    counted, and the log says so.

    Args:
        patience: seconds that :meth:`capacity` waits for the first look.
    """

    def __init__(self, cluster: Cluster, settings: ProjectSettings, *, patience: float = _PATIENCE) -> None:
        self._cluster = cluster
        self._settings = settings
        self._patience = patience
        self._read = holds(cluster.installation)
        self._nodes: _Picture[NodeSeen] = _Picture()
        self._pods: _Picture[PodHeld] = _Picture()
        self._blind = False
        self._troubles: dict[str, ElearnError] = {}
        self._ready = asyncio.Event()
        self._states: tuple[NodeState, ...] | None = None

    @property
    def blind(self) -> bool:
        """We may not see nodes: nobody knows what fits."""
        return self._blind

    async def run(self) -> None:
        """Follow the cluster, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_nodes(), name="watch nodes")
            group.create_task(self._follow_pods(), name="watch the room on nodes")

    async def capacity(self) -> tuple[NodeState, ...]:
        """Every node that takes tasks, or has some; nothing where we may not see nodes (:attr:`blind`).

        Raises:
            Unavailable: the cluster could not be seen yet.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._ready.wait()
        except TimeoutError:
            why = ": ".join(["", *sorted({error.detail for error in self._troubles.values()})])
            raise Unavailable(f"the nodes of the cluster have not been seen yet{why or '; try again soon'}") from None
        if self._blind:
            return ()
        if self._states is None:
            self._states = node_states(self._nodes.there.values(), self._pods.there.values())
        return self._states

    async def _follow_nodes(self) -> None:
        def trouble(error: ElearnError | None) -> None:
            if isinstance(error, MissingRight) and not self._blind:
                _log.warning("nodes can't be seen, so nobody knows what fits where", error=error.detail)
            self._blind = isinstance(error, MissingRight)
            self._note("nodes", error)

        nodes = watch(self._cluster, NODES, Node, project=node_seen, ours=False, trouble=trouble)
        await self._follow(self._nodes, nodes, lambda: self._note("nodes", None))

    async def _follow_pods(self) -> None:
        while True:
            try:
                await self._follow_all_pods()
            except MissingRight as error:
                _log.warning("only pods of projects are seen: others are not counted on nodes", error=error.detail)
            try:
                async with asyncio.timeout(_LOOK_AGAIN):
                    await self._show_pods(
                        watch_all(self._cluster, self._settings, PODS, HoldingPod, project=self._read, ours=False)
                    )
            except TimeoutError:
                continue  # somebody may have given us the right meanwhile

    async def _follow_all_pods(self) -> None:
        """Follow all pods, for ever.

        Raises:
            MissingRight: we may not, and there are namespaces that we may look into.
        """

        def trouble(error: ElearnError | None) -> None:
            self._note("pods", error)
            if isinstance(error, MissingRight) and None not in self._settings.places:
                raise error

        await self._show_pods(
            watch(self._cluster, PODS, HoldingPod, project=self._read, everywhere=True, ours=False, trouble=trouble)
        )

    async def _show_pods(self, pods: AsyncGenerator[Told[PodHeld | None], None]) -> None:
        """Follow pods; until all of them were seen, those seen before count."""
        picture: _Picture[PodHeld] = _Picture()

        def show() -> None:
            self._pods = picture
            self._note("pods", None)

        await self._follow(picture, pods, show)

    async def _follow(
        self, picture: _Picture[T], told: AsyncGenerator[Told[T | None], None], synced: Callable[[], None]
    ) -> None:
        async with aclosing(told) as changes:
            async for change in changes:
                picture.take(change)
                self._states = None
                if isinstance(change, Synced):
                    synced()
        raise RuntimeError("a watch ended by itself")

    def _note(self, what: str, trouble: ElearnError | None) -> None:
        """Something is seen, or not: it may be enough for an answer."""
        if trouble is None:
            self._troubles.pop(what, None)
        else:
            self._troubles[what] = trouble
        if self._blind or (self._nodes.synced and self._pods.synced):
            self._ready.set()
        else:
            self._ready.clear()
