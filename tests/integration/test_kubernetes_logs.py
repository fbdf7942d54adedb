"""Logs of tasks in a cluster: an emulated API serves them as a kubelet does, a real database keeps them."""

import asyncio

import pytest

from services.scheduler.cloud.kubernetes.log_fetch import Fetcher
from services.scheduler.cloud.kubernetes.log_sources import Writer
from services.scheduler.cloud.kubernetes.logs import Outcome, TaskLogs
from services.scheduler.cloud.port import LogPart
from services.scheduler.log_store import LogKey, LogStore
from shared.errors import Unavailable
from shared.kube.client import Cluster
from shared.kube.resources import PODS
from tests.integration.log_rooms import (
    LOG,
    NAMESPACE,
    T,
    Task,
    cluster,
    logs,
    replica,
    server,
    store,
    text,
)
from tests.support.kube_logs import SECOND
from tests.support.kube_server import KubeServer
from tests.support.rooms import until

__all__ = ["cluster", "logs", "server", "store"]


async def test_a_log_is_read_while_it_is_written_and_after_its_pod_went(server: KubeServer, logs: TaskLogs) -> None:
    assert await logs.read(*LOG, offset=0, length=10) == LogPart(data=b"", offset=0, size=0)
    task = Task(server)
    assert await text(logs) == b""
    task.run()
    assert await text(logs) == b""
    await task.write(b"one\ntw")
    assert await text(logs) == b"one\ntw"
    await task.write(b"o\n")
    assert await text(logs, offset=4) == b"two\n"
    await task.write(b"three \xff\0\r\n")
    assert (await logs.read(*LOG, offset=-9, length=100)).data == b"three \xff\0\r\n"[-9:]
    task.end()
    assert await text(logs) == b"one\ntwo\nthree \xff\0\r\n"
    asked = server.asked("GET", "/log$")
    assert await text(logs) == b"one\ntwo\nthree \xff\0\r\n"
    assert server.asked("GET", "/log$") == asked, "a log that is complete is not asked for again"
    task.delete()
    assert await text(logs, offset=4, length=3) == b"two"
    await logs.forget("search", "ctr-7")
    assert await text(logs) == b""


