"""NATS or PostgreSQL away, hung, or robbed of its data: requests are told so, work goes on, nothing is lost."""

import concurrent.futures
import contextlib
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from elearn import Client
from shared.contracts.event import Event
from tests.contract.job_cloud_models import write_saved_model
from tests.support.product import Product, Trainings, assert_nothing_held, running, told, until, wait_freed

pytestmark = [pytest.mark.slow]

CLUSTER: dict[str, object] = {"chief": {}, "worker": {}}
LIFE = ["queued", "starting", "running", "succeeded", "freed"]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with running(tmp_path_factory.mktemp("away") / "home") as found:
        yield found


@pytest.fixture(scope="module")
def client(product: Product) -> Client:
    return product.client()


@pytest.fixture(scope="module")
def trainings(product: Product, client: Client) -> Trainings:
    return Trainings(client, product.home / "runs")


@contextmanager
def away(product: Product, part: str) -> Iterator[None]:
    """A part is killed and stays away until the end of the block."""
    before = product.pid(part)
    assert before is not None
    with product.unsupervised():
        os.kill(before, signal.SIGKILL)
        until(lambda: product.pid(part) is None, f"{part} has gone")
        yield
    product.await_back(part, before)


@contextmanager
def hung(pids: list[int]) -> Iterator[None]:
    """Processes that are there and do nothing."""

    def tell(number: signal.Signals) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # one that was idle may have ended by itself
                os.kill(pid, number)

    try:
        tell(signal.SIGSTOP)
        yield
    finally:
        tell(signal.SIGCONT)


def assert_told_to_try_again(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert int(answer.headers["Retry-After"]) >= 1
    problem = answer.json()
    assert problem["status"] == 503
    assert problem["detail"]
    assert "Traceback" not in answer.text
    assert "\n" not in problem["detail"]


@pytest.mark.parametrize("part", ["nats", "postgres", "scheduler"])
def test_away_for_a_while(product: Product, client: Client, trainings: Trainings, part: str) -> None:
    """A submit is refused for now, not half done; what runs ends meanwhile, and everybody hears of it later."""
    name = trainings.submit(part, CLUSTER).name
    client.trainings.wait(name, until="running")
    key = {"Idempotency-Key": f"while-{part}-is-away"}
    with product.http() as http:
        with away(product, part):
            assert_told_to_try_again(http.post("/trainings", json=trainings.spec("later"), headers=key))
            assert_told_to_try_again(http.get(f"/trainings/{name}"))
            if part == "nats":
                assert_told_to_try_again(http.get("/events", params={"since": "0"}))
            assert http.get(f"{product.connection.url}/healthz").status_code == 200
            trainings.go(name)
            until(lambda: not product.tasks(name), "its tasks end by themselves")
        submitted = http.post("/trainings", json=trainings.spec("later"), headers=key)
        assert submitted.status_code in (201, 202), submitted.text
    later = submitted.json()["name"]
    trainings.go(later)
    for each, tasks in ((name, 2), (later, 1)):
        ended = wait_freed(client, each)
        assert (ended.state, ended.attempt) == ("succeeded", 1)
        assert len(trainings.starts(each)) == tasks


@pytest.mark.parametrize("part", ["postgres", "nats"])
def test_there_but_silent(product: Product, trainings: Trainings, part: str) -> None:
    """Nobody waits for ever: each request ends in an answer that says to try again."""
    key = {"Idempotency-Key": f"while-{part}-is-silent"}
    master = product.pid(part)
    assert master is not None
    with product.http() as http, concurrent.futures.ThreadPoolExecutor() as asking:
        with hung(product.postgres_tree() if part == "postgres" else [master]):
            asked = time.monotonic()
            answers = [
                asking.submit(http.post, "/trainings", json=trainings.spec("once"), headers=key),
                asking.submit(http.get, "/trainings"),
                asking.submit(http.get, "/models"),
                asking.submit(http.get, "/datastores/runs"),
            ]
            for each in answers:
                assert_told_to_try_again(each.result())
            assert time.monotonic() - asked < 25
        product.await_ready()
        again = http.post("/trainings", json=trainings.spec("once"), headers=key)
        assert again.status_code in (201, 202), again.text
        trainings.go(again.json()["name"])
        ended = wait_freed(trainings.client, again.json()["name"])
        assert (ended.state, len(trainings.starts(ended.name))) == ("succeeded", 1)
    assert product.pid(part) == master


def test_nothing_was_told_twice_or_in_a_traceback(product: Product, client: Client) -> None:
    assert_lives(product.history(client), client)
    assert product.tracebacks() == []


def assert_lives(events: list[Event], client: Client) -> None:
    for training in client.trainings.list():
        assert told(events, "training", training.name) == LIFE
        assert Counter(told(events, "task", training.name))["running"] == len(training.tasks)


# -- NATS without its data


def wipe(product: Product) -> None:
    """The server dies, and what it has stored is gone."""
    before = product.pid("nats")
    assert before is not None
    with product.unsupervised():
        os.kill(before, signal.SIGKILL)
        until(lambda: product.pid("nats") is None, "it has gone")
        shutil.rmtree(product.home / "nats" / "data")
    product.await_back("nats", before)


def test_nats_wiped_while_something_runs_and_afterwards(product: Product, client: Client, trainings: Trainings) -> None:
    name = trainings.submit("wiped", {"chief": {}, "worker": {}}).name
    started = trainings.await_started(name, 2)
    client.trainings.wait(name, until="running")
    before = product.events(client)
    wipe(product)
    trainings.go(name)
    ended = wait_freed(client, name)
    assert (ended.state, ended.attempt) == ("succeeded", 1)
    assert trainings.starts(name) == started

    def complete() -> list[Event]:
        events = product.events(client)
        again = {event.id for event in before} <= {event.id for event in events}
        return events if again and told(events, "training", name) == LIFE else []

    after = until(complete, "the history is there again")
    assert_lives(after, client)

    wipe(product)  # when nothing runs: told again from the logs of the services alone

    def whole() -> bool:
        return {event.id for event in product.events(client)} == {event.id for event in after}

    until(whole, "the same history is there a third time")
    assert_lives(product.events(client), client)
    assert trainings.starts(name) == started


def test_nothing_is_done_twice_when_the_history_is_told_again(
    product: Product, client: Client, trainings: Trainings
) -> None:
    """A training with ``save:`` is saved once, however often its end is told."""
    folder = trainings.folder / "saved-1"
    write_saved_model(folder / "export")
    name = trainings.submit("saved", save={"model": "model", "path": "out/export"}).name
    trainings.go(name)
    assert wait_freed(client, name).state == "succeeded"
    assert client.models.wait_saved("model", name, timeout=60).number == 1
    before = {event.id for event in product.events(client)}
    wipe(product)
    until(lambda: {event.id for event in product.events(client)} >= before, "the history is there again")
    # What comes last in the queue of the registry's consumer is handled last: a second save, asked for by an event.
    write_saved_model(trainings.folder / "saved-2" / "export")
    second = trainings.submit("saved", save={"model": "model", "path": "out/export"}).name
    trainings.go(second)
    assert client.models.wait_saved("model", second, timeout=60).number == 2
    assert sorted(version.number for version in client.models.versions("model")) == [1, 2]
    assert told(product.history(client), "version", "model") == ["saving", "ready"] * 2


def test_nothing_is_left_over(product: Product, client: Client) -> None:
    assert_nothing_held(client)
    assert list(client.deadletters.list()) == []
    assert product.json("status")["ready"] is True
    assert product.tracebacks() == []
