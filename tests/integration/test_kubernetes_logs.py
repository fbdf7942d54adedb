"""Logs of tasks in a cluster: an emulated API serves them as a kubelet does, a real database keeps them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import msgspec
import pytest
from structlog.testing import capture_logs

from services.scheduler import log_store
from services.scheduler.cloud.kubernetes.identity import AttemptKey, attempt_labels
from services.scheduler.cloud.kubernetes.log_fetch import Fetcher
from services.scheduler.cloud.kubernetes.log_rest import Rest
from services.scheduler.cloud.kubernetes.log_sources import Writer, writers_of
from services.scheduler.cloud.kubernetes.logs import Outcome, TaskLogs
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.port import LogPart
from services.scheduler.log_store import LogKey, LogStore
from shared.errors import Unavailable
from shared.kube.client import Cluster
from shared.kube.names import labels_of
from shared.kube.objects import Pod
from shared.kube.projects import Projects
from shared.kube.resources import PODS
from shared.kube.settings import ProjectSettings
from shared.postgres import Database
from tests.support.kube_logs import SECOND
from tests.support.kube_rights import ChartRights
from tests.support.kube_server import KubeServer
from tests.support.logs_in_memory import Outage
from tests.support.rooms import until
from tests.support.servers import FreshDatabase

KEY = AttemptKey("search", "ctr-7", 1)
NAMESPACE = "elearn-search"
LOG = LogKey(*KEY, "worker-0")
T = 1_795_507_200 * SECOND
LONG = 600 * 2**10


async def _migrate(url: str) -> None:
    await Database(url, name="scheduler").migrate(Path(log_store.__file__).parent / "migrations")


@pytest.fixture
async def store(fresh_database: FreshDatabase) -> AsyncIterator[LogStore]:
    url = await fresh_database(_migrate)
    database = Database(url, name="scheduler")
    await database.open()
    async with database:
        yield LogStore(database)


@pytest.fixture
async def server() -> AsyncIterator[KubeServer]:
    async with KubeServer() as running:
        running.rights = ChartRights("scheduler")
        yield running


@pytest.fixture
async def cluster(server: KubeServer) -> AsyncIterator[Cluster]:
    settings = server.settings(kubernetes_timeout=2.0, kubernetes_patience=0.3)
    async with Cluster(settings, find=server.access, first_pause=0.01, longest_pause=0.05) as connected:
        yield connected


@pytest.fixture
async def logs(cluster: Cluster, store: LogStore) -> AsyncIterator[TaskLogs]:
    async with replica(cluster, store) as one:
        yield one


@contextlib.asynccontextmanager
async def replica(cluster: Cluster, store: Any, *, limit: int = 2**26) -> AsyncIterator[TaskLogs]:
    options = TrainingOptions(kubernetes_log_seconds=0.0)
    one = TaskLogs(cluster, Projects(cluster, ProjectSettings()), store, options, limit=limit, pause=0.0)
    try:
        yield one
    finally:
        await one.aclose()


class Task:
    """A pod of a task, and what its container writes."""

    def __init__(self, server: KubeServer, name: str = "w-0-x", *, earlier: int = 0, key: AttemptKey = KEY) -> None:
        self.server, self.name = server, name
        about = {"batch.kubernetes.io/job-index-failure-count": str(earlier)}
        labels = {**attempt_labels(key), "elearn.dev/role": "worker", "elearn.dev/first-index": "0"}
        labels |= {"batch.kubernetes.io/job-completion-index": "0", **labels_of("elearn")}
        self.document = server.store.add(
            PODS,
            {
                "metadata": {"name": name, "labels": labels, "annotations": about},
                "spec": {"nodeName": "n1"},
                "status": {"phase": "Pending"},
            },
            NAMESPACE,
        )

    def state(self, phase: str, **state: object) -> None:
        status = {"phase": phase, "containerStatuses": [{"name": "task", "state": state}]}
        self.server.store.change(PODS, self.name, NAMESPACE, status=status)

    def run(self) -> "Task":
        self.state("Running", running={})
        return self

    def end(self, code: int = 0) -> None:
        self.server.logs.end(NAMESPACE, self.name)
        self.state("Failed" if code else "Succeeded", terminated={"exitCode": code})

    def delete(self) -> None:
        self.server.store.delete(PODS, NAMESPACE, self.name, {"gracePeriodSeconds": 0})

    async def write(self, data: bytes, *stamps: int, container: str = "task") -> None:
        await self.server.logs.write((NAMESPACE, self.name, container), data, stamps=list(stamps))

    @property
    def pod(self) -> Pod:
        return msgspec.convert(self.server.store.need(PODS, self.name, NAMESPACE), Pod)


async def rest_of(logs: TaskLogs, *tasks: Task, within: float = 5) -> Rest:
    rest = logs.rest(KEY)
    await rest.open(writers_of([task.pod for task in tasks]), within=within)
    return rest


async def text(logs: TaskLogs, offset: int = 0, length: int = LONG) -> bytes:
    return (await logs.read(*LOG, offset=offset, length=length)).data


# -- reading ----------------------------------------------------------------------------------------------------------


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


# -- the end of an attempt --------------------------------------------------------------------------------------------


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
            await rest.drain(1.5 if hangs else 0.3)
        async with asyncio.timeout(5):
            await outage.asked.wait()
        outage.away = False
        rest = await rest_of(logs)
        assert await rest.drain(10) == ()
        assert await text(logs) == b"one\ntwo\n" + b"x" * 200_000 + b"\n"


async def test_ended_pods_stay_until_the_database_is_back(
    server: KubeServer, cluster: Cluster, store: LogStore
) -> None:
    outage, task = Outage(store), Task(server).run()
    async with replica(cluster, outage) as logs:
        await task.write(b"one\n")
        task.end()
        outage.away = True
        with pytest.raises(Unavailable):
            await (await rest_of(logs, task, within=0.1)).drain(0.3)
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
            await rest.drain(0.5)
        assert server.logs.following == 1, "what there is no room for waits in the cluster"
        outage.away = False
        assert await (await rest_of(logs, task)).drain(30) == ()
        assert (await logs.read(*LOG, offset=0, length=1)).size == (1 + 64 * 512) * 1024


# -- now and then -----------------------------------------------------------------------------------------------------


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
