"""The scheduler room whole: real NATS, real PostgreSQL, real processes; only the datastore room is a stand-in."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.scheduler.app import compose
from services.scheduler.settings import Settings
from shared.bus import Bus
from shared.contracts import datastore, training
from shared.contracts.common import ListRequest, Named
from shared.contracts.datastore import LocalVolume, MountableDatastore, MountReply, MountRequest
from shared.contracts.training import (
    Mount,
    Role,
    Roles,
    StopTraining,
    SubmitTraining,
    Training,
    TrainingEvent,
    TrainingSpec,
)
from shared.codec import decode_json
from shared.errors import Conflict, Invalid, NotFound
from tests.support.rooms import answering, running_room, until

pytestmark = pytest.mark.filterwarnings("error")

ENVIRON = {"ELEARN_CPUS": "4", "ELEARN_MEMORY": "8Gi", "ELEARN_STOP_GRACE": "2"}


class House:
    """The room under test and its surroundings."""

    def __init__(self, bus: Bus, data: Path, home: Path) -> None:
        self.bus = bus
        self.data = data
        self.home = home

    async def submit(self, command: list[str], **fields: object) -> Training:
        fields.setdefault("name", "digits")
        spec = TrainingSpec(command=tuple(command), **fields)  # type: ignore[arg-type]
        return await self.bus.call(training.SUBMIT, SubmitTraining(project="default", spec=spec))

    async def get(self, name: str) -> Training:
        return await self.bus.call(training.GET, Named(project="default", name=name))

    async def until(self, name: str, *states: str, timeout: float = 20.0) -> Training:
        return await until(lambda: self.get(name), lambda one: one.state in states, timeout=timeout)

    async def until_freed(self, name: str) -> Training:
        return await until(lambda: self.get(name), lambda one: one.freed_at is not None)

    async def events(self, name: str, last: str) -> list[str]:
        """What happened to a training, up to its event ``last``."""
        found = []
        async with asyncio.timeout(15), contextlib.aclosing(
            self.bus.events(since=0, subject=f"elearn.v1.training.*.default.{name}")
        ) as events:
            async for event in events:
                body = decode_json(TrainingEvent, bytes(event.data))
                assert body.training.name == name
                found.append(event.type.removeprefix("elearn.v1.training."))
                if found[-1] == last:
                    return found
        raise AssertionError("unreachable")


def python(code: str) -> list[str]:
    return ["python", "-c", code]


@pytest.fixture
async def house(clean_nats: str, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    data = tmp_path / "data"
    (data / "digits").mkdir(parents=True)
    (data / "runs").mkdir()

    async def mount(request: MountRequest) -> MountReply:
        there = [name for name in request.names if name in ("digits", "runs")]
        return MountReply(
            datastores=tuple(
                MountableDatastore(
                    name=name, volume=LocalVolume(path=str(data / name)), read_only=name == "digits"
                )
                for name in there
            ),
            missing=tuple(name for name in request.names if name not in ("digits", "runs", "slow")),
            not_ready={"slow": "provisioning"} if "slow" in request.names else {},
        )

    home = tmp_path / "home"
    environ = {**ENVIRON, "ELEARN_HOME": str(home)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRON.items():
            patch.setenv(name, value)
        async with (
            answering(clean_nats, "datastore", {datastore.MOUNT: mount}),
            running_room("scheduler", Settings, compose, clean_nats, database_url, environ) as bus,
        ):
            yield House(bus, data, home)


async def test_a_training_runs_and_is_freed(house: House) -> None:
    submitted = await house.submit(
        python("import os, pathlib; pathlib.Path('out/hello').write_text(os.environ['ELEARN_TRAINING'])"),
        mounts=(Mount(datastore="digits", path="data"), Mount(datastore="runs", path="out", own=True)),
    )
    assert submitted.name == "digits-1"
    assert submitted.state == "queued"
    done = await house.until_freed("digits-1")
    assert done.state == "succeeded", done.reason
    assert (house.data / "runs" / "digits-1" / "hello").read_text() == "digits-1"
    assert done.tasks[0].exit_code == 0
    assert await house.events("digits-1", "freed") == ["queued", "starting", "running", "succeeded", "freed"]
    assert (await house.submit(["true"])).name == "digits-2"
