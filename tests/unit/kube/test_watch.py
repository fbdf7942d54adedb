"""Scripted stories of a watch: every fault that a cluster has, and what a reader sees of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from shared.errors import ElearnError, Invalid, Unavailable
from shared.kube import Added, Cluster, Deleted, Modified, Pace, Synced, watch
from shared.kube.errors import MissingRight
from shared.kube.names import INSTALLATION
from shared.kube.objects import Pod
from shared.kube.resources import NODES, PODS
from tests.support.kube_server import KubeServer
from tests.unit.kube.conftest import client

QUICK = Pace(first=0.001, longest=0.01, idle=5.0, lifetime=300.0, brief=0.05, page=3)
SECONDS = 10.0


def pod(name: str, *, phase: str = "Pending", ours: bool = True, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {**({INSTALLATION: "elearn"} if ours else {}), **labels}},
        "spec": {"containers": [{"name": "main", "image": "busybox"}]},
        "status": {"phase": phase},
    }


class Reader:
    """Reads a watch and writes it down in words: ``+a Pending``, ``~a Running``, ``-a``, ``synced``."""

    def __init__(self, told: AsyncIterator[Any], troubles: list[ElearnError | None]) -> None:
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._pump = asyncio.create_task(self._read(told))
        self.troubles = troubles

    async def _read(self, told: AsyncIterator[Any]) -> None:
        try:
            async for each in told:
                self._queue.put_nowait(each)
        except ElearnError as error:
            self._queue.put_nowait(error)

    async def close(self) -> None:
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        assert self._queue.empty(), "told more than the story has"

    async def next(self, count: int = 1) -> list[str]:
        words: list[str] = []
        async with asyncio.timeout(SECONDS):
            while len(words) < count:
                told = await self._queue.get()
                if isinstance(told, ElearnError):
                    raise told
                words.append(self._words(told))
        return words

    @staticmethod
    def _words(told: Any) -> str:
        match told:
            case Synced():
                return "synced"
            case Added(identity, seen):
                return f"+{identity.name} {seen.status.phase}"
            case Modified(identity, seen):
                return f"~{identity.name} {seen.status.phase}"
            case Deleted(identity, seen):
                return f"-{identity.name}" + ("" if seen is None else f" {seen.status.phase}")
        raise AssertionError(told)


@asynccontextmanager
async def reading(cluster: Cluster, **how: Any) -> AsyncIterator[Reader]:
    troubles: list[ElearnError | None] = []
    how.setdefault("pace", QUICK)
    async with aclosing(watch(cluster, PODS, Pod, trouble=troubles.append, **how)) as told:
        reader = Reader(told, troubles)
        try:
            yield reader
        finally:
            await reader.close()


async def test_tells_what_is_there_then_synced_then_changes(server: KubeServer, cluster: Cluster) -> None:
    for name in "abcdefgh":  # three pages of three
        server.store.add(PODS, pod(name), "default")
    async with reading(cluster) as reader:
        assert await reader.next(9) == [*(f"+{name} Pending" for name in "abcdefgh"), "synced"]
        await server.watched(1)
        server.store.change(PODS, "a", "default", status={"phase": "Running"})
        server.store.finish(PODS, "b", "default")
        server.store.add(PODS, pod("i"), "default")
        assert await reader.next(3) == ["~a Running", "-b Pending", "+i Pending"]
    await server.watched(0)
    assert server.asked("GET", "/pods$", watch=False) == 3


async def test_an_empty_cluster_is_synced_at_once(server: KubeServer, cluster: Cluster) -> None:
    async with reading(cluster) as reader:
        assert await reader.next() == ["synced"]


async def test_only_objects_of_this_installation_are_told(server: KubeServer, cluster: Cluster) -> None:
    server.store.add(PODS, pod("stranger", ours=False), "default")
    server.store.add(PODS, pod("other", ours=False, **{INSTALLATION: "staging"}), "default")
    server.store.add(PODS, pod("mine", role="chief"), "default")
    server.store.add(PODS, pod("elsewhere"), "elearn")
    async with reading(cluster) as reader:
        assert await reader.next(2) == ["+mine Pending", "synced"]
    async with reading(cluster, ours=False, everywhere=True) as reader:
        assert len(await reader.next(5)) == 5
    async with reading(cluster, labels={"role": ("worker", "ps")}) as reader:
        assert await reader.next() == ["synced"]
        await server.watched(1)
        server.store.change(PODS, "mine", "default", labels={"role": "ps"})
        assert await reader.next() == ["+mine Pending"]
        server.store.change(PODS, "mine", "default", labels={"role": "chief"})
        assert await reader.next() == ["-mine Pending"]


async def test_a_stream_that_the_server_ends_is_followed_on_without_a_list(
    server: KubeServer, cluster: Cluster
) -> None:
    server.store.add(PODS, pod("a"), "default")
    async with reading(cluster) as reader:
        await reader.next(2)
        for phase in ("Running", "Succeeded"):
            await server.watched(1)
            server.end_streams()
            await server.watched(0)
            server.store.change(PODS, "a", "default", status={"phase": phase})
            assert await reader.next() == [f"~a {phase}"]
        assert server.asked("GET", "/pods$", watch=False) == 1
        assert reader.troubles == []


async def test_a_stream_cut_in_the_middle_of_a_line_loses_and_repeats_nothing(
    server: KubeServer, cluster: Cluster
) -> None:
    async with reading(cluster) as reader:
        await reader.next()
        await server.watched(1)
        await server.cut(mid_line=True)
        server.store.add(PODS, pod("a"), "default")
        server.store.add(PODS, pod("b"), "default")
        assert await reader.next(2) == ["+a Pending", "+b Pending"]
        await server.watched(1)
        await server.cut()
        server.store.change(PODS, "a", "default", status={"phase": "Running"})
        assert await reader.next() == ["~a Running"]
        assert server.asked("GET", "/pods$", watch=False) == 1


@pytest.mark.parametrize("in_stream", [True, False])
async def test_410_lists_again_and_tells_only_differences(
    server: KubeServer, cluster: Cluster, in_stream: bool
) -> None:
    server.gone_in_stream = in_stream
    for name in "abcd":
        server.store.add(PODS, pod(name), "default")
    async with reading(cluster) as reader:
        await reader.next(5)
        await server.watched(1)
        server.end_streams()
        await server.watched(0)
        server.store.finish(PODS, "b", "default")
        server.store.change(PODS, "c", "default", status={"phase": "Running"})
        server.store.finish(PODS, "d", "default")
        server.store.add(PODS, pod("d", phase="Running"), "default")
        server.store.add(PODS, pod("e"), "default")
        server.store.compact()
        assert await reader.next(5) == ["~c Running", "-d", "+d Running", "+e Pending", "-b"]
        await server.watched(1)
        server.store.add(PODS, pod("f"), "default")
        assert await reader.next() == ["+f Pending"]


async def test_410_as_an_event_inside_a_stream_that_began_with_200(server: KubeServer, cluster: Cluster) -> None:
    server.store.add(PODS, pod("a"), "default")
    async with reading(cluster) as reader:
        await reader.next(2)
        await server.watched(1)
        server.gone()
        await server.watched(0)
        server.store.finish(PODS, "a", "default")
        assert await reader.next() == ["-a"]
        assert server.asked("GET", "/pods$", watch=False) == 2


async def test_any_other_error_event_lists_again(server: KubeServer, cluster: Cluster) -> None:
    server.store.add(PODS, pod("a"), "default")
    async with reading(cluster) as reader:
        await reader.next(2)
        await server.watched(1)
        server.upset()
        await server.watched(0)
        server.store.add(PODS, pod("b"), "default")
        assert await reader.next() == ["+b Pending"]
        assert server.asked("GET", "/pods$", watch=False) == 2


async def test_bookmarks_keep_the_place_in_the_history(server: KubeServer, cluster: Cluster) -> None:
    async with reading(cluster) as reader:
        await reader.next()
        await server.watched(1)
        server.store.add(PODS, pod("noise", ours=False), "default")  # moves the history on, unseen by us
        await server.settled()
        server.store.compact()
        server.bookmark()
        server.store.add(PODS, pod("a"), "default")
        assert await reader.next() == ["+a Pending"]
        server.end_streams()
        await server.watched(0)
        server.store.add(PODS, pod("b"), "default")
        assert await reader.next() == ["+b Pending"]
        assert server.asked("GET", "/pods$", watch=False) == 1


async def test_pages_whose_snapshot_went_are_fetched_all_at_once(server: KubeServer, cluster: Cluster) -> None:
    for name in "abcdef":
        server.store.add(PODS, pod(name), "default")
    server.fail(410, "Expired", path="/pods$", times=0)
    fault = server.fail(410, "Expired", times=0)
    async with reading(cluster) as reader:
        assert await reader.next(3) == ["+a Pending", "+b Pending", "+c Pending"]
        fault.times = 1
        server.store.finish(PODS, "b", "default")
        assert await reader.next(5) == ["+d Pending", "+e Pending", "+f Pending", "-b", "synced"]
        assert [query.get("limit") for _, _, query in server.requests if "watch" not in query] == ["3", "3", None]


async def test_an_api_server_that_restarts_is_waited_for(server: KubeServer, cluster: Cluster) -> None:
    server.store.add(PODS, pod("a"), "default")
    async with reading(cluster) as reader:
        await reader.next(2)
        await server.watched(1)
        await server.stop()
        while not reader.troubles:
            await asyncio.sleep(0.001)
        assert isinstance(reader.troubles[0], Unavailable)
        assert "can't be reached" in reader.troubles[0].detail
        server.store.change(PODS, "a", "default", status={"phase": "Running"})
        server.store.add(PODS, pod("b"), "default")
        await server.start()
        assert await reader.next(2) == ["~a Running", "+b Pending"]
        assert reader.troubles[-1] is None


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"code": 500, "reason": "InternalError"}, "injected"),
        ({"code": 503, "reason": "ServiceUnavailable"}, "injected"),
        ({"code": 429, "reason": "TooManyRequests", "retry_after": "0"}, "injected"),
        ({"what": "page"}, "Bad Gateway"),
        ({"what": "drop"}, "can't be reached"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_a_server_in_trouble_is_asked_again(
    server: KubeServer, cluster: Cluster, fault: dict[str, Any], told: str
) -> None:
    server.store.add(PODS, pod("a"), "default")
    server.fail(**fault, times=3, watch=False)  # the list
    server.fail(**fault, times=2, watch=True)  # then the watch
    async with reading(cluster) as reader:
        assert await reader.next(2) == ["+a Pending", "synced"]
        await server.watched(1)
        server.store.add(PODS, pod("b"), "default")
        assert await reader.next() == ["+b Pending"]
        assert told in str(reader.troubles[0])
        assert reader.troubles[-1] is None
        assert sum(trouble is None for trouble in reader.troubles) == 2


async def test_429_waits_as_long_as_the_server_says(server: KubeServer, cluster: Cluster) -> None:
    server.fail(429, "TooManyRequests", retry_after="1", watch=False)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with reading(cluster) as reader:
        await reader.next()
    assert loop.time() - began >= 1.0


async def test_an_expired_token_is_read_again(server: KubeServer) -> None:
    server.tokens = {"old"}
    server.store.add(PODS, pod("a"), "default")
    async with client(server) as cluster, reading(cluster) as reader:
        await reader.next(2)
        await server.watched(1)
        server.tokens = {"new"}
        await server.cut()
        server.store.change(PODS, "a", "default", status={"phase": "Running"})
        assert await reader.next() == ["~a Running"]
        assert reader.troubles == []


async def test_a_missing_right_is_named_and_waited_for(server: KubeServer, cluster: Cluster) -> None:
    server.deny("watch", "pods", "default")
    async with reading(cluster) as reader:
        assert await reader.next() == ["synced"]
        while not reader.troubles:
            await asyncio.sleep(0.001)
        error = reader.troubles[0]
        assert isinstance(error, MissingRight)
        assert (error.verb, error.plural, error.namespace) == ("watch", "pods", "default")
        server.store.add(PODS, pod("a"), "default")
        server.allow()
        assert await reader.next() == ["+a Pending"]


async def test_silence_is_taken_for_a_dead_connection(server: KubeServer, cluster: Cluster) -> None:
    async with reading(cluster, pace=Pace(first=0.001, longest=0.01, idle=0.5)) as reader:
        await reader.next()
        while server.asked("GET", "/pods$", watch=True) < 3:
            await asyncio.sleep(0.005)
        server.store.add(PODS, pod("a"), "default")
        assert await reader.next() == ["+a Pending"]
        assert reader.troubles == []


async def test_the_server_is_asked_to_end_streams_after_a_while(server: KubeServer, cluster: Cluster) -> None:
    async with reading(cluster) as reader:
        await reader.next()
        await server.watched(1)
        (query,) = [query for _, _, query in server.requests if "watch" in query]
        assert 300 <= int(query["timeoutSeconds"]) <= 600
        assert query["allowWatchBookmarks"] == "true"


async def test_a_list_older_than_what_was_told_is_not_believed(server: KubeServer, cluster: Cluster) -> None:
    server.store.add(PODS, pod("a"), "default")
    async with reading(cluster) as reader:
        await reader.next(2)
        await server.watched(1)
        server.store.finish(PODS, "a", "default")
        server.store.add(PODS, pod("b"), "default")
        assert await reader.next(2) == ["-a Pending", "+b Pending"]
        # A replica that lags: it still has a, and has not heard of b.
        stale = KubeServer()
        stale.store.revision = 1001
        stale.store.add(PODS, pod("a"), "default")
        server.store, real = stale.store, server.store
        server.upset()
        while server.asked("GET", "/pods$", watch=False) < 3:
            await asyncio.sleep(0.001)
        real.add(PODS, pod("c"), "default")
        server.store = real
        assert await reader.next() == ["+c Pending"]


async def test_a_history_that_went_back_for_good_is_believed_in_the_end(server: KubeServer, cluster: Cluster) -> None:
    server.store.revision = server.store.oldest = 5000
    server.store.add(PODS, pod("a"), "default")
    server.store.add(PODS, pod("lost"), "default")
    async with reading(cluster) as reader:
        await reader.next(3)
        await server.watched(1)
        restored = KubeServer()  # from a backup: resourceVersions begin at 1000 again
        restored.store.add(PODS, pod("b"), "default")
        server.store = restored.store
        server.store.on_change.append(server._wake)
        server.end_streams()
        assert await reader.next(3) == ["+b Pending", "-a", "-lost"]
        await server.watched(1)
        server.store.change(PODS, "b", "default", status={"phase": "Running"})
        assert await reader.next() == ["~b Running"]


async def test_one_odd_object_does_not_hide_the_others(server: KubeServer, cluster: Cluster) -> None:
    odd = pod("odd")
    odd["status"]["phase"] = ["what"]
    server.store.add(PODS, odd, "default")
    server.store.add(PODS, pod("a"), "default")
    async with reading(cluster) as reader:
        assert await reader.next(2) == ["+a Pending", "synced"]
        await server.watched(1)
        server.store.finish(PODS, "odd", "default")
        server.store.add(PODS, pod("b"), "default")
        assert await reader.next() == ["+b Pending"]


async def test_a_line_that_comes_in_many_parts(server: KubeServer, cluster: Cluster) -> None:
    async with reading(cluster) as reader:
        await reader.next()
        await server.watched(1)
        large = pod("large")
        large["metadata"]["annotations"] = {"story": "x" * 1_500_000}  # etcd takes no larger ones
        server.store.add(PODS, large, "default")
        server.store.add(PODS, pod("small"), "default")
        assert await reader.next(2) == ["+large Pending", "+small Pending"]
        assert server.asked("GET", "/pods$", watch=False) == 1


async def test_a_selector_that_is_refused_is_the_callers_fault(server: KubeServer, cluster: Cluster) -> None:
    server.fail(400, "BadRequest", "unable to parse requirement")
    async with reading(cluster) as reader:
        with pytest.raises(Invalid, match="unable to parse"):
            await reader.next()


async def test_projected_objects_are_what_is_told(server: KubeServer, cluster: Cluster) -> None:
    server.store.add(NODES, {"metadata": {"name": "n1"}, "status": {"allocatable": {"cpu": "4"}}})
    server.store.add(PODS, pod("a"), "default")
    async with aclosing(watch(cluster, PODS, Pod, project=lambda seen: seen.metadata.name.upper(), pace=QUICK)) as told:
        first = await anext(told)
        assert isinstance(first, Added)
        assert first.object == "A"
