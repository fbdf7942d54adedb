"""kill -9 at the moments when something has just begun: a submit, a save, the supervisor's own life.

Trainings here are one small Python process a task: what is tried is the platform, not TensorFlow.
"""

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from elearn import Client
from elearn.up.home import Home
from tests.contract.job_cloud_models import write_saved_model
from tests.support.product import PARTS, Product, Trainings, assert_nothing_held, running, told, until, wait_freed

pytestmark = [pytest.mark.slow]

CLUSTER: dict[str, object] = {"chief": {}, "worker": {"replicas": 2}, "ps": {"replicas": 1}}
TASKS = ["chief-0", "ps-0", "worker-0", "worker-1"]
ASSETS = 24 * 2**20
"""Bytes beside a SavedModel that make saving it last long enough to be met."""


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with running(tmp_path_factory.mktemp("moments") / "home") as found:
        yield found


@pytest.fixture(scope="module")
def client(product: Product) -> Client:
    return product.client()


@pytest.fixture(scope="module")
def trainings(product: Product, client: Client) -> Trainings:
    return Trainings(client, product.home / "runs")


def seen_running(client: Client, name: str, *, attempt: int = 1) -> None:
    """Wait until the platform knows that all tasks run: they write down their start before their keepers do."""
    until(
        lambda: (found := client.trainings.get(name)).state == "running" and found.attempt == attempt,
        f"{name} is seen to run",
    )


# -- right after a submit


@pytest.mark.parametrize("part", ["scheduler", "datastore", "api", "nats", "postgres"])
def test_killed_right_after_a_submit(product: Product, client: Client, trainings: Trainings, part: str) -> None:
    name = trainings.submit(part, CLUSTER).name
    before = product.kill(part)
    started = trainings.await_started(name, len(TASKS))
    product.await_back(part, before)
    seen_running(client, name)
    trainings.go(name)
    ended = wait_freed(client, name)
    assert (ended.state, ended.attempt) == ("succeeded", 1)
    assert trainings.starts(name) == started
    assert sorted(task for _, task, _, _ in started) == TASKS


def test_the_scheduler_killed_with_launches_at_every_stage(
    product: Product, client: Client, trainings: Trainings
) -> None:
    names = [trainings.submit("several", CLUSTER).name for _ in range(6)]
    before = product.kill("scheduler")
    for name in names:
        trainings.await_started(name, len(TASKS))
        trainings.go(name)
    product.await_back("scheduler", before)
    for name in names:
        ended = wait_freed(client, name)
        assert (ended.state, ended.attempt) == ("succeeded", 1)
        assert sorted(task for _, task, _, _ in trainings.starts(name)) == TASKS


def test_a_submit_sent_again_after_everything_was_killed_is_the_same(product: Product, trainings: Trainings) -> None:
    """What a client does that has lost the answer. Meanwhile what runs goes on."""
    bystander = trainings.submit("bystander", CLUSTER).name
    started = trainings.await_started(bystander, len(TASKS))
    answers = []
    with product.http() as http:
        for kill in (False, True):
            if kill:
                for part, pid in [(part, product.kill(part)) for part in PARTS]:
                    product.await_back(part, pid)
            answer = http.post("/trainings", json=trainings.spec("once"), headers={"Idempotency-Key": "only-once"})
            assert answer.status_code in (201, 202), answer.text
            answers.append(answer.json()["name"])
    assert answers == ["once-1", "once-1"]
    seen_running(trainings.client, "once-1")
    trainings.go("once-1")
    assert wait_freed(trainings.client, "once-1").state == "succeeded"
    assert len(trainings.starts("once-1")) == 1
    assert product.tasks(bystander) == {task: int(pid) for _, task, pid, _ in started}
    seen_running(trainings.client, bystander)
    trainings.go(bystander)
    assert wait_freed(trainings.client, bystander).attempt == 1
    assert trainings.starts(bystander) == started


# -- during a save


@pytest.fixture(scope="module")
def exported(trainings: Trainings) -> str:
    """A SavedModel in the datastore that takes a while to be saved."""
    folder = write_saved_model(trainings.folder / "exported")
    with (folder / "assets" / "large").open("wb") as file:
        file.truncate(ASSETS)
    return "exported"


def save_job(product: Product) -> int | None:
    """The process that saves now: the one whose command it is, not its keeper."""
    return next((pid for pid, words in product.processes().items() if "services.registry.save_job" in words), None)


