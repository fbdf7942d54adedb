"""A port of this machine that leads to a TensorBoard's pod, whichever that is by then."""

import asyncio
import contextlib
from collections.abc import Mapping

import structlog

from services.scheduler.cloud.kubernetes.board_manifests import PORT
from shared.errors import Unavailable
from shared.kube.client import Cluster
from shared.kube.merge import Mirror
from shared.kube.objects import Partial, Pod
from shared.kube.pods import forwarded
from shared.kube.resources import DEPLOYMENTS, PODS
from shared.kube.states import is_ready
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
        self._pod = ""
        self._changed = asyncio.Event()
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
        async with forwarded(self._cluster, self._ready_pod, PORT, namespace=self._namespace) as address:
            self._listening.set_result(address)
            await self._follow()

    async def _follow(self) -> None:
        """Know the pod, until there is neither one nor a Deployment that would make one."""
        pods: Mirror[Pod] = Mirror()
        watching = watch(self._cluster, PODS, Pod, namespace=self._namespace, labels=self._labels)
        async with contextlib.aclosing(watching) as told:
            async for each in told:
                pods.take(each)
                self._pod = next((pod.metadata.name for pod in pods if is_ready(pod)), "")
                if self._pod:
                    self._changed.set()
                else:
                    self._changed.clear()
                if pods.synced and not len(pods) and await self._is_closed():
                    return

    async def _is_closed(self) -> bool:
        found = await self._cluster.get(DEPLOYMENTS, self._name, Partial, namespace=self._namespace)
        return found is None or found.metadata.deletion_timestamp is not None

    async def _ready_pod(self) -> str:
        try:
            async with asyncio.timeout(_POD_SECONDS):
                while not self._pod:
                    await self._changed.wait()
        except TimeoutError:
            raise Unavailable(f"no pod of TensorBoard {self._name} is up") from None
        return self._pod

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not self._listening.done():
            self._listening.cancel()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a port that led to a TensorBoard is closed", board=self._name, error=str(error))
