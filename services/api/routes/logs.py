"""``…/trainings/{name}/logs``: what the tasks wrote, live or as it stands."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Final

import msgspec
import structlog
from aiohttp import web

from services.api.gateway import Gateway
from services.api.lines import LineCutter, last_lines
from services.api.routes.trainings import BASE, attempt_of
from services.api.table import Call, Route
from shared.contracts import training
from shared.contracts.common import Chunk, Named
from shared.contracts.training import ENDED, Attempt, ReadLog, Training
from shared.errors import ElearnError, Invalid, NotFound, Unavailable

_log = structlog.get_logger(__name__)

_BLOCK: Final = 256 * 1024
_WAIT: Final = 5.0
_POLL: Final = 0.5
_PATIENCE: Final = 120.0
"""How long a room may be away before a followed log is broken off, in seconds."""


class Logs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which lines.

    Attributes:
        task: such as `worker-1`; without it, those of all tasks, each line with its task before it.
        attempt: number of the attempt; without it, the current one.
        follow: go on until the task ends; without `task`, until the training ends, over all its attempts.
        tail: begin with so many lines of each task that are there already.
    """

    task: str | None = None
    attempt: Annotated[int, msgspec.Meta(ge=1)] | None = None
    follow: bool = False
    tail: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None


class _Reader:
    """Reads the log of one task of one attempt."""

    def __init__(self, gateway: Gateway, found: Training, attempt: int, task: str) -> None:
        self._gateway = gateway
        self._named = found
        self._attempt = attempt
        self._task = task

    async def read(self, offset: int, length: int = _BLOCK, wait: float = 0.0) -> Chunk:
        request = ReadLog(
            project=self._named.project,
            name=self._named.name,
            task=self._task,
            attempt=self._attempt,
            offset=offset,
            length=length,
            wait=wait,
        )
        return await self._gateway.bus.call(training.READ_LOG, request, timeout=wait + 10.0)

    async def parts(self, *, follow: bool, tail: int | None) -> AsyncIterator[bytes]:
        """The log as it stands, or until the task has ended."""
        offset = 0 if tail is None else await last_lines(self.read, tail, _BLOCK)
        until: int | None = None
        while True:
            chunk = await (self._next(offset) if follow else self.read(offset))
            if chunk.data:
                yield chunk.data
            offset = chunk.offset + len(chunk.data)
            if until is None and not follow:
                until = chunk.total
            if chunk.end or (not follow and (not chunk.data or (until is not None and offset >= until))):
                return

    async def _next(self, offset: int) -> Chunk:
        """More of a log that is followed, soon; a room that is away for a while is waited for."""
        patient_until = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            try:
                if self._gateway.waits.locked():
                    chunk = await self.read(offset)
                    if not chunk.data and not chunk.end:
                        await asyncio.sleep(_POLL)
                    return chunk
                async with self._gateway.waits:
                    return await self.read(offset, wait=_WAIT)
            except Unavailable as error:
                if asyncio.get_running_loop().time() > patient_until:
                    raise
                _log.info("log reader waits", error=error.detail)
                await asyncio.sleep(_POLL)


async def _get(call: Call[None, Logs]) -> web.StreamResponse:
    found = await _training(call)
    attempt = attempt_of(found, call.query.attempt)
    if call.query.task is not None and (attempt.tasks or found.state in ENDED):
        _require_task(found, attempt, call.query.task)
    response = web.StreamResponse(headers={"X-Accel-Buffering": "no"})
    response.content_type = "text/plain"
    response.charset = "utf-8"
    if call.is_head:
        await response.prepare(call.request)
        return response
    if not call.query.follow:
        await _as_it_stands(call, found, attempt, response)
    else:
        with call.gateway.streaming():
            await response.prepare(call.request)
            await _live(call, found, attempt, response)
    await response.write_eof()
    return response


async def _training(call: Call[None, Logs]) -> Training:
    return await call.gateway.bus.call(training.GET, Named(project=call.project, name=call.name))


