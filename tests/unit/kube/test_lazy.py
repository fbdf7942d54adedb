"""The local cloud neither loads nor waits for what only Kubernetes needs."""

import subprocess
import sys

import pytest

CODE = "import sys, services.{room}.app; print([name for name in sys.modules if 'kube' in name])"
HEAVY = ("asyncpg", "nats", "numpy", "tensorflow")
IN_PODS = (
    "services.datastore.cloud.kubernetes.agent",
    "services.registry.cloud.kubernetes.agent",
    "services.registry.cloud.kubernetes.work",
)


def printed(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout.strip()


@pytest.mark.parametrize("room", ["datastore", "registry", "serving"])
def test_a_room_on_the_local_cloud_knows_no_kubernetes(room: str) -> None:
    assert printed(CODE.format(room=room)) == "[]"


@pytest.mark.parametrize("module", IN_PODS)
def test_what_runs_in_pods_loads_no_more_than_it_needs(module: str) -> None:
    assert printed(f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])") == "[]"
