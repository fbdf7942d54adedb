"""Logs of tasks: read from the store, which what is new is fetched into whenever somebody reads, and now and then.

Whoever fetches, any replica at any time, each byte is stored once (see :mod:`.log_lines` and the store). So nothing has
to be followed for as long as it runs, and what was stored can be read while the cluster is away, or after it forgot.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import structlog

from services.scheduler.cloud.kubernetes.identity import ROOM_NAME, TRAINING_WORK, WORK, AttemptKey, attempt_of
from services.scheduler.cloud.kubernetes.log_fetch import Fetcher, Store
from services.scheduler.cloud.kubernetes.log_rest import Rest, is_behind
from services.scheduler.cloud.kubernetes.log_sources import Writer, Writers, writer_of
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.port import LogPart
from services.scheduler.log_store import LogHead, LogKey
from shared.errors import ElearnError, Unavailable
from shared.kube.client import Cluster
from shared.kube.names import ROOM
from shared.kube.objects import Pod
from shared.kube.projects import Projects
from shared.kube.resources import PODS

_log = structlog.get_logger(__name__)

LARGEST: Final = 32 * 2**20
"""Bytes that are kept of each log at the most, whatever the settings say: a database holds them."""

_PAUSE: Final = 0.5
_LIST_SECONDS: Final = 3.0
_QUICK: Final = 1.0
_AGAIN: Final = 0.3
_PATIENCE: Final = 6.0
_LOOK: Final = 0.5
_FETCHES: Final = 16
_FOLLOWED: Final = 64
_TURNS: Final = 1000
_LOST: Final = 3
_ROTA_PACE: Final = 0.2
_ROTA_AT_ONCE: Final = 4

Outcome = ElearnError | Literal["all", "more"]
"""How a fetch went: everything that was there came, or there is more, or it failed."""


class _Turn:
    """Fetches of one task's log, one after another."""

    __slots__ = ("last", "lock", "next")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.last = float("-inf")
        self.next: asyncio.Task[Outcome] | None = None


