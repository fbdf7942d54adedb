"""The running product with real TensorFlow: the main job through the command line and the client.

One `elearn up` for all of it; the tests build on each other's trainings, so that each kind of cluster runs once.
"""

import hashlib
import io
import itertools
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from elearn import Client
from elearn.client.connection import Connection
from elearn.grpc import PredictClient
from shared.contracts.training import Training
from shared.errors import ElearnError, Invalid, NotFound, Unauthenticated

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
ELEARN = str(Path(sys.executable).with_name("elearn"))
ENOUGH = 0.95


class Platform:
    """An elearn that is up in a home of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ELEARN_")},
            "ELEARN_HOME": str(home),
        }

    def run(self, *arguments: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run the command, whatever comes of it."""
        return subprocess.run(
            [ELEARN, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def json(self, *arguments: str, timeout: float = 120) -> Any:
        """What a command that must succeed answers."""
        ran = self.run(*arguments, "-o", "json", timeout=timeout)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def client(self) -> Client:
        """A client of it."""
        url = self.json("status")["url"]
        return Client.at(Connection(url=url, token=(self.home / "token").read_text().strip()))

    def processes(self) -> list[str]:
        """Command lines of all processes that know this home."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                known = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
                if str(self.home).encode() in known and folder.name != str(os.getpid()):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    found = Platform(tmp_path_factory.mktemp("main-job") / "home")
    ran = found.run("up", "--port", "0", "--detach")
    try:
        assert ran.returncode == 0, ran.stderr
        yield found
    finally:
        down = found.run("down")
    assert down.returncode == 0, down.stderr
    assert found.processes() == []


@pytest.fixture(scope="module")
def client(platform: Platform) -> Iterator[Client]:
    with platform.client() as found:
        yield found


@pytest.fixture(scope="module")
def data(platform: Platform) -> Path:
    """The two datastores of the examples; the folder of the digits."""
    folder = platform.home / "data"
    prepare = EXAMPLES / "digits" / "prepare.py"
    subprocess.run([sys.executable, prepare, "--out", folder / "digits"], check=True, timeout=60)
    for name in ("digits", "runs"):
        made = platform.json("datastore", "create", name, "--local", str(folder / name))
        assert (made["name"], made["state"]) == (name, "ready")
    return folder / "digits"


@pytest.fixture(scope="module")
def distributed(platform: Platform, data: Path) -> tuple[dict[str, Any], str]:
    """The digits, learnt by four processes: the training's record, and its log."""
    return _submitted(platform, "digits")


@pytest.fixture(scope="module")
def alone(platform: Platform, data: Path) -> tuple[dict[str, Any], str]:
    """The same spec with the chief alone."""
    return _submitted(platform, "digits", "roles.worker.replicas=0", "roles.ps.replicas=0")


def _submitted(platform: Platform, example: str, *assignments: str) -> tuple[dict[str, Any], str]:
    options = [part for each in assignments for part in ("--set", each)]
    spec = EXAMPLES / example / "training.yaml"
    ran = platform.run("training", "submit", str(spec), "--follow", "-o", "json", *options, timeout=200)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout), ran.stderr


def _accuracy(log: str) -> float:
    match = re.search(r"held-out accuracy (\d\.\d+)", log)
    assert match is not None, log
    return float(match[1])


# -- up -------------------------------------------------------------------------------------------------


def test_status_says_what_is_up(platform: Platform) -> None:
    status = platform.json("status")
    assert status["ready"] is True
    assert {"api", "scheduler", "datastore", "registry", "serving"} <= {each["name"] for each in status["services"]}
    assert all(each["state"] == "ready" and each["pid"] for each in status["services"])
    assert stat.S_IMODE((platform.home / "token").stat().st_mode) == 0o600
    assert platform.run("up", "--detach").stderr.startswith("elearn: elearn is already up in")


def test_no_token_and_a_wrong_one_are_refused(platform: Platform) -> None:
    url = platform.json("status")["url"]
    assert httpx.get(f"{url}/v1/cluster").status_code == 401
    with Client.at(Connection(url=url, token="wrong")) as stranger, pytest.raises(Unauthenticated):
        stranger.cluster()


# -- training -------------------------------------------------------------------------------------------


def test_a_cluster_of_four_processes_learns(distributed: tuple[dict[str, Any], str]) -> None:
    training, log = distributed
    assert training["state"] == "succeeded"
    assert {task["name"] for task in training["tasks"]} == {"chief-0", "worker-0", "worker-1", "ps-0"}
    assert training["attempt"] == 1
    for task in ("chief-0", "worker-0", "worker-1", "ps-0"):
        assert f"[{task}] " in log
    assert _accuracy(log) >= ENOUGH


def test_compute_is_free_and_the_record_stays(
    platform: Platform, client: Client, distributed: tuple[dict[str, Any], str]
) -> None:
    name = distributed[0]["name"]
    assert client.trainings.get(name).freed_at is not None
    assert all((node.cpu_used, node.memory_used, node.gpu_used) == (0, 0, 0) for node in client.cluster().nodes)
    assert not [each for each in platform.processes() if "train.py" in each]
    usage = client.usage()
    assert (usage.running, usage.cpu, usage.memory) == (0, 0, 0)
    assert usage.cpu_seconds > 0
    assert "exported to" in platform.run("training", "logs", name, "--task", "chief-0").stdout
    assert len(list(client.trainings.logs(name, tail=1))) == 4


def test_one_unedited_file_runs_by_hand_alone_and_as_a_cluster(
    client: Client,
    data: Path,
    distributed: tuple[dict[str, Any], str],
    alone: tuple[dict[str, Any], str],
    tmp_path: Path,
) -> None:
    file = EXAMPLES / "digits" / "train.py"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    by_hand = subprocess.run(
        [sys.executable, str(file), "--data", str(data), "--out", str(tmp_path / "out")],
        env={key: value for key, value in os.environ.items() if key != "TF_CONFIG"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert [each["name"] for each in alone[0]["tasks"]] == ["chief-0"]
    for log in (by_hand.stdout, alone[1], distributed[1]):
        assert _accuracy(log) >= ENOUGH
    ran = {_hash_of_sent(client, training["spec"]["code"]) for training, _ in (alone, distributed)}
    assert ran == {before} == {hashlib.sha256(file.read_bytes()).hexdigest()}


def _hash_of_sent(client: Client, digest: str) -> str:
    """The hash of train.py in the archive that became the working directory."""
    connection = client.connection
    answer = httpx.get(
        f"{connection.url}/v1/projects/default/code/{digest}",
        headers={"Authorization": f"Bearer {connection.token}"},
    )
    assert f"sha256:{hashlib.sha256(answer.content).hexdigest()}" == digest
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        file = tar.extractfile("train.py")
        assert file is not None
        return hashlib.sha256(file.read()).hexdigest()


def test_a_script_of_2017_runs_through_placeholders(platform: Platform, data: Path) -> None:
    training, log = _submitted(platform, "mnist_style_tf1")
    assert training["state"] == "succeeded"
    assert {task["role"] for task in training["tasks"]} == {"worker", "ps"}
    assert "[worker-1] " in log
    assert all(task["state"] in ("succeeded", "stopped") for task in training["tasks"])


def test_mirrored_workers_learn(platform: Platform, data: Path) -> None:
    training, log = _submitted(platform, "mirrored")
    assert training["state"] == "succeeded"
    assert _accuracy(log) >= ENOUGH


# -- the model ------------------------------------------------------------------------------------------


def test_the_save_job_made_version_1(
    platform: Platform, client: Client, distributed: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    version = client.models.wait_saved("digits", distributed[0]["name"], timeout=60)
    assert version.number == 1
    assert version.lineage.code == distributed[0]["spec"]["code"]
    assert "serving_default" in {each.name for each in version.signatures}
    answer = platform.json("model", "download", "digits", "1", "--to", str(tmp_path / "model"))
    assert (Path(answer["path"]) / "saved_model.pb").is_file()
    platform.json("model", "download", "digits", "1", "--tar", "--to", str(tmp_path / "model.tar"))
    assert f"sha256:{hashlib.sha256((tmp_path / 'model.tar').read_bytes()).hexdigest()}" == version.digest


@pytest.fixture(scope="module")
def served(platform: Platform, client: Client, distributed: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """Version 1 under an alias, served by two replicas."""
    client.models.wait_saved("digits", distributed[0]["name"], timeout=60)
    platform.json("model", "alias", "set", "digits", "champion", "1")
    made: dict[str, Any] = platform.json(
        "serving", "create", "digits", "--model", "digits", "--alias", "champion", "--replicas", "2"
    )
    return made


def test_a_served_model_predicts_over_grpc_and_rest(
    platform: Platform, client: Client, data: Path, served: dict[str, Any], tmp_path: Path
) -> None:
    assert (served["state"], served["ready_replicas"], served["version"]) == ("ready", 2, 1)
    with np.load(data / "digits.npz") as arrays:
        pixels, digits = arrays["x_test"], arrays["y_test"]
    with PredictClient(served["endpoint"]["grpc"]) as grpc:
        predicted = grpc.predict("digits", {"pixels": pixels}, timeout=30).outputs["digit"]
    assert np.mean(predicted == digits) >= ENOUGH
    few = {"instances": pixels[:3].tolist()}
    (tmp_path / "few.json").write_text(json.dumps(few))
    through_gateway = platform.json("serving", "predict", "digits", str(tmp_path / "few.json"))
    direct = httpx.post(f"{served['endpoint']['rest']}:predict", json=few, timeout=30).json()
    assert (
        [row["digit"] for row in through_gateway["predictions"]]
        == [row["digit"] for row in direct["predictions"]]
        == predicted[:3].tolist()
    )
    with pytest.raises(Invalid, match="pixels"):
        client.servings.predict("digits", instances=[[1, 2, 3]])


def test_every_event_is_told_once_and_in_order(
    platform: Platform, distributed: tuple[dict[str, Any], str], served: dict[str, Any]
) -> None:
    name = distributed[0]["name"]
    events = platform.json("events", "--since", "0")
    assert [each["sequence"] for each in events] == sorted({each["sequence"] for each in events})
    told = [each["type"].removeprefix("elearn.v1.") for each in events if each["subject"].endswith(f".{name}")]
    life = [each for each in told if each.startswith("training.")]
    assert life[:4] == ["training.queued", "training.starting", "training.running", "training.succeeded"]
    assert life[4:] == ["training.freed"]
    assert told.count("task.running") == 4
    narrowed = platform.json("events", "--since", "0", "--subject", "elearn.v1.serving.>")
    assert {each["subject"].split(".")[2] for each in narrowed} == {"serving"}


# -- what is refused leaves nothing behind ----------------------------------------------------------------


@contextmanager
def _nothing_left(client: Client) -> Iterator[None]:
    def known() -> tuple[object, ...]:
        return (
            {each.name for each in client.trainings.list()},
            {each.name for each in client.datastores.list()},
            {each.name for each in client.models.list()},
            {each.name for each in client.servings.list()},
            client.cluster(),
        )

    before = known()
    yield
    assert known() == before


GOOD: dict[str, object] = {"name": "bad", "command": [sys.executable, "-c", "print(1)"]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bogus": 1}, "bogus"),
        ({"retries": "two"}, "retries"),
        ({"name": "Not A Name"}, "name"),
        ({"command": []}, "command"),
        ({"command": ["no-such-program"]}, "command"),
        ({"mounts": [{"datastore": "none", "path": "data"}]}, "mounts.0.datastore"),
        ({"mounts": [{"datastore": "digits", "path": "../data"}]}, "mounts.0.path"),
        ({"roles": {"chief": {"cpu": 100_000}}}, "cpu"),
        ({"roles": {"chief": {"memory": "900Ti"}}}, "memory"),
        ({"roles": {"worker": {"replicas": 1, "gpu": 512}}}, "gpu"),
        ({"code": "sha256:" + 64 * "0"}, "code"),
        ({"deadline": "soon"}, "deadline"),
    ],
)
def test_a_bad_spec_is_refused_by_its_field(client: Client, data: Path, change: dict[str, object], field: str) -> None:
    """As any client would send it: nothing is checked on this side."""
    connection = client.connection
    with _nothing_left(client):
        answer = httpx.post(
            f"{connection.url}/v1/projects/default/trainings",
            headers={"Authorization": f"Bearer {connection.token}"},
            json={**GOOD, **change},
        )
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert any(field in each["field"] for each in answer.json()["errors"]), answer.text


def test_archives_that_are_none_or_lead_outside_are_refused(client: Client) -> None:
    connection = client.connection
    outside = io.BytesIO()
    with tarfile.open(fileobj=outside, mode="w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../etc/passwd"
        tar.addfile(link)
    for body in (outside.getvalue(), b"no archive at all"):
        path = f"/v1/projects/default/code/sha256:{hashlib.sha256(body).hexdigest()}"
        with httpx.Client(base_url=connection.url, headers={"Authorization": f"Bearer {connection.token}"}) as http:
            assert http.put(path, content=body).status_code in (400, 422)
            assert http.head(path).status_code == 404


def test_a_body_that_is_not_json_and_a_project_that_is_none(platform: Platform, client: Client) -> None:
    connection = client.connection
    answer = httpx.post(
        f"{connection.url}/v1/projects/default/trainings",
        headers={"Authorization": f"Bearer {connection.token}"},
        content=b"{",
    )
    assert answer.status_code == 400
    ran = platform.run("training", "list", "--project", "nowhere")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "there is no project 'nowhere'" in ran.stderr


def test_a_failure_ends_the_command_with_1(platform: Platform, client: Client) -> None:
    ran = platform.run(
        *("training", "submit", "--name", "fails", "--follow", "--command"),
        f"{sys.executable} -c 'import sys; print(\"so it goes\"); sys.exit(3)'",
    )
    assert ran.returncode == 1
    assert "so it goes" in ran.stdout
    assert "exit code 3" in ran.stderr
    assert (client.usage().running, client.usage().cpu) == (0, 0)


def test_stop_frees_and_delete_forgets(platform: Platform, client: Client) -> None:
    submitted = client.trainings.submit(
        {"name": "sleeps", "command": [sys.executable, "-c", "import time; time.sleep(600)"]}
    )
    client.trainings.wait(submitted.name, until="running", timeout=60)
    with pytest.raises(ElearnError):
        client.trainings.delete(submitted.name)
    assert platform.run("training", "stop", submitted.name, "--reason", "enough").returncode == 0
    stopped: Training = client.trainings.wait(submitted.name, until="freed", timeout=60)
    assert (stopped.state, "enough" in stopped.reason) == ("stopped", True)
    assert platform.run("training", "delete", submitted.name).returncode == 0
    with pytest.raises(NotFound):
        client.trainings.get(submitted.name)


def test_following_goes_on_through_a_killed_gateway(platform: Platform, tmp_path: Path) -> None:
    """kill -9 of the gateway in the middle of a followed log: no line is missing or doubled."""
    # The training ends with its first worker: that one lets the other finish.
    program = (
        "import os, time\n"
        "for i in range(120): print('line', i, flush=True); time.sleep(0.05)\n"
        "if os.environ['ELEARN_INDEX'] == '0': time.sleep(3)"
    )
    follow = [ELEARN, "training", "submit", "--name", "counts", "--follow", "--worker", "2", "--command"]
    said = tmp_path / "said"
    with said.open("w") as errors:
        following = subprocess.Popen(
            [*follow, shlex.join([sys.executable, "-c", program])],
            env=platform.environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with following:
        assert following.stdout is not None
        lines = [line.strip() for line in itertools.islice(following.stdout, 20)]
        services = platform.json("status")["services"]
        os.kill(next(each["pid"] for each in services if each["name"] == "api"), signal.SIGKILL)
        # Read on through the same buffer: `communicate` would pass over what already lies in it.
        lines += [line.strip() for line in following.stdout]
    assert following.returncode == 0, said.read_text()
    for task in ("worker-0", "worker-1"):
        written = [line for line in lines if line.startswith(f"[{task}] ")]
        assert written == [f"[{task}] line {number}" for number in range(120)]


# -- down and up ----------------------------------------------------------------------------------------


def test_data_survives_down_and_up(
    platform: Platform, data: Path, distributed: tuple[dict[str, Any], str], served: dict[str, Any]
) -> None:
    assert platform.json("down") == {"ended": True}
    assert platform.processes() == []
    ran = platform.run("training", "list")
    assert (ran.returncode, "start it with `elearn up`" in ran.stderr) == (1, True)
    assert platform.run("up", "--detach").returncode == 0
    name = distributed[0]["name"]
    assert platform.json("training", "show", name)["state"] == "succeeded"
    assert "exported to" in platform.run("training", "logs", name).stdout
    with platform.client() as client:
        serving = client.servings.wait("digits", timeout=120)
        assert serving.ready_replicas == 2
        with np.load(data / "digits.npz") as arrays:
            row = arrays["x_test"][:1].tolist()
        assert client.servings.predict("digits", instances=row).predictions
        client.servings.delete("digits")
