"""kill -9 of a task's process, with real TensorFlow: what the framework bears goes on, the rest starts again.

And `elearn down` in the middle of a training: no fault of the user's.
"""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elearn import Client
from elearn.client.documents import read_documents
from shared.contracts.training import Training
from shared.errors import Conflict
from tests.support.product import EXAMPLES, Product, assert_nothing_held, running, told, until, wait_freed

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with running(tmp_path_factory.mktemp("tasks") / "home") as found:
        yield found


class Lesson:
    """A training of an example that goes on until it is let go, and can be looked at."""

    def __init__(self, product: Product, client: Client, example: str, code: Path, **fields: object) -> None:
        self.product = product
        self.client = client
        self.name = f"{example}-1"
        self.out = product.home / "data" / "runs" / self.name
        self.out.mkdir(parents=True)
        (self.out / "hold").touch()
        for file in ("train.py", "training.yaml"):
            shutil.copy(EXAMPLES / example / file, code)
        shutil.copy(Path(__file__).parents[1] / "support" / "held_training.py", code / "held.py")
        command = "python held.py --data data/digits --out out --epochs 60 --checkpoint-every 1"
        spec = {**read_documents(code / "training.yaml")[0].data, "command": command.split(), "code": str(code)}
        del spec["save"]
        submitted = client.trainings.submit({**spec, **fields})
        assert submitted.name == self.name

    def log(self, task: str, attempt: int) -> str:
        return "\n".join(self.client.trainings.logs(self.name, task=task, attempt=attempt))

    def steps(self, attempt: int) -> list[int]:
        """The steps that the chief has told of."""
        return [int(step) for step in re.findall(r"\bstep (\d+)[ /].*loss", self.log("chief-0", attempt))]

    def await_steps(self, attempt: int, more: int = 2) -> int:
        """Wait until an attempt has learnt for so many epochs; the last step it told of."""

        def learnt() -> list[int]:
            training = self.client.trainings.get(self.name)
            assert training.attempt <= attempt, training.reason
            if training.attempt < attempt or training.state != "running":
                return []
            steps = self.steps(attempt)
            return steps if len(steps) >= more else []

        return until(learnt, f"attempt {attempt} of {self.name} learns: {self.client.trainings.get(self.name)}", 90)[-1]

    def go(self) -> Training:
        (self.out / "hold").unlink()
        return wait_freed(self.client, self.name, timeout=90)

    def starts(self) -> list[str]:
        """Attempt and task of every start, sorted."""
        return sorted(" ".join(line.split()[:2]) for line in (self.out / "starts").read_text().splitlines())

    def going_on_from(self, attempt: int) -> int:
        """The step at which an attempt went on."""
        found = re.search(r"^going on from .*?(?:step|epoch) (\d+)$", self.log("chief-0", attempt), re.MULTILINE)
        assert found is not None, self.log("chief-0", attempt)
        return int(found[1])


@pytest.fixture(scope="module")
def client(product: Product) -> Client:
    client = product.client()
    data = product.home / "data"
    subprocess.run([sys.executable, EXAMPLES / "digits" / "prepare.py", "--out", data / "digits"], check=True)
    for name in ("digits", "runs"):
        client.datastores.create({"name": name, "local": {"path": str(data / name)}})
        client.datastores.wait(name, timeout=60)
    return client


Begin = Callable[..., Lesson]


@pytest.fixture
def begin(product: Product, client: Client) -> Iterator[Begin]:
    """Begins a lesson; what a failed test leaves running is stopped."""
    begun: list[str] = []

    def make(example: str, code: Path, **fields: object) -> Lesson:
        lesson = Lesson(product, client, example, code, **fields)
        begun.append(lesson.name)
        return lesson

    yield make
    for name in begun:
        with contextlib.suppress(Conflict):
            client.trainings.stop(name)


CLUSTER = ["chief-0", "ps-0", "worker-0"]
SMALL = {"cpu": 0.5, "memory": "1Gi"}


def test_beside_parameter_servers(product: Product, client: Client, begin: Begin, tmp_path: Path) -> None:
    """A worker comes back on its address; without its ps, or after `elearn down`, the next attempt goes on."""
    lesson = begin("digits", tmp_path, retries=1, roles={"chief": SMALL, "worker": SMALL, "ps": SMALL})
    lesson.await_steps(1)

    # The only worker: nothing is learnt without it, and the same attempt goes on once it is back on its address.
    address = {task.name: task.address for task in client.trainings.tasks(lesson.name)}
    product.kill_task(lesson.name, "worker-0")
    until(lambda: lesson.log("worker-0", 1).count("serves at") == 2, "it serves again")
    lesson.await_steps(1, len(lesson.steps(1)) + 2)
    tasks = {task.name: task for task in client.trainings.tasks(lesson.name)}
    assert {name: task.restarts for name, task in tasks.items()} == {"chief-0": 0, "ps-0": 0, "worker-0": 1}
    assert {name: task.address for name, task in tasks.items()} == address

    # A parameter server: the variables are gone.
    product.kill_task(lesson.name, "ps-0")
    lesson.await_steps(2)
    assert "ps-0 was ended by signal 9" in client.trainings.get(lesson.name).attempts[0].reason
    assert lesson.going_on_from(2) in lesson.steps(1)

    # Down and up: there are no retries left, and none is needed.
    assert product.run("down").returncode == 0
    assert product.processes() == {}
    product.up()
    lesson.await_steps(3)
    assert lesson.going_on_from(3) >= lesson.steps(2)[-2]  # the last one was perhaps not saved yet

    ended = lesson.go()
    assert (ended.state, ended.attempt) == ("succeeded", 3)
    assert [attempt.state for attempt in ended.attempts] == ["failed", "failed", "succeeded"]
    assert lesson.starts() == sorted([*(f"{n} {task}" for n in (1, 2, 3) for task in CLUSTER), "1 worker-0"])
    events = product.history(client)
    life = ["queued", *["starting", "running", "retrying"] * 2, "starting", "running", "succeeded", "freed"]
    assert told(events, "training", lesson.name) == life
    assert told(events, "task", lesson.name).count("restarted") == 1
    assert_nothing_held(client)


def test_among_mirrored_workers(product: Product, client: Client, begin: Begin, tmp_path: Path) -> None:
    """None can be missed: all end, and the next attempt goes on from the last checkpoint."""
    lesson = begin("mirrored", tmp_path, retries=1)
    lesson.await_steps(1)
    product.kill_task(lesson.name, "worker-0")
    lesson.await_steps(2)
    # The other one does not outlast it: which end is known first is left to the two.
    reason = client.trainings.get(lesson.name).attempts[0].reason
    assert re.search("worker-0 was ended by signal 9|chief-0 ended with exit code", reason)
    assert lesson.going_on_from(2) >= 2
    ended = lesson.go()
    assert (ended.state, ended.attempt) == ("succeeded", 2)
    assert lesson.starts() == ["1 chief-0", "1 worker-0", "2 chief-0", "2 worker-0"]
    assert_nothing_held(client)
