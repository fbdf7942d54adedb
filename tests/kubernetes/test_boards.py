"""TensorBoard on a real cluster: opened by a look, shown by the gateway alone, ended when nobody looks."""

import json
import time

import httpx
import pytest

from elearn import Client
from shared.errors import Unavailable
from shared.kube.objects import Partial
from shared.kube.resources import DEPLOYMENTS
from tests.kubernetes.live import IMAGE, SMALL, LiveCluster, until
from tests.support.product import Product

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow, pytest.mark.tensorflow]

WRITE = """
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
writer = EventFileWriter("out/logs")
for step in range(3):
    writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=3.0 - step)])))
writer.close()
"""


def fetched(url: str, token: str) -> tuple[int, bytes]:
    answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=30)
    return answer.status_code, answer.content


def opened(client: Client, name: str) -> str:
    """Its address; it may take a moment to start."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return client.trainings.board(name)
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"TensorBoard did not come up: {error.detail}") from error


def test_a_training_s_curves_are_shown_until_nobody_looks(
    live: LiveCluster, product: Product, client: Client, runs: str
) -> None:
    training = client.trainings.submit(
        {
            "name": "curves",
            "image": IMAGE,
            "command": ["python", "-c", WRITE],
            "roles": {"chief": {**SMALL, "memory": "1Gi"}},
            "mounts": [{"datastore": runs, "path": "out", "own": True}],
            "tensorboard": "out/logs",
        }
    )
    over = client.trainings.wait(training.name, timeout=120)
    assert over.state == "succeeded", over.reason

    def deployments() -> list[Partial]:
        found: list[Partial] = live.call(
            lambda cluster: cluster.list(
                DEPLOYMENTS, Partial, namespace=live.namespace(), labels={"elearn.dev/training": training.name}
            )
        )
        return found

    assert deployments() == []
    url = opened(client, training.name)
    token = (product.home / "token").read_text().strip()
    status, page = fetched(url, token)
    assert (status, b"<title>TensorBoard</title>" in page) == (200, True)

    def shown() -> bool:
        status, body = fetched(f"{url}data/plugin/scalars/tags", token)
        return status == 200 and any("loss" in tags for tags in json.loads(body).values())

    until(shown, "the loss is there", 60)
    assert fetched(url, "")[0] == 401
    assert len(deployments()) == 1
    until(lambda: not deployments(), "nobody looked, so it has ended", 60)
