"""Stories of nodes that stop answering while they run tasks: what is told, who is waited for, and for how long."""

from collections.abc import AsyncIterator

import pytest

from services.scheduler.cloud.kubernetes import freeing as module
from services.scheduler.cloud.kubernetes.driver import KubernetesTrainings
from shared.contracts.training import Role, Roles
from shared.errors import Unavailable
from shared.kube.resources import NODES, PODS
from tests.contract.training_clouds import Watch
from tests.support.kube_trainings import IMPATIENT, TrainingCluster, launch_of, training_cluster
from tests.support.logs_in_memory import LogsInMemory

TWO = Roles(chief=Role(cpu=0.5), worker=Role(cpu=0.5))
LONG_AGO = "2026-01-01T00:00:00Z"
LATER_THAN_NOW = "2999-01-01T00:00:00Z"


@pytest.fixture
async def it() -> AsyncIterator[TrainingCluster]:
    async with training_cluster(cpu="64") as cluster:
        yield cluster


async def stuck(it: TrainingCluster, monkeypatch: pytest.MonkeyPatch, seconds: float) -> KubernetesTrainings:
    """A driver whose training runs on a node that ends nothing any more."""
    monkeypatch.setattr(module, "_GONE_SECONDS", 1.0)
    options = type(IMPATIENT)(kubernetes_lost_node_seconds=seconds)
    driver, launch = it.driver(LogsInMemory(), grace=0.1, options=options), launch_of(roles=TWO)
    await driver.launch(launch)
    async with Watch(driver) as watch:
        for task in launch.plan:
            await watch.until_task(task.name, "running")
    it.kubelet.obeys = False
    return driver


async def test_tasks_whose_node_is_silent_run_as_far_as_anybody_knows_and_say_so(it: TrainingCluster) -> None:
    driver, launch = it.driver(LogsInMemory()), launch_of(roles=TWO)
    await driver.launch(launch)
    async with Watch(driver) as watch:
        for task in launch.plan:
            await watch.until_task(task.name, "running")
        it.life.silence_node("n1", since=LONG_AGO)
        words = "node n1 does not answer"
        told = await watch.until(lambda seen: [task.reason for task in seen.tasks["t-1", 1].values()] == [words] * 2)
        assert told
        assert {task.state for task in watch.tasks["t-1", 1].values()} == {"running"}


async def test_what_a_silent_node_may_still_run_is_waited_for(
    it: TrainingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await stuck(it, monkeypatch, 0.0)
    it.life.silence_node("n1", since=LONG_AGO)
    for _ in range(2):
        with pytest.raises(Unavailable, match="node n1 does not answer, and may still run tasks: an operator has to"):
            await driver.free("p", "t-1", 1)
    assert len(it.store.all(PODS)) == 2
    for pod in it.store.all(PODS):  # as they are once their node is deleted
        it.store.finish(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])
    await driver.free("p", "t-1", 1)
    assert it.left() == {}


@pytest.mark.parametrize("since", [LONG_AGO, LATER_THAN_NOW])
async def test_an_operator_may_have_silent_nodes_given_up(
    it: TrainingCluster, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    driver = await stuck(it, monkeypatch, 600.0)
    it.life.silence_node("n1", since=since)
    with pytest.raises(Unavailable, match="node n1 does not answer; what may still run there is given up after 600 s"):
        await driver.free("p", "t-1", 1)
    if since == LONG_AGO:
        await driver.free("p", "t-1", 1)
        assert it.left() == {}
    else:
        assert len(it.store.all(PODS)) == 2


async def test_a_node_that_answers_is_never_given_up_and_neither_is_one_that_may_not_be_seen(
    it: TrainingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = await stuck(it, monkeypatch, 1.0)
    not_ready = {"type": "Ready", "status": "False", "reason": "KubeletNotReady", "lastTransitionTime": LONG_AGO}
    it.store.change(NODES, "n1", status={"conditions": [not_ready]})
    with pytest.raises(Unavailable, match="pods do not end: p-t-1-1-"):
        await driver.free("p", "t-1", 1)
    it.life.silence_node("n1", since=LONG_AGO)
    it.server.deny("list", "nodes")
    with pytest.raises(Unavailable, match="pods do not end: p-t-1-1-"):
        await driver.free("p", "t-1", 1)
    assert len(it.store.all(PODS)) == 2
