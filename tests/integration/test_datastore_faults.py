"""A storage cloud that refuses, fails, loses and forgets."""

import contextlib
from collections.abc import AsyncIterator

from services.datastore.app import assemble
from services.datastore.cloud.port import Directory, Provided, Unprovided
from services.datastore.settings import Settings
from shared.bus import Bus
from shared.contracts import datastore as contract
from shared.contracts.common import ListRequest, Named
from shared.contracts.datastore import CreateDatastore, Datastore, DatastoreSpec, Local, LocalVolume, MountRequest
from shared.errors import Unavailable
from shared.service import Platform, Room
from tests.contract.storage_cloud_fake import FakeStorage
from tests.support.rooms import event_where, running_room, until
from tests.support.servers import FreshDatabase

PROJECT = "default"
NAMED = Named(project=PROJECT, name="digits")


@contextlib.asynccontextmanager
async def on_fake(cloud: FakeStorage, nats_url: str, postgres_url: str) -> AsyncIterator[Bus]:
    async def compose(platform: Platform, settings: Settings) -> Room:
        return assemble(platform, settings, cloud)

    compose.__module__ = assemble.__module__  # where the migrations are looked for
    async with running_room("datastore", Settings, compose, nats_url, postgres_url) as bus:
        yield bus


async def create(bus: Bus) -> None:
    spec = DatastoreSpec(name="digits", local=Local(path="/fake/digits"))
    await bus.call(contract.CREATE, CreateDatastore(project=PROJECT, spec=spec))


async def in_state(bus: Bus, state: str) -> Datastore:
    return await until(lambda: bus.call(contract.GET, NAMED), lambda found: found.state == state)


async def gone(bus: Bus) -> None:
    await until(lambda: bus.call(contract.LIST, ListRequest(project=PROJECT)), lambda page: not page.items)


async def test_what_the_cloud_refuses_has_failed_and_can_be_deleted(
    clean_nats: str, fresh_database: FreshDatabase
) -> None:
    cloud = FakeStorage(refuse="no such share")
    async with on_fake(cloud, clean_nats, await fresh_database()) as bus:
        await create(bus)
        assert (await in_state(bus, "failed")).reason == "no such share"
        await event_where(bus, "elearn.v1.datastore.failed.>")
        reply = await bus.call(contract.MOUNT, MountRequest(project=PROJECT, names=("digits",)))
        assert reply.not_ready == {"digits": "failed: no such share"}
        await bus.call(contract.DELETE, NAMED)
        await gone(bus)
    assert cloud.directories == {}


class Flaky(FakeStorage):
    """Can't be reached the first two times."""

    async def provision(self, directory: Directory) -> None:
        if len(self.calls) < 2:
            self.calls.append("unavailable")
            raise Unavailable("the storage is away; try again")
        await super().provision(directory)


async def test_a_cloud_that_is_away_is_waited_for(clean_nats: str, fresh_database: FreshDatabase) -> None:
    cloud = Flaky()
    async with on_fake(cloud, clean_nats, await fresh_database()) as bus:
        await create(bus)
        await in_state(bus, "ready")
    assert cloud.calls[:2] == ["unavailable"] * 2


async def test_a_directory_lost_and_found(clean_nats: str, fresh_database: FreshDatabase) -> None:
    cloud = FakeStorage()
    async with on_fake(cloud, clean_nats, await fresh_database()) as bus:
        await create(bus)
        await in_state(bus, "ready")
        uid = next(iter(cloud.directories))
        cloud.tell(Unprovided(uid=uid, reason="the server is gone"))
        assert (await in_state(bus, "failed")).reason == "the server is gone"
        cloud.tell(Provided(uid=uid, volume=LocalVolume(path="/fake/digits")))
        await in_state(bus, "ready")


async def test_what_no_row_wants_is_released(clean_nats: str, fresh_database: FreshDatabase) -> None:
    cloud = FakeStorage()
    url = await fresh_database()
    async with on_fake(cloud, clean_nats, url) as bus:
        await create(bus)
        await in_state(bus, "ready")
    cloud.directories["stranger"] = Provided(uid="stranger", volume=LocalVolume(path="/fake/other"))
    kept = next(iter(cloud.directories))
    async with on_fake(cloud, clean_nats, url) as bus:
        await until(lambda: _uids(cloud), lambda uids: uids == {kept})
        await in_state(bus, "ready")


async def _uids(cloud: FakeStorage) -> set[str]:
    return set(cloud.directories)
