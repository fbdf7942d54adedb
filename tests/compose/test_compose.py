"""docker-compose.yml for real: images built, the main job in containers, services killed under it.

`make test-compose` runs this; `make test` does not, for it needs a Docker engine, gigabytes of images and minutes.
The engine's registry, or the environment (BASE_IMAGE, PACKAGE_INDEX, NATS_IMAGE, POSTGRES_IMAGE, as docker-compose.yml
reads them), says what the images are made of.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from elearn import Client
from elearn.client.connection import Connection
from elearn.grpc import PredictClient
from shared.contracts.training import Training
from shared.errors import ElearnError, Unavailable

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
ENOUGH = 0.95
SERVICES = ("api", "scheduler", "datastore", "registry", "serving")

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow, pytest.mark.tensorflow]


def _command() -> list[str] | str:
    """The command for compose; where there is none, or no engine answers, why."""
    candidates = (["docker", "compose"], ["docker-compose"])
    found = next((each for each in candidates if shutil.which(each[0]) and _works([*each, "version"])), None)
    if found is None:
        return "neither `docker compose` nor `docker-compose` is installed"
    if not _works(["docker", "version"]):
        return "no Docker engine answers: start one, or name it with DOCKER_HOST"
    return found


def _works(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait until the condition holds, as what is waited for tells nobody that it happened."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds:g} s still not: {what}")
        time.sleep(0.2)


class Composed:
    """A compose project of its own, on a free port."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._env_file = folder / "env"
        self._command = [
            *command,
            *("--project-directory", str(ROOT), "--file", str(ROOT / "docker-compose.yml")),
            *("--env-file", str(self._env_file), "--project-name", f"elearn-test-{secrets.token_hex(3)}"),
        ]
        self._environment = {
            "EXTRAS": "--extra examples",  # for the digits that scikit-learn carries
            "DOCKER_BUILDKIT": "1",
            "COMPOSE_DOCKER_CLI_BUILD": "1",
            **{key: value for key, value in os.environ.items() if not key.startswith("ELEARN_")},
            "ELEARN_PORT": "0",
            "ELEARN_CPUS": "4",
            "ELEARN_IMAGE": "elearn:test",
        }
        subprocess.run([ROOT / "deploy" / "compose" / "make-env", self._env_file], check=True, timeout=30)
        self.settings = dict(line.split("=", 1) for line in self._env_file.read_text().splitlines())

    def run(self, *arguments: str, timeout: float = 120) -> str:
        """What a compose command that must succeed prints."""
        ran = subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert ran.returncode == 0, f"{' '.join(arguments)}: {ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
        return ran.stdout

    def inside(self, service: str, *command: str) -> str:
        """What a command in a service's container prints."""
        return self.run("exec", "-T", service, *command)

    def url(self) -> str:
        return f"http://{self.run('port', 'machine', '8470').strip()}"

    def client(self) -> Client:
        return Client.at(Connection(url=self.url(), token=self.settings["ELEARN_ADMIN_TOKEN"]))

    def is_ready(self, service: str) -> bool:
        """Whether the service's own health check passes."""
        check = [*self._command, "exec", "-T", service, "python3", "-I", "-S", "/opt/elearn/docker/healthy.py"]
        return (
            subprocess.run(check, env=self._environment, capture_output=True, timeout=60, check=False).returncode == 0
        )

    def kill(self, module: str, user: int = 10001) -> None:
        """kill -9 of a service's process, from the container `machine`, where all processes are seen."""
        script = (
            "import os, pathlib, signal\n"
            "for entry in pathlib.Path('/proc').glob('[0-9]*'):\n"
            "    words = (entry / 'cmdline').read_bytes().split(b'\\0')\n"
            f"    if words[1:4] == [b'-P', b'-m', b'{module}']:\n"
            "        os.kill(int(entry.name), signal.SIGKILL)\n"
            "        print(entry.name)\n"
        )
        killed = self.run("exec", "-T", "--user", str(user), "machine", "python3", "-I", "-S", "-c", script)
        assert killed.strip(), f"{module} does not run"


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    command = _command()
    if isinstance(command, str):
        pytest.skip(command)
    found = Composed(command, tmp_path_factory.mktemp("compose"))
    try:
        found.run("build", timeout=1200)
        found.run("up", "--detach", timeout=300)
        until(lambda: all(found.is_ready(each) for each in SERVICES), "every service is ready", 120)
        yield found
    except BaseException:
        sys.stderr.write(found.run("logs", "--tail", "40"))
        raise
    finally:
        found.run("down", "--volumes", "--timeout", "20", timeout=120)


@pytest.fixture(scope="module")
def client(composed: Composed) -> Iterator[Client]:
    with composed.client() as found:
        yield found