def test_killed_during_a_save(product: Product, client: Client, exported: str) -> None:
    """The job is held still meanwhile, so that it is certain to be under way."""
    client.models.save("model", exported, datastore="runs")
    job = until(lambda: save_job(product), "the save job runs")
    os.kill(job, signal.SIGSTOP)
    try:
        for part in ("registry", "nats", "postgres"):
            product.await_back(part, product.kill(part))
            assert client.models.version("model", 1).state == "saving"
            assert save_job(product) == job
    finally:
        os.kill(job, signal.SIGCONT)
    version = client.models.wait("model", 1, timeout=60)
    assert version.size > ASSETS
    assert [each.number for each in client.models.versions("model")] == [1]


def test_a_killed_save_job_is_done_again_and_leaves_one_version(
    product: Product, client: Client, exported: str
) -> None:
    client.models.save("job", exported, datastore="runs")
    job = until(lambda: save_job(product), "the save job runs")
    os.kill(job, signal.SIGKILL)
    version = client.models.wait("job", 1, timeout=60)
    assert version.size > ASSETS
    assert [each.number for each in client.models.versions("job")] == [1]
    store = product.home / "models"
    assert [path.name for path in (store / "default" / "job").iterdir()] == ["1"]
    until(lambda: not any((store / ".staging").iterdir()), "what was half copied is thrown away")
    assert told(product.history(client), "version", "job") == ["saving", "ready"]


# -- the supervisor


def test_a_killed_supervisor_is_followed_by_one_that_finds_everything(
    product: Product, client: Client, trainings: Trainings
) -> None:
    name = trainings.submit("orphan", CLUSTER).name
    started = trainings.await_started(name, len(TASKS))
    services = {each.name: each.pid for each in product.status().services}
    os.kill(product.supervisor(), signal.SIGKILL)
    until(lambda: not Home(product.home).is_locked(), "the kernel gives its lock back")
    assert not product.status().ready
    product.up()
    status = product.status()
    assert status.ready
    assert not {each.pid for each in status.services} & set(services.values())
    assert product.tasks(name) == {task: int(pid) for _, task, pid, _ in started}
    seen_running(client, name)
    trainings.go(name)
    ended = wait_freed(client, name)
    assert (ended.state, ended.attempt) == ("succeeded", 1)
    assert trainings.starts(name) == started


def test_the_power_fails(product: Product, client: Client, trainings: Trainings) -> None:
    """Everything ends at once, tasks and their keepers too; whose fault that was not needs no retry."""
    name = trainings.submit("lost", CLUSTER, retries=0).name
    trainings.await_started(name, len(TASKS))
    seen_running(client, name)
    for pid in [product.supervisor(), *product.processes()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not product.processes(), "all of it has ended")
    product.up()
    trainings.await_started(name, 2 * len(TASKS))
    seen_running(client, name, attempt=2)
    trainings.go(name)
    ended = wait_freed(client, name)
    assert (ended.state, ended.attempt) == ("succeeded", 2)
    assert sorted((attempt, task) for attempt, task, _, _ in trainings.starts(name)) == [
        (attempt, task) for attempt in ("1", "2") for task in TASKS
    ]


# -- afterwards


def test_every_event_was_told_once_and_in_order(product: Product, client: Client, trainings: Trainings) -> None:
    events = product.history(client)
    life = ["queued", "starting", "running", "succeeded", "freed"]
    for training in client.trainings.list():
        again = training.name == "lost-1"
        wanted = [*life[:3], "retrying", *life[1:]] if again else [*life]
        events_of = told(events, "training", training.name)
        if training.name.startswith("several-") and "running" not in events_of:
            wanted.remove("running")  # its chief ended before anybody was there to see all of its tasks run
        assert (training.name, events_of) == (training.name, wanted)
        tasks = Counter(told(events, "task", training.name))
        assert tasks["running"] == len(training.tasks) * (2 if again else 1)
        assert tasks["restarted"] == 0
        assert again or tasks["failed"] == 0
    for model in client.models.list():
        assert told(events, "version", model.name) == ["saving", "ready"]


def test_nothing_is_left_over(product: Product, client: Client) -> None:
    assert_nothing_held(client)
    assert product.json("status")["ready"] is True
    assert list(client.deadletters.list()) == []
    assert not (product.home / "trainings").exists() or not list((product.home / "trainings").glob("*/*/*/work/*"))
