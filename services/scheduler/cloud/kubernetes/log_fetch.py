"""One container's log, from the API into the store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Protocol, Self

from services.scheduler.cloud.kubernetes.log_lines import LogLines, Mark
from services.scheduler.cloud.kubernetes.log_sources import Writer
from services.scheduler.cloud.port import LogPart
from services.scheduler.log_store import LogHead, LogKey, Source
from shared.errors import ElearnError, Invalid, NotFound, Unavailable, Unsupported
from shared.kube.client import Cluster

_BUFFER: Final = 128 * 1024
_SAVE_SECONDS: Final = 2.0
_FETCH_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 4.0
_AT_ONCE: Final = 16 * 2**20
_OVERTAKEN: Final = 3


class Store(Protocol):
    """What logs are kept in; :class:`services.scheduler.log_store.LogStore` says what is meant."""

    async def head(self, log: LogKey) -> LogHead | None: ...

    async def heads(self, project: str, name: str, attempt: int) -> dict[str, LogHead]: ...

    async def append(
        self,
        log: LogKey,
        source: Source,
        data: bytes,
        *,
        position: int,
        mark: str,
        epoch: int,
        limit: int,
        gap: bool = False,
    ) -> int | None: ...

    async def complete(self, log: LogKey, source: Source, *, epoch: int) -> None: ...

    async def close(self, project: str, name: str, attempt: int) -> None: ...

    async def read(self, log: LogKey, *, offset: int, length: int) -> tuple[LogPart, LogHead | None]: ...

    async def forget(self, project: str, name: str) -> None: ...


class Overtaken(Exception):
    """Somebody else went on with the log in another way: begin again from its head."""


class Fetch:
    """One answer of the API to a question for a writer's log, and how far it has come.

    A context: what was read when it is left, in whatever way, is stored.

    Attributes:
        fresh: bytes that came and were not taken when it began.
    """

    def __init__(self, store: Store, log: LogKey, writer: Writer, head: LogHead | None, *, limit: int) -> None:
        self._store = store
        self._log = log
        self._writer = writer
        self._limit = limit
        self._position = head.taken if head is not None and head.source == writer.source else 0
        self._epoch = head.epoch if head is not None else 0
        self._lines = LogLines(mark_of(writer, head))
        self._told_gap = False
        self._new = bytearray()
        self.fresh = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self._save()
            return
        with contextlib.suppress(ElearnError, Overtaken, TimeoutError):
            async with asyncio.timeout(_SAVE_SECONDS):
                await self._save()

    async def take(self, chunk: bytes) -> None:
        """Take in what came; it is stored from time to time.

        Raises:
            Overtaken: see there; what is stored is right.
        """
        new = self._lines.feed(chunk)
        self.fresh += len(new)
        self._new += new
        if len(self._new) >= _BUFFER:
            await self._save()

    async def complete(self) -> None:
        """Note that everything came."""
        await self._save()
        await self._store.complete(self._log, self._writer.source, epoch=self._epoch)

    async def _save(self) -> None:
        mark = self._lines.reached()
        if not self._new or mark is None:
            return
        data = bytes(self._new)
        epoch = await self._store.append(
            self._log,
            self._writer.source,
            data,
            position=self._position,
            mark=mark.text,
            epoch=self._epoch,
            limit=self._limit,
            gap=self._lines.gap and not self._told_gap,
        )
        if epoch is None:
            raise Overtaken
        self._epoch, self._told_gap = epoch, True
        self._position += len(data)
        self._new.clear()


class Fetcher:
    """Asks the API for logs, and keeps what is new of them in a store."""

    def __init__(self, cluster: Cluster, store: Store, *, limit: int) -> None:
        self._cluster = cluster
        self._store = store
        self._limit = limit

    async def take(self, log: LogKey, writer: Writer) -> bool:
        """Fetch what is new of a writer's log; True: there is more.

        Raises:
            ElearnError: it can't be had; what came is stored.
        """
        for _ in range(_OVERTAKEN):
            head = await self._store.head(log)
            try:
                async with Fetch(self._store, log, writer, head, limit=self._limit) as fetch:
                    return await self._take(fetch, writer, head)
            except Overtaken:
                continue
            except (NotFound, Unsupported, Invalid):
                # There is no such pod, or no log of it: it did not start, or the node has forgotten it.
                if writer.stage == "over":
                    await self._store.complete(log, writer.source, epoch=head.epoch if head is not None else 0)
                return False
        return True

    async def _take(self, fetch: Fetch, writer: Writer, head: LogHead | None) -> bool:
        try:
            async with (
                asyncio.timeout(_FETCH_SECONDS),
                log_of(self._cluster, writer, mark_of(writer, head), idle=_IDLE_SECONDS) as chunks,
            ):
                async for chunk in chunks:
                    await fetch.take(chunk)
                    if fetch.fresh > _AT_ONCE:
                        return True
        except TimeoutError:
            if not fetch.fresh:
                raise Unavailable("the Kubernetes API does not answer in time", retry=2) from None
            return True
        if writer.stage == "over":
            await fetch.complete()
        return False


def mark_of(writer: Writer, head: LogHead | None) -> Mark | None:
    """How far a writer's log was taken."""
    return Mark.read(head.mark) if head is not None and head.source == writer.source else None


def log_of(
    cluster: Cluster, writer: Writer, mark: Mark | None, *, follow: bool = False, idle: float | None = None
) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """The API's answer to the question for a writer's log from a mark on.

    Raises:
        NotFound: the pod is gone.
        Invalid: the container has not started.
        Unavailable, Forbidden: there is no answer, or none for us.
    """
    return cluster.logs(
        writer.pod,
        namespace=writer.namespace,
        container=writer.container,
        follow=follow,
        timestamps=True,
        since=mark.since if mark is not None else "",
        idle=idle,
    )
