"""What every serving cloud must do: one suite for the fake and the real ones."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from services.serving.cloud.local import LocalServings
from services.serving.cloud.local.replica import Options
from services.serving.cloud.local.resources import Resources
from services.serving.cloud.port import Deployment, Gone, Seen, ServingCloud, Synced
from services.serving.model import Observed, Source
from shared.contracts.datastore import LocalVolume, Volume
from shared.contracts.serving import ServingSpec
from shared.kube import Cluster
from shared.local.book import Book
from shared.local.ledger import Ledger
from shared.local.machine import Machine
from shared.local.ports import can_bind
from shared.local.processes import LocalProcesses, end_all, processes_root
from shared.supervise import Supervisor
from tests.contract.serving_cloud_fake import FakeServings
from tests.support.kube_kubelet import emulated
from tests.support.kube_rights import FORWARDING, ChartRights
from tests.support.kube_servings import MODELS, ModelServers, servings_on

STANDIN = Path(__file__).parents[1] / "support" / "model_server_standin.py"
UID = "0123456789abcdef"
PATIENCE = 20.0


class Watching:
    """A cloud under leadership: its work runs, and what its watch tells is kept."""

    def __init__(self, cloud: ServingCloud) -> None:
        self.cloud = cloud
        self.seen: dict[str, Observed] = {}
        self.synced = asyncio.Event()
        self.answering: list[int] = []
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        async for observation in self.cloud.watch():
            match observation:
                case Seen(uid=uid, observed=observed):
                    self.seen[uid] = observed
                    self.answering.append(sum(each.state == "ready" for each in observed.replicas))
                case Gone(uid=uid):
                    del self.seen[uid]
                case Synced():
                    self.synced.set()
            self._changed.set()

    async def until(self, holds: Callable[[Observed], bool], uid: str = UID) -> Observed:
        async with asyncio.timeout(PATIENCE):
            while uid not in self.seen or not holds(self.seen[uid]):
                self._changed.clear()
                await self._changed.wait()
        return self.seen[uid]

    async def gone(self, uid: str = UID) -> None:
        async with asyncio.timeout(PATIENCE):
            while uid in self.seen:
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def leading(cloud: ServingCloud) -> AsyncIterator[Watching]:
    watching = Watching(cloud)
    async with Supervisor() as supervisor:
        for name, work in cloud.work().items():
            supervisor.forever(name, work())
        supervisor.forever("watch", watching.follow())
        async with asyncio.timeout(PATIENCE):
            await watching.synced.wait()
        yield watching


class Bench:
    """Makes drivers that see the same cloud: the second stands for a service that was restarted."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.start_seconds = 10.0
        self.folder = folder
        self.home = folder / "home"
        self.models = folder / "models"
        self.models.mkdir()
        for number in (1, 2):
            (self.models / str(number)).mkdir()
        self.volume: Volume = LocalVolume(path=str(self.models))
        self.cluster: Cluster | None = None
        self._world: dict[str, Observed] = {}
        self._ledgers: list[Ledger] = []

    def cloud(self) -> ServingCloud:
        if self.kind == "fake":
            return FakeServings(self._world)
        if self.cluster is not None:
            return servings_on(self.cluster)
        machine = Machine(cpu=2.0, memory=4 * 2**30)
        ledger = Ledger(self.home / "ledger.json", machine, Book(self.folder / "book"))
        self._ledgers.append(ledger)
        return LocalServings(
            root=self.home / "serving",
            processes=LocalProcesses(processes_root(self.home, "serving")),
            resources=Resources(ledger, cpu=0.25, memory=2**28),
            options=Options(
                command=(sys.executable, "-I", "-S", str(STANDIN)),
                host="127.0.0.1",
                start_seconds=self.start_seconds,
                grace_seconds=2.0,
                max_batch=8,
                batch_micros=0,
            ),
        )

    def close(self) -> None:
        end_all(self.home, grace=1.0)
        for ledger in self._ledgers:
            ledger.close()

    def deployment(
        self, revision: int = 1, version: int = 1, *, replicas: int = 2, cpu: float | None = None
    ) -> Deployment:
        source = Source(number=version, volume=self.volume, path=str(version))
        return Deployment(
            uid=UID,
            project="default",
            name="digits",
            model="digits",
            revision=revision,
            replicas=replicas,
            sources=(source,),
            traffic={version: 100},
            labels={},
            cpu=cpu,
        )


