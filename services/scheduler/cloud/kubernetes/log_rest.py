"""The rest of an attempt's logs, read while its pods are being deleted."""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

import structlog

from services.scheduler.cloud.kubernetes.identity import AttemptKey
from services.scheduler.cloud.kubernetes.log_fetch import Fetch, Overtaken, Store, log_of, mark_of
from services.scheduler.cloud.kubernetes.log_patience import Held, PatientStore
from services.scheduler.cloud.kubernetes.log_sources import Stage, Writer, Writers
from services.scheduler.log_store import LogHead, LogKey
from shared.errors import ElearnError, Invalid, NotFound, StorageFull, Unavailable, Unsupported
from shared.kube.client import Cluster

_log = structlog.get_logger(__name__)

_PAUSES: Final = (0.3, 1.0)
"""A stream that broke is opened again after so many seconds; after the last it is given up."""
_LOOK_AGAIN: Final = 0.25
_HEAD_SECONDS: Final = 0.25
"""A stream is not held up for longer by the question how far its log was taken: its pod may be gone by then."""
_HELD: Final = 2**20
"""Bytes of each stream that are kept in memory at the most while the store is away."""
_KEEP_SECONDS: Final = 2.0

Known = Mapping[str, LogHead] | None
"""How far the logs of tasks were taken; None: that could not be found out in time."""


