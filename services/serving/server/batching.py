"""Requests that wait at the same time share one run of the model.

A run costs much the same for one row as for sixty-four, so under load it pays to wait a little for company,
and on an idle server it never does. :class:`Pace` decides which it is, without a clock of its own;
:class:`Batcher` does the waiting, and runs models in threads, off the event loop.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from services.serving.server.config import Batching
from services.serving.server.errors import Exhausted, ServeError, Unavailable
from shared.tensor_proto import Array

Arrays = tuple[Array, ...]
Program = Callable[[Arrays], Sequence[Array]]
"""Runs the model: inputs in the signature's order, to outputs in the signature's order."""

_SLOW: Final = 0.75


class Pace:
    """How much company is worth waiting for: as many requests as there were inside lately.

    Grows at once, and shrinks slowly, so that a pause between two bursts does not make the second one run
    request by request. Once all that can be expected are inside, waiting longer would bring nothing.
    """

    def __init__(self) -> None:
        self._expected = 1.0
        self._peak = 0

    def seen(self, inside: int) -> None:
        """So many requests wait or run now."""
        self._peak = max(self._peak, inside)

    def ran(self, inside: int) -> None:
        """A batch was started: what was seen since the one before counts."""
        self._expected = max(self._peak, self._expected * _SLOW + self._peak * (1 - _SLOW))
        self._peak = inside

    def ready(self, *, inside: int, rows: int, waited: float, most_rows: int, longest: float) -> bool:
        """True where a batch of so many rows, the first of which waited so long, shall go.

        Args:
            waited, longest: seconds.
        """
        return rows >= most_rows or waited >= longest or inside >= int(self._expected)


@dataclass(slots=True, eq=False)
class _Request:
    inputs: Arrays
    rows: int
    since: float
    answer: asyncio.Future[Sequence[Array]]


@dataclass(slots=True, eq=False)
class _Lane:
    """Requests that may be run together: same program, same shapes beyond the first dimension."""

    program: Program
    joins: bool
    waiting: deque[_Request] = field(default_factory=deque)
    rows: int = 0


class Batcher:
    """Runs programs, together where they may be.

    Args:
        observe: called with the requests and rows of every batch that is run.
    """

    def __init__(self, settings: Batching, *, threads: int, observe: Callable[[int, int], None] | None = None) -> None:
        self._settings = settings
        self._longest = settings.timeout_micros / 1e6
        self._free = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="model")
        self._lanes: dict[Hashable, _Lane] = {}
        self._single = itertools.count()
        self._pace = Pace()
        self._inside = 0
        self._timer: asyncio.TimerHandle | None = None
        self._observe = observe
        self._closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def inside(self) -> int:
        """Requests that wait or run."""
        return self._inside

    async def run(self, program: Program, inputs: Arrays, *, rows: int | None) -> Sequence[Array]:
        """The program's outputs for these inputs.

        Args:
            rows: the size of the first dimension of every input and output; None for a program that
                has to be run by itself.

        Raises:
            Exhausted: too many requests wait already.
            Unavailable: the server is shutting down.
            ServeError: whatever the program raises.
        """
        if self._closed:
            raise Unavailable("the server is shutting down")
        if self._inside >= self._settings.max_queue:
            raise Exhausted(f"{self._inside} requests are waiting already; try again later, or add replicas")
        loop = self._loop
        joins = rows is not None and 0 < rows < self._settings.max_batch_size
        key: Hashable = (program, *(array.shape[1:] for array in inputs)) if joins else next(self._single)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(program, joins)
        request = _Request(inputs, rows or 0, loop.time(), loop.create_future())
        lane.waiting.append(request)
        lane.rows += request.rows
        self._inside += 1
        self._pace.seen(self._inside)
        self._start()
        try:
            return await request.answer
        except asyncio.CancelledError:
            self._forget(key, lane, request)
            raise

    def close(self) -> None:
        """Refuses what comes from now on, and ends the threads once they are idle."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._threads.shutdown(wait=False)

    def _start(self) -> None:
        """Starts every batch that is ready while a thread is free, the longest waiting first."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._lanes:
            now = self._loop.time()
            due = [(lane.waiting[0].since, key, lane) for key, lane in self._lanes.items()]
            oldest = min(since for since, _, _ in due)
            ready = [entry for entry in due if self._ready(entry[2], now)]
            if not ready:
                # A timer that fires a hair early must not find nothing ready and be set again for no time.
                delay = max(oldest + self._longest - now, 0.0001)
                self._timer = self._loop.call_later(delay, self._start)
                return
            _, key, lane = min(ready, key=lambda entry: entry[0])
            self._launch(key, lane)

    def _forget(self, key: Hashable, lane: _Lane, request: _Request) -> None:
        """Takes out a request whose client has gone away before it was run."""
        if request in lane.waiting:
            lane.waiting.remove(request)
            lane.rows -= request.rows
            self._inside -= 1
            if not lane.waiting:
                del self._lanes[key]

    def _ready(self, lane: _Lane, now: float) -> bool:
        return not lane.joins or self._pace.ready(
            inside=self._inside,
            rows=lane.rows,
            waited=now - lane.waiting[0].since,
            most_rows=self._settings.max_batch_size,
            longest=self._longest,
        )

    def _launch(self, key: Hashable, lane: _Lane) -> None:
        batch: list[_Request] = []
        rows = 0
        while lane.waiting and (not batch or rows + lane.waiting[0].rows <= self._settings.max_batch_size):
            request = lane.waiting.popleft()
            lane.rows -= request.rows
            batch.append(request)
            rows += request.rows
        if not lane.waiting:
            del self._lanes[key]
        self._pace.ran(self._inside)
        if self._observe is not None:
            self._observe(len(batch), max(rows, 1))
        self._free -= 1
        job = self._threads.submit(_run, lane.program, [request.inputs for request in batch])

        def finished(job: Future[list[Sequence[Array] | BaseException]]) -> None:
            self._loop.call_soon_threadsafe(self._deliver, batch, job)

        job.add_done_callback(finished)

    def _deliver(self, batch: list[_Request], job: Future[list[Sequence[Array] | BaseException]]) -> None:
        self._free += 1
        # Counted out here, not when their coroutines wake: these are on their way to the client, and the
        # next requests of such clients are the company that is worth waiting for.
        self._inside -= len(batch)
        for request, outcome in zip(batch, job.result(), strict=True):
            if request.answer.done():
                continue
            if isinstance(outcome, BaseException):
                request.answer.set_exception(outcome)
            else:
                request.answer.set_result(outcome)
        self._start()


def _run(program: Program, batch: list[Arrays]) -> list[Sequence[Array] | BaseException]:
    """One outcome for each request. Runs in a thread."""
    if len(batch) == 1:
        return [_outcome(program, batch[0])]
    try:
        rows = [inputs[0].shape[0] for inputs in batch]
        outputs = program(tuple(_join(parts) for parts in zip(*batch, strict=True)))
        return list(_split(outputs, rows))
    except ServeError:
        # One bad request must not fail its neighbours: each by itself, so that only the culprit is told.
        return [_outcome(program, inputs) for inputs in batch]
    except Exception as error:  # noqa: BLE001 - handed to every request, which raises it
        return [error] * len(batch)


def _outcome(program: Program, inputs: Arrays) -> Sequence[Array] | BaseException:
    try:
        return program(inputs)
    except Exception as error:  # noqa: BLE001 - handed to the request, which raises it
        return error


def _join(parts: Sequence[Array]) -> Array:
    return np.concatenate(parts)


def _split(outputs: Sequence[Array], rows: Sequence[int]) -> list[Sequence[Array]]:
    total = sum(rows)
    for output in outputs:
        if output.ndim == 0 or output.shape[0] != total:
            # The signature promises a row for each row; a model that breaks it can't be batched.
            raise ServeError(f"the model answered shape {list(output.shape)} to {total} rows")
    edges = list(itertools.accumulate(rows, initial=0))
    return [[output[start:end] for output in outputs] for start, end in itertools.pairwise(edges)]
