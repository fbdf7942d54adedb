"""elearn installed in the cluster by its chart: the main job through the gateway inside.

It needs helm (`make .tools/bin/helm`), and no image but elearn's own, which brings NATS and PostgreSQL.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from elearn import Client
from elearn.client.connection import Connection
from tests.kubernetes.conftest import make_datastore
from tests.kubernetes.inside import Inside
from tests.kubernetes.live import IMAGE, SMALL, STORAGE_CLASS, needs, until

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.slow,
    pytest.mark.tensorflow,
    needs(os.environ.get("ELEARN_TEST_IN_CLUSTER", ""), "ELEARN_TEST_IN_CLUSTER"),
]

TOY = Path(__file__).parents[1] / "support" / "toy_model.py"
LEARN = """
import os, pathlib, shutil, time
print("learning", flush=True)
if os.environ["ELEARN_ROLE"] == "chief":
    shutil.copytree("data/1", "out/export")
while not pathlib.Path("data/enough").exists():
    time.sleep(0.2)
print("learned", flush=True)
"""


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    """The control plane in the cluster, and afterwards nothing of it."""
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        pytest.skip("KUBECONFIG names no cluster")
    inside = Inside(kubeconfig)
    try:
        inside.live.prepare(system=False)
        if STORAGE_CLASS:
            inside.live.open_project()
        try:
            inside.install()
        except AssertionError as error:
            raise AssertionError(f"{error}: {inside.troubles()}") from error
        yield inside
    finally:
        inside.remove()


@pytest.fixture(scope="module")
def client(inside: Inside) -> Iterator[Client]:
    with inside.gateway() as url, Client.at(Connection(url=url, token=inside.token)) as client:
        yield client


@pytest.fixture(scope="module")
def data(inside: Inside, client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A datastore with a small model in it."""
    folder = tmp_path_factory.mktemp("toy")
    subprocess.run([sys.executable, TOY, folder, "1"], check=True, timeout=120)
    name = make_datastore(inside.live, client, "data")
    client.datastores.upload(name, folder)
    return name


def test_the_main_job_runs_through_the_gateway_inside(
    inside: Inside, client: Client, data: str, tmp_path: Path
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "learn.py").write_text(LEARN)
    training = client.trainings.submit(
        {
            "name": "learn",
            "image": IMAGE,
            "command": ["python", "learn.py"],
            "roles": {"chief": SMALL, "worker": {**SMALL, "replicas": 1}},
            "mounts": [
                {"datastore": data, "path": "data", "read_only": True},
                {"datastore": data, "path": "out", "own": True},
            ],
            "save": {"model": "toy", "path": "out/export"},
        },
        code=code,
    )
    until(lambda: client.trainings.get(training.name).state == "running", "it runs", 120)
    until(lambda: "learning" in "\n".join(client.trainings.logs(training.name)), "its log is read live", 60)
    inside.delete_pods("scheduler")
    (tmp_path / "enough").touch()
    client.datastores.upload(data, tmp_path / "enough", "enough")
    over = client.trainings.wait(training.name, timeout=180)
    assert (over.state, over.attempt) == ("succeeded", 1), over.reason
    until(lambda: client.trainings.get(training.name).freed_at is not None, "it is freed", 60)
    assert "learned" in "\n".join(client.trainings.logs(training.name))
    version = client.models.wait_saved("toy", training.name, timeout=120)
    client.servings.create({"name": "toy", "model": "toy", "version": version.number})
    serving = client.servings.wait("toy", timeout=180)
    assert serving.endpoint is not None
    assert ".svc.cluster.local" in serving.endpoint.grpc
    answer = client.servings.predict("toy", instances=[[0.0, 0.0]])
    assert answer.predictions is not None
    client.servings.delete("toy")


def test_a_training_is_stopped_through_the_gateway_inside(client: Client) -> None:
    training = client.trainings.submit(
        {"name": "long", "image": IMAGE, "command": ["sleep", "600"], "roles": {"chief": SMALL}}
    )
    until(lambda: client.trainings.get(training.name).state == "running", "it runs", 120)
    client.trainings.stop(training.name)
    over = client.trainings.wait(training.name, timeout=60)
    assert over.state == "stopped"
    until(lambda: client.trainings.get(training.name).freed_at is not None, "it is freed", 60)
