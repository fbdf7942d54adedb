"""Logs in a real database: appended once, bounded, read by offsets."""

from services.scheduler.cloud.port import LogPart
from services.scheduler.log_store import LogKey, LogStore, Source
from tests.integration.log_rooms import store

__all__ = ["store"]

LOG = LogKey("search", "ctr-7", 1, "worker-0")
A, B = Source(uid="a", rank=1), Source(uid="b", rank=2)
LIMIT = 2**20


async def test_what_came_already_is_left_out(store: LogStore) -> None:
    async def add(data: bytes, position: int, epoch: int = 0, source: Source = A, gap: bool = False) -> int | None:
        return await store.append(
            LOG, source, data, position=position, mark=f"m{position}", epoch=epoch, limit=LIMIT, gap=gap
        )

    assert await add(b"x", 5) is None
    assert await add(b"hello ", 0) == 0
    assert await add(b"hello world", 0) == 0
    assert await add(b"lo w", 3) == 0
    assert await add(b"!", 12) is None
    part, head = await store.read(LOG, offset=0, length=100)
    assert part == LogPart(data=b"hello world", offset=0, size=11)
    assert head is not None
    assert (head.taken, head.mark, head.epoch) == (11, "m0", 0)
    # Where the source lost something, only who saw that goes on.
    assert await add(b"?", 11, gap=True) == 1
    assert await add(b"?", 11, gap=True) is None
    assert await add(b"!", 11) is None
    # The next source follows; the one before it is over.
    assert await add(b"again", 0, 1, B) == 2
    assert await add(b"late", 12, 1) is None
    assert await add(b"late", 0, 2) is None
    part, head = await store.read(LOG, offset=0, length=100)
    assert part.data == b"hello world?again"
    await store.complete(LOG, B, epoch=2)
    await store.close(*LOG[:3])
    assert await add(b"more", 5, 2, B) is None
    found = (await store.heads(*LOG[:3]))["worker-0"]
    assert (found.complete, found.closed, found.source) == (True, True, B)


async def test_the_oldest_half_goes_beyond_the_limit(store: LogStore) -> None:
    data = bytes(range(256)) * 4096
    for position in range(0, len(data), 100_000):
        await store.append(
            LOG, A, data[position : position + 100_000], position=position, mark="m", epoch=0, limit=300_000
        )
    head = await store.head(LOG)
    assert head is not None
    assert head.size == len(data)
    assert 150_000 - 100_000 <= head.size - head.start <= 300_000
    part, _ = await store.read(LOG, offset=0, length=1000)
    assert (part.offset, part.data) == (head.start, data[head.start : head.start + 1000])
    part, _ = await store.read(LOG, offset=-10, length=1000)
    assert (part.offset, part.data) == (len(data) - 10, data[-10:])
    part, _ = await store.read(LOG, offset=head.start + 99_990, length=100_020)
    assert part.data == data[head.start + 99_990 :][:100_020]
    part, _ = await store.read(LOG, offset=len(data) + 5, length=10)
    assert part == LogPart(data=b"", offset=len(data) + 5, size=len(data))


async def test_small_appends_are_put_together(store: LogStore) -> None:
    for position in range(300):
        await store.append(LOG, A, b"%d" % (position % 10), position=position, mark="m", epoch=0, limit=LIMIT)
    async with store._database.transaction() as t:
        assert await t.fetchval("SELECT count(*) FROM task_log_part") == 1
    part, _ = await store.read(LOG, offset=295, length=3)
    assert part.data == b"567"


async def test_a_training_is_forgotten_with_all_its_logs(store: LogStore) -> None:
    other = LogKey("search", "ctr-8", 1, "chief-0")
    for log in (LOG, LOG._replace(attempt=2), other):
        await store.append(log, A, b"x", position=0, mark="m", epoch=0, limit=LIMIT)
    await store.forget("search", "ctr-7")
    assert await store.head(LOG) is None
    assert await store.heads("search", "ctr-7", 2) == {}
    assert await store.head(other) is not None
    async with store._database.transaction() as t:
        assert await t.fetchval("SELECT count(*) FROM task_log_part") == 1
