"""The registry on real NATS and PostgreSQL, with real save jobs; the other rooms are stand-ins on the bus."""

import asyncio
import contextlib
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from services.registry.app import compose
from services.registry.settings import Settings
from shared import context
from shared.bus import Bus
from shared.contracts import datastore, training
from shared.contracts import model as contract
from shared.contracts.common import ListRequest, Named
from shared.contracts.datastore import LocalVolume, MountableDatastore, MountReply, MountRequest
from shared.contracts.model import (
    AliasRequest,
    ListVersions,
    ReadArchive,
    ResolveVersion,
    SaveRequest,
    SaveVersion,
    SetAlias,
    Version,
    VersionRequest,
)
from shared.contracts.serving import Serving, ServingEvent, ServingSpec
from shared.contracts.training import (
    FindOutput,
    Lineage,
    Output,
    Save,
    Training,
    TrainingEvent,
    TrainingSpec,
)
from shared.errors import Conflict, Invalid, NotFound, Unavailable
from shared.local.processes import end_all
from tests.contract.job_cloud_models import write_saved_model
from tests.support.rooms import answering, connected, event_where, running_room, until
from tests.support.servers import FreshDatabase

PROJECT = "default"
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


class Others:
    """What the datastore and the scheduler would answer.

    Attributes:
        data: the folder behind the datastore ``runs``.
        away: the scheduler does not know, for now.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.away = False
        self.not_ready: dict[str, str] = {}

    async def mount(self, request: MountRequest) -> MountReply:
        known = tuple(name for name in request.names if name == "runs" and not self.not_ready)
        volume = LocalVolume(path=str(self.data))
        return MountReply(
            datastores=tuple(MountableDatastore(name=name, volume=volume, read_only=False) for name in known),
            missing=tuple(name for name in request.names if name != "runs"),
            not_ready=self.not_ready,
        )

    async def find_output(self, request: FindOutput) -> Output:
        if self.away:
            raise Unavailable("the database is away; try again")
        if request.name != "digits-1":
            raise NotFound(f"there is no training {request.name}")
        lineage = Lineage(training="digits-1", attempt=2, command=("python", "train.py"), created_by="me")
        path = f"digits-1/{request.path.removeprefix('out/')}"
        lineage = msgspec.structs.replace(lineage, datastore="runs", path=path)
        return Output(datastore="runs", path=path, lineage=lineage)


@pytest.fixture
async def others(clean_nats: str, tmp_path: Path) -> AsyncIterator[Others]:
    (tmp_path / "data").mkdir()
    found = Others((tmp_path / "data").resolve())
    async with (
        answering(clean_nats, "datastore", {datastore.MOUNT: found.mount}),
        answering(clean_nats, "scheduler", {training.FIND_OUTPUT: found.find_output}),
    ):
        yield found


@contextlib.asynccontextmanager
async def registry(nats_url: str, postgres_url: str, home: Path, **environ: str) -> AsyncIterator[Bus]:
    environ = {"ELEARN_HOME": str(home), **environ}
    async with running_room("registry", Settings, compose, nats_url, postgres_url, environ) as bus:
        yield bus


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path / "home"
    await asyncio.to_thread(end_all, tmp_path / "home", 1.0)


@pytest.fixture
async def bus(clean_nats: str, fresh_database: FreshDatabase, others: Others, home: Path) -> AsyncIterator[Bus]:
    async with registry(clean_nats, await fresh_database(), home) as bus:
        yield bus


async def get(bus: Bus, number: int = 1) -> Version:
    return await bus.call(contract.GET_VERSION, VersionRequest(project=PROJECT, model="digits", number=number))


async def ended(bus: Bus, number: int = 1) -> Version:
    return await until(lambda: get(bus, number), lambda version: version.state != "saving", timeout=30)


async def save(bus: Bus, path: str = "export", *, labels: dict[str, str] | None = None) -> Version:
    request = SaveRequest(datastore="runs", path=path, labels=labels or {})
    begun = await bus.call(contract.SAVE, SaveVersion(project=PROJECT, model="digits", save=request))
    assert begun.state == "saving"
    return await ended(bus, begun.number)


async def set_alias(bus: Bus, name: str, version: int) -> None:
    await bus.call(contract.SET_ALIAS, SetAlias(project=PROJECT, model="digits", alias=name, version=version))


async def delete_version(bus: Bus, number: int) -> None:
    await bus.call(contract.DELETE_VERSION, VersionRequest(project=PROJECT, model="digits", number=number))


async def publish(nats_url: str, subject: str, body: msgspec.Struct, id: str) -> None:
    async with connected(nats_url) as connection:
        headers = {"ce-id": id, "ce-time": datetime.now(UTC).isoformat()}
        await connection.jetstream().publish(subject, msgspec.json.encode(body), headers=headers)


def succeeded(name: str = "digits-1", *, attempt: int = 2) -> TrainingEvent:
    spec = TrainingSpec(
        name="digits",
        command=("python", "train.py"),
        save=Save(model="digits", path="out/export"),
        labels={"team": "search"},
    )
    return TrainingEvent(
        training=Training(
            project=PROJECT,
            name=name,
            spec=spec,
            state="succeeded",
            created_at=WHEN,
            attempt=attempt,
            created_by="me",
        )
    )


async def test_a_version_is_saved_and_downloaded(bus: Bus, others: Others, home: Path) -> None:
    write_saved_model(others.data / "export")
    version = await save(bus, labels={"team": "search"})
    assert version.state == "ready"
    assert version.files == 3
    assert version.signatures[0].name == "serving_default"
    assert version.lineage.datastore == "runs"
    assert (home / "models" / PROJECT / "digits" / "1" / "saved_model.pb").is_file()
    data = b""
    while True:
        request = ReadArchive(project=PROJECT, model="digits", number=1, offset=len(data))
        chunk = await bus.call(contract.READ_ARCHIVE, request)
        data += chunk.data
        if chunk.end:
            break
    assert version.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert version.archive_size == len(data) == chunk.total
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert "saved_model.pb" in tar.getnames()
    tail = ReadArchive(project=PROJECT, model="digits", number=1, offset=len(data) - 100)
    assert (await bus.call(contract.READ_ARCHIVE, tail)).data == data[-100:]
    saving = await event_where(bus, f"elearn.v1.version.saving.{PROJECT}.digits")
    ready = await event_where(bus, f"elearn.v1.version.ready.{PROJECT}.digits")
    assert (saving.sequence or 0) < (ready.sequence or 0)


async def test_saving_what_is_not_there(bus: Bus, others: Others, home: Path) -> None:
    version = await save(bus, "nothing")
    assert version.state == "failed"
    assert version.reason == "nothing in datastore runs: there is no such folder"
    await event_where(bus, "elearn.v1.version.failed.>")
    for request, error, words in (
        (SaveRequest(datastore="other", path="x"), NotFound, "no datastore other"),
        (SaveRequest(training="digits-9", path="x"), NotFound, "no training digits-9"),
        (SaveRequest(path="x"), Invalid, "training: give either"),
        (SaveRequest(datastore="runs", path="../x"), Invalid, "leaves its directory"),
    ):
        with pytest.raises(error, match=words):
            await bus.call(contract.SAVE, SaveVersion(project=PROJECT, model="digits", save=request))
    others.not_ready = {"runs": "provisioning"}
    with pytest.raises(Conflict, match="not ready"):
        await save(bus)
    others.not_ready = {}
    with pytest.raises(Conflict, match="is failed"):
        await bus.call(contract.READ_ARCHIVE, ReadArchive(project=PROJECT, model="digits", number=1))
    write_saved_model(others.data / "export")
    assert (await save(bus)).number == 2
    model = await bus.call(contract.GET_MODEL, Named(project=PROJECT, name="digits"))
    assert (model.versions, model.latest) == (2, 2)
    assert not (home / "models" / PROJECT / "digits" / "1").exists()


async def test_a_save_by_training_asked_twice_under_one_key_is_one(bus: Bus, others: Others) -> None:
    write_saved_model(others.data / "digits-1" / "export")
    request = SaveVersion(project=PROJECT, model="digits", save=SaveRequest(training="digits-1", path="out/export"))
    with context.caused_by(context.Cause(actor="me", idempotency_key="k")):
        one, two = await asyncio.gather(*(bus.call(contract.SAVE, request) for _ in range(2)))
    assert one == two
    version = await ended(bus)
    assert version.state == "ready"
    assert (version.lineage.training, version.lineage.path) == ("digits-1", "digits-1/export")


async def test_a_succeeded_training_is_saved_once_for_each_attempt(bus: Bus, others: Others, clean_nats: str) -> None:
    write_saved_model(others.data / "digits-1" / "export")
    others.away = True  # it waits for the scheduler, and goes on by itself
    subject = f"elearn.v1.training.succeeded.{PROJECT}.digits-1"
    for id in ("a", "a", "republished"):
        await publish(clean_nats, subject, succeeded(), id)
    assert (await when_there(bus, 1)).state == "saving"
    others.away = False
    version = await ended(bus)
    assert version.state == "ready"
    assert (version.lineage.attempt, version.lineage.command) == (2, ("python", "train.py"))
    assert version.labels == {"team": "search"}
    event = await event_where(bus, "elearn.v1.version.ready.>")
    assert event.causation == "a"
    await publish(clean_nats, subject, succeeded(attempt=3), "b")
    assert (await ended_when_there(bus, 2)).state == "ready"
    await publish(clean_nats, f"{subject[:-1]}2", succeeded("digits-2"), "c")
    gone = await ended_when_there(bus, 3)
    assert (gone.state, gone.reason) == ("failed", "there is no training digits-2")
    page = await bus.call(contract.LIST_VERSIONS, ListVersions(project=PROJECT, model="digits"))
    assert [each.number for each in page.items] == [3, 2, 1]


async def when_there(bus: Bus, number: int) -> Version:
    async def read() -> Version | None:
        with contextlib.suppress(NotFound):
            return await get(bus, number)
        return None

    found = await until(read, lambda version: version is not None)
    assert found is not None
    return found


async def ended_when_there(bus: Bus, number: int) -> Version:
    await when_there(bus, number)
    return await ended(bus, number)


async def test_aliases(bus: Bus, others: Others) -> None:
    write_saved_model(others.data / "export")
    for _ in range(2):
        await save(bus)
    await save(bus, "nothing")
    for name, number, error in (("champion", 9, NotFound), ("champion", 3, Conflict), ("7", 1, Invalid)):
        with pytest.raises(error):
            await set_alias(bus, name, number)
    await set_alias(bus, "champion", 1)
    await set_alias(bus, "champion", 1)
    await set_alias(bus, "champion", 2)
    assert (await get(bus, 2)).aliases == ("champion",)
    with pytest.raises(Conflict, match="champion"):
        await delete_version(bus, 2)
    request = AliasRequest(project=PROJECT, model="digits", alias="champion")
    assert (await bus.call(contract.GET_ALIAS, request)).version == 2
    resolved = await bus.call(contract.RESOLVE, ResolveVersion(project=PROJECT, model="digits", alias="champion"))
    assert (resolved.number, resolved.path) == (2, f"{PROJECT}/digits/2")
    listed = await bus.call(contract.LIST_ALIASES, Named(project=PROJECT, name="digits"))
    assert [alias.name for alias in listed.items] == ["champion"]
    await bus.call(contract.DELETE_ALIAS, request)
    with pytest.raises(NotFound):
        await bus.call(contract.GET_ALIAS, request)
    moves = (await bus.call(contract.ALIAS_HISTORY, request)).items
    assert [(move.version, move.previous) for move in moves] == [(None, 2), (2, 1), (1, None)]
    moved = await event_where(
        bus, f"elearn.v1.alias.moved.{PROJECT}.digits", lambda event: b'"previous":1' in bytes(event.data)
    )
    assert moved.type == "elearn.v1.alias.moved"
    await event_where(bus, "elearn.v1.alias.deleted.>")
    await delete_version(bus, 2)


async def test_what_is_served_stays(bus: Bus, others: Others, clean_nats: str, home: Path) -> None:
    write_saved_model(others.data / "export")
    await save(bus)

    async def tell(event: str) -> None:
        serving = Serving(
            project=PROJECT,
            name="live",
            spec=ServingSpec(name="live", model="digits", version=1),
            state="ready",
            created_at=WHEN,
            replicas=1,
            version=1,
        )
        subject = f"elearn.v1.serving.{event}.{PROJECT}.live"
        await publish(clean_nats, subject, ServingEvent(serving=serving), event)

    await tell("ready")
    await until(lambda: get(bus), lambda version: version.served_by == ("live",))
    named = Named(project=PROJECT, name="digits")
    with pytest.raises(Conflict, match="live"):
        await delete_version(bus, 1)
    with pytest.raises(Conflict, match="live"):
        await bus.call(contract.DELETE_MODEL, named)
    await tell("deleted")
    await until(lambda: get(bus), lambda version: version.served_by == ())
    await set_alias(bus, "champion", 1)
    await bus.call(contract.DELETE_MODEL, named)
    await event_where(bus, "elearn.v1.model.deleted.>")
    with pytest.raises(NotFound, match="no model"):
        await get(bus)
    assert (await bus.call(contract.LIST_MODELS, ListRequest(project=PROJECT))).items == ()
    assert (await save(bus)).number == 2  # a number is never given again
    folder = home / "models" / PROJECT / "digits"
    await until(lambda: asyncio.to_thread((folder / "1").exists), lambda there: not there)
    assert (folder / "2").is_dir()


async def test_lists_page_and_filter(bus: Bus, others: Others) -> None:
    write_saved_model(others.data / "export")
    await save(bus, labels={"team": "search"})
    await save(bus, "nothing")
    await save(bus)

    async def numbers(**changes: object) -> list[int]:
        request = msgspec.structs.replace(ListVersions(project=PROJECT, model="digits"), **changes)
        return [each.number for each in (await bus.call(contract.LIST_VERSIONS, request)).items]

    assert await numbers(state="ready") == [3, 1]
    assert await numbers(labels={"team": "search"}) == [1]
    first = await bus.call(contract.LIST_VERSIONS, ListVersions(project=PROJECT, model="digits", limit=2))
    assert [each.number for each in first.items] == [3, 2]
    assert await numbers(limit=2, cursor=first.next) == [1]
    with pytest.raises(NotFound):
        await bus.call(contract.LIST_VERSIONS, ListVersions(project=PROJECT, model="other"))
    with pytest.raises(Invalid, match="state"):
        await bus.call(contract.LIST_MODELS, ListRequest(project=PROJECT, state="ready"))
    models = await bus.call(contract.LIST_MODELS, ListRequest(project=PROJECT))
    assert [(each.name, each.versions, each.latest) for each in models.items] == [("digits", 3, 3)]


async def test_a_save_goes_on_after_the_registry_was_restarted(
    clean_nats: str, fresh_database: FreshDatabase, others: Others, home: Path
) -> None:
    url = await fresh_database()
    write_saved_model(others.data / "export", weights=bytes(64 * 1024 * 1024))
    request = SaveVersion(project=PROJECT, model="digits", save=SaveRequest(datastore="runs", path="export"))
    async with registry(clean_nats, url, home) as bus:
        for _ in range(3):
            await bus.call(contract.SAVE, request)
    async with registry(clean_nats, url, home) as bus:
        for number in (1, 2, 3):
            assert (await ended(bus, number)).state == "ready"
    assert sorted(path.name for path in (home / "models" / PROJECT / "digits").iterdir()) == ["1", "2", "3"]
