"""What every cloud for trainings does alike: one suite over the fake and the local driver."""

import asyncio
import contextlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.scheduler.cloud.local import LocalCloud
from services.scheduler.cloud.local.layout import owner
from services.scheduler.cloud.port import AttemptGone, AttemptSeen, Launch, Synced, TrainingCloud
from services.scheduler.errors import CannotLaunch, NoRoomLeft
from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.model import MountPlan
from services.scheduler.spec import plan_tasks
from shared.archive import pack
from shared.contracts.datastore import LocalVolume
from shared.contracts.training import Role, Roles, Task
from shared.errors import Malformed
from shared.local.gpus import Gpu
from shared.local.ledger import Ledger, Request
from shared.local.machine import Machine
from tests.support.training_cloud_fake import FakeCloud, FakeMachines
from tests.support.trainings import spec

WAIT_FOR_ORDERS = """
import os, pathlib, time
print("hello", flush=True)
order = pathlib.Path(os.environ["ORDERS"]) / f"{os.environ['ELEARN_TRAINING']}.{os.environ['ELEARN_ROLE']}-{os.environ['ELEARN_INDEX']}"
while not order.exists():
    time.sleep(0.01)
code = int(order.read_text())
order.unlink()
raise SystemExit(code)
"""  # noqa: E501 - a program's line


class Cloud(ABC):
    """A cloud under test, and the hand that ends its tasks' programs."""

    @abstractmethod
    def driver(self) -> TrainingCloud:
        """A driver over what is there: called again, it is one that knows nothing of the first."""

    @abstractmethod
    def end(self, launch: Launch, task: str, code: int) -> None:
        """Let a task's program end with an exit code."""

    def launch(self, name: str = "t-1", attempt: int = 1, **fields: Any) -> Launch:
        mounts = fields.pop("plans", ())
        asked = spec(command=self.command(), env=self.env(), **fields)
        return Launch(
            project="p",
            name=name,
            attempt=attempt,
            spec=asked,
            plan=plan_tasks(asked, TensorFlow()),
            mounts=mounts,
        )

    def command(self) -> tuple[str, ...]:
        return ("wait",)

    def env(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def forgotten(self, name: str, cpu: float) -> None:
        """Resources are handed out to an attempt of which nothing runs."""

    def lose(self, volume: Path) -> None:
        """A volume is not there any more."""
        volume.rmdir()


class Fake(Cloud):
    def __init__(self) -> None:
        self.machines = FakeMachines()

    def driver(self) -> TrainingCloud:
        return FakeCloud(self.machines)

    def end(self, launch: Launch, task: str, code: int) -> None:
        self.machines.end((launch.project, launch.name, launch.attempt), task, code)

    def forgotten(self, name: str, cpu: float) -> None:
        self.machines.launches["p", name, 1] = self.launch(name, roles=Roles(chief=Role(cpu=cpu)))

    def lose(self, volume: Path) -> None:
        self.machines.gone.add(str(volume))


class Local(Cloud):
    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.orders = folder / "orders"
        self.orders.mkdir()
        gpus = tuple(Gpu(index=i, uuid=f"fake-{i}", name="fake", memory=2**34) for i in range(2))
        self.ledger = Ledger(self.home / "ledger.json", Machine(cpu=4, memory=2**33, gpus=gpus))
        self.archives: dict[str, Path] = {}

    def driver(self) -> LocalCloud:
        return LocalCloud(self.home, self.ledger, TensorFlow(), self._code, grace=2, restarts=3)

    def forgotten(self, name: str, cpu: float) -> None:
        self.ledger.acquire(owner("p", name, 1), [Request(task="chief-0", cpu=cpu)])

    async def _code(self, _: str, digest: str) -> AsyncIterator[bytes]:
        yield await asyncio.to_thread(self.archives[digest].read_bytes)

    def command(self) -> tuple[str, ...]:
        return ("python", "-c", WAIT_FOR_ORDERS)

    def env(self) -> dict[str, str]:
        return {"ORDERS": str(self.orders)}

    def end(self, launch: Launch, task: str, code: int) -> None:
        order = self.orders / f".{task}"
        order.write_text(str(code))
        order.rename(self.orders / f"{launch.name}.{task}")


@pytest.fixture(params=["fake", "local"])
async def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cloud]:
    if request.param == "fake":
        yield Fake()
        return
    local = Local(tmp_path)
    yield local
    async for seen in local.driver().watch():
        if isinstance(seen, Synced):
            break
        if isinstance(seen, AttemptSeen):
            await local.driver().free(seen.project, seen.name, seen.attempt)
    local.ledger.close()


