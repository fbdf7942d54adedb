"""Stories of trainings whose Jobs wait in a queue of Kueue, on an emulated cluster with an emulated Kueue."""

from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from services.scheduler.cloud.kubernetes.identity import HELD_BACK, QUEUE
from services.scheduler.cloud.port import Launch
from shared.contracts.training import Role, Roles, Task
from shared.kube.resources import JOBS
from tests.contract.training_clouds import Watch
from tests.support.kube_kueue import Kueue
from tests.support.kube_trainings import IMPATIENT, NAMESPACE, TrainingCluster, job_of, launch_of, training_cluster
from tests.support.logs_in_memory import LogsInMemory

GANG = Roles(chief=Role(cpu=0.5), worker=Role(cpu=0.5, replicas=2), ps=Role(cpu=0.5))
WAITS = "waits in Kueue's queue team"
TAKEN_BACK = "Kueue took back its place in queue team"


@pytest.fixture
async def it() -> AsyncIterator[TrainingCluster]:
    async with training_cluster(cpu="64") as cluster:
        yield cluster


@pytest.fixture
def kueue(it: TrainingCluster) -> Kueue:
    return Kueue(it.store)


def gang(attempt: int = 1) -> Launch:
    return launch_of(roles=GANG, attempt=attempt, labels={QUEUE: "team"})


def waiting(watch: Watch, attempt: int = 1) -> set[str]:
    """The tasks that wait for Kueue."""
    return {task.name for task in watch.tasks.get(("t-1", attempt), {}).values() if task.reason == WAITS}


def names(launch: Launch) -> set[str]:
    return {task.name for task in launch.plan}


async def all_run(watch: Watch, launch: Launch) -> None:
    for task in launch.plan:
        await watch.until_task(task.name, "running", attempt=launch.attempt)


def suspended(it: TrainingCluster, name: str) -> bool:
    job = it.store.need(JOBS, name, NAMESPACE)
    return bool(job["spec"]["suspend"])


async def test_jobs_wait_until_kueue_admits_them_one_by_one(it: TrainingCluster, kueue: Kueue) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    async with Watch(driver) as watch:
        await driver.launch(launch)
        await watch.until(lambda seen: waiting(seen) == names(launch))
        assert it.left() == {"Service": 1, "Job": 3}
        kueue.admit(job_of(launch, "ps"))
        assert (await watch.until_task("ps-0", "running")).reason == ""
        await watch.until(lambda seen: waiting(seen) == names(launch) - {"ps-0"})
        kueue.admit()
        await all_run(watch, launch)
        it.kubelet.end(launch, "chief-0", 0)
        await watch.until_task("chief-0", "succeeded")
        await driver.free("p", "t-1", 1)
        assert it.left() == {}


async def test_the_operators_queue_is_for_who_names_none(it: TrainingCluster, kueue: Kueue) -> None:
    driver, launch = it.driver(LogsInMemory(), options=replace(IMPATIENT, kubernetes_queue="team")), launch_of()
    async with Watch(driver) as watch:
        await driver.launch(launch)
        await watch.until(lambda seen: waiting(seen) == {"chief-0"})
        kueue.admit()
        await watch.until_task("chief-0", "running")


async def test_who_is_never_admitted_is_stopped_without_a_trace(it: TrainingCluster, kueue: Kueue) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    async with Watch(driver) as watch:
        await driver.launch(launch)
        await watch.until(lambda seen: waiting(seen) == names(launch))
        tasks = await driver.free("p", "t-1", 1)
        assert {(task.state, task.started_at) for task in tasks} <= {("stopped", None)}
        assert it.left() == {}
        await watch.until(lambda seen: not seen.tasks)


@pytest.mark.parametrize("restarted", [False, True])
async def test_who_is_preempted_is_lost_and_comes_again(it: TrainingCluster, kueue: Kueue, restarted: bool) -> None:
    """A scheduler that was away meanwhile sees the same, though no pod is left to tell."""
    driver, launch, worker = it.driver(LogsInMemory()), gang(), job_of(gang(), "worker")
    await driver.launch(launch)
    kueue.admit()

    def lost(watch: Watch) -> list[Task]:
        return [task for task in watch.tasks.get(("t-1", 1), {}).values() if task.state == "lost"]

    async with Watch(driver) as watch:
        await all_run(watch, launch)
        if not restarted:
            kueue.take_back(worker)
            found = await watch.until(lambda seen: len(lost(seen)) == 2 and lost(seen))
    if restarted:
        kueue.take_back(worker)
        driver = it.driver(LogsInMemory())
        async with Watch(driver) as watch:
            found = await watch.until(lambda seen: len(lost(seen)) == 2 and lost(seen))
    assert {(task.role, task.reason) for task in found} == {("worker", TAKEN_BACK)}
    await driver.free("p", "t-1", 1)
    assert it.left() == {}
    again = gang(attempt=2)
    async with Watch(driver) as watch:
        await driver.launch(again)
        await watch.until(lambda seen: waiting(seen, 2) == names(again))
        kueue.admit()
        await all_run(watch, again)


@pytest.mark.parametrize("watched", [True, False])
async def test_kueue_may_let_go_what_is_held_back_while_it_is_freed(
    it: TrainingCluster, kueue: Kueue, watched: bool
) -> None:
    """What is ours to end is no loss, whoever looks, and nothing of it is left."""
    driver, launch = it.driver(LogsInMemory()), gang()
    held: set[str] = set()
    it.store.on_write.append(
        lambda kind, _, after: (
            held.add(after["metadata"]["name"])
            if kind == JOBS and after is not None and HELD_BACK in after["metadata"].get("annotations", {})
            else None
        )
    )
    await driver.launch(launch)
    kueue.admit()
    async with Watch(driver) as watch:
        await all_run(watch, launch)
        if watched:
            tasks = await driver.free("p", "t-1", 1)
    if not watched:
        tasks = await it.driver(LogsInMemory()).free("p", "t-1", 1)
    assert {task.state for task in tasks} == {"stopped"}
    assert held == {job_of(launch, role) for role in ("chief", "worker", "ps")}
    assert it.left() == {}


async def test_what_we_let_go_kueue_would_hold(it: TrainingCluster, kueue: Kueue) -> None:
    """So it is never done; a Job without a queue is none of Kueue's."""
    driver = it.driver(LogsInMemory())
    await driver.launch(launch_of("t-2"))
    await driver.launch(gang())
    assert not suspended(it, job_of(launch_of("t-2")))
    assert suspended(it, job_of(gang()))
    patched = [path for method, path in it.writes() if method == "PATCH" and "/jobs/" in path]
    assert len(patched) == 1