@pytest.fixture(params=["fake", "local", "kubernetes"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> "AsyncIterator[Bench]":
    bench = Bench(request.param, tmp_path)
    if request.param == "kubernetes":
        bench.volume = MODELS
        async with emulated(tmp_path, deploying=False) as (server, life, _, cluster):
            server.rights = ChartRights("serving", beyond=[FORWARDING])
            ModelServers(server, life, bench.models)
            bench.cluster = cluster
            yield bench
    else:
        yield bench
    bench.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench("local", tmp_path)
    yield bench
    bench.close()


def settled(revision: int, replicas: int) -> Callable[[Observed], bool]:
    """So many replicas of this revision answer, and there is nothing else."""
    return lambda seen: [(each.revision, each.state) for each in seen.replicas] == [(revision, "ready")] * replicas


async def test_replicas_come_up_behind_one_endpoint_and_go(bench: Bench) -> None:
    cloud = bench.cloud()
    async with leading(cloud) as watching:
        assert watching.seen == {}
        await cloud.apply(bench.deployment())
        seen = await watching.until(settled(1, 2))
        assert seen.endpoint is not None
        assert seen.endpoint.rest.endswith("/v1/models/digits")
        await cloud.apply(bench.deployment())
        await cloud.remove(UID)
        await watching.gone()
        await cloud.remove(UID)
        await cloud.remove("feedfeedfeedfeed")


async def test_the_number_of_replicas_follows(bench: Bench) -> None:
    cloud = bench.cloud()
    async with leading(cloud) as watching:
        for replicas in (1, 3, 0, 1):
            await cloud.apply(bench.deployment(replicas=replicas))
            seen = await watching.until(settled(1, replicas))
            assert seen.endpoint is not None


async def test_a_new_revision_answers_before_the_old_one_leaves(bench: Bench) -> None:
    cloud = bench.cloud()
    async with leading(cloud) as watching:
        await cloud.apply(bench.deployment())
        before = await watching.until(settled(1, 2))
        watching.answering.clear()
        await cloud.apply(bench.deployment(2, 2))
        after = await watching.until(settled(2, 2))
        assert after.endpoint == before.endpoint
        assert min(watching.answering) >= 2


async def test_a_revision_that_fails_says_why_and_leaves_the_old_one(bench: Bench) -> None:
    cloud = bench.cloud()
    async with leading(cloud) as watching:
        await cloud.apply(bench.deployment())
        await watching.until(settled(1, 2))
        await cloud.apply(bench.deployment(2, 9))
        seen = await watching.until(lambda seen: any(each.state == "failing" for each in seen.replicas))
        assert [each.state for each in seen.replicas if each.revision == 1] == ["ready", "ready"]
        assert "there is no SavedModel in" in next(each.reason for each in seen.replicas if each.revision == 2)
        await cloud.apply(bench.deployment())
        await watching.until(settled(1, 2))


async def test_a_restarted_service_finds_everything_again(bench: Bench) -> None:
    first = bench.cloud()
    async with leading(first) as watching:
        await first.apply(bench.deployment())
        before = await watching.until(settled(1, 2))
    second = bench.cloud()
    async with leading(second) as watching:
        assert [each.state for each in watching.seen[UID].replicas] == ["ready", "ready"]
        await second.apply(bench.deployment())
        assert await watching.until(lambda seen: seen.endpoint is not None and settled(1, 2)(seen)) == before
        await second.remove(UID)
        await watching.gone()


async def test_what_never_fits_is_refused(bench: Bench) -> None:
    errors = await bench.cloud().admit(ServingSpec(name="digits", model="digits", version=1, gpu=1))
    assert [error.field for error in errors] == ["gpu"]


# -- the local cloud alone --------------------------------------------------------------------------


async def test_too_much_cpu_is_refused_with_the_most_there_is(local: Bench) -> None:
    cloud = local.cloud()
    for spec, field in (
        (ServingSpec(name="d", model="d", version=1, cpu=3), "cpu"),
        (ServingSpec(name="d", model="d", version=1, replicas=3, cpu=1), "replicas"),
        (ServingSpec(name="d", model="d", version=1, memory="x"), "memory"),
    ):
        (error,) = await cloud.admit(spec)
        assert error.field == field
    assert await cloud.admit(ServingSpec(name="d", model="d", version=1, replicas=2, cpu=1)) == []


async def test_waits_for_room_in_words_and_then_goes_on(local: Bench) -> None:
    cloud = local.cloud()
    blocker = Ledger(local.home / "ledger.json", Machine(cpu=2.0, memory=4 * 2**30), Book(local.folder / "book"))
    from shared.local.ledger import Request

    blocker.acquire("default/digits-1", [Request(task="chief-0", cpu=1.5)])
    async with leading(cloud) as watching:
        await cloud.apply(local.deployment(replicas=1, cpu=1.0))
        seen = await watching.until(lambda seen: bool(seen.waiting))
        assert seen.waiting == "waiting for 1 CPU: 1.5 of 2 in use by default/digits-1"
        blocker.release("default/digits-1")
        await watching.until(settled(1, 1))
        await cloud.remove(UID)
        await watching.gone()
    snapshot = blocker.snapshot()
    assert (snapshot.grants, snapshot.ports) == ((), {})
    blocker.close()


async def test_requests_are_answered_all_through_a_change_of_version(local: Bench) -> None:
    cloud = local.cloud()
    async with leading(cloud) as watching, httpx.AsyncClient() as client:
        await cloud.apply(local.deployment())
        seen = await watching.until(settled(1, 2))
        assert seen.endpoint is not None
        url = f"{seen.endpoint.rest}:predict"
        answers: list[int] = []
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                # A connection each: an idle one of a replica that leaves is the client's to open again.
                response = await client.post(url, headers={"Connection": "close"})
                answers.extend(response.json()["versions"])

        asking = asyncio.create_task(ask())
        await cloud.apply(local.deployment(2, 2))
        await watching.until(settled(2, 2))
        async with asyncio.timeout(PATIENCE):  # one that is on its way out answers what it has taken
            while answers[-5:] != [2] * 5:
                await asyncio.sleep(0.01)
        stop.set()
        await asking
        assert answers[-1] == 2


async def test_a_killed_replica_comes_back(local: Bench) -> None:
    cloud = local.cloud()
    async with leading(cloud) as watching:
        await cloud.apply(local.deployment(replicas=1))
        await watching.until(settled(1, 1))
        (status,) = await LocalProcesses(processes_root(local.home, "serving")).list()
        assert status.task is not None
        stays_away = local.models / "1" / "crash"  # or it might be back before anybody has looked
        for killed in (status.task, status.shim):
            stays_away.touch()
            os.kill(killed.pid, signal.SIGKILL)
            await watching.until(lambda seen: not settled(1, 1)(seen))
            stays_away.unlink()
            await watching.until(settled(1, 1))


@pytest.mark.parametrize(("behaviour", "words"), [("crash", "ended 3 times"), ("hang", "did not answer within 1 s")])
async def test_a_server_that_never_answers_is_failing(local: Bench, behaviour: str, words: str) -> None:
    if behaviour == "hang":
        local.start_seconds = 1.0
    (local.models / "1" / behaviour).touch()
    cloud = local.cloud()
    async with leading(cloud) as watching:
        await cloud.apply(local.deployment(replicas=1))
        seen = await watching.until(lambda seen: any(each.state == "failing" for each in seen.replicas))
        assert words in seen.replicas[0].reason
        await cloud.remove(UID)
        await watching.gone()


async def test_down_and_up_keeps_the_port_where_it_is_free(local: Bench) -> None:
    cloud = local.cloud()
    async with leading(cloud) as watching:
        await cloud.apply(local.deployment())
        first = await watching.until(settled(1, 2))
    await asyncio.to_thread(end_all, local.home, 1.0)
    again = local.cloud()
    async with leading(again) as watching:
        await again.apply(local.deployment())
        assert await watching.until(settled(1, 2)) == first
    await asyncio.to_thread(end_all, local.home, 1.0)
    assert first.endpoint is not None
    port = int(first.endpoint.grpc.rpartition(":")[2])
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
    third = local.cloud()
    async with leading(third) as watching:
        await third.apply(local.deployment())
        moved = await watching.until(settled(1, 2))
        assert moved.endpoint != first.endpoint
        await third.remove(UID)
        await watching.gone()
    taken.close()
    await taken.wait_closed()
    assert can_bind(port)


async def test_ports_of_a_serving_that_nobody_knows_are_seen_and_given_back(local: Bench) -> None:
    cloud = local.cloud()
    async with leading(cloud) as watching:
        await cloud.apply(local.deployment(replicas=0))
        await watching.until(settled(1, 0))
    again = local.cloud()
    async with leading(again) as watching:
        assert UID in watching.seen
        await again.remove(UID)
        await watching.gone()
