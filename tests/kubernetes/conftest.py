"""`make test-kubernetes`: the product outside the cluster that KUBECONFIG names, working on it.

ELEARN_TEST_IMAGE                 elearn's full image, which nodes have or can pull (elearn:dev)
ELEARN_TEST_STORAGE_CLASS         storage by claims of this class; not set: a folder of the only node
ELEARN_TEST_HOST_ROOT             that folder (/tmp/elearn-test), made where it is missing
ELEARN_TEST_RESTART_API_SERVER    a command that restarts the API server; not set: that test is skipped
ELEARN_TEST_IN_CLUSTER=1          install the manifests too, and run through the gateway inside
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from elearn import Client
from tests.kubernetes.live import IMAGE, STORAGE_CLASS, LiveCluster
from tests.support.product import Product, running


@pytest.fixture(scope="session")
def live() -> Iterator[LiveCluster]:
    """The cluster, and afterwards nothing of ours in it."""
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        pytest.skip("KUBECONFIG names no cluster")
    cluster = LiveCluster(kubeconfig)
    try:
        cluster.prepare()
        if STORAGE_CLASS:
            cluster.open_project()
        yield cluster
    finally:
        cluster.clean_up()


@pytest.fixture(scope="session")
def product(live: LiveCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`elearn up` beside the cluster."""
    environment = {
        "ELEARN_CLOUD": "kubernetes",
        "ELEARN_KUBERNETES_INSTALLATION": live.installation,
        "ELEARN_KUBERNETES_NAMESPACE": live.system,
        "ELEARN_KUBERNETES_PROJECT_NAMESPACE": live.namespace("{project}"),
        "ELEARN_KUBERNETES_IMAGE": IMAGE,
        "ELEARN_KUBERNETES_SERVING_SERVER": "elearn",
        "ELEARN_KUBERNETES_START_SECONDS": "8",
        "ELEARN_SERVING_CPU": "0.1",
        "ELEARN_KUBERNETES_SAVE_CPU": "100m",
        "ELEARN_BOARD_IDLE": "15",
    }
    if STORAGE_CLASS:
        environment["ELEARN_KUBERNETES_MODEL_STORE"] = "claim:models"
        environment["ELEARN_KUBERNETES_SINGLE_NODE_CLASSES"] = STORAGE_CLASS
    else:
        environment["ELEARN_KUBERNETES_MODEL_STORE"] = f"host:{live.folder}/models"
        environment["ELEARN_KUBERNETES_HOST_ROOTS"] = live.root
    with running(tmp_path_factory.mktemp("kubernetes") / "home", environment) as product:
        yield product
        assert product.tracebacks() == []


@pytest.fixture(scope="session")
def client(product: Product) -> Iterator[Client]:
    with product.client() as client:
        yield client


@pytest.fixture(scope="session")
def runs(live: LiveCluster, client: Client) -> str:
    """A datastore that trainings write to."""
    return make_datastore(live, client, "runs")


@pytest.fixture(scope="session")
def digits(live: LiveCluster, client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A datastore with the handwritten digits, uploaded through the API."""
    folder = tmp_path_factory.mktemp("digits")
    prepare = Path(__file__).parents[2] / "examples" / "digits" / "prepare.py"
    subprocess.run([sys.executable, prepare, "--out", folder], check=True, timeout=60)
    name = make_datastore(live, client, "digits")
    client.datastores.upload(name, folder)
    return name


def make_datastore(live: LiveCluster, client: Client, name: str) -> str:
    """A datastore on whatever storage there is."""
    if STORAGE_CLASS:
        client.datastores.create({"name": name, "claim": {"storage_class": STORAGE_CLASS, "size": "1Gi"}})
    else:
        live.as_root(f"mkdir -p {live.root}/{name} && chmod 0777 {live.root}/{name}")
        client.datastores.create({"name": name, "local": {"path": f"{live.root}/{name}"}})
    client.datastores.wait(name, timeout=120)
    if STORAGE_CLASS:
        live.open_claims()
    return name
