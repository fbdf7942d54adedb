"""The room over a cloud that goes away and comes back: what can't be seen is neither lost nor failed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Unpack

import pytest

from services.scheduler.app import room_on
from services.scheduler.cloud.port import Launch
from services.scheduler.code_store import CodeStore
from services.scheduler.settings import Settings
from services.scheduler.store import ActiveTraining, TrainingStore
from shared.bus import Bus
from shared.contracts import datastore, training
from shared.contracts.common import ListRequest, Named
from shared.contracts.datastore import ClaimVolume, MountableDatastore, MountReply, MountRequest
from shared.contracts.training import Mount, Role, Roles, StopTraining, SubmitTraining, Training, TrainingSpec
from shared.errors import Invalid
from shared.postgres import Transaction
from shared.service import Platform, Room
from tests.support.rooms import answering, running_room, until
from tests.support.training_cloud_fake import FakeCloud, FakeMachines
from tests.support.trainings import Asked


class House:
    def __init__(self, bus: Bus, machines: FakeMachines) -> None:
        self.bus = bus
        self.machines = machines

    async def submit(self, **fields: Unpack[Asked]) -> Training:
        spec = TrainingSpec(name="t", command=("x",), **fields)
        return await self.bus.call(training.SUBMIT, SubmitTraining(project="p", spec=spec))

    async def get(self, name: str = "t-1") -> Training:
        return await self.bus.call(training.GET, Named(project="p", name=name))

    async def until(self, state: str, name: str = "t-1") -> Training:
        return await until(lambda: self.get(name), lambda one: one.state == state)

    async def until_freed(self, name: str = "t-1") -> Training:
        return await until(lambda: self.get(name), lambda one: one.freed_at is not None)


@pytest.fixture
async def house(clean_nats: str, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    machines = FakeMachines()

    async def compose(platform: Platform, settings: Settings) -> Room:
        return room_on(platform, settings, FakeCloud(machines), CodeStore(platform.database))

    compose.__module__ = "services.scheduler.app"  # where the migrations lie
    environ = {"ELEARN_HOME": str(tmp_path)}
    async with running_room("scheduler", Settings, compose, clean_nats, database_url, environ) as bus:
        yield House(bus, machines)


async def test_a_training_waits_for_a_cloud_that_is_away(house: House) -> None:
    house.machines.away = True
    await house.submit(roles=Roles(chief=Role(cpu=99)))
    await house.submit()
    assert (await house.get("t-2")).reason == "the cloud can't be reached"
    house.machines.away = False
    await house.until("running", "t-2")
    waiting = await house.get("t-1")
    assert waiting.state == "queued"
    assert waiting.reason.startswith("needs 99 CPUs")


async def test_trainings_that_share_what_one_machine_alone_can_mount_run_there_or_say_why_not(
    house: House, clean_nats: str
) -> None:
    async def mount(request: MountRequest) -> MountReply:
        volume = ClaimVolume(claim_name="runs", namespace="elearn-p", single_node=True)
        return MountReply(datastores=(MountableDatastore(name="runs", volume=volume, read_only=False),))

    mounts = (Mount(datastore="runs", path="out"),)
    shared = "all 2 tasks must find room on one machine, as datastore"
    async with answering(clean_nats, "datastore", {datastore.MOUNT: mount}):
        with pytest.raises(Invalid, match=f"{shared} 'runs'"):
            await house.submit(mounts=mounts, roles=Roles(worker=Role(cpu=3, replicas=2)))
        first = await house.submit(mounts=mounts, roles=Roles(worker=Role(cpu=1.5, replicas=2)))
        assert any(note.startswith(f"{shared} runs") for note in first.notes)
        await house.until("running", first.name)
        second = TrainingSpec(name="t", command=("x",), mounts=mounts, roles=Roles(chief=Role(cpu=2)))
        plan = await house.bus.call(training.PLAN, SubmitTraining(project="p", spec=second))
        waiting = await house.submit(mounts=mounts, roles=second.roles)
        reason = f"on fake, where its storage is mounted for p/{first.name}; first in queue"
        assert plan.reason.endswith(reason)
        assert (await house.get(waiting.name)).reason.endswith(reason)


async def test_a_launch_that_is_hindered_says_so_and_is_tried_again(house: House) -> None:
    await house.submit()
    await house.until("running")
    house.machines.away = True
    stopped = await house.bus.call(training.STOP, StopTraining(project="p", name="t-1"))
    assert stopped.state == "stopped"
    await asyncio.sleep(0)
    assert (await house.get()).freed_at is None
    house.machines.away = False
    assert (await house.until_freed()).state == "stopped"
    assert not house.machines.launches


async def test_what_ended_while_nobody_could_look_is_seen_afterwards(house: House) -> None:
    await house.submit()
    await house.until("running")
    house.machines.away = True
    house.machines.end(("p", "t-1", 1), "chief-0", 0)
    assert (await house.until("succeeded")).freed_at is None
    house.machines.away = False
    assert (await house.until_freed()).state == "succeeded"


async def test_what_vanished_without_a_trace_is_a_loss(house: House) -> None:
    await house.submit(retries=0)
    await house.until("running")
    house.machines.attempts.pop(("p", "t-1", 1))
    house.machines.tell(("p", "t-1", 1))
    second = await until(house.get, lambda one: one.attempt == 2 and one.state == "running")
    assert "attempt 1 was lost" in second.attempts[0].reason
    assert house.machines.started == ["('p', 't-1', 1) chief-0", "('p', 't-1', 2) chief-0"]


async def test_what_begins_to_run_while_the_rows_are_read_is_not_taken_for_lost(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, active = FakeCloud.launch, TrainingStore.active
    launching, reading, reading_again = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def launch_late(cloud: FakeCloud, what: Launch) -> None:
        launching.set()
        await reading.wait()
        await launch(cloud, what)

    async def read_late(store: TrainingStore, transaction: Transaction) -> list[ActiveTraining]:
        if launching.is_set() and not reading.is_set():  # the controller has looked at what the cloud shows: nothing
            reading.set()
            await house.until("running")
        elif reading.is_set():
            reading_again.set()
        return await active(store, transaction)

    monkeypatch.setattr(FakeCloud, "launch", launch_late)
    monkeypatch.setattr(TrainingStore, "active", read_late)
    await house.submit(retries=0)
    async with asyncio.timeout(15):
        await launching.wait()
        await house.submit(roles=Roles(chief=Role(cpu=4)))  # wakes the controller
        await reading_again.wait()
    first = await house.get()
    assert (first.state, first.attempt) == ("running", 1)
    assert house.machines.started == ["('p', 't-1', 1) chief-0"]


async def test_what_nobody_asked_for_is_freed(house: House) -> None:
    await house.submit()
    await house.until("running")
    ref = ("p", "stranger-1", 7)
    house.machines.launches[ref] = house.machines.launches["p", "t-1", 1]
    house.machines.attempts[ref] = dict(house.machines.attempts["p", "t-1", 1])
    house.machines.tell(ref)

    async def there() -> bool:
        return ref in house.machines.attempts

    await until(there, lambda found: not found)
    assert (await house.get()).state == "running"


async def test_room_that_others_took_meanwhile_sends_it_back_to_the_queue(house: House) -> None:
    await house.submit(roles=Roles(chief=Role(cpu=4)))
    await house.until("running")
    stranger = house.machines.launches["p", "t-1", 1]
    await house.bus.call(training.STOP, StopTraining(project="p", name="t-1"))
    await house.until_freed()
    house.machines.launches["others", "x", 1] = stranger  # resources that only a launch finds taken
    await house.submit(roles=Roles(chief=Role(cpu=4)))

    async def refused() -> bool:
        page = await house.bus.call(training.LIST, ListRequest(project="p", state="queued"))
        return any("waiting for room" in one.reason for one in page.items)

    await until(refused, lambda found: found)
    del house.machines.launches["others", "x", 1]
    running = await house.until("running", "t-2")
    assert running.attempt == 1