@pytest.fixture(scope="module")
def digits(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The held-out digits; all of them lie in a datastore of the containers, put there through the gateway."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, DIGITS / "prepare.py", "--out", folder], check=True, timeout=60)
    for name in ("digits", "runs"):
        client.datastores.create({"name": name, "local": {"path": f"/data/{name}"}})
        assert client.datastores.wait(name, timeout=30).state == "ready"
    client.datastores.upload("digits", folder)
    return folder / "digits.npz"


@pytest.fixture(scope="module")
def trained(client: Client, composed: Composed, digits: Path) -> Training:
    """A training during which the scheduler, the registry and the gateway were killed."""
    submitted = client.trainings.submit(DIGITS / "training.yaml")
    assert client.trainings.wait(submitted.name, until="running", timeout=120).state == "running"
    composed.kill("services.scheduler")
    composed.kill("services.registry")
    composed.kill("services.api", user=10002)  # its container ends with it, and the engine starts it again

    def ended() -> bool:
        try:
            return client.trainings.get(submitted.name).finished_at is not None
        except Unavailable:
            return False  # the gateway is being started again

    until(ended, "the training has ended", 300)
    return client.trainings.wait(submitted.name, until="freed", timeout=60)


def test_nothing_runs_as_root_or_with_rights(composed: Composed) -> None:
    for service in (*SERVICES, "machine"):
        script = "print(*open('/proc/self/status').read().split('\\n'), sep='\\n')"
        status = composed.inside(service, "python3", "-I", "-S", "-c", script)
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Uid"].split() == ["10002" if service == "api" else "10001"] * 4
        assert int(fields["CapEff"], 16) == 0
        assert fields["NoNewPrivs"] == "1"


def test_tasks_can_not_read_the_gateways_environment_or_token(composed: Composed) -> None:
    script = (
        "import pathlib\n"
        "for entry in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    if b'services.api' in (entry / 'cmdline').read_bytes():\n"
        "        try:\n"
        "            (entry / 'environ').read_bytes()\n"
        "        except PermissionError:\n"
        "            print('refused')\n"
    )
    assert composed.inside("scheduler", "python3", "-c", script).split() == ["refused"]
    assert composed.inside("scheduler", "sh", "-c", "ls /run/elearn 2>&1 || true").endswith("Permission denied\n")


def test_only_this_machine_reaches_the_gateway_and_only_with_the_token(composed: Composed) -> None:
    assert composed.url().startswith("http://127.0.0.1:")
    stranger = Client.at(Connection(url=composed.url(), token="a-token-that-is-none"))
    with stranger, pytest.raises(ElearnError, match="token"):
        stranger.cluster()


def test_a_service_can_not_enter_anothers_database(composed: Composed) -> None:
    script = (
        "import asyncio, asyncpg, os\n"
        "url = os.environ['ELEARN_POSTGRES_URL'].rpartition('/')[0] + '/api'\n"
        "async def main():\n"
        "    try:\n"
        "        await asyncpg.connect(url)\n"
        "    except asyncpg.InsufficientPrivilegeError:\n"
        "        print('refused')\n"
        "asyncio.run(main())\n"
    )
    assert composed.inside("scheduler", "python3", "-c", script).strip() == "refused"


def test_a_training_outlives_killed_services(trained: Training) -> None:
    assert (trained.state, trained.attempt) == ("succeeded", 1), trained.reason
    assert trained.freed_at is not None
    assert {task.name for task in trained.tasks} == {"chief-0", "worker-0", "worker-1", "ps-0"}


def test_its_logs_are_kept(client: Client, trained: Training) -> None:
    assert any("held-out accuracy" in line for line in client.trainings.logs(trained.name))


def test_a_board_opens_through_the_gateway(client: Client, trained: Training) -> None:
    assert client.trainings.board(trained.name)


def test_its_model_is_served_and_predicts(client: Client, trained: Training, digits: Path) -> None:
    version = client.models.wait_saved("digits", trained.name, timeout=120)
    client.servings.create({"name": "digits", "model": "digits", "version": version.number, "replicas": 2})
    serving = client.servings.wait("digits", timeout=240)
    with np.load(digits) as arrays:
        pixels, wanted = arrays["x_test"], arrays["y_test"]
    assert serving.endpoint is not None
    with PredictClient(serving.endpoint.grpc) as grpc:  # from this host, straight to the model server
        over_grpc = grpc.predict("digits", {"pixels": pixels}, timeout=60).outputs["digit"]
    assert float(np.mean(over_grpc == wanted)) >= ENOUGH
    answer = client.servings.predict("digits", instances=pixels[:8].tolist())
    assert [row["digit"] for row in answer.predictions or []] == over_grpc[:8].tolist()


def test_a_killed_machine_is_brought_back_by_up(composed: Composed) -> None:
    composed.inside("machine", "python3", "-I", "-S", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")
    composed.run("up", "--detach", timeout=300)
    until(lambda: all(composed.is_ready(each) for each in SERVICES), "every service is ready again", 120)
    with composed.client() as again:
        until(lambda: bool(again.cluster().nodes), "the gateway answers", 60)


def test_everything_survives_down_and_up(composed: Composed, trained: Training, digits: Path) -> None:
    composed.run("down", "--timeout", "20")
    composed.run("up", "--detach", timeout=300)
    until(lambda: all(composed.is_ready(each) for each in SERVICES), "every service is ready again", 120)
    with np.load(digits) as arrays:
        pixels = arrays["x_test"][:8]
    with composed.client() as again:
        kept = again.trainings.get(trained.name)
        assert (kept.state, kept.attempt) == ("succeeded", 1)
        again.servings.wait("digits", timeout=240)
        assert len(again.servings.predict("digits", instances=pixels.tolist()).predictions or []) == 8
