"""The local cloud neither loads nor waits for what only Kubernetes needs."""

import subprocess
import sys

import pytest

CODE = "import sys, services.{room}.app; print([name for name in sys.modules if 'kube' in name])"


@pytest.mark.parametrize("room", ["datastore", "registry", "serving"])
def test_a_room_on_the_local_cloud_knows_no_kubernetes(room: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CODE.format(room=room)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == "[]"
