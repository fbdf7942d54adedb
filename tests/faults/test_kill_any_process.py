"""kill -9 of every process of the platform, in turn, during one real distributed training, its save and its serving.

The tests build on each other: they tell one story, and afterwards nothing may show that it happened.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from elearn import Client
from elearn.client.documents import read_documents
from elearn.grpc import PredictClient
from shared.contracts.event import Event
from shared.contracts.serving import Serving
from shared.contracts.training import Training
from tests.support.product import EXAMPLES, PARTS, Product, assert_nothing_held, running, told, until, wait_freed

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.timeout(240)]

EPOCHS = 40
TASKS = ("chief-0", "ps-0", "worker-0", "worker-1")


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with running(tmp_path_factory.mktemp("kills") / "home") as found:
        yield found


@pytest.fixture(scope="module")
def client(product: Product) -> Client:
    return product.client()


@pytest.fixture(scope="module")
def out(product: Product, client: Client) -> Path:
    """The folder of the training's own: where it leaves traces and can be held."""
    data = product.home / "data"
    subprocess.run([sys.executable, EXAMPLES / "digits" / "prepare.py", "--out", data / "digits"], check=True)
    for name in ("digits", "runs"):
        client.datastores.create({"name": name, "local": {"path": str(data / name)}})
        client.datastores.wait(name, timeout=60)
    return data / "runs" / "digits-1"


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    shutil.copy(EXAMPLES / "digits" / "train.py", folder)
    shutil.copy(EXAMPLES / "digits" / "training.yaml", folder)
    shutil.copy(Path(__file__).parents[1] / "support" / "held_training.py", folder / "held.py")
    return folder


@pytest.fixture(scope="module")
def training(product: Product, client: Client, out: Path, code: Path) -> Training:
    """A cluster of four processes that trains until it is let go; the scheduler is killed as it starts."""
    out.mkdir(parents=True)
    (out / "hold").touch()
    spec = {
        **client_spec(code),
        "command": ["python", "held.py", "--data", "data/digits", "--out", "out", "--epochs", str(EPOCHS)],
        "code": str(code),
    }
    submitted = client.trainings.submit(spec)
    before = product.kill("scheduler")
    assert submitted.name == "digits-1"
    product.await_back("scheduler", before)
    training = client.trainings.wait("digits-1", until="running", timeout=90)
    until(lambda: "step " in chief_log(client), "the first epoch is over", 90)
    return training


def client_spec(code: Path) -> dict[str, object]:
    """The example's own spec."""
    return read_documents(code / "training.yaml")[0].data


def chief_log(client: Client) -> str:
    return "\n".join(client.trainings.logs("digits-1", task="chief-0"))


def starts(out: Path) -> list[tuple[str, str, int]]:
    """Attempt, task and process id of every start."""
    lines = [line.split() for line in (out / "starts").read_text().splitlines()]
    return [(attempt, task, int(pid)) for attempt, task, pid, _ in lines]


def model_servers(product: Product) -> set[int]:
    return {pid for pid, words in product.processes().items() if "services.serving.server" in words}


# -- training


@pytest.mark.parametrize("part", PARTS)
def test_a_running_training_does_not_notice(
    product: Product, client: Client, training: Training, out: Path, part: str
) -> None:
    tasks = product.tasks("digits-1")
    assert tuple(sorted(tasks)) == TASKS
    before = product.kill(part)
    product.await_back(part, before)
    found = client.trainings.get("digits-1")
    assert (found.state, found.attempt) == ("running", 1)
    assert product.tasks("digits-1") == tasks


def test_it_ends_in_its_first_attempt_and_no_task_ran_twice(client: Client, training: Training, out: Path) -> None:
    (out / "hold").unlink()
    ended = wait_freed(client, "digits-1")
    assert (ended.state, ended.attempt, ended.reason) == ("succeeded", 1, "chief-0 ended with exit code 0")
    assert {task.name: task.restarts for task in ended.tasks} == dict.fromkeys(TASKS, 0)
    assert sorted((attempt, task) for attempt, task, _ in starts(out)) == [("1", task) for task in TASKS]
    log = chief_log(client)
    assert len(re.findall(r"^waiting for the cluster", log, re.MULTILINE)) == 1
    steps = [int(step) for step in re.findall(r"^step (\d+)/", log, re.MULTILINE)]
    assert steps == sorted(set(steps))
    assert len(steps) == EPOCHS
    for worker in ("worker-0", "worker-1", "ps-0"):
        assert sum("serves at" in line for line in client.trainings.logs("digits-1", task=worker)) == 1


def test_the_registry_killed_saves_one_version(product: Product, client: Client, training: Training) -> None:
    before = product.kill("registry")  # it may have begun to save, or not
    product.await_back("registry", before)
    version = client.models.wait_saved("digits", "digits-1", timeout=60)
    assert version.number == 1
    assert [each.number for each in client.models.versions("digits")] == [1]
    assert sorted(path.name for path in (product.home / "models" / "default" / "digits").iterdir()) == ["1"]


# -- serving


@pytest.fixture(scope="module")
def serving(product: Product, client: Client, training: Training) -> Serving:
    """Two replicas, deployed while what deploys them and what it stands on is killed."""
    client.models.wait_saved("digits", "digits-1", timeout=60)
    client.servings.create({"name": "digits", "model": "digits", "version": 1, "replicas": 2})
    before = product.kill("serving")
    product.await_back("serving", before)
    servers = until(lambda: found if len(found := model_servers(product)) == 2 else set(), "two servers have begun")
    for part in ("nats", "postgres", "registry"):
        product.await_back(part, product.kill(part))
    ready = client.servings.wait("digits", timeout=90)
    assert model_servers(product) == servers
    return ready


def test_a_serving_deploys_whatever_is_killed(out: Path, serving: Serving) -> None:
    assert (serving.state, serving.ready_replicas, serving.version) == ("ready", 2, 1)
    assert serving.endpoint is not None
    with np.load(out.parents[1] / "digits" / "digits.npz") as arrays:
        pixels, digits = arrays["x_test"], arrays["y_test"]
    with PredictClient(serving.endpoint.grpc) as predictions:
        predicted = predictions.predict("digits", {"pixels": pixels}, timeout=30).outputs["digit"]
    assert np.mean(predicted == digits) >= 0.95


# -- afterwards


@pytest.fixture(scope="module")
def events(product: Product, client: Client, serving: Serving) -> list[Event]:
    return product.events(client)


def test_every_event_was_told_once_and_in_order(events: list[Event]) -> None:
    assert told(events, "training", "digits-1") == ["queued", "starting", "running", "succeeded", "freed"]
    assert Counter(told(events, "task", "digits-1")) == {"running": 4, "succeeded": 1}
    assert told(events, "version", "digits") == ["saving", "ready"]
    assert told(events, "serving", "digits") == ["deploying", "ready"]
    assert told(events, "datastore", "digits") == ["provisioning", "ready"]


def test_nothing_is_left_over(product: Product, client: Client, serving: Serving) -> None:
    assert product.tasks("digits-1") == {}
    client.servings.delete("digits")
    assert_nothing_held(client)
    until(lambda: not model_servers(product), "its model servers have ended")
    assert product.json("status")["ready"] is True
    assert list(client.deadletters.list()) == []
