"""What waits for the database: a store that never gives up, and what came of a stream meanwhile."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Self, TypeVar

from services.scheduler.cloud.kubernetes.log_fetch import Store
from services.scheduler.cloud.port import LogPart
from services.scheduler.log_store import LogHead, LogKey, Source
from shared.errors import StorageFull, Unavailable
from shared.kube.backoff import Backoff

T = TypeVar("T")

_FIRST: Final = 0.1
_LONGEST: Final = 2.0
_SLOW: Final = 1.0
"""Seconds after which a call that is not answered is taken for one that waits."""


class PatientStore:
    """A store whose calls go on until they are answered, however long the database is away or full."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chance = random.Random()  # noqa: S311 - spreads load, guards nothing
        self._failing = 0
        self._under_way: dict[int, float] = {}
        self._calls = 0

    @property
    def away(self) -> bool:
        """A call has failed and waits, or is not answered."""
        slow = asyncio.get_running_loop().time() - _SLOW
        return self._failing > 0 or any(begun < slow for begun in self._under_way.values())

    async def head(self, log: LogKey) -> LogHead | None:
        """See :class:`services.scheduler.log_store.LogStore`, as for all that follows."""
        return await self._patiently(lambda: self._store.head(log))

    async def heads(self, project: str, name: str, attempt: int) -> dict[str, LogHead]:
        return await self._patiently(lambda: self._store.heads(project, name, attempt))

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
    ) -> int | None:
        return await self._patiently(
            lambda: self._store.append(
                log, source, data, position=position, mark=mark, epoch=epoch, limit=limit, gap=gap
            )
        )

    async def complete(self, log: LogKey, source: Source, *, epoch: int) -> None:
        await self._patiently(lambda: self._store.complete(log, source, epoch=epoch))

    async def close(self, project: str, name: str, attempt: int) -> None:
        await self._patiently(lambda: self._store.close(project, name, attempt))

    async def read(self, log: LogKey, *, offset: int, length: int) -> tuple[LogPart, LogHead | None]:
        return await self._patiently(lambda: self._store.read(log, offset=offset, length=length))

    async def forget(self, project: str, name: str) -> None:
        await self._patiently(lambda: self._store.forget(project, name))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Every call may be repeated: where its answer was lost, the store knows what it has."""
        self._calls += 1
        number = self._calls
        self._under_way[number] = asyncio.get_running_loop().time()
        try:
            try:
                return await call()
            except (Unavailable, StorageFull):
                self._failing += 1
            try:
                return await self._again(call)
            finally:
                self._failing -= 1
        finally:
            del self._under_way[number]

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        pauses = Backoff(first=_FIRST, longest=_LONGEST, chance=self._chance)
        while True:
            await asyncio.sleep(pauses.next())
            try:
                return await call()
            except (Unavailable, StorageFull):
                continue


class Held:
    """Bytes between a stream and the store: they are read on while the store is away, until there are too many.

    Iterating takes everything that is there at once, and ends with the stream.

    Args:
        most: bytes that are held; whoever brings more waits until some are taken.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._changed = asyncio.Condition()

    async def put(self, chunk: bytes) -> bool:
        """Add what came; False: nobody takes anything any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or self._size < self._most)
            if self._ended:
                return False
            self._chunks.append(chunk)
            self._size += len(chunk)
            self._changed.notify_all()
        return True

    async def end(self) -> None:
        """Nothing more comes, or nothing more is taken."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended or self._chunks)
            data = b"".join(self._chunks)
            self._chunks.clear()
            self._size = 0
            self._changed.notify_all()
        if not data and self._ended:
            raise StopAsyncIteration
        return data
