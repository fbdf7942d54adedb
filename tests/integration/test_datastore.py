"""The datastore room on real NATS and PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from services.datastore.app import compose
from services.datastore.settings import Settings
from shared import context
from shared.bus import Bus
from shared.contracts import datastore as contract
from shared.contracts.common import ListRequest, Named
from shared.contracts.datastore import (
    S3,
    Arrival,
    Arrived,
    CreateDatastore,
    Datastore,
    DatastoreSpec,
    FileRequest,
    ListFiles,
    Local,
    LocalVolume,
    MountRequest,
    ReadFile,
    WriteFile,
)
from shared.contracts.training import Mount, Training, TrainingEvent, TrainingSpec
from shared.errors import Conflict, Forbidden, Invalid, NotFound
from tests.support.rooms import connected, event_where, running_room, until
from tests.support.servers import FreshDatabase

PROJECT = "default"


def environ(tmp_path: Path) -> dict[str, str]:
    return {"ELEARN_HOME": str(tmp_path / "home"), "ELEARN_LOCAL_ROOTS": str(tmp_path)}


@pytest.fixture
async def bus(clean_nats: str, fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[Bus]:
    url = await fresh_database()
    async with running_room("datastore", Settings, compose, clean_nats, url, environ(tmp_path)) as bus:
        yield bus


async def create(bus: Bus, path: Path, name: str = "digits", *, read_only: bool = False) -> Datastore:
    spec = DatastoreSpec(name=name, local=Local(path=str(path)), read_only=read_only, labels={"team": "search"})
    await bus.call(contract.CREATE, CreateDatastore(project=PROJECT, spec=spec))
    return await until(lambda: get(bus, name), lambda found: found.state != "provisioning")


async def get(bus: Bus, name: str = "digits") -> Datastore:
    return await bus.call(contract.GET, Named(project=PROJECT, name=name))


async def tell_training(nats_url: str, event: str, name: str, *, freed: bool) -> None:
    """Publish a training's event as the scheduler would."""
    now = datetime.now(UTC)
    training = Training(
        project=PROJECT,
        name=name,
        spec=TrainingSpec(name="train", command=("true",), mounts=(Mount(datastore="digits", path="in"),)),
        state="running",
        created_at=now,
        freed_at=now if freed else None,
    )
    async with connected(nats_url) as connection:
        await connection.jetstream().publish(
            f"elearn.v1.training.{event}.{PROJECT}.{name}",
            msgspec.json.encode(TrainingEvent(training=training)),
            headers={"ce-id": f"{name}-{event}", "ce-time": now.isoformat()},
        )


async def test_a_datastore_lives_and_goes(bus: Bus, tmp_path: Path) -> None:
    datastore = await create(bus, tmp_path / "data" / "digits")
    assert datastore.state == "ready"
    assert datastore.ready_at is not None
    (tmp_path / "data" / "digits" / "mine").write_text("kept")
    reply = await bus.call(contract.MOUNT, MountRequest(project=PROJECT, names=("digits", "other")))
    assert reply.missing == ("other",)
    assert reply.datastores[0].volume == LocalVolume(path=str((tmp_path / "data" / "digits").resolve()))
    await bus.call(contract.DELETE, Named(project=PROJECT, name="digits"))
    deleted = await event_where(bus, "elearn.v1.datastore.deleted.>")
    assert b"stay where they are" in bytes(deleted.data)
    with pytest.raises(NotFound):
        await get(bus)
    assert (tmp_path / "data" / "digits" / "mine").read_text() == "kept"
    told = [
        (await event_where(bus, f"elearn.v1.datastore.{event}.{PROJECT}.digits")).sequence
        for event in ("provisioning", "ready", "deleting", "deleted")
    ]
    assert told == sorted(told, key=lambda sequence: sequence or 0)
    again = await create(bus, tmp_path / "data" / "digits")
    assert again.state == "ready"


