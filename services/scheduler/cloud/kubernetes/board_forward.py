"""A port of this machine that leads to a TensorBoard's pod, whichever that is by then."""

import asyncio
import contextlib
from collections.abc import Mapping

import structlog

from services.scheduler.cloud.kubernetes.board_manifests import PORT
from shared.errors import Unavailable
from shared.kube.client import Cluster
from shared.kube.forwarding import ReadyPods, forwarded
from shared.kube.merge import Mirror
from shared.kube.objects import Partial, Pod
from shared.kube.resources import DEPLOYMENTS, PODS
from shared.kube.watch import watch

_log = structlog.get_logger(__name__)

_POD_SECONDS = 5.0


class BoardForward:
    """Listens until its board is gone from the cluster, whoever closed it, or until :meth:`close`.

    Args:
        name: of the board's Deployment.
        labels: of its pods.
    """

    def __init__(self, cluster: Cluster, name: str, namespace: str, labels: Mapping[str, str]) -> None:
        self._cluster = cluster
        self._name = name
        self._namespace = namespace
        self._labels = dict(labels)
        self._pods = ReadyPods(f"TensorBoard {name}", patience=_POD_SECONDS)
        self._listening: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name=f"port of TensorBoard {name}")
        self._task.add_done_callback(self._ended)

    @property
    def over(self) -> bool:
        """Whether nobody listens any more."""
        return self._task.done()

    async def url(self) -> str:
        """Where it is reached.

        Raises:
            Unavailable: it came to its end.
        """
        await asyncio.wait({self._listening})
        if self._listening.cancelled():
            raise Unavailable("the port that leads to TensorBoard could not be opened; try again")
        host, port = self._listening.result()
        return f"http://{host}:{port}"

    async def close(self) -> None:
        """Listen no longer."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        async with forwarded(self._cluster, self._pods, PORT, namespace=self._namespace) as address:
            self._listening.set_result(address)
            await self._follow()

    async def _follow(self) -> None:
        """Know the pod, until there is neither one nor a Deployment that would make one."""
        pods: Mirror[Pod] = Mirror()
        watching = watch(self._cluster, PODS, Pod, namespace=self._namespace, labels=self._labels)
        async with contextlib.aclosing(watching) as told:
            async for each in told:
                pods.take(each)
                self._pods.show(pods)
                if pods.synced and not len(pods) and await self._is_closed():
                    return

    async def _is_closed(self) -> bool:
        found = await self._cluster.get(DEPLOYMENTS, self._name, Partial, namespace=self._namespace)
        return found is None or found.metadata.deletion_timestamp is not None

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not self._listening.done():
            self._listening.cancel()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a port that led to a TensorBoard is closed", board=self._name, error=str(error))