class Watch:
    """A watch that is read in the background."""

    def __init__(self, driver: TrainingCloud) -> None:
        self._driver = driver
        self._changed = asyncio.Condition()
        self.tasks: dict[tuple[str, int], dict[str, Task]] = {}
        self.synced = False

    async def __aenter__(self) -> "Watch":
        self._task = asyncio.create_task(self._read(), name="watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _read(self) -> None:
        async with contextlib.aclosing(self._driver.watch()) as watch:  # type: ignore[type-var]
            async for seen in watch:
                async with self._changed:
                    match seen:
                        case Synced():
                            self.synced = True
                        case AttemptSeen():
                            self.tasks[seen.name, seen.attempt] = {task.name: task for task in seen.tasks}
                        case AttemptGone():
                            self.tasks.pop((seen.name, seen.attempt), None)
                    self._changed.notify_all()
        raise AssertionError("a watch never ends")

    async def until(self, holds: Any) -> Any:
        async with asyncio.timeout(15), self._changed:
            await self._changed.wait_for(lambda: holds(self))
            return holds(self)

    async def until_task(self, name: str, state: str, training: str = "t-1", attempt: int = 1) -> Task:
        def find(watch: Watch) -> Task | None:
            task = watch.tasks.get((training, attempt), {}).get(name)
            return task if task is not None and task.state == state else None

        found: Task = await self.until(find)
        return found


CLUSTER = Roles(chief=Role(cpu=0.5), worker=Role(cpu=0.5, replicas=2), ps=Role(cpu=0.5))


async def test_an_attempt_is_shown_from_its_start_to_its_end(cloud: Cloud) -> None:
    driver = cloud.driver()
    launch = cloud.launch(roles=CLUSTER)
    async with Watch(driver) as watch:
        await watch.until(lambda it: it.synced)
        await driver.launch(launch)
        for task in ("chief-0", "worker-0", "worker-1", "ps-0"):
            assert (await watch.until_task(task, "running")).started_at is not None
        assert len({task.address for task in watch.tasks["t-1", 1].values()}) == 4
        cloud.end(launch, "chief-0", 0)
        assert (await watch.until_task("chief-0", "succeeded")).exit_code == 0
        ended = {task.name: task.state for task in await driver.free("p", "t-1", 1)}
        assert ended == {
            "chief-0": "succeeded",
            "worker-0": "stopped",
            "worker-1": "stopped",
            "ps-0": "stopped",
        }
        await watch.until(lambda it: not it.tasks)


async def test_launch_is_idempotent_by_training_and_attempt(cloud: Cloud) -> None:
    driver = cloud.driver()
    launch = cloud.launch(roles=CLUSTER)
    async with Watch(driver) as watch:
        await driver.launch(launch)
        before = {name: await watch.until_task(name, "running") for name in ("chief-0", "ps-0")}
        await driver.launch(launch)
        await cloud.driver().launch(launch)
        cloud.end(launch, "worker-0", 0)
        await watch.until_task("worker-0", "succeeded")
        for name, task in before.items():
            now = watch.tasks["t-1", 1][name]
            assert (now.started_at, now.address, now.restarts) == (task.started_at, task.address, 0)
        await driver.launch(launch)  # a task that has ended is not started again
        assert (await watch.until_task("worker-0", "succeeded")).restarts == 0


async def test_exit_codes_are_told(cloud: Cloud) -> None:
    driver = cloud.driver()
    launch = cloud.launch()
    async with Watch(driver) as watch:
        await driver.launch(launch)
        cloud.end(launch, "chief-0", 3)
        failed = await watch.until_task("chief-0", "failed")
        assert (failed.exit_code, failed.signal, failed.restarts) == (3, None, 0)
        assert failed.finished_at is not None


async def test_a_worker_beside_a_ps_comes_back_on_its_address_a_bounded_number_of_times(cloud: Cloud) -> None:
    driver = cloud.driver()
    launch = cloud.launch(roles=CLUSTER)
    async with Watch(driver) as watch:
        await driver.launch(launch)
        address = (await watch.until_task("worker-1", "running")).address
        for restarts in (1, 2, 3):
            cloud.end(launch, "worker-1", 1)
            await watch.until(
                lambda it, wanted=restarts: (
                    it.tasks["t-1", 1]["worker-1"].restarts == wanted
                    and it.tasks["t-1", 1]["worker-1"].state == "running"
                )
            )
            assert watch.tasks["t-1", 1]["worker-1"].address == address
        cloud.end(launch, "worker-1", 1)
        failed = await watch.until_task("worker-1", "failed")
        assert failed.restarts == 3


async def test_freeing_is_idempotent_and_what_never_was_is_freed(cloud: Cloud) -> None:
    driver = cloud.driver()
    await driver.launch(cloud.launch())
    assert len(await driver.free("p", "t-1", 1)) == 1
    assert await driver.free("p", "t-1", 1) == ()
    assert await driver.free("p", "nothing-7", 3) == ()


async def test_a_gang_gets_all_its_resources_or_none(cloud: Cloud) -> None:
    driver = cloud.driver()
    await driver.launch(cloud.launch("t-1", roles=Roles(chief=Role(cpu=3))))
    with pytest.raises(NoRoomLeft):
        await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=1), worker=Role(cpu=1))))
    await driver.launch(cloud.launch("t-3", roles=Roles(chief=Role(cpu=1))))  # nothing of t-2 is held
    await driver.free("p", "t-1", 1)
    await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=1), worker=Role(cpu=1))))


