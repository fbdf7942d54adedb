"""What every cloud for trainings does alike: one suite over the fake, the local driver and Kubernetes."""

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.scheduler.cloud.port import AttemptSeen, Launch, Synced
from services.scheduler.errors import CannotLaunch, NoRoomLeft
from services.scheduler.model import MountPlan
from shared.archive import pack
from shared.contracts.datastore import LocalVolume
from shared.contracts.training import Role, Roles, Task
from shared.errors import Malformed
from tests.contract.training_clouds import Cloud, Fake, Kubernetes, Local, Reserving, Watch
from tests.support.kube_trainings import training_cluster


@pytest.fixture(params=["fake", "local", "kubernetes"])
async def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cloud]:
    if request.param == "fake":
        yield Fake()
        return
    if request.param == "kubernetes":
        async with training_cluster(cpu="4") as cluster:
            yield Kubernetes(cluster)
        return
    local = Local(tmp_path)
    yield local
    async for seen in local.driver().watch():
        if isinstance(seen, Synced):
            break
        if isinstance(seen, AttemptSeen):
            await local.driver().free(seen.project, seen.name, seen.attempt)
    local.ledger.close()


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


async def test_a_gang_for_which_there_is_no_room(cloud: Cloud) -> None:
    driver = cloud.driver()
    gang = cloud.launch("t-2", roles=Roles(chief=Role(cpu=1), worker=Role(cpu=1)))
    async with Watch(driver) as watch:
        await driver.launch(cloud.launch("t-1", roles=Roles(chief=Role(cpu=3))))
        await watch.until_task("chief-0", "running", "t-1")
        if cloud.reserves:
            with pytest.raises(NoRoomLeft):
                await driver.launch(gang)
            await driver.launch(cloud.launch("t-3", roles=Roles(chief=Role(cpu=1))))  # nothing of t-2 is held
        else:
            await driver.launch(gang)
            waiting = await watch.until(
                lambda it: next(
                    (task for task in it.tasks.get(("t-2", 1), {}).values() if "no node takes it" in task.reason), None
                )
            )
            assert waiting.state == "starting"
        await driver.free("p", "t-1", 1)
        await driver.launch(gang)
        for task in ("chief-0", "worker-0"):
            await watch.until_task(task, "running", "t-2")


async def test_what_can_never_start_leaves_nothing_behind(cloud: Cloud, tmp_path: Path) -> None:
    driver = cloud.driver()
    launch, words = cloud.hopeless(tmp_path)
    async with Watch(driver) as watch:
        await watch.until(lambda it: it.synced)
        with pytest.raises(CannotLaunch, match=words):
            await driver.launch(launch)
        await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=4))))
        await watch.until_task("chief-0", "running", "t-2")
        await watch.until(lambda it: set(it.tasks) == {("t-2", 1)})


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
    async with Watch(driver) as watch:
        await driver.launch(cloud.launch("t-1", roles=Roles(chief=Role(cpu=1))))
        started = (await watch.until_task("chief-0", "running")).started_at
        if isinstance(cloud, Reserving):
            cloud.forgotten("t-9", cpu=2)
            await driver.settle(frozenset({("p", "t-9", 1)}))
            with pytest.raises(NoRoomLeft):
                await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=3))))
            await driver.settle(frozenset())
            with pytest.raises(NoRoomLeft):
                await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=4))))
        else:
            await driver.settle(frozenset())  # what there is can be seen: whoever leads frees what nobody asks for
        await driver.launch(cloud.launch("t-2", roles=Roles(chief=Role(cpu=3))))
        await watch.until_task("chief-0", "running", "t-2")
        assert (await watch.until_task("chief-0", "running")).started_at == started


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
