"""The serving room on real NATS and PostgreSQL, with real processes that stand in for model servers."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import pytest

from services.serving import app
from services.serving.settings import Settings
from shared import context
from shared.bus import Bus
from shared.bus.rpc import Handlers
from shared.contracts import model as registry
from shared.contracts import serving as contract
from shared.contracts.common import ListRequest, Named
from shared.contracts.datastore import LocalVolume
from shared.contracts.model import (
    Alias,
    AliasEvent,
    AliasRequest,
    ResolveVersion,
    ServableVersion,
    Version,
    VersionEvent,
)
from shared.contracts.serving import (
    CreateServing,
    RollbackServing,
    Serving,
    ServingEvent,
    ServingPatch,
    ServingSpec,
    UpdateServing,
)
from shared.contracts.training import Lineage
from shared.errors import Conflict, Invalid, NotFound
from shared.local.processes import LocalProcesses, end_all, processes_root
from shared.service import Platform, Room
from tests.support.rooms import answering, connected, event_where, running_room, until
from tests.support.servers import FreshDatabase

PROJECT = "default"
STANDIN = Path(__file__).parents[1] / "support" / "model_server_standin.py"
START = datetime(2026, 1, 1, tzinfo=UTC)


async def compose(platform: Platform, settings: Settings) -> Room:
    return await app.compose(platform, settings, (sys.executable, "-I", "-S", str(STANDIN)))


compose.__module__ = app.__name__  # its migrations are those of the room


class World:
    """What surrounds the room: a registry, and the folders in which versions lie."""

    def __init__(self, nats_url: str, database_url: str, folder: Path) -> None:
        self.nats_url = nats_url
        self.database_url = database_url
        self.home = folder / "home"
        self.models = folder / "models"
        self.aliases = {"champion": (1, START)}
        self.environ = {"ELEARN_HOME": str(self.home)}
        for number in (1, 2):
            (self.models / str(number)).mkdir(parents=True)

    def handlers(self) -> Handlers:
        async def resolve(request: ResolveVersion) -> ServableVersion:
            if request.version is None or request.version > 3:
                raise NotFound(f"there is no version {request.version} of model {request.model}")
            return ServableVersion(
                project=request.project,
                model=request.model,
                number=request.version,
                volume=LocalVolume(path=str(self.models)),
                path=str(request.version),
            )

        async def alias(request: AliasRequest) -> Alias:
            if request.alias not in self.aliases:
                raise NotFound(f"there is no alias {request.alias}")
            version, moved_at = self.aliases[request.alias]
            return Alias(
                project=request.project,
                model=request.model,
                name=request.alias,
                version=version,
                moved_at=moved_at,
            )

        return {registry.RESOLVE: resolve, registry.GET_ALIAS: alias}

    async def publish(self, noun: str, event: str, body: msgspec.Struct, id: str) -> None:
        async with connected(self.nats_url) as connection:
            await connection.jetstream().publish(
                f"elearn.v1.{noun}.{event}.{PROJECT}.digits",
                msgspec.json.encode(body),
                headers={"ce-id": id, "ce-time": START.isoformat()},
            )

    async def move_alias(self, version: int, *, seconds: int) -> None:
        moved_at = START + timedelta(seconds=seconds)
        alias = Alias(project=PROJECT, model="digits", name="champion", version=version, moved_at=moved_at)
        await self.publish("alias", "moved", AliasEvent(alias=alias), f"move-{seconds}")


@pytest.fixture
async def world(
    clean_nats: str, fresh_database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setenv("ELEARN_CPUS", "4")
    monkeypatch.setenv("ELEARN_MEMORY", "8Gi")
    world = World(clean_nats, await fresh_database(), tmp_path.resolve())
    async with answering(clean_nats, "registry", world.handlers()):
        yield world
    await asyncio.to_thread(end_all, world.home, 1.0)


@pytest.fixture
async def bus(world: World) -> AsyncIterator[Bus]:
    async with running_room("serving", Settings, compose, world.nats_url, world.database_url, world.environ) as bus:
        yield bus


async def get(bus: Bus, name: str = "digits") -> Serving:
    return await bus.call(contract.GET, Named(project=PROJECT, name=name))


async def create(bus: Bus, name: str = "digits", **spec: object) -> Serving:
    fields: dict[str, object] = {"name": name, "model": "digits", "replicas": 2, **spec}
    if "alias" not in fields:
        fields.setdefault("version", 1)
    request = CreateServing(project=PROJECT, spec=msgspec.convert(fields, ServingSpec))
    return await bus.call(contract.CREATE, request)


async def update(bus: Bus, **patch: object) -> Serving:
    request = UpdateServing(project=PROJECT, name="digits", patch=msgspec.convert(patch, ServingPatch))
    return await bus.call(contract.UPDATE, request)


async def settled(bus: Bus, state: str, version: int | None = None) -> Serving:
    return await until(lambda: get(bus), lambda found: found.state == state and version in (None, found.version))


async def predicted(serving: Serving) -> list[int]:
    assert serving.endpoint is not None
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{serving.endpoint.rest}:predict", json={"instances": [1]})
    versions: list[int] = answer.json()["versions"]
    return versions


async def test_a_serving_lives_changes_and_goes(bus: Bus, world: World) -> None:
    made = await create(bus, labels={"team": "search"})
    assert (made.state, made.endpoint, made.replicas) == ("deploying", None, 2)
    ready = await settled(bus, "ready", 1)
    assert ready.ready_replicas == 2
    assert await predicted(ready) == [1]
    event = await event_where(bus, "elearn.v1.serving.ready.default.digits")
    assert msgspec.json.decode(event.data, type=ServingEvent).serving.endpoint == ready.endpoint

    changed = await update(bus, version=2)
    assert (changed.state, changed.version) == ("deploying", 1)
    second = await settled(bus, "ready", 2)
    assert second.endpoint == ready.endpoint
    # One that is on its way out answers what reached it.
    await until(lambda: predicted(second), lambda found: found == [2])

    await update(bus, version=3)
    degraded = await settled(bus, "degraded")
    assert degraded.version == 2
    assert "there is no SavedModel in" in degraded.reason
    assert await predicted(degraded) == [2]

    await bus.call(contract.ROLLBACK, RollbackServing(project=PROJECT, name="digits", revision=1))
    assert (await settled(bus, "ready", 1)).revision == 4
    await update(bus, traffic={"1": 50, "2": 50})
    split = await until(lambda: get(bus), lambda found: found.state == "ready" and bool(found.traffic))
    await until(lambda: predicted(split), lambda found: sorted(found) == [1, 2])

    await bus.call(contract.DELETE, Named(project=PROJECT, name="digits"))
    with pytest.raises(NotFound, match="no serving digits"):
        await get(bus)
    processes = LocalProcesses(processes_root(world.home, "serving"))
    await until(processes.list, lambda found: found == ())
    ledger = world.home / "ledger.json"

    async def entries() -> bytes:
        return ledger.read_bytes()

    await until(entries, lambda text: b"serving-" not in text)
    await event_where(bus, "elearn.v1.serving.deleted.default.digits")


async def test_an_alias_is_followed(bus: Bus, world: World) -> None:
    await create(bus, alias="champion", replicas=1)
    await settled(bus, "ready", 1)
    await world.move_alias(2, seconds=5)
    found = await settled(bus, "ready", 2)
    assert found.revisions[0].cause == "alias champion moved to version 2"
    await world.move_alias(1, seconds=3)  # late: what was before the last move
    await world.move_alias(7, seconds=9)
    degraded = await settled(bus, "degraded")
    assert "there is no version 7" in degraded.reason
    assert [each.version for each in degraded.revisions] == [7, 2, 1]
    await world.move_alias(2, seconds=11)
    assert (await settled(bus, "ready", 2)).spec.alias == "champion"


async def test_a_deleted_version_is_told(bus: Bus, world: World) -> None:
    await create(bus, replicas=1)
    await settled(bus, "ready")
    version = Version(project=PROJECT, model="digits", number=1, state="ready", created_at=START, lineage=Lineage())
    await world.publish("version", "deleted", VersionEvent(version=version), "gone")
    assert "version 1 was deleted" in (await settled(bus, "degraded")).reason


async def test_what_is_wrong_is_refused_and_leaves_nothing(bus: Bus) -> None:
    for spec, kind, words in (
        ({"version": None}, Invalid, "either a version or an alias"),
        ({"version": 9}, NotFound, "no version 9"),
        ({"alias": "none", "version": None}, NotFound, "no alias none"),
        ({"cpu": "much"}, Invalid, "cpu"),
        ({"cpu": 3}, Invalid, "replicas: 6 CPUs in all will never fit: the most is 4"),
        ({"gpu": 1}, Invalid, "gpu"),
        ({"memory": "9Gi"}, Invalid, "memory"),
    ):
        with pytest.raises(kind, match=words):
            await create(bus, **spec)
    assert (await bus.call(contract.LIST, ListRequest(project=PROJECT))).items == ()
    with pytest.raises(NotFound):
        await update(bus, replicas=1)
    with pytest.raises(NotFound):
        await bus.call(contract.DELETE, Named(project=PROJECT, name="digits"))
    await create(bus, replicas=0)
    with pytest.raises(Conflict, match="there is a serving digits already"):
        await create(bus)
    for patch, words in (
        ({}, "give version, alias, replicas, max_replicas or traffic"),
        ({"version": 1, "alias": "champion"}, "either version or alias"),
        ({"traffic": {"1": 10}}, "add up to 10"),
        ({"replicas": 100}, "will never fit"),
    ):
        with pytest.raises(Invalid, match=words):
            await update(bus, **patch)
    with pytest.raises(NotFound, match="no version 9"):
        await update(bus, version=9)
    with pytest.raises(Conflict, match="no earlier revision"):
        await bus.call(contract.ROLLBACK, RollbackServing(project=PROJECT, name="digits"))


async def test_lists_are_newest_first_and_paged(bus: Bus) -> None:
    for number in range(3):
        await create(bus, f"s{number}", replicas=0, labels={"odd": str(number % 2)})
    page = await bus.call(contract.LIST, ListRequest(project=PROJECT, limit=2))
    assert [each.name for each in page.items] == ["s2", "s1"]
    rest = await bus.call(contract.LIST, ListRequest(project=PROJECT, limit=2, cursor=page.next))
    assert ([each.name for each in rest.items], rest.next) == (["s0"], None)
    odd = await bus.call(contract.LIST, ListRequest(project=PROJECT, labels={"odd": "1"}))
    assert [each.name for each in odd.items] == ["s1"]
    with pytest.raises(Invalid, match="cursor"):
        await bus.call(contract.LIST, ListRequest(project=PROJECT, cursor="x"))


async def test_the_same_request_twice_is_one_serving(bus: Bus) -> None:
    with context.caused_by(context.Cause(actor="me", idempotency_key="once")):
        first = await create(bus, replicas=0)
        assert await create(bus, replicas=0) == first
    assert first.created_by == "me"


async def test_a_restarted_service_goes_on_and_nothing_starts_twice(world: World) -> None:
    processes = LocalProcesses(processes_root(world.home, "serving"))
    room = ("serving", Settings, compose, world.nats_url, world.database_url, world.environ)
    async with running_room(*room) as bus:
        await create(bus)
        before = await settled(bus, "ready")
        tasks = {status.id: status.task for status in await processes.list()}
    async with running_room(*room) as bus:
        assert await get(bus) == before
        await update(bus, replicas=3)
        await until(lambda: get(bus), lambda found: found.state == "ready" and found.ready_replicas == 3)
        now = {status.id: status.task for status in await processes.list()}
        assert {id: now[id] for id in tasks} == tasks
        victim = next(iter(now.values()))
        assert victim is not None
        stays_away = world.models / "1" / "crash"  # or it might be back before anybody has looked
        stays_away.touch()
        os.kill(victim.pid, signal.SIGKILL)
        await settled(bus, "degraded")
        stays_away.unlink()
        assert (await settled(bus, "ready")).endpoint == before.endpoint
    await asyncio.to_thread(end_all, world.home, 1.0)
    async with running_room(*room) as bus:
        back = await until(lambda: get(bus), lambda found: found.state == "ready" and found.ready_replicas == 3)
        assert back.endpoint == before.endpoint
