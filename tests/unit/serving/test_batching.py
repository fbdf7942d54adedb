"""Batches: who waits for whom, who runs with whom, and that no one pays for a neighbour."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from services.serving.server.batching import Arrays, Batcher, Pace
from services.serving.server.config import Batching
from services.serving.server.errors import Exhausted, InvalidArgument, Unavailable
from shared.tensor_proto import Array


def _ready(pace: Pace, inside: int, rows: int = 1, waited: float = 0.0) -> bool:
    return pace.ready(inside=inside, rows=rows, waited=waited, most_rows=64, longest=0.001)


def test_alone_does_not_wait() -> None:
    pace = Pace()
    pace.seen(1)
    assert _ready(pace, 1)


def test_waits_for_those_seen_lately_but_no_longer_than_allowed() -> None:
    pace = Pace()
    pace.seen(8)
    pace.ran(8)
    assert not _ready(pace, 3)
    assert _ready(pace, 8)
    assert _ready(pace, 3, waited=0.001)
    assert _ready(pace, 3, rows=64)


def test_forgets_a_burst() -> None:
    pace = Pace()
    pace.seen(64)
    pace.ran(0)
    for _ in range(20):
        pace.seen(1)
        pace.ran(0)
    assert _ready(pace, 1)


class Doubler:
    """A program that keeps count, and can be held."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()

    def __call__(self, inputs: Arrays) -> list[Array]:
        self.entered.set()
        assert self.go.wait(5)
        (x,) = inputs
        self.sizes.append(len(x))
        if (x < 0).any():
            raise InvalidArgument("negative")
        return [x * 2]


def _row(value: float) -> Arrays:
    return (np.array([[value]], np.float32),)


@pytest.fixture
def program() -> Doubler:
    return Doubler()


async def _held(batcher: Batcher, program: Doubler, inputs: Arrays, rows: int = 1) -> asyncio.Task[Sequence[Array]]:
    """A request that runs, and stays so until the program is let go."""
    program.go.clear()
    first = asyncio.create_task(batcher.run(program, inputs, rows=rows))
    assert await asyncio.to_thread(program.entered.wait, 5)
    return first


async def test_those_that_wait_for_a_thread_run_together(program: Doubler) -> None:
    batcher = Batcher(Batching(max_batch_size=8), threads=1)
    first = await _held(batcher, program, _row(0))
    others = [asyncio.create_task(batcher.run(program, _row(n), rows=1)) for n in range(1, 7)]
    await asyncio.sleep(0)
    program.go.set()
    answers = await asyncio.gather(first, *others)
    assert [answer[0].tolist() for answer in answers] == [[[2.0 * n]] for n in range(7)]
    assert program.sizes == [1, 6]
    assert batcher.inside == 0
    batcher.close()


async def test_a_batch_is_no_larger_than_allowed(program: Doubler) -> None:
    batcher = Batcher(Batching(max_batch_size=4), threads=1)
    first = await _held(batcher, program, _row(0))
    others = [asyncio.create_task(batcher.run(program, _row(n), rows=1)) for n in range(6)]
    await asyncio.sleep(0)
    program.go.set()
    await asyncio.gather(first, *others)
    assert program.sizes == [1, 4, 2]
    batcher.close()


async def test_one_bad_request_does_not_fail_its_neighbours(program: Doubler) -> None:
    batcher = Batcher(Batching(), threads=1)
    first = await _held(batcher, program, _row(0))
    others = [asyncio.create_task(batcher.run(program, _row(n), rows=1)) for n in (1, -1, 2)]
    await asyncio.sleep(0)
    program.go.set()
    await first
    good, bad, fine = await asyncio.gather(*others, return_exceptions=True)
    assert not isinstance(good, BaseException)
    assert not isinstance(fine, BaseException)
    assert (good[0].tolist(), fine[0].tolist()) == ([[2.0]], [[4.0]])
    assert isinstance(bad, InvalidArgument)
    batcher.close()


async def test_other_shapes_and_requests_without_rows_run_by_themselves(program: Doubler) -> None:
    batcher = Batcher(Batching(), threads=1)
    first = await _held(batcher, program, _row(0))
    wide = (np.zeros((1, 5), np.float32),)
    others = [
        asyncio.create_task(batcher.run(program, wide, rows=1)),
        asyncio.create_task(batcher.run(program, _row(1), rows=1)),
        asyncio.create_task(batcher.run(program, _row(1), rows=None)),
        asyncio.create_task(batcher.run(program, (np.zeros((64, 1), np.float32),), rows=64)),
    ]
    await asyncio.sleep(0)
    program.go.set()
    await asyncio.gather(first, *others)
    assert sorted(program.sizes) == [1, 1, 1, 1, 64]
    batcher.close()


async def test_a_full_queue_refuses_and_recovers(program: Doubler) -> None:
    batcher = Batcher(Batching(max_queue=2), threads=1)
    first = await _held(batcher, program, _row(0))
    second = asyncio.create_task(batcher.run(program, _row(1), rows=1))
    await asyncio.sleep(0)
    with pytest.raises(Exhausted, match="try again later"):
        await batcher.run(program, _row(2), rows=1)
    program.go.set()
    await asyncio.gather(first, second)
    assert (await batcher.run(program, _row(2), rows=1))[0].tolist() == [[4.0]]
    batcher.close()


async def test_a_client_that_left_is_not_run(program: Doubler) -> None:
    batcher = Batcher(Batching(), threads=1)
    first = await _held(batcher, program, _row(0))
    left = asyncio.create_task(batcher.run(program, _row(1), rows=1))
    await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    program.go.set()
    await first
    assert batcher.inside == 0
    assert program.sizes == [1]
    batcher.close()


async def test_a_model_that_breaks_its_promise_of_rows_is_run_singly() -> None:
    batcher = Batcher(Batching(), threads=1)
    program = Doubler()
    first = await _held(batcher, program, _row(0))

    def summing(inputs: Arrays) -> list[Array]:
        return [inputs[0].sum(axis=0)]

    others = [asyncio.create_task(batcher.run(summing, _row(n), rows=1)) for n in (1, 2)]
    await asyncio.sleep(0)
    program.go.set()
    await first
    assert [answer[0].tolist() for answer in await asyncio.gather(*others)] == [[1.0], [2.0]]
    batcher.close()


async def test_closed_refuses(program: Doubler) -> None:
    batcher = Batcher(Batching(), threads=1)
    batcher.close()
    with pytest.raises(Unavailable):
        await batcher.run(program, _row(0), rows=1)
