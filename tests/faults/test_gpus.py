"""Whole GPUs: handed out once, seen by nobody else, given back however a task ends. The inventory is a fake of two."""

import re
from collections.abc import Iterator

import pytest

from elearn import Client
from shared.errors import Invalid
from tests.support.product import Product, Trainings, assert_nothing_held, running, until, wait_freed

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with running(tmp_path_factory.mktemp("gpus") / "home", {"ELEARN_FAKE_GPUS": "2"}) as found:
        yield found


@pytest.fixture(scope="module")
def client(product: Product) -> Client:
    return product.client()


@pytest.fixture(scope="module")
def trainings(product: Product, client: Client) -> Trainings:
    return Trainings(client, product.home / "runs")


def seen_by(trainings: Trainings, name: str, tasks: int, attempt: int = 1) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES of each task of an attempt, as its process found it."""

    def of_attempt() -> dict[str, str]:
        starts = [start for start in trainings.starts(name) if start[0] == str(attempt)]
        return {task: seen.strip("'") for _, task, _, seen in starts} if len(starts) == tasks else {}

    return until(of_attempt, f"{tasks} tasks of attempt {attempt} of {name} have started")


def gpus_used(client: Client) -> int:
    return sum(node.gpu_used for node in client.cluster().nodes)


def reason(client: Client, name: str) -> str:
    training = client.trainings.get(name)
    assert training.state == "queued"
    return training.reason


def test_none_is_shared_and_who_waits_is_told_why(client: Client, trainings: Trainings) -> None:
    one = trainings.submit("one", {"chief": {"gpu": 1}, "worker": {"replicas": 2}}).name
    seen = seen_by(trainings, one, 3)
    assert seen == {"chief-0": seen["chief-0"], "worker-0": "", "worker-1": ""}
    assert seen["chief-0"] in ("0", "1")
    assert {task.name: task.gpus for task in client.trainings.wait(one, until="running").tasks} == {
        "chief-0": (seen["chief-0"],),
        "worker-0": (),
        "worker-1": (),
    }

    both = trainings.submit("both", {"chief": {"gpu": 1}, "worker": {"gpu": 1}}).name
    assert re.search(r"waiting for 2 GPUs: 1 of 2 in use by default/one-1", reason(client, both))
    assert trainings.starts(both) == []
    none = trainings.submit("none").name
    assert seen_by(trainings, none, 1) == {"chief-0": ""}  # what needs no GPU waits for none
    trainings.go(none)

    trainings.go(one)
    assert wait_freed(client, one).state == "succeeded"
    assert sorted(seen_by(trainings, both, 2).values()) == ["0", "1"]
    assert gpus_used(client) == 2
    trainings.go(both)
    assert wait_freed(client, both).state == "succeeded"
    assert gpus_used(client) == 0


def test_one_each_at_the_same_time(client: Client, trainings: Trainings) -> None:
    names = [trainings.submit("each", {"chief": {"gpu": 1}}).name for _ in range(3)]
    first, second = (seen_by(trainings, name, 1)["chief-0"] for name in names[:2])
    assert {first, second} == {"0", "1"}
    assert "waiting for 1 GPU: 2 of 2 in use" in reason(client, names[2])
    trainings.go(names[1])
    assert seen_by(trainings, names[2], 1)["chief-0"] == second
    for name in (names[0], names[2]):
        trainings.go(name)
        assert wait_freed(client, name).state == "succeeded"


def test_given_back_when_the_chief_is_killed(product: Product, client: Client, trainings: Trainings) -> None:
    roles = {"chief": {"gpu": 2}, "worker": {}, "ps": {}}
    killed = trainings.submit("killed", roles, retries=1).name
    seen_by(trainings, killed, 3)
    waiting = trainings.submit("waiting", {"chief": {"gpu": 2}}).name
    product.kill_task(killed, "chief-0")
    assert seen_by(trainings, killed, 3, attempt=2) == {"chief-0": "0,1", "worker-0": "", "ps-0": ""}
    product.kill_task(killed, "chief-0")
    ended = wait_freed(client, killed)
    assert (ended.state, ended.attempt) == ("failed", 2)
    assert "chief-0 was ended by signal 9" in ended.reason
    assert product.tasks(killed) == {}
    assert seen_by(trainings, waiting, 1)["chief-0"] == "0,1"
    trainings.go(waiting)
    assert wait_freed(client, waiting).state == "succeeded"


def test_nobody_is_robbed_when_everything_is_killed(product: Product, client: Client, trainings: Trainings) -> None:
    """The ledger outlives the service that wrote it."""
    held = trainings.submit("held", {"chief": {"gpu": 1}}).name
    seen = seen_by(trainings, held, 1)["chief-0"]
    other = trainings.submit("other", {"chief": {"gpu": 2}}).name
    for part in ("scheduler", "postgres"):
        product.await_back(part, product.kill(part))
    assert "in use by default/held-1" in reason(client, other)
    third = trainings.submit("third", {"chief": {"gpu": 1}}, priority=5).name
    assert {seen, seen_by(trainings, third, 1)["chief-0"]} == {"0", "1"}
    for name in (held, third, other):
        trainings.go(name)
        assert wait_freed(client, name).state == "succeeded"


def test_more_than_there_will_ever_be_is_refused_at_once(client: Client, trainings: Trainings) -> None:
    with pytest.raises(Invalid) as refused:
        trainings.submit("many", {"chief": {"gpu": 3}})
    assert any("gpu" in error.field and "2" in error.message for error in refused.value.errors)


def test_nothing_is_left_over(product: Product, client: Client) -> None:
    assert_nothing_held(client)
    assert gpus_used(client) == 0