async def test_readers_wait_for_the_same_fetch(
    server: KubeServer, logs: TaskLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(server).run()
    await task.write(b"hello\n")
    waiting, all_wait = 0, asyncio.Event()
    take, next_fetch = Fetcher.take, TaskLogs._next_fetch

    def asked(self: TaskLogs, log: LogKey) -> asyncio.Task[Outcome]:
        nonlocal waiting
        waiting += 1
        if waiting == 20:
            all_wait.set()
        return next_fetch(self, log)

    async def take_late(self: Fetcher, log: LogKey, writer: Writer) -> bool:
        await all_wait.wait()
        return await take(self, log, writer)

    monkeypatch.setattr(TaskLogs, "_next_fetch", asked)
    monkeypatch.setattr(Fetcher, "take", take_late)
    assert await asyncio.gather(*(text(logs) for _ in range(20))) == [b"hello\n"] * 20
    assert server.asked("GET", "/log$") <= 2  # one that had begun when the others came, and one for all of them


async def test_two_replicas_store_each_byte_once(server: KubeServer, cluster: Cluster, store: LogStore) -> None:
    task = Task(server).run()
    written = bytearray()

    async def write() -> None:
        for number in range(120):
            line = b"%d %s\n" % (number, b"x" * (number * 37 % 300))
            written.extend(line)
            # Many lines bear the same stamp, and all of them lie in a few seconds.
            await task.write(line, T + number // 7 * 7 * 10**7)
            await asyncio.sleep(0.003)

    async def read(logs: TaskLogs) -> bytes:
        log = b""
        while not done.is_set() or len(log) < len(written):
            log += await text(logs, offset=len(log), length=777)
        return log

    async def hurt() -> None:
        while not done.is_set():
            server.logs.cut_after += [(700, True), (3000, False)]
            await asyncio.sleep(0.02)
        server.logs.cut_after.clear()

    done = asyncio.Event()
    async with replica(cluster, store) as one, replica(cluster, store) as other, asyncio.timeout(30):
        readers = [asyncio.create_task(read(each)) for each in (one, other, one)]
        rota = asyncio.create_task(other.rota())
        hurting = asyncio.create_task(hurt())
        await write()
        done.set()
        await hurting
        for reader in readers:
            assert await reader == bytes(written)
        rota.cancel()
        await asyncio.gather(rota, return_exceptions=True)
        assert await text(one) == bytes(written)


async def test_long_lines_come_in_pieces(server: KubeServer, logs: TaskLogs) -> None:
    task = Task(server).run()
    await task.write(b"\r".join(b"step %d" % step for step in range(5000)), T)
    first = await text(logs)
    assert first.startswith(b"step 0\r")
    await task.write(b"\rdone\nnext\n", T + 3 * SECOND)
    assert await text(logs) == first + b"\rdone\nnext\n"


async def test_after_a_rotation_nothing_is_told_twice(
    server: KubeServer, cluster: Cluster, store: LogStore, logs: TaskLogs
) -> None:
    task = Task(server).run()
    await task.write(b"a\nb\n", T + 1, T + 2)
    assert await text(logs) == b"a\nb\n"
    server.logs.rotate((NAMESPACE, task.name, "task"))
    await task.write(b"c\nd\n", T + 3, T + 4)
    async with replica(cluster, store) as other:
        assert set(await asyncio.gather(text(logs), text(other))) == {b"a\nb\nc\nd\n"}
    await task.write(b"e\n", T + 5)
    assert await text(logs) == b"a\nb\nc\nd\ne\n"


async def test_a_task_that_is_started_again_goes_on_with_its_log(server: KubeServer, logs: TaskLogs) -> None:
    first = Task(server, "w-0-a").run()
    await first.write(b"first\n")
    assert await text(logs) == b"first\n"
    await first.write(b"dies\n")
    first.end(1)
    second = Task(server, "w-0-b", earlier=1)
    assert await text(logs) == b"first\ndies\n"
    second.run()
    await second.write(b"second\n")
    assert await text(logs) == b"first\ndies\nsecond\n"
    first.delete()
    await second.write(b"ends\n")
    second.end()
    assert await text(logs) == b"first\ndies\nsecond\nends\n"


async def test_a_log_that_can_not_be_had_does_not_hold_up_the_next(server: KubeServer, logs: TaskLogs) -> None:
    first = Task(server, "w-0-a").run()
    await first.write(b"on a node that is lost\n")
    first.end(1)
    second = Task(server, "w-0-b", earlier=1).run()
    await second.write(b"second\n")
    server.fail(500, path="w-0-a/log", times=100, message="dial tcp: no route to host")
    for _ in range(2):
        with pytest.raises(Unavailable, match="no route to host"):
            await text(logs)
    assert await text(logs) == b"second\n"


async def test_preparing_that_failed_is_the_log(server: KubeServer, logs: TaskLogs) -> None:
    task = Task(server)
    await task.write(b"mkdir: permission denied\n", container="prepare")
    assert await text(logs) == b""
    status = {
        "phase": "Failed",
        "initContainerStatuses": [{"name": "prepare", "state": {"terminated": {"exitCode": 1}}}],
        "containerStatuses": [{"name": "task", "state": {"waiting": {"reason": "PodInitializing"}}}],
    }
    server.store.change(PODS, task.name, NAMESPACE, status=status)
    assert await text(logs) == b"mkdir: permission denied\n"


async def test_what_is_stored_can_be_read_while_the_cluster_is_away(server: KubeServer, logs: TaskLogs) -> None:
    task = Task(server).run()
    await task.write(b"one\n")
    server.deny("get", "pods/log")
    with pytest.raises(Unavailable, match="pods/log"):
        await text(logs)
    server.allow()
    assert await text(logs) == b"one\n"
    await task.write(b"two\n")
    server.deny("get", "pods/log")
    assert await text(logs) == b"one\n"
    server.allow()
    await server.stop()
    assert await text(logs) == b"one\n"
    with pytest.raises(Unavailable):
        await logs.read("search", "ctr-7", 1, "worker-1", offset=0, length=10)
    await server.start()
    assert await text(logs) == b"one\ntwo\n"


async def test_silence_is_not_taken_for_an_empty_log(
    server: KubeServer, logs: TaskLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.scheduler.cloud.kubernetes.logs._PATIENCE", 0.2)
    task = Task(server).run()
    await task.write(b"one\n")
    server.fail(what="hang", path="/log$", times=1)
    with pytest.raises(Unavailable, match="does not answer in time"):
        await text(logs)


async def test_only_so_much_of_a_flood_is_kept(server: KubeServer, cluster: Cluster, store: LogStore) -> None:
    task = Task(server).run()
    lines = b"".join(b"%07d %s\n" % (number, b"x" * 90) for number in range(20_000))
    await task.write(lines, T)
    async with replica(cluster, store, limit=2**19) as logs:
        # A reader of the beginning is answered as soon as there is one: all of it has come when the end has.
        await until(lambda: logs.read(*LOG, offset=-1, length=1), lambda end: end.size == len(lines))
        part = await logs.read(*LOG, offset=0, length=100)
        assert part.size == len(lines)
        assert 2**17 <= part.size - part.offset <= 2**19
        assert part.data == lines[part.offset :][:100]


async def test_logs_that_nobody_reads_are_fetched_too(server: KubeServer, logs: TaskLogs, store: LogStore) -> None:
    task = Task(server).run()
    await task.write(b"one\n")
    server.fail(503, path="/pods$", times=1)
    rota = asyncio.create_task(logs.rota())

    async def size() -> int:
        head = await store.head(LOG)
        return head.size if head is not None else 0

    try:
        async with asyncio.timeout(20):
            while await size() < 4:
                await asyncio.sleep(0.05)
            await task.write(b"two\n")
            task.end()
            while await size() < 8:
                await asyncio.sleep(0.05)
    finally:
        rota.cancel()
        await asyncio.gather(rota, return_exceptions=True)
    task.delete()
    assert await text(logs) == b"one\ntwo\n"