class TaskLogs:
    """Logs of tasks in a cluster.

    Args:
        limit: bytes kept of each task's log, as far as they are fewer than :data:`LARGEST`; the oldest half of them
            goes beyond.
        pause: seconds that lie between two fetches of the same log, at the least.
    """

    def __init__(
        self,
        cluster: Cluster,
        projects: Projects,
        store: Store,
        options: TrainingOptions,
        *,
        limit: int,
        pause: float = _PAUSE,
    ) -> None:
        self._cluster = cluster
        self._projects = projects
        self._store = store
        self._fetcher = Fetcher(cluster, store, limit=min(limit, LARGEST))
        self._every = options.kubernetes_log_seconds
        self._limit = min(limit, LARGEST)
        self._pause = pause
        self._writers = Writers(cluster, projects.namespace, young=3 * pause)
        self._turns: dict[LogKey, _Turn] = {}
        self._fetching: set[asyncio.Task[Outcome]] = set()
        self._at_once = asyncio.Semaphore(_FETCHES)
        self._followed = asyncio.Semaphore(_FOLLOWED)
        self._failures: dict[str, int] = {}
        self._rests: dict[AttemptKey, Rest] = {}

    async def aclose(self) -> None:
        """End what is under way."""
        left = set(self._fetching)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=5)
        await asyncio.gather(*(rest.aclose() for rest in self._rests.values()))
        self._rests.clear()

    # -- reading

    async def read(self, project: str, name: str, attempt: int, task: str, *, offset: int, length: int) -> LogPart:
        """A part of a task's log; see :class:`services.scheduler.cloud.port.TrainingCloud`.

        Where it reaches to the end of what is stored, what is new is fetched first.

        Raises:
            Unavailable: nothing is stored, and the cluster can't be asked.
        """
        log = LogKey(project, name, attempt, task)
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        part, head = await self._store.read(log, offset=offset, length=length)
        outcome: Outcome = "all"
        fetch: asyncio.Task[Outcome] | None = None
        from_end = offset < 0  # and the end may have moved since it was stored
        while (from_end or not _is_settled(part, head)) and loop.time() < until:
            fetch = fetch or self._next_fetch(log)
            await asyncio.wait({fetch}, timeout=_LOOK)
            outcome = _outcome(fetch)
            part, head = await self._store.read(log, offset=offset, length=length)
            if outcome != "more":
                break
            fetch = None if fetch.done() else fetch
        if head is None and outcome != "all":
            why = outcome.detail if isinstance(outcome, ElearnError) else "the Kubernetes API does not answer in time"
            raise Unavailable(f"the log can't be read: {why}", retry=2)
        return part

    async def forget(self, project: str, name: str) -> None:
        """Remove the logs of all attempts of a training."""
        for key in [key for key in self._rests if key[:2] == (project, name)]:
            await self._rests.pop(key).aclose()
        await self._store.forget(project, name)

    # -- fetching

    def _next_fetch(self, log: LogKey) -> asyncio.Task[Outcome]:
        """A fetch that has not begun yet, so that it brings what was written until now; shared by all who ask."""
        turn = self._turns.get(log)
        if turn is None:
            self._tidy()
            turn = self._turns[log] = _Turn()
        if turn.next is None:
            turn.next = asyncio.create_task(
                self._in_turn(log, turn), name=f"fetch the log of {'/'.join(map(str, log))}"
            )
            self._fetching.add(turn.next)
            turn.next.add_done_callback(self._fetching.discard)
        return turn.next

    async def _in_turn(self, log: LogKey, turn: _Turn) -> Outcome:
        loop = asyncio.get_running_loop()
        try:
            async with turn.lock, self._at_once:
                await asyncio.sleep(max(0.0, turn.last + self._pause - loop.time()))
                turn.last = loop.time()
                turn.next = None
                try:
                    async with asyncio.timeout(_LIST_SECONDS):
                        writers = await self._writers.of_task(AttemptKey(*log[:3]), log.task)
                except TimeoutError:
                    return Unavailable("the Kubernetes API does not answer in time", retry=2)
                except ElearnError as error:
                    return error
                return await self._fetch(log, writers)
        finally:
            if turn.next is asyncio.current_task():
                turn.next = None

    def _tidy(self) -> None:
        """Forget the turns of logs that nobody reads any more."""
        if len(self._turns) < _TURNS:
            return
        old = asyncio.get_running_loop().time() - self._pause
        for log, turn in tuple(self._turns.items()):
            if turn.next is None and not turn.lock.locked() and turn.last < old:
                del self._turns[log]

    async def _fetch(self, log: LogKey, writers: Sequence[Writer]) -> Outcome:
        """Fetch what is new of the log of a task, one writer after another."""
        outcome: Outcome = "all"
        for number, writer in enumerate(writers):
            if writer.stage == "waiting":
                break
            try:
                head = await self._store.head(log)
                if is_behind(writer, head):
                    continue
                if await self._take_patiently(log, writer):
                    return "more"
                self._failures.pop(writer.source.uid, None)
            except ElearnError as error:
                if not self._is_lost(writer, writers[number + 1 :]):
                    return error
                outcome = error
        return outcome

    def _is_lost(self, writer: Writer, later: Sequence[Writer]) -> bool:
        """Whether its log is given up: it can't be had again and again, and another goes on with the task."""
        if len(self._failures) > _TURNS:
            self._failures.clear()
        failures = self._failures[writer.source.uid] = self._failures.get(writer.source.uid, 0) + 1
        return failures >= _LOST and any(each.stage != "waiting" for each in later)

    async def _take_patiently(self, log: LogKey, writer: Writer) -> bool:
        """Fetch what is new of a writer's log, twice where that fails quickly; True: there is more."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            return await self._fetcher.take(log, writer)
        except Unavailable:
            if loop.time() - begun > _QUICK:
                raise
        await asyncio.sleep(_AGAIN)
        return await self._fetcher.take(log, writer)

    # -- the end of an attempt

    def rest(self, key: AttemptKey) -> Rest:
        """The rest of the logs of an attempt that is about to be deleted; whoever tries that again finds it again."""
        for each, idle in tuple(self._rests.items()):
            if not idle.reading:
                del self._rests[each]
        rest = self._rests.get(key)
        if rest is None:
            rest = self._rests[key] = Rest(
                key,
                cluster=self._cluster,
                store=self._store,
                writers=self._writers,
                room=self._followed,
                limit=self._limit,
            )
        return rest

    # -- now and then

    async def rota(self) -> None:
        """Fetch what is new of all logs, one after another, for ever: so much less goes with a lost node."""
        loop = asyncio.get_running_loop()
        complete: set[str] = set()
        while True:
            begun = loop.time()
            try:
                await self._round(complete)
            except ElearnError as error:
                _log.warning("logs of tasks can't be fetched, trying again", error=error.detail)
            await asyncio.sleep(max(1.0, begun + self._every - loop.time()))

    async def _round(self, complete: set[str]) -> None:
        labels = {ROOM: ROOM_NAME, WORK: TRAINING_WORK}
        logs: dict[LogKey, list[Writer]] = {}
        for pod in await self._projects.ours(PODS, Pod, labels):
            key, writer = attempt_of(pod.metadata.labels), writer_of(pod)
            if key is not None and writer is not None:
                logs.setdefault(LogKey(*key, writer.task), []).append(writer)
        complete &= {writer.source.uid for writers in logs.values() for writer in writers}
        waiting = iter(logs.items())
        async with asyncio.TaskGroup() as group:
            for number in range(_ROTA_AT_ONCE):
                group.create_task(self._go_round(waiting, complete), name=f"log rota {number}")

    async def _go_round(self, waiting: Iterator[tuple[LogKey, list[Writer]]], complete: set[str]) -> None:
        loop = asyncio.get_running_loop()
        for log, writers in waiting:
            turn = self._turns.get(log)
            if turn is not None and turn.last > loop.time() - self._every:
                continue  # somebody reads it
            if all(writer.stage == "waiting" or writer.source.uid in complete for writer in writers):
                continue
            await asyncio.sleep(_ROTA_PACE * _ROTA_AT_ONCE)
            outcome = await self._fetch(log, sorted(writers, key=lambda each: each.source.order))
            if outcome == "all":
                complete |= {writer.source.uid for writer in writers if writer.stage == "over"}
            elif isinstance(outcome, ElearnError):
                _log.info("the log of a task can't be fetched, later", log=log, error=outcome.detail)


def _is_settled(part: LogPart, head: LogHead | None) -> bool:
    """Whether nothing that might be fetched belongs to this part."""
    return head is not None and (head.closed or part.offset + len(part.data) < part.size)


def _outcome(fetch: asyncio.Task[Outcome]) -> Outcome:
    if not fetch.done():
        return "more"
    return Unavailable("the scheduler is about to end", retry=1) if fetch.cancelled() else fetch.result()
