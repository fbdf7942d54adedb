"""kill -9 of the scheduler at any moment, and of what keeps its tasks: nothing is lost, nothing runs twice."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.bus import Bus
from shared.contracts import training
from shared.contracts.common import Named
from shared.contracts.training import Role, Roles, StopTraining, SubmitTraining, Training, TrainingSpec
from shared.local.processes import LocalProcesses, end_all, processes_root
from tests.support.rooms import connected, until

ROLES = Roles(chief=Role(cpu=0.1), worker=Role(cpu=0.1, replicas=2), ps=Role(cpu=0.1))
COUNT_AND_WAIT = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
me = f"{os.environ['ELEARN_TRAINING']}.{os.environ['ELEARN_ATTEMPT']}.{os.environ['ELEARN_ROLE']}-{os.environ['ELEARN_INDEX']}"
with (folder / f"{me}.starts").open("a") as file:
    file.write("x")
while not (folder / "end").exists():
    time.sleep(0.02)
if os.environ["ELEARN_ROLE"] != "chief":
    time.sleep(600)
"""  # noqa: E501 - a program's line


class Service:
    """``python -m services.scheduler`` as a process that can be killed and started again."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self._environ = environ
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.scheduler"],
                env={**os.environ, **self._environ},
                stdout=log,
                stderr=log,
            )

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=20)


class House:
    def __init__(self, service: Service, bus: Bus, orders: Path, home: Path) -> None:
        self.service = service
        self.bus = bus
        self.orders = orders
        self.home = home

    async def submit(self, *, retries: int = 0) -> Training:
        command = ("python", "-c", COUNT_AND_WAIT, str(self.orders))
        spec = TrainingSpec(name="t", command=command, roles=ROLES, retries=retries)
        request = SubmitTraining(project="default", spec=spec)

        async def submit() -> Training:
            return await self.bus.call(training.SUBMIT, request, timeout=5)

        return await until(submit, lambda _: True)

    async def get(self) -> Training:
        return await self.bus.call(training.GET, Named(project="default", name="t-1"), timeout=5)

    async def running(self, attempt: int = 1) -> Training:
        one = await until(self.get, lambda one: one.state == "running" and one.attempt == attempt, timeout=30)
        # A task runs once it was started; what it wrote down as its first act may come a moment later.
        written = [self.orders / f"t-1.{attempt}.{task.name}.starts" for task in one.tasks]
        await until(self._now, lambda _: all(path.exists() and path.stat().st_size for path in written), timeout=30)
        return one

    async def _now(self) -> None:
        """Nothing to read: what is waited for lies in files."""

    async def ended(self) -> Training:
        (self.orders / "end").touch()
        return await until(self.get, lambda one: one.freed_at is not None, timeout=30)

    def starts(self) -> dict[str, int]:
        return {path.stem: len(path.read_text()) for path in self.orders.glob("*.starts")}


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    orders, home = tmp_path / "orders", tmp_path / "home"
    orders.mkdir()
    home.mkdir()
    yield orders, home
    end_all(home, grace=0.5)


@pytest.fixture
async def house(clean_nats: str, database_url: str, folders: tuple[Path, Path], tmp_path: Path) -> AsyncIterator[House]:
    orders, home = folders
    service = Service(
        {
            "ELEARN_NATS_URL": clean_nats,
            "ELEARN_POSTGRES_URL": database_url,
            "ELEARN_HOME": str(home),
            "ELEARN_CPUS": "4",
            "ELEARN_MEMORY": "8Gi",
            "ELEARN_STOP_GRACE": "2",
        },
        tmp_path / "scheduler.log",
    )
    service.start()
    async with connected(clean_nats) as connection:
        yield House(service, Bus(connection), orders, home)
    service.kill(signal.SIGTERM)


EACH_ONCE = {"t-1.1.chief-0": 1, "t-1.1.worker-0": 1, "t-1.1.worker-1": 1, "t-1.1.ps-0": 1}


async def test_a_killed_service_finds_its_tasks_again(house: House) -> None:
    await house.submit()
    before = await house.running()
    house.service.kill()
    (house.orders / "end").touch()  # the chief ends while nobody looks
    house.service.start()
    done = await house.ended()
    assert (done.state, done.attempt) == ("succeeded", 1)
    assert [task.started_at for task in done.tasks] == [task.started_at for task in before.tasks]
    assert house.starts() == EACH_ONCE


@pytest.mark.parametrize("seed", range(3))
async def test_killed_at_any_moment_of_the_start_nothing_runs_twice(house: House, seed: int) -> None:
    dice = random.Random(seed)
    await house.submit()
    for _ in range(3):
        await asyncio.sleep(dice.random() * 0.15)
        house.service.kill()
        house.service.start()
    assert (await house.running()).attempt == 1
    done = await house.ended()
    assert (done.state, done.attempt) == ("succeeded", 1), done.reason
    assert house.starts() == EACH_ONCE


async def test_killed_while_it_frees_it_goes_on_freeing(house: House) -> None:
    await house.submit()
    await house.running()
    with contextlib.suppress(Exception):
        await house.bus.call(training.STOP, StopTraining(project="default", name="t-1"), timeout=5)
    house.service.kill()
    house.service.start()
    stopped = await until(house.get, lambda one: one.freed_at is not None, timeout=30)
    assert (stopped.state, stopped.attempt) == ("stopped", 1)
    cluster = await house.bus.call(training.CLUSTER, training.AllProjects())
    assert cluster.nodes[0].cpu_used == 0


async def test_tasks_ended_from_outside_make_another_attempt_that_costs_no_retry(house: House) -> None:
    await house.submit(retries=0)
    await house.running()
    house.service.kill()
    await asyncio.to_thread(end_all, house.home, 2.0)  # what `elearn down` does
    house.service.start()
    second = await house.running(attempt=2)
    assert "ended from outside" in second.attempts[0].reason
    done = await house.ended()
    assert (done.state, done.attempt) == ("succeeded", 2)


async def test_a_killed_keeper_is_a_loss_not_a_failure(house: House) -> None:
    await house.submit(retries=0)
    await house.running()
    processes = LocalProcesses(processes_root(house.home, "scheduler"))
    (keeper,) = (one.shim for one in await processes.list() if one.id.endswith(".ps-0"))
    os.kill(keeper.pid, signal.SIGKILL)
    second = await house.running(attempt=2)
    assert second.attempts[0].reason.startswith("ps-0 was lost")
    assert (await house.ended()).state == "succeeded"
