"""What is left of logs when an attempt ends: read while its pods go, held while the database is away."""

import asyncio
from unittest.mock import ANY

import pytest
from structlog.testing import capture_logs

from services.scheduler.cloud.kubernetes.logs import TaskLogs
from services.scheduler.cloud.port import LogPart
from services.scheduler.log_store import LogStore
from shared.errors import Unavailable
from shared.kube.client import Cluster
from tests.integration.log_rooms import (
    LOG,
    T,
    Task,
    cluster,
    logs,
    replica,
    rest_of,
    server,
    store,
    text,
)
from tests.support.kube_server import KubeServer
from tests.support.logs_in_memory import Outage

__all__ = ["cluster", "logs", "server", "store"]


async def test_the_rest_is_read_while_pods_are_deleted(server: KubeServer, logs: TaskLogs, store: LogStore) -> None:
    task = Task(server).run()
    await task.write(b"one\n")
    assert await text(logs) == b"one\n"
    await task.write(b"two\n")
    rest = await rest_of(logs, task)
    assert server.logs.following == 1
    draining = asyncio.create_task(rest.drain(5))
    await task.write(b"SIGTERM\n")
    assert await text(logs) == b"one\ntwo\nSIGTERM\n"
    await task.write(b"bye")
    task.delete()
    assert await draining == ()
    head = await store.head(LOG)
    assert head is not None
    assert (head.complete, head.closed) == (True, True)
    lists = server.asked("GET", "/pods$")
    assert await text(logs) == b"one\ntwo\nSIGTERM\nbye"
    assert server.asked("GET", "/pods$") == lists, "nothing more will come"


async def test_a_stream_that_ends_early_is_opened_again(server: KubeServer, logs: TaskLogs) -> None:
    task = Task(server).run()
    await task.write(b"a line\n" * 100)
    server.logs.cut_after = [(500, True), (2000, False)]
    server.logs.says = [b"", b"", b"failed to create fsnotify watcher: too many open files"]
    rest = await rest_of(logs, task)
    draining = asyncio.create_task(rest.drain(20))
    async with asyncio.timeout(10):
        while server.asked("GET", "/log$") < 4:
            await asyncio.sleep(0.01)
    await server.logs.followed(1)
    await task.write(b"more\n" * 400)
    task.end()
    assert await draining == ()
    assert await text(logs) == b"a line\n" * 100 + b"more\n" * 400


async def test_after_the_time_out_what_came_is_kept(server: KubeServer, logs: TaskLogs, store: LogStore) -> None:
    task = Task(server).run()
    await task.write(b"it never ends\n")
    with capture_logs() as said:
        rest = await rest_of(logs, task)
        assert await rest.drain(0.3) == ("worker-0",)
    assert [each["tasks"] for each in said if each["log_level"] == "warning"] == [("worker-0",)]
    head = await store.head(LOG)
    assert head is not None
    assert (head.size, head.complete, head.closed) == (14, False, False)
    await server.logs.followed(0)


async def test_ended_pods_are_read_before_they_go(server: KubeServer, logs: TaskLogs) -> None:
    first, second = Task(server, "w-0-a"), Task(server, "w-0-b", earlier=1).run()
    await first.write(b"first\n")
    first.end(1)
    await second.write(b"second\n")
    second.end()
    rest = await rest_of(logs, second, first, Task(server, "w-1-a", earlier=2))
    assert await rest.drain(5) == ()
    first.delete()
    second.delete()
    assert await text(logs) == b"first\nsecond\n"


async def test_an_api_that_hangs_holds_nobody_up(server: KubeServer, logs: TaskLogs) -> None:
    task = Task(server).run()
    await task.write(b"one\n")
    server.fail(what="hang", path="/log$", times=1)
    async with asyncio.timeout(2):
        rest = await rest_of(logs, task, within=0.05)
        task.delete()
        assert await rest.drain(0.2) == ("worker-0",)


async def test_who_is_interrupted_goes_on_with_the_same_streams(server: KubeServer, logs: TaskLogs) -> None:
    task = Task(server).run()
    await task.write(b"one\n")

    async def free() -> None:
        await (await rest_of(logs, task)).drain(60)

    freeing = asyncio.create_task(free())
    await server.logs.followed(1)
    freeing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await freeing
    assert server.logs.following == 1
    asked = server.asked("GET", "/log$")
    rest = await rest_of(logs, task)
    assert (server.logs.following, server.asked("GET", "/log$")) == (1, asked)
    await task.write(b"two\n")
    task.end()
    assert await rest.drain(5) == ()
    assert await text(logs) == b"one\ntwo\n"


