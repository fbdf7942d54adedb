"""Local ports that lead to pods, whichever are ready by then.

They go through the API server, so that they work from wherever it can be reached. RBAC: ``get`` and ``create`` on
``pods/portforward``; which of the two is asked for changed between releases.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

import aiohttp
import structlog

from shared.errors import ElearnError, NotFound, Unavailable
from shared.kube.client import Cluster
from shared.kube.errors import Unreachable
from shared.kube.objects import Pod
from shared.kube.states import is_ready

_log = structlog.get_logger(__name__)

_PROTOCOL: Final = ("v4.channel.k8s.io",)
_CHUNK: Final = 64 * 1024
_HELD: Final = 2**20
"""Bytes of a client that are kept until the pod answers, to be said again to another."""
_TRIES: Final = 4
_NOT_THERE: Final = re.compile(r"refused|not running|not found|does not exist|no such|is closed", re.IGNORECASE)
"""What node agents say where a connection to the pod's port was never made, so that nothing of it was heard there."""


class ReadyPods:
    """Those of some pods that are ready, in turn: always the one that was not taken for longest.

    Args:
        what: whose pods they are, for the error.
        patience: seconds that a connection waits for a pod that is ready.
    """

    def __init__(self, what: str, *, patience: float) -> None:
        self._what = what
        self._patience = patience
        self._taken: dict[str, int] = {}
        self._turn = 0
        self._waiting: set[asyncio.Event] = set()

    def show(self, pods: Iterable[Pod]) -> None:
        """Take those that are ready, and no others: one that is on its way out keeps the connections that it has."""
        names = [pod.metadata.name for pod in pods if is_ready(pod)]
        self._taken = {name: self._taken.get(name, 0) for name in sorted(names)}
        for event in self._waiting:
            event.set()

    async def next(self, besides: Collection[str] = ()) -> str:
        """The name of the pod that a new connection goes to; one that does not answer is left out (``besides``).

        Raises:
            Unavailable: there is none.
        """
        news = asyncio.Event()
        self._waiting.add(news)
        try:
            async with asyncio.timeout(self._patience):
                while not (others := [name for name in self._taken if name not in besides]):
                    await news.wait()
                    news.clear()
        except TimeoutError:
            raise Unavailable(f"no pod of {self._what} is ready") from None
        finally:
            self._waiting.discard(news)
        name = min(others, key=self._taken.__getitem__)
        self._taken[name] = self._turn = self._turn + 1
        return name


@asynccontextmanager
async def forwarded(
    cluster: Cluster, pods: ReadyPods, port: int, *, namespace: str | None = None, prefer: Sequence[int] = ()
) -> AsyncGenerator[tuple[str, int], None]:
    """A local address, on loopback, that leads to a port of pods for as long as the context lasts.

    Each connection is a WebSocket of its own, to one pod, until either side ends it. Where nobody listens in that
    pod, the connection goes to another. One that can't be made is closed, and why is logged.

    Args:
        prefer: local ports, of which the first that is free is taken; none is: any other.
    """
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: Python 3.11 takes the cancellation of one of its for an error.
        task = asyncio.create_task(serve(reader, writer), name=f"forwarded connection to port {port}")
        connections.add(task)
        task.add_done_callback(connections.discard)
        task.add_done_callback(lambda _: writer.close())  # also where it was cancelled before it began

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _Connection(reader, writer).run(cluster, pods, port, namespace)
        except (ElearnError, ConnectionError) as error:
            _log.warning("a forwarded connection ended", port=port, error=str(error))
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server: asyncio.Server | None = None
    for local in (*prefer, 0):
        try:
            server = await asyncio.start_server(accept, "127.0.0.1", local)
        except OSError:
            if not local:
                raise
            continue  # somebody else's
        break
    assert server is not None  # noqa: S101 - port 0 is any that is free
    try:
        host, bound, *_ = server.sockets[0].getsockname()
        yield host, bound
    finally:
        server.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


class _NobodyThere(Exception):
    """In this pod nobody listens, and nothing of the connection was heard."""


class _Connection:
    """One client's, and what it said before anybody answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._said: list[bytes] | None = []

    async def run(self, cluster: Cluster, pods: ReadyPods, port: int, namespace: str | None) -> None:
        """Until either side ends it.

        Raises:
            ElearnError: no pod took it, or it was cut.
        """
        silent: dict[str, str] = {}
        while len(silent) < _TRIES:
            pod = await pods.next(silent)
            try:
                async with cluster.socket(
                    pod, "portforward", [("ports", str(port))], _PROTOCOL, namespace=namespace
                ) as socket:
                    await self._pump(socket)
                    return
            except (NotFound, _NobodyThere) as error:
                silent[pod] = str(error)
        raise Unavailable(f"nobody takes a connection: {silent}")

    async def _pump(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Bytes both ways, until either side ends."""
        tasks = [asyncio.create_task(self._up(socket)), asyncio.create_task(self._down(socket))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _up(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        for data in tuple(self._said or ()):
            await socket.send_bytes(b"\0" + data)
        while data := await self._reader.read(_CHUNK):
            if self._said is not None:
                self._said.append(data)
                if sum(map(len, self._said)) > _HELD:
                    self._said = None
            await socket.send_bytes(b"\0" + data)

    async def _down(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        greeted: set[int] = set()
        answered = False
        async for message in socket:
            if message.type != aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel not in greeted:
                greeted.add(channel)  # the first message of a channel repeats the port
                continue
            if channel == 0:
                answered, self._said = True, None
                self._writer.write(data)
                await self._writer.drain()
            elif data:
                words = data.decode(errors="replace").strip()
                if not answered and self._said is not None and _NOT_THERE.search(words):
                    raise _NobodyThere(words)
                raise Unreachable(words)
