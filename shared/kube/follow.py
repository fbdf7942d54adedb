"""Several kinds of objects at once: each watch feeds its mirror, and one bell rings for all."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from shared.kube.changes import Told
from shared.kube.merge import Mirror
from shared.supervise import Wake

T = TypeVar("T")


class Follower:
    """Keeps mirrors up to date while it is open; between two looks any number of changes become one ring.

    async with Follower() as follower:
        follower.follow(jobs, watch(cluster, JOBS, Job, …))
        while True:
            await follower.changed(30.0)
    """

    def __init__(self) -> None:
        self._wake = Wake()
        self._tasks: list[asyncio.Task[None]] = []
        self._error: BaseException | None = None
        self._unsynced = 0

    async def __aenter__(self) -> "Follower":
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def synced(self) -> bool:
        """Whether every watch has told all there is."""
        return self._unsynced == 0

    def follow(self, mirror: Mirror[T], watch: AsyncGenerator[Told[T], None]) -> None:
        """Feed a mirror from a watch."""
        self._unsynced += 1
        self._tasks.append(asyncio.create_task(self._read(mirror, watch), name="follow a watch"))

    def ring(self) -> None:
        """Something else changed: look again."""
        self._wake.ring()

    async def changed(self, timeout: float) -> None:
        """Wait for a change, or so many seconds; the error of a watch that broke is raised here."""
        await self._wake.wait(timeout)
        if self._error is not None:
            raise self._error

    async def _read(self, mirror: Mirror[T], watch: AsyncGenerator[Told[T], None]) -> None:
        try:
            async with aclosing(watch) as told:
                async for each in told:
                    before = mirror.synced
                    mirror.take(each)
                    if mirror.synced and not before:
                        self._unsynced -= 1
                    self._wake.ring()
            raise RuntimeError("a watch ended by itself")
        except Exception as error:  # noqa: BLE001 - raised again by changed()
            self._error = error
            self._wake.ring()