class Rest:
    """Streams of the logs of all tasks of an attempt, which end with their containers.

    They outlive who began them: once the pods are gone, what the streams brought is nowhere else, and is held until the
    database is back. Whoever frees the attempt again goes on with the same ones.
    """

    def __init__(
        self, key: AttemptKey, *, cluster: Cluster, store: Store, writers: Writers, room: asyncio.Semaphore, limit: int
    ) -> None:
        self._key = key
        self._cluster = cluster
        self._impatient = store
        self._store = PatientStore(store)
        self._writers = writers
        self._room = room
        self._limit = limit
        self._tasks: dict[str, asyncio.Task[bool]] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._opened: list[asyncio.Event] = []

    @property
    def reading(self) -> bool:
        """Something is still read, or waits to be stored."""
        return any(not work.done() for work in (*self._tasks.values(), *self._keeping))

    async def open(self, found: Sequence[Writer], *, within: float) -> None:
        """Begin to read what is not being read yet; returns when all streams are open, or after so many seconds.

        Args:
            found: writers, those of each task in their order.
        """
        tasks: dict[str, list[Writer]] = {}
        for writer in found:
            if writer.task not in self._tasks or self._tasks[writer.task].done():
                tasks.setdefault(writer.task, []).append(writer)
        if not tasks:
            return
        until = asyncio.get_running_loop().time() + within
        heads: Known = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                heads = await self._heads()
        self._begin(tasks, heads)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                for opened in self._opened:
                    await opened.wait()

    async def drain(self, timeout: float) -> tuple[str, ...]:
        """Wait until all streams have ended, as their containers have; what came until then is stored.

        Returns:
            The tasks whose logs may lack their ends.

        Raises:
            Unavailable: the store is away; what came is held until it is back.
        """
        if self.reading:
            await asyncio.wait((*self._tasks.values(), *self._keeping), timeout=timeout)
        away = Unavailable("logs wait to be stored: the database is away", retry=2)
        if self._store.away:
            raise away
        ended = {task for task, work in self._tasks.items() if work.done()}
        await self._end_streams()
        if self.reading:  # the database went at this very moment
            raise away
        lacking = tuple(task for task, work in self._tasks.items() if task not in ended or not _result(work))
        if lacking:
            _log.warning("logs of tasks may lack their ends", training=self._key, tasks=lacking)
        try:
            await self._impatient.close(*self._key)
        except ElearnError as error:  # they are only asked for once more
            _log.info("logs of tasks can't be closed", training=self._key, error=error.detail)
        return lacking

    async def aclose(self) -> None:
        """End the streams; what they brought is stored, unless the store is away."""
        await self._end_streams()
        for keeping in self._keeping:
            keeping.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)

    async def _end_streams(self) -> None:
        """Read no further; what could not be stored in a moment is held on."""
        left = {work for work in self._tasks.values() if not work.done()}
        for work in left:
            work.cancel()
        while left:
            _, left = await asyncio.wait(left, timeout=5)
            for work in left:
                work.cancel()

    # -- reading

    async def _heads(self) -> Known:
        try:
            return await self._impatient.heads(*self._key)
        except ElearnError:
            return None

    def _begin(self, tasks: Mapping[str, list[Writer]], heads: Known) -> None:
        self._opened = []
        behind = {task for task, writers in tasks.items() if is_behind(writers[-1], (heads or {}).get(task))}
        # What runs comes first: it is about to go, while the others stay until all was read.
        for task, writers in sorted(tasks.items(), key=lambda each: each[1][-1].stage == "over"):
            if task in behind:
                continue
            opened = asyncio.Event()
            self._opened.append(opened)
            work = self._read(LogKey(*self._key, task), writers, heads, opened)
            self._tasks[task] = asyncio.create_task(_until(work, opened), name=f"rest of the log of {task}")

    async def _read(self, log: LogKey, writers: Sequence[Writer], heads: Known, opened: asyncio.Event) -> bool:
        whole = True
        async with self._room:
            for writer in writers:
                try:
                    last = opened if writer is writers[-1] else asyncio.Event()
                    whole = await self._read_one(log, writer, heads, last) and whole
                except ElearnError as error:
                    _log.info("the rest of a log can't be had", training=self._key, task=log.task, error=error.detail)
                    whole = False
                heads = None
        return whole

    async def _read_one(self, log: LogKey, writer: Writer, heads: Known, opened: asyncio.Event) -> bool:
        """Read a writer's log to its end; whether it is known to be the end.

        What has ended is streamed as well: its pod may go at any moment, also by somebody else's doing.
        """
        pauses = iter(_PAUSES)
        stage, ended = writer.stage, False
        while True:
            try:
                if heads is None:
                    heads = await self._head(log)
                if is_behind(writer, (heads or {}).get(log.task)):
                    return True
                await self._stream(log, writer, heads, opened)
                ended = True
            except Overtaken:
                heads = None
                continue
            except (NotFound, Unsupported):
                return ended and await self._complete(log, writer)
            except Invalid:  # it has not started, and never will
                return True
            except ElearnError:
                pause = next(pauses, None)
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            heads = None
            if ended and stage == "over":
                return await self._complete(log, writer)
            # A stream also ends in good order where the kubelet does, or a proxy on the way.
            found = await self._stage(writer)
            if found is None:
                return ended and await self._complete(log, writer)
            stage = found
            ended = False
            if stage != "over":
                await asyncio.sleep(_LOOK_AGAIN)

    async def _head(self, log: LogKey) -> Known:
        with contextlib.suppress(TimeoutError, Unavailable, StorageFull):
            async with asyncio.timeout(_HEAD_SECONDS):
                head = await self._impatient.head(log)
                return {} if head is None else {log.task: head}
        return None

    async def _stream(self, log: LogKey, writer: Writer, heads: Known, opened: asyncio.Event) -> None:
        held = Held(_HELD)
        keeping = asyncio.create_task(self._keep(log, writer, heads, held), name=f"keep the log of {log.task}")
        problem: ElearnError | None = None
        try:
            try:
                mark = mark_of(writer, (heads or {}).get(log.task))
                async with log_of(self._cluster, writer, mark, follow=True) as chunks:
                    opened.set()
                    async for chunk in chunks:
                        if not await held.put(chunk):
                            break
            except ElearnError as error:
                problem = error
            await held.end()
            await asyncio.wait({keeping})
        except BaseException:
            await held.end()
            self._keeping.add(keeping)
            keeping.add_done_callback(self._kept)
            await asyncio.wait({keeping}, timeout=_KEEP_SECONDS)
            raise
        keeping.result()
        if problem is not None:
            raise problem

    def _kept(self, keeping: asyncio.Task[None]) -> None:
        self._keeping.discard(keeping)
        if not keeping.cancelled() and (error := keeping.exception()) is not None:
            _log.info("the rest of a log can't be had", training=self._key, what=keeping.get_name(), error=repr(error))

    async def _keep(self, log: LogKey, writer: Writer, heads: Known, held: Held) -> None:
        """Store what a stream brings, until it ends."""
        try:
            head = await self._store.head(log) if heads is None else heads.get(log.task)
            if is_behind(writer, head):
                return
            async with Fetch(self._store, log, writer, head, limit=self._limit) as fetch:
                async for chunk in held:
                    await fetch.take(chunk)
        finally:
            await held.end()

    async def _complete(self, log: LogKey, writer: Writer) -> bool:
        head = await self._store.head(log)
        await self._store.complete(log, writer.source, epoch=head.epoch if head is not None else 0)
        return True

    async def _stage(self, writer: Writer) -> Stage | None:
        """How the writer stands now; None: it is gone."""
        found = await self._writers.now(self._key)
        return next((each.stage for each in found if each.source.uid == writer.source.uid), None)


def is_behind(writer: Writer, head: LogHead | None) -> bool:
    """Whether nothing more is to be had from a writer."""
    if head is None:
        return False
    if head.source.uid == writer.source.uid:
        return head.complete or head.closed
    return head.closed or head.source.order > writer.source.order


def _result(work: asyncio.Task[bool]) -> bool:
    return not work.cancelled() and work.result()


async def _until(work: Coroutine[Any, Any, bool], opened: asyncio.Event) -> bool:
    try:
        return await work
    finally:
        opened.set()