def _require_task(found: Training, attempt: Attempt, task: str) -> None:
    names = [each.name for each in attempt.tasks]
    if task in names:
        return
    if not names:
        raise NotFound(f"training {found.name!r} has started no task: {found.reason or found.state}")
    raise Invalid.field("task", f"attempt {attempt.number} has no task {task[:60]!r}, but {', '.join(names)}")


async def _as_it_stands(
    call: Call[None, Logs], found: Training, attempt: Attempt, response: web.StreamResponse
) -> None:
    names = [each.name for each in attempt.tasks]
    several = call.query.task is None and len(names) > 1
    for name in names if call.query.task is None else [call.query.task]:
        if not attempt.number:
            break
        reader = _Reader(call.gateway, found, attempt.number, name)
        cutter = LineCutter(f"[{name}] ") if several else None
        async for part in reader.parts(follow=False, tail=call.query.tail):
            if not response.prepared:
                await response.prepare(call.request)
            await response.write(cutter.cut(part) if cutter else part)
        if cutter is not None and (rest := cutter.rest()):
            await response.write(rest)
    if not response.prepared:
        await response.prepare(call.request)


async def _live(call: Call[None, Logs], found: Training, attempt: Attempt, response: web.StreamResponse) -> None:
    tail = call.query.tail
    while True:
        while not attempt.tasks and found.state not in ENDED:
            await asyncio.sleep(_POLL)
            found = await _patiently(call, found)
            attempt = attempt_of(found, call.query.attempt)
        if call.query.task is not None:
            _require_task(found, attempt, call.query.task)
            reader = _Reader(call.gateway, found, attempt.number, call.query.task)
            async for part in reader.parts(follow=True, tail=tail):
                await response.write(part)
            return
        if attempt.tasks:
            await _interleave(call, found, attempt, response, tail)
        ended = attempt.number
        while found.state not in ENDED and found.attempt == ended:
            if call.query.attempt is not None:
                return
            found = await _patiently(call, found)
            if found.state not in ENDED and found.attempt == ended:
                await asyncio.sleep(_POLL)
        if found.attempt == ended or call.query.attempt is not None:
            return
        attempt, tail = attempt_of(found, None), None


async def _patiently(call: Call[None, Logs], known: Training) -> Training:
    """The training as it is now, or as it was known where nobody can tell."""
    try:
        return await _training(call)
    except Unavailable:
        return known


async def _interleave(
    call: Call[None, Logs],
    found: Training,
    attempt: Attempt,
    response: web.StreamResponse,
    tail: int | None,
) -> None:
    """All tasks of an attempt at once, line by line, until each has ended."""
    ready: asyncio.Queue[bytes | None] = asyncio.Queue(64)
    several = len(attempt.tasks) > 1

    async def collect(name: str) -> None:
        cutter = LineCutter(f"[{name}] ") if several else None
        try:
            reader = _Reader(call.gateway, found, attempt.number, name)
            async for part in reader.parts(follow=True, tail=tail):
                await ready.put(cutter.cut(part) if cutter else part)
            if cutter is not None:
                await ready.put(cutter.rest())
        except NotFound as error:
            _log.info("log is gone", task=name, error=error.detail)
        except ElearnError as error:
            await ready.put(f"[{name}] elearn: the log breaks off here: {error.detail}\n".encode())
        except Exception:  # noqa: BLE001 - the other tasks' logs go on
            _log.exception("log reader failed", task=name)
            await ready.put(f"[{name}] elearn: the log breaks off here\n".encode())
        await ready.put(None)

    collectors = [asyncio.create_task(collect(task.name), name=f"log of {task.name}") for task in attempt.tasks]
    left = len(collectors)
    try:
        while left:
            part = await ready.get()
            if part is None:
                left -= 1
            elif part:
                await response.write(part)
    finally:
        for collector in collectors:
            collector.cancel()
        await asyncio.gather(*collectors, return_exceptions=True)


ROUTES = (
    Route(
        method="GET",
        path=BASE + "/{name}/logs",
        operation="readLogs",
        noun="training",
        summary="Read what the tasks wrote; with follow=true, live",
        handle=_get,
        scope="read",
        query=Logs,
        gives="text/plain",
        problems=(404,),
        verb=training.READ_LOG,
    ),
)
