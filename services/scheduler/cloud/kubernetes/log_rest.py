"""The rest of an attempt's logs, read while its pods are being deleted."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import structlog

from services.scheduler.cloud.kubernetes.identity import AttemptKey
from services.scheduler.cloud.kubernetes.log_fetch import Fetch, Overtaken, Store
from services.scheduler.cloud.kubernetes.log_sources import Stage, Writer, Writers
from services.scheduler.log_store import LogHead, LogKey
from shared.errors import ElearnError, Invalid, NotFound, Unsupported
from shared.kube.client import Cluster

_log = structlog.get_logger(__name__)

_PAUSES: Final = (0.3, 1.0)
"""A stream that broke is opened again after so many seconds; after the last it is given up."""
_LOOK_AGAIN: Final = 0.25
_LATER: Final = 1.0

Take = Callable[[LogKey, Writer], Awaitable[bool]]
"""Fetches what is new of a writer's log; True: there is more."""


class Rest:
    """Streams of the logs of all tasks of an attempt, which end with their containers.

    A context; leaving it ends the streams, and what they brought is stored.
    """

    def __init__(
        self,
        key: AttemptKey,
        *,
        cluster: Cluster,
        store: Store,
        writers: Writers,
        take: Take,
        room: asyncio.Semaphore,
        limit: int,
    ) -> None:
        self._key = key
        self._cluster = cluster
        self._store = store
        self._writers = writers
        self._take = take
        self._room = room
        self._limit = limit
        self._tasks: dict[str, asyncio.Task[bool]] = {}
        self._opened: list[asyncio.Event] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def open(self, found: Sequence[Writer], *, within: float) -> None:
        """Begin to read; returns when all streams are open, or after so many seconds."""
        heads: Mapping[str, LogHead] | None = None
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within):
                    heads = await self._heads()
            self._begin(found, heads)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within):
                    for opened in self._opened:
                        await opened.wait()
        except BaseException:
            await self.aclose()
            raise

    async def drain(self, timeout: float) -> tuple[str, ...]:
        """Wait until all streams have ended, as their containers have; what came until then is stored.

        Returns:
            The tasks whose logs may lack their ends.
        """
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=timeout)
        ended = {task for task, work in self._tasks.items() if work.done()}
        await self.aclose()
        lacking = tuple(task for task, work in self._tasks.items() if task not in ended or not work.result())
        if lacking:
            _log.warning("logs of tasks may lack their ends", training=self._key, tasks=lacking)
        try:
            await self._store.close(*self._key)
        except ElearnError as error:  # they are only asked for once more
            _log.info("logs of tasks can't be closed", training=self._key, error=error.detail)
        return lacking

    async def aclose(self) -> None:
        """End the streams; what they brought is stored."""
        left = {work for work in self._tasks.values() if not work.done()}
        for work in left:
            work.cancel()
        while left:
            _, left = await asyncio.wait(left, timeout=5)
            for work in left:
                work.cancel()

    # -- reading

    async def _heads(self) -> Mapping[str, LogHead] | None:
        try:
            return await self._store.heads(*self._key)
        except ElearnError:
            return None

    def _begin(self, found: Sequence[Writer], heads: Mapping[str, LogHead] | None) -> None:
        tasks: dict[str, list[Writer]] = {}
        for writer in found:
            head = (heads or {}).get(writer.task)
            if not is_behind(writer, head):
                tasks.setdefault(writer.task, []).append(writer)
        # What runs comes first: it is about to go, while the others stay until all was read.
        for task, writers in sorted(tasks.items(), key=lambda each: each[1][-1].stage == "over"):
            opened = asyncio.Event()
            self._opened.append(opened)
            known = heads is not None
            work = self._read(LogKey(*self._key, task), writers, (heads or {}).get(task), opened, known=known)
            self._tasks[task] = asyncio.create_task(_until(work, opened), name=f"rest of the log of {task}")

    async def _read(
        self, log: LogKey, writers: Sequence[Writer], head: LogHead | None, opened: asyncio.Event, *, known: bool
    ) -> bool:
        whole = True
        async with self._room:
            for writer in writers:
                last = writer is writers[-1]
                try:
                    if not known:
                        head, known = await self._store.head(log), True
                    if is_behind(writer, head):
                        continue
                    whole = await self._read_one(log, writer, head, opened if last else asyncio.Event()) and whole
                    known = False
                except ElearnError as error:
                    _log.info("the rest of a log can't be had", training=self._key, task=log.task, error=error.detail)
                    whole = known = False
        return whole

    async def _read_one(self, log: LogKey, writer: Writer, head: LogHead | None, opened: asyncio.Event) -> bool:
        """Read a writer's log to its end; whether it is known to be the end."""
        pauses = iter(_PAUSES)
        stage, ended = writer.stage, False
        while True:
            try:
                if stage == "over":
                    return await self._finish(log, writer)
                await self._stream(log, writer, head, opened)
                ended = True
            except Overtaken:
                head = await self._store.head(log)
                continue
            except (NotFound, Unsupported):
                return ended and await self._gone(log, writer)
            except Invalid:  # it has not started, and never will
                return True
            except ElearnError:
                pause = next(pauses, None)
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            # A stream also ends in good order where the kubelet does, or a proxy on the way.
            found = await self._stage(writer)
            if found is None:
                return ended and await self._gone(log, writer)
            stage = found
            head = await self._store.head(log)
            if stage != "over":
                ended = False
                await asyncio.sleep(_LOOK_AGAIN)

    async def _stream(self, log: LogKey, writer: Writer, head: LogHead | None, opened: asyncio.Event) -> None:
        async with (
            Fetch(self._cluster, self._store, log, writer, head, limit=self._limit) as fetch,
            fetch.opened(follow=True, idle=None) as chunks,
        ):
            opened.set()
            async for chunk in chunks:
                await fetch.take(chunk)

    async def _finish(self, log: LogKey, writer: Writer) -> bool:
        over = writer if writer.stage == "over" else _over(writer)
        while await self._take(log, over):
            pass
        return True

    async def _gone(self, log: LogKey, writer: Writer) -> bool:
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


def _over(writer: Writer) -> Writer:
    return msgspec.structs.replace(writer, stage="over")


async def _until(work: Coroutine[Any, Any, bool], opened: asyncio.Event) -> bool:
    try:
        return await work
    finally:
        opened.set()