async def test_what_is_refused_at_once(bus: Bus, tmp_path: Path) -> None:
    async def problem(spec: DatastoreSpec) -> str:
        with pytest.raises(Invalid) as caught:
            await bus.call(contract.CREATE, CreateDatastore(project=PROJECT, spec=spec))
        assert caught.value.status == 422
        return f"{caught.value.errors[0].field}: {caught.value.errors[0].message}"

    bucket = S3(bucket="b", access_key="a", secret_key="hunter2")
    assert await problem(DatastoreSpec(name="x", s3=bucket)) == "s3: the local cloud offers: local"
    assert (await problem(DatastoreSpec(name="x", local=Local(path="/etc")))).startswith("local.path: /etc is")
    assert (await problem(DatastoreSpec(name="x", local=Local(path="rel")))).startswith("local.path")
    assert (await problem(DatastoreSpec(name="x"))).startswith("local: name one backend")
    await create(bus, tmp_path / "a")
    with pytest.raises(Conflict, match="already"):
        await create(bus, tmp_path / "b")
    page = await bus.call(contract.LIST, ListRequest(project=PROJECT))
    assert [item.name for item in page.items] == ["digits"]
    assert not (tmp_path / "b").exists()


async def test_idempotency_key(bus: Bus, tmp_path: Path) -> None:
    spec = DatastoreSpec(name="digits", local=Local(path=str(tmp_path / "a")))
    other = DatastoreSpec(name="digits", local=Local(path=str(tmp_path / "b")))
    with context.caused_by(context.Cause(actor="me", idempotency_key="k1")):
        one = await bus.call(contract.CREATE, CreateDatastore(project=PROJECT, spec=spec))
        two = await bus.call(contract.CREATE, CreateDatastore(project=PROJECT, spec=spec))
        with pytest.raises(Conflict, match="another request"):
            await bus.call(contract.CREATE, CreateDatastore(project=PROJECT, spec=other))
    assert one == two
    assert one.created_by == "me"