async def test_what_can_never_start_leaves_nothing_behind(cloud: Cloud, tmp_path: Path) -> None:
    driver = cloud.driver()
    volume = tmp_path / "volume"
    volume.mkdir()
    mount = MountPlan(datastore="d", path="data", volume=LocalVolume(path=str(volume)))
    cloud.lose(volume)
    async with Watch(driver) as watch:
        await watch.until(lambda it: it.synced)
        with pytest.raises(CannotLaunch, match="'d' is not there"):
            await driver.launch(cloud.launch(roles=Roles(chief=Role(cpu=4)), plans=(mount,)))
        await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=4))))
        await watch.until_task("chief-0", "running", "t-2")
        assert set(watch.tasks) == {("t-2", 1)}


async def test_another_driver_finds_what_runs(cloud: Cloud) -> None:
    launch = cloud.launch(roles=CLUSTER)
    await cloud.driver().launch(launch)
    driver = cloud.driver()
    async with Watch(driver) as watch:
        await watch.until(lambda it: it.synced)
        assert set(watch.tasks["t-1", 1]) == {"chief-0", "worker-0", "worker-1", "ps-0"}
        assert all(task.address for task in watch.tasks["t-1", 1].values())
        cloud.end(launch, "chief-0", 0)
        await watch.until_task("chief-0", "succeeded")


async def test_logs_stay_until_the_training_is_forgotten(cloud: Cloud) -> None:
    driver = cloud.driver()
    launch = cloud.launch()
    async with Watch(driver) as watch:
        await driver.launch(launch)
        cloud.end(launch, "chief-0", 0)
        await watch.until_task("chief-0", "succeeded")
    await driver.free("p", "t-1", 1)

    async def read(offset: int, length: int = 100) -> tuple[bytes, int, int]:
        part = await driver.logs("p", "t-1", 1, "chief-0", offset=offset, length=length)
        return part.data, part.offset, part.size

    assert await read(0) == (b"hello\n", 0, 6)
    assert await read(2, 2) == (b"ll", 2, 6)
    assert await read(-3) == (b"lo\n", 3, 6)
    assert await read(-99) == (b"hello\n", 0, 6)
    assert await read(6) == (b"", 6, 6)
    await driver.forget("p", "t-1")
    await driver.forget("p", "t-1")
    assert (await read(0))[0] == b""


async def test_no_capacity_is_lost_over_many_attempts(cloud: Cloud) -> None:
    driver = cloud.driver()
    before = await driver.capacity()
    for attempt in range(1, 4):
        await driver.launch(cloud.launch(attempt=attempt, roles=Roles(chief=Role(cpu=4))))
        await driver.free("p", "t-1", attempt)
    assert await driver.capacity() == before


async def test_what_nobody_knows_is_given_back_and_what_runs_is_not(cloud: Cloud) -> None:
    driver = cloud.driver()
    await driver.launch(cloud.launch("t-1", roles=Roles(chief=Role(cpu=1))))
    cloud.forgotten("t-9", cpu=2)
    await driver.settle(frozenset({("p", "t-9", 1)}))
    with pytest.raises(NoRoomLeft):
        await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=3))))
    await driver.settle(frozenset())
    with pytest.raises(NoRoomLeft):
        await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=4))))
    await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=3))))


# -- what the local driver does beyond -------------------------------------------------------------


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Local]:
    cloud = Local(tmp_path)
    yield cloud
    for name in ("t-1", "t-2"):
        await cloud.driver().free("p", name, 1)
    cloud.ledger.close()


async def run_to_its_end(local: Local, launch: Launch) -> dict[str, Task]:
    driver = local.driver()
    async with Watch(driver) as watch:
        await driver.launch(launch)
        key = (launch.name, launch.attempt)
        found: dict[str, Task] = await watch.until(
            lambda it: (
                key in it.tasks
                and len(it.tasks[key]) == len(launch.plan)
                and all(task.finished_at for task in it.tasks[key].values())
                and it.tasks[key]
            )
        )
        return found


