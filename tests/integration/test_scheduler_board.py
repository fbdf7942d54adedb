"""A training's TensorBoard: opened on demand, under its prefix, ended when nobody looks."""

import asyncio
import importlib.util
from pathlib import Path

import httpx
import pytest

from services.scheduler.app import compose
from services.scheduler.settings import Settings
from shared.bus import Bus
from shared.contracts import datastore, training
from shared.contracts.common import Named
from shared.contracts.datastore import LocalVolume, MountableDatastore, MountReply, MountRequest
from shared.contracts.training import Board, Mount, OpenBoard, SubmitTraining, TrainingSpec
from shared.errors import NotFound, Unsupported
from shared.local.processes import LocalProcesses, processes_root
from tests.support.rooms import answering, running_room, until

PREFIX = "/v1/projects/default/trainings/t-1/board"


async def submitted(bus: Bus, *, board: bool = True) -> None:
    spec = TrainingSpec(
        name="t",
        command=("python", "-c", "import os; os.makedirs('out/logs')"),
        mounts=(Mount(datastore="runs", path="out", own=True),),
        tensorboard="out/logs" if board else None,
    )
    one = await bus.call(training.SUBMIT, SubmitTraining(project="default", spec=spec))
    named = Named(project="default", name=one.name)
    await until(lambda: bus.call(training.GET, named), lambda it: it.freed_at is not None)


async def opened(bus: Bus) -> Board:
    """Opened; on a busy machine the first request only begins to."""
    request = OpenBoard(project="default", name="t-1", path_prefix=PREFIX)
    return await until(lambda: bus.call(training.OPEN_BOARD, request, timeout=15), lambda _: True, timeout=90)


async def test_a_board_opens_after_the_end_and_closes_when_nobody_looks(
    clean_nats: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"

    async def mount(request: MountRequest) -> MountReply:
        (tmp_path / "runs").mkdir(exist_ok=True)
        volume = LocalVolume(path=str(tmp_path / "runs"))
        return MountReply(datastores=(MountableDatastore(name="runs", volume=volume, read_only=False),))

    environ = {"ELEARN_HOME": str(home), "ELEARN_BOARD_IDLE": "5"}
    processes = LocalProcesses(processes_root(home, "scheduler"))
    async with (
        answering(clean_nats, "datastore", {datastore.MOUNT: mount}),
        running_room("scheduler", Settings, compose, clean_nats, database_url, environ) as bus,
    ):
        await submitted(bus)
        await submitted(bus, board=False)
        with pytest.raises(NotFound, match="submit it with tensorboard"):
            await bus.call(training.OPEN_BOARD, OpenBoard(project="default", name="t-2", path_prefix=PREFIX))
        if importlib.util.find_spec("tensorboard") is None:
            pytest.skip("tensorboard is not installed")

        board = await opened(bus)
        async with httpx.AsyncClient(base_url=board.url, timeout=20) as client:
            assert (await client.get(f"{PREFIX}/data/runs")).json() == []
            assert (await opened(bus)).url == board.url
            assert (await client.get("/data/runs")).status_code == 404
        (before,) = await processes.list("b.")

        async def boards() -> int:
            return len(await processes.list("b."))

        await until(boards, lambda count: count == 0, timeout=30)

        again = await opened(bus)
        (after,) = await processes.list("b.")
        assert after.task != before.task
        await bus.call(training.FREE, Named(project="default", name="t-1"))
        assert await boards() == 0
        with pytest.raises(OSError, match=r"refused|failed|Connect"):
            await asyncio.open_connection("127.0.0.1", int(again.url.rpartition(":")[2]))

        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(Unsupported, match="pip install tensorboard"):
            await bus.call(training.OPEN_BOARD, OpenBoard(project="default", name="t-1", path_prefix=PREFIX))
