"""Models on a real cluster: saved by a Job, downloaded, served by a Deployment, scaled, and rolled under load."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from elearn import Client
from elearn.grpc import PredictClient
from shared.errors import Conflict, ElearnError
from shared.kube.objects import Partial
from shared.kube.resources import AUTOSCALERS, DEPLOYMENTS, DISRUPTION_BUDGETS, SERVICES, Resource
from tests.kubernetes.live import LiveCluster, until

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow, pytest.mark.tensorflow]

TOY = Path(__file__).parents[1] / "support" / "toy_model.py"


@pytest.fixture(scope="module")
def toy(client: Client, runs: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two versions of a model: each answers with half of what it is asked, plus its number."""
    folder = tmp_path_factory.mktemp("toy")
    subprocess.run([sys.executable, TOY, folder, "1", "2"], check=True, timeout=120)
    client.datastores.upload(runs, folder, "toy")
    for number in (1, 2):
        saved = client.models.save("toy", f"toy/{number}", datastore=runs)
        ready = client.models.wait("toy", saved.number, timeout=120)
        assert (ready.number, ready.state) == (number, "ready"), ready.reason
    return "toy"


def predicted(client: Client) -> float:
    """What the serving answers to twice nothing: the number of the version that answered."""
    answer = client.servings.predict("toy", instances=[[0.0, 0.0]])
    assert answer.predictions is not None
    return float(np.asarray(answer.predictions).ravel()[0])


def test_a_version_is_downloaded_as_it_was_saved(client: Client, runs: str, toy: str, tmp_path: Path) -> None:
    client.models.download(toy, 1, tmp_path / "one")
    assert (tmp_path / "one" / "saved_model.pb").stat().st_size > 0
    nowhere = client.models.save(toy, "nothing/here", datastore=runs)
    with pytest.raises(Conflict, match=r"nothing/here in datastore .*: there is no such folder"):
        client.models.wait(toy, nowhere.number, timeout=120)


def test_a_model_is_served_scaled_and_rolled_without_a_request_lost(
    live: LiveCluster, client: Client, toy: str
) -> None:
    client.servings.create({"name": "toy", "model": toy, "version": 1})
    serving = client.servings.wait("toy", timeout=180)
    assert serving.endpoint is not None
    assert predicted(client) == 1.0
    with PredictClient(serving.endpoint.grpc) as grpc:
        answered = grpc.predict(toy, {"x": np.zeros((3, 2), np.float32)})
    assert answered.outputs["y"].ravel().tolist() == [1.0] * 6

    client.servings.update("toy", replicas=2)

    def scaled() -> bool:
        found = client.servings.get("toy")
        return found.state == "ready" and found.ready_replicas == 2

    until(scaled, "two replicas are ready", 180)
    with asking(client) as (answers, failures):
        until(lambda: len(answers) > 20, "requests are answered", 60)
        client.servings.update("toy", version=2)
        until(lambda: client.servings.get("toy").state == "ready" and 2.0 in answers, "version 2 answers", 240)
        many = len(answers) + 20
        until(lambda: len(answers) > many, "it goes on", 60)
    assert failures == []
    assert set(answers) == {1.0, 2.0}
    assert answers[-1] == 2.0
    client.servings.rollback("toy")
    until(lambda: client.servings.get("toy").state == "ready" and predicted(client) == 1.0, "version 1 again", 240)
    client.servings.update("toy", max_replicas=3)
    until(lambda: len(objects(live, AUTOSCALERS)) == 1, "an autoscaler decides between the bounds", 60)
    until(lambda: client.servings.get("toy").state == "ready" and predicted(client) == 1.0, "it still answers", 60)
    client.servings.delete("toy")
    for kind in (AUTOSCALERS, DEPLOYMENTS, DISRUPTION_BUDGETS, SERVICES):
        until(partial(none_left, live, kind), f"no {kind.kind} is left", 60)


def none_left(live: LiveCluster, kind: Resource) -> bool:
    return not objects(live, kind)


def objects(live: LiveCluster, kind: Resource) -> list[Partial]:
    """What the serving has of a kind."""
    found: list[Partial] = live.call(
        lambda cluster: cluster.list(kind, Partial, namespace=live.namespace(), labels={"elearn.dev/serving": "toy"})
    )
    return found


@contextmanager
def asking(client: Client) -> Iterator[tuple[list[float], list[str]]]:
    """Requests one after the other, for as long as the block takes: the answers, and what went wrong."""
    answers: list[float] = []
    failures: list[str] = []
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            try:
                answers.append(predicted(client))
            except (ElearnError, AssertionError) as error:
                failures.append(str(error))

    thread = threading.Thread(target=ask, name="asking")
    thread.start()
    try:
        yield answers, failures
    finally:
        enough.set()
        thread.join()