async def printed(local: Local, launch: Launch, task: str = "chief-0") -> str:
    part = await local.driver().logs("p", launch.name, launch.attempt, task, offset=0, length=10_000)
    return part.data.decode()


async def test_gpus_go_out_whole_and_a_task_without_sees_none(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Local,
        "command",
        lambda _: ("python", "-c", "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"),
    )
    roles = Roles(chief=Role(gpu=1, cpu=0.5), worker=Role(gpu=1, cpu=0.5), ps=Role(cpu=0.5))
    launch = local.launch(roles=roles)
    tasks = await run_to_its_end(local, launch)
    assert {await printed(local, launch, name) for name in ("chief-0", "worker-0")} == {"'0'\n", "'1'\n"}
    assert await printed(local, launch, "ps-0") == "''\n"
    assert {tasks["chief-0"].gpus, tasks["worker-0"].gpus} == {("0",), ("1",)}
    with pytest.raises(NoRoomLeft, match="2 of 2 in use by p/t-1 attempt 1"):
        await local.driver().launch(local.launch("t-2", roles=Roles(chief=Role(gpu=1))))


async def test_a_task_sees_its_own_environment_and_none_of_the_services(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELEARN_POSTGRES_URL", "postgres://secret")
    monkeypatch.setattr(
        Local, "command", lambda _: ("python", "-c", "import os, json; print(json.dumps(dict(os.environ)))")
    )
    launch = local.launch()
    await run_to_its_end(local, launch)
    env = json.loads(await printed(local, launch))
    assert "ELEARN_POSTGRES_URL" not in env
    assert "TF_CONFIG" not in env
    assert env["PYTHONUNBUFFERED"] == "1"
    assert [env[f"ELEARN_{name}"] for name in ("TRAINING", "ROLE", "INDEX", "ATTEMPT")] == ["t-1", "chief", "0", "1"]
    assert env["PATH"].split(":")[0] == str(Path(sys.executable).parent)


async def test_code_is_each_tasks_own_working_directory_and_bad_code_never_starts(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "main.py").write_text("import pathlib; print(pathlib.Path('main.py').exists()); open('new', 'x')")
    packed = pack(folder, tmp_path / "code.tar.gz")
    local.archives[packed.digest] = tmp_path / "code.tar.gz"
    monkeypatch.setattr(Local, "command", lambda _: ("python", "main.py"))
    launch = local.launch(code=packed.digest, roles=Roles(chief=Role(), worker=Role()))
    tasks = await run_to_its_end(local, launch)
    assert {task.state for task in tasks.values()} == {"succeeded"}
    assert await printed(local, launch) == "True\n"
    await local.driver().free("p", "t-1", 1)
    assert not (local.home / "trainings/p/t-1/1/work").exists()

    bad = tmp_path / "bad"
    bad.write_bytes(b"no archive")
    local.archives["sha256:bad"] = bad
    with pytest.raises(CannotLaunch) as refused:
        await local.driver().launch(local.launch("t-2", code="sha256:bad"))
    assert isinstance(refused.value.__cause__, Malformed)
    assert local.ledger.snapshot().grants == ()


async def test_a_program_that_is_not_there_fails_with_words(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Local, "command", lambda _: ("./missing",))
    tasks = await run_to_its_end(local, local.launch())
    assert (tasks["chief-0"].state, tasks["chief-0"].started_at) == ("failed", None)
    assert "command not found: ./missing" in tasks["chief-0"].reason


async def test_own_folders_are_made_and_links_in_a_datastore_lead_nowhere(
    local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "way-out").symlink_to("/")
    monkeypatch.setattr(Local, "command", lambda _: ("python", "-c", "open('out/file', 'x')"))

    def mount(folder: str) -> MountPlan:
        return MountPlan(datastore="d", path="out", volume=LocalVolume(path=str(volume)), folder=folder, own=True)

    await run_to_its_end(local, local.launch(plans=(mount("t-1"),)))
    assert (volume / "t-1" / "file").exists()
    with pytest.raises(CannotLaunch, match="outside"):
        await local.driver().launch(local.launch("t-2", plans=(mount("way-out/tmp"),)))


async def test_rights_that_a_task_took_away_keep_nothing_from_being_freed(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import os; os.makedirs('a/b'); open('a/b/c', 'x'); os.chmod('a/b', 0); os.chmod('a', 0)"
    monkeypatch.setattr(Local, "command", lambda _: ("python", "-c", program))
    await run_to_its_end(local, local.launch())
    await local.driver().free("p", "t-1", 1)
    assert not (local.home / "trainings/p/t-1/1/work").exists()
    assert local.ledger.snapshot().grants == ()
