"""Background tasks with a name and somebody who minds when they end."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Self

import structlog

_log = structlog.get_logger(__name__)


class BackgroundTaskEndedError(RuntimeError):
    """A task that should run for ever returned."""


class Supervisor:
    """Owns a service's background tasks; the first one to end ends the service.

    A task started with :meth:`forever` may neither return nor raise: either is a failure that
    :meth:`wait` raises, so that the process exits and whoever runs it starts it again.

        async with Supervisor() as supervisor:
            supervisor.forever("outbox relay", relay.run())
            await supervisor.wait(stop)
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._failed = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def forever(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Start work that must not end before the service does."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._failed is None or self._failed.done():
            return
        if task.cancelled():
            return
        error = task.exception() or BackgroundTaskEndedError(f"{task.get_name()} ended by itself")
        self._failed.set_exception(error)
        _log.error("background task ended", task=task.get_name(), error=repr(error))

    async def wait(self, stop: Awaitable[object]) -> None:
        """Wait until ``stop`` completes, or raise what ended a background task."""
        if self._failed is None:
            raise RuntimeError("enter the supervisor first")
        stopping = asyncio.ensure_future(_finish(stop))
        try:
            await asyncio.wait({stopping, self._failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
        finally:
            if not stopping.done():
                stopping.cancel()

    async def close(self) -> None:
        """Cancel every task and wait until each has gone."""
        tasks = tuple(self._tasks)
        left = {task for task in tasks if not task.done()}
        while left:
            # Again and again: `asyncio.wait_for` of Python 3.11 swallows a cancellation that comes with its answer.
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=1)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._failed is not None:
            if not self._failed.done():
                self._failed.cancel()
            elif not self._failed.cancelled():
                self._failed.exception()  # retrieved: already raised by wait, or logged


async def _finish(work: Awaitable[object]) -> None:
    await work


class Wake:
    """A bell that many may ring and one answers: rings while nobody listens are kept as one."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Ask for another round."""
        self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for a ring, at most ``timeout`` seconds; True if it rang."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


async def retrying(
    what: str,
    attempt: Callable[[], Awaitable[None]],
    *,
    on: tuple[type[Exception], ...],
    first: float = 0.1,
    longest: float = 5.0,
) -> None:
    """Run ``attempt`` for ever: when it raises one of ``on``, say so once and go on after a growing pause.

    Args:
        what: name of the work, for the log.
        first, longest: the first and the longest pause, in seconds.
    """
    pause = first
    while True:
        started = asyncio.get_running_loop().time()
        try:
            await attempt()
        except on as error:
            if asyncio.get_running_loop().time() - started > longest:
                pause = first
            _log.warning("interrupted, going on", work=what, error=str(error) or repr(error), pause=pause)
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)
        else:
            pause = first