async def test_nothing_is_left_behind(server: KubeServer, cluster: Cluster, store: LogStore) -> None:
    task = Task(server).run()
    await task.write(b"one\n")
    before = asyncio.all_tasks()
    async with replica(cluster, store) as logs:
        await rest_of(logs, task)
        await server.logs.followed(1)
    await server.logs.followed(0)
    assert {each for each in asyncio.all_tasks() - before if "log of" in each.get_name()} == set()
    assert await store.read(LOG, offset=0, length=9) == (LogPart(data=b"one\n", offset=0, size=4), ANY)


@pytest.mark.parametrize("hangs", [False, True], ids=["refuses", "hangs"])
@pytest.mark.parametrize("known", [True, False], ids=["away later", "away from the beginning"])
async def test_what_came_while_the_database_was_away_is_held_until_it_is_back(
    server: KubeServer, cluster: Cluster, store: LogStore, known: bool, hangs: bool
) -> None:
    """The pods are gone meanwhile, and who frees is interrupted, as it is no leader any more."""
    outage, task = Outage(store, hangs=hangs), Task(server).run()
    async with replica(cluster, outage) as logs:
        await task.write(b"one\n", T)
        assert await text(logs) == b"one\n"
        outage.away = not known
        rest = await rest_of(logs, task, within=0.2)
        await server.logs.followed(1)
        outage.away = True
        await task.write(b"two\n", T + 1)
        await task.write(b"x" * 200_000 + b"\n", T + 2)
        task.end()
        task.delete()
        with pytest.raises(Unavailable, match="wait to be stored: the database is away"):
            await rest.drain(2.5 if hangs else 1.0)
        async with asyncio.timeout(5):
            await outage.asked.wait()
        outage.away = False
        rest = await rest_of(logs)
        assert await rest.drain(10) == ()
        assert await text(logs) == b"one\ntwo\n" + b"x" * 200_000 + b"\n"


async def test_what_an_ended_stream_brought_is_held_too(server: KubeServer, cluster: Cluster, store: LogStore) -> None:
    """The database went a moment ago, too short for anybody to tell, and there is no more time for the task to end."""
    outage, task = Outage(store, hangs=True), Task(server).run()
    async with replica(cluster, outage) as logs:
        await task.write(b"one\n", T)
        assert await text(logs) == b"one\n"
        rest = await rest_of(logs, task)
        await server.logs.followed(1)
        outage.away = True
        await task.write(b"x" * 200_000 + b"\n", T + 1)
        async with asyncio.timeout(5):
            await outage.asked.wait()
        with pytest.raises(Unavailable, match="wait to be stored"):
            await rest.drain(0.01)
        await server.logs.followed(0)
        task.end()
        task.delete()
        outage.away = False
        assert await rest.drain(10) == ("worker-0",), "whether it wrote more nobody knows"
        assert await text(logs) == b"one\n" + b"x" * 200_000 + b"\n"


async def test_ended_pods_stay_until_the_database_is_back(
    server: KubeServer, cluster: Cluster, store: LogStore
) -> None:
    outage, task = Outage(store), Task(server).run()
    async with replica(cluster, outage) as logs:
        await task.write(b"one\n")
        task.end()
        outage.away = True
        with pytest.raises(Unavailable):
            await (await rest_of(logs, task, within=0.1)).drain(1.0)
        outage.away = False
        assert await (await rest_of(logs, task)).drain(10) == ()
        assert await text(logs) == b"one\n"


async def test_no_more_is_held_than_there_is_room_for(server: KubeServer, cluster: Cluster, store: LogStore) -> None:
    outage, task = Outage(store), Task(server).run()
    line = b"x" * 1023 + b"\n"
    async with replica(cluster, outage) as logs:
        await task.write(line, T)
        rest = await rest_of(logs, task)
        await server.logs.followed(1)
        outage.away = True
        for number in range(64):
            await task.write(line * 512, T + number)
        task.end()
        with pytest.raises(Unavailable):
            await rest.drain(1.5)
        assert server.logs.following == 1, "what there is no room for waits in the cluster"
        outage.away = False
        assert await (await rest_of(logs, task)).drain(30) == ()
        assert (await logs.read(*LOG, offset=0, length=1)).size == (1 + 64 * 512) * 1024