async def test_lists_page_and_filter(bus: Bus, tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        await create(bus, tmp_path / name, name)
    first = await bus.call(contract.LIST, ListRequest(project=PROJECT, limit=2))
    assert [item.name for item in first.items] == ["a", "b"]
    rest = await bus.call(contract.LIST, ListRequest(project=PROJECT, limit=2, cursor=first.next))
    assert ([item.name for item in rest.items], rest.next) == (["c"], None)
    for labels, state, count in (
        ({"team": "search"}, "ready", 3),
        ({"team": "ads"}, None, 0),
        ({}, "failed", 0),
    ):
        page = await bus.call(contract.LIST, ListRequest(project=PROJECT, labels=labels, state=state))
        assert len(page.items) == count
    with pytest.raises(Invalid, match="cursor"):
        await bus.call(contract.LIST, ListRequest(project=PROJECT, cursor="nonsense"))


async def test_files(bus: Bus, tmp_path: Path) -> None:
    await create(bus, tmp_path / "data")

    async def write(path: str, offset: int, data: bytes, *, end: bool) -> None:
        request = WriteFile(project=PROJECT, name="digits", path=path, upload="u", offset=offset, data=data, end=end)
        await bus.call(contract.WRITE_FILE, request)

    await write("sub/file", 0, b"abc", end=False)
    await write("sub/file", 3, b"def", end=True)
    await write("sub/other", 0, b"1", end=True)
    request = FileRequest(project=PROJECT, name="digits", path="sub/file")
    assert (await bus.call(contract.STAT_FILE, request)).size == 6
    chunk = await bus.call(
        contract.READ_FILE, ReadFile(project=PROJECT, name="digits", path="sub/file", offset=2, length=3)
    )
    assert (chunk.data, chunk.end) == (b"cde", False)
    first = await bus.call(contract.LIST_FILES, ListFiles(project=PROJECT, name="digits", path="sub", limit=1))
    rest = await bus.call(
        contract.LIST_FILES,
        ListFiles(project=PROJECT, name="digits", path="sub", limit=1, cursor=first.next),
    )
    assert [entry.path for entry in first.items + rest.items] == ["sub/file", "sub/other"]
    assert rest.next is None
    await bus.call(contract.DELETE_FILE, request)
    with pytest.raises(NotFound):
        await bus.call(contract.STAT_FILE, request)
    with pytest.raises(Invalid, match="leaves its directory"):
        await write("../out", 0, b"1", end=True)
    assert (await bus.call(contract.PROBE, Named(project=PROJECT, name="digits"))).ok


async def test_read_only(bus: Bus, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("1")
    await create(bus, tmp_path / "data", read_only=True)
    request = FileRequest(project=PROJECT, name="digits", path="file")
    with pytest.raises(Forbidden, match="read-only"):
        await bus.call(contract.DELETE_FILE, request)
    with pytest.raises(Forbidden, match="read-only"):
        await bus.call(
            contract.WRITE_FILE,
            WriteFile(project=PROJECT, name="digits", path="new", upload="u", offset=0, data=b"", end=True),
        )
    probe = await bus.call(contract.PROBE, Named(project=PROJECT, name="digits"))
    assert (probe.ok, probe.writable) == (True, False)
    reply = await bus.call(contract.MOUNT, MountRequest(project=PROJECT, names=("digits",)))
    assert reply.datastores[0].read_only


async def test_arrivals_are_told(bus: Bus, tmp_path: Path) -> None:
    await create(bus, tmp_path / "data")
    arrival = Arrival(path="2026/01", version="7")
    await bus.call(contract.ARRIVED, Arrived(project=PROJECT, name="digits", arrival=arrival))
    event = await event_where(bus, f"elearn.v1.data.arrived.{PROJECT}.digits")
    assert msgspec.json.decode(event.data) == {"path": "2026/01", "version": "7"}
    with pytest.raises(NotFound):
        await bus.call(contract.ARRIVED, Arrived(project=PROJECT, name="no", arrival=arrival))
    with pytest.raises(Invalid, match="leaves its directory"):
        await bus.call(contract.ARRIVED, Arrived(project=PROJECT, name="digits", arrival=Arrival(path="../up")))


async def test_a_mounted_datastore_stays(bus: Bus, clean_nats: str, tmp_path: Path) -> None:
    await create(bus, tmp_path / "data")
    await tell_training(clean_nats, "running", "train-1", freed=False)
    await until(lambda: get(bus), lambda found: found.used_by == ("train-1",))
    with pytest.raises(Conflict, match="train-1"):
        await bus.call(contract.DELETE, Named(project=PROJECT, name="digits"))
    await tell_training(clean_nats, "freed", "train-1", freed=True)
    await until(lambda: get(bus), lambda found: found.used_by == ())
    await bus.call(contract.DELETE, Named(project=PROJECT, name="digits"))
    await event_where(bus, "elearn.v1.datastore.deleted.>")


async def test_what_was_begun_goes_on_after_a_restart(
    clean_nats: str, fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    url = await fresh_database()
    settings = environ(tmp_path)
    async with running_room("datastore", Settings, compose, clean_nats, url, settings) as bus:
        await create(bus, tmp_path / "kept", "kept")
        spec = DatastoreSpec(name="digits", local=Local(path=str(tmp_path / "data")))
        await bus.call(contract.CREATE, CreateDatastore(project=PROJECT, spec=spec))
    async with running_room("datastore", Settings, compose, clean_nats, url, settings) as bus:
        ready = await until(lambda: get(bus), lambda found: found.state == "ready")
        assert (tmp_path / "data").is_dir()
        assert ready.reason == "the folder was made for it"
        assert (await get(bus, "kept")).state == "ready"
        await asyncio.gather(
            *(bus.call(contract.DELETE, Named(project=PROJECT, name=name)) for name in ("digits", "kept"))
        )
        await until(lambda: bus.call(contract.LIST, ListRequest(project=PROJECT)), lambda page: not page.items)
    assert not (tmp_path / "data").exists()
