"""Trainings on a real cluster, from submit to freed, through the client and the command."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from elearn import Client
from shared.contracts.training import Training
from shared.errors import ElearnError, Invalid
from shared.kube.objects import Node, Partial, Pod
from shared.kube.resources import NAMESPACES, NODES
from tests.kubernetes.live import IMAGE, RESTART, SMALL, LiveCluster, needs, until
from tests.support.product import Product, told

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SLOW = ["sh", "-c", "echo begun; sleep 600"]

LOOK = """
import json, os, socket, sys
from pathlib import Path
def may_write(path):
    try:
        Path(path, "trace").write_text("x")
    except OSError:
        return False
    return True
config = json.loads(os.environ["TF_CONFIG"])
hosts = [host for role in config["cluster"].values() for host in role]
seen = {
    "argv": sys.argv[1:],
    "config": config,
    "peers": [socket.gethostbyname(host.split(":")[0]) for host in hosts],
    "host": socket.gethostname(),
    "uid": os.getuid(),
    "token": Path("/var/run/secrets/kubernetes.io").exists(),
    "environment": dict(os.environ),
    "folder": sorted(path.name for path in Path().iterdir()),
    "read_only": may_write("data"),
    "own": may_write("out"),
    "part": Path("/part/inner.txt").read_text(),
    "code": Path("folder/text.txt").read_text(),
}
print(json.dumps(seen))
"""


def submit(client: Client, name: str, command: list[str], **fields: object) -> Training:
    """A training of small tasks."""
    roles = fields.pop("roles", {"chief": {}})
    assert isinstance(roles, dict)
    spec = {
        "name": name,
        "image": IMAGE,
        "command": command,
        "roles": {role: {**SMALL, **asked} for role, asked in roles.items()},
        **fields,
    }
    return client.trainings.submit(spec)


def assert_gone(live: LiveCluster, name: str) -> None:
    """Nothing of a freed training is left: no pod, and soon nothing else."""
    assert live.pods(name) == []
    until(lambda: not live.of_training(name), f"nothing is left of {name}: {live.of_training(name)}", 30)


@pytest.mark.tensorflow
def test_a_cluster_learns(live: LiveCluster, product: Product, client: Client, digits: str, runs: str) -> None:
    """The example as it is on one machine, but for the image: four processes, real TensorFlow, a saved version."""
    sized = [f"roles.{role}.cpu=0.2" for role in ("chief", "worker", "ps")]
    sets = [word for each in (f"image={IMAGE}", *sized) for word in ("--set", each)]
    ran = product.run("training", "submit", str(DIGITS / "training.yaml"), *sets, "--follow", timeout=400)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "[worker-1]" in ran.stdout
    training = client.trainings.wait("digits-1", until="freed", timeout=60)
    assert training.state == "succeeded"
    assert {task.name: task.state for task in training.tasks} == {
        "chief-0": "succeeded",
        "worker-0": "stopped",
        "worker-1": "stopped",
        "ps-0": "stopped",
    }
    assert_gone(live, "digits-1")
    accuracy = float("\n".join(client.trainings.logs("digits-1", task="chief-0")).rsplit("accuracy ", 1)[1].split()[0])
    assert accuracy > 0.9
    version = client.models.wait_saved("digits", "digits-1", timeout=120)
    assert version.state == "ready"
    assert "digits-1/export/saved_model.pb" in [entry.path for entry in client.datastores.walk(runs)]
    events = told(product.events(client), "training", "digits-1")
    assert events == ["queued", "starting", "running", "succeeded", "freed"]


def test_a_task_finds_everything_where_the_spec_says(
    live: LiveCluster, client: Client, runs: str, tmp_path: Path
) -> None:
    client.datastores.write(runs, "shared/inner.txt", b"inside")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text.txt").write_text("of the code")
    (tmp_path / "look.py").write_text(LOOK)
    roles: dict[str, object] = {"chief": {}, "worker": {"replicas": 2}, "ps": {}}
    mounts = [
        {"datastore": runs, "path": "data", "sub_path": "shared", "read_only": True},
        {"datastore": runs, "path": "/part", "sub_path": "shared", "read_only": True},
        {"datastore": runs, "path": "out", "own": True},
    ]
    command = ["python3", "look.py", "{role}", "{index}", "$HOME $(ELEARN_ROLE)"]
    spec = {
        "name": "look",
        "image": IMAGE,
        "command": command,
        "env": {"MINE": "$(ELEARN_ROLE) $$"},
        "mounts": mounts,
        "roles": {role: {**SMALL, **asked} for role, asked in roles.items() if isinstance(asked, dict)},
    }
    training = client.trainings.submit(spec, code=tmp_path)
    ended = client.trainings.wait(training.name, until="freed", timeout=120)
    assert ended.state == "succeeded", ended.reason
    seen = json.loads(next(iter(client.trainings.logs(training.name, task="chief-0"))))
    assert seen["argv"] == ["chief", "0", "$HOME $(ELEARN_ROLE)"]
    assert seen["config"]["task"] == {"type": "chief", "index": 0}
    assert len(set(seen["peers"])) == 4
    assert seen["host"].endswith("-chief-0")
    assert (seen["uid"] > 0, seen["token"]) == (True, False)
    assert seen["environment"]["MINE"] == "$(ELEARN_ROLE) $$"
    assert seen["environment"]["NVIDIA_VISIBLE_DEVICES"] == "none"
    assert {"data", "folder", "look.py", "out"} <= set(seen["folder"])
    assert (seen["read_only"], seen["own"], seen["part"], seen["code"]) == (False, True, "inside", "of the code")
    assert client.datastores.read(runs, f"{training.name}/trace") == b"x"


def test_logs_are_read_while_they_are_written_and_afterwards(live: LiveCluster, client: Client) -> None:
    lines = "for i in $(seq 20); do echo line $i; sleep 0.5; done; printf end"
    training = submit(client, "logs", ["sh", "-c", lines], roles={"chief": {}, "worker": {}})
    live_lines: list[str] = []
    for line in client.trainings.logs(training.name, follow=True):
        if not live_lines:
            assert client.trainings.get(training.name).finished_at is None
        live_lines.append(line)
    client.trainings.wait(training.name, until="freed", timeout=60)
    whole = [*(f"line {number}" for number in range(1, 21)), "end"]
    for task in ("chief-0", "worker-0"):
        shown = [line.removeprefix(f"[{task}] ") for line in live_lines if line.startswith(f"[{task}] ")]
        assert shown[: len(whole) - 3] == whole[: len(whole) - 3]
        assert list(client.trainings.logs(training.name, task=task)) == whole
    client.trainings.delete(training.name)


def test_an_exit_code_is_the_user_s_and_a_retry_another_attempt(live: LiveCluster, client: Client) -> None:
    script = '[ "$ELEARN_ATTEMPT" = 2 ] || { echo not yet; exit 3; }; echo well'
    training = submit(client, "retry", ["sh", "-c", script], retries=1)
    ended = client.trainings.wait(training.name, until="freed", timeout=120)
    assert (ended.state, ended.attempt) == ("succeeded", 2)
    first = ended.attempts[0]
    assert (first.state, first.tasks[0].exit_code) == ("failed", 3)
    assert "exit code 3" in first.reason
    assert list(client.trainings.logs(training.name, attempt=1)) == ["not yet"]
    assert list(client.trainings.logs(training.name)) == ["well"]
    again = submit(client, "fails", ["sh", "-c", "exit 7"])
    failed = client.trainings.wait(again.name, until="freed", timeout=60)
    assert (failed.state, "exit code 7" in failed.reason) == ("failed", True)
    client.trainings.retry(again.name)
    failed = client.trainings.wait(again.name, until="freed", timeout=60)
    assert (failed.state, failed.attempt) == ("failed", 2)
    assert_gone(live, again.name)


def test_stopping_frees_everything(live: LiveCluster, client: Client) -> None:
    training = submit(client, "stop", SLOW, roles={"chief": {}, "worker": {}, "ps": {}})
    client.trainings.wait(training.name, until="running", timeout=120)
    client.trainings.stop(training.name, "enough")
    ended = client.trainings.wait(training.name, until="freed", timeout=60)
    assert (ended.state, ended.reason) == ("stopped", "enough")
    assert_gone(live, training.name)
    assert list(client.trainings.logs(training.name, task="ps-0")) == ["begun"]
    usage = client.usage()
    assert (usage.running, usage.cpu, usage.memory, usage.gpu) == (0, 0, 0, 0)


def test_a_deadline_ends_a_training(live: LiveCluster, client: Client) -> None:
    training = submit(client, "deadline", SLOW, deadline="6s")
    ended = client.trainings.wait(training.name, until="freed", timeout=60)
    assert (ended.state, ended.reason) == ("failed", "its deadline of 6 s has passed")
    assert_gone(live, training.name)


def test_an_image_that_can_t_be_pulled_is_told_and_then_fails(live: LiveCluster, client: Client) -> None:
    begun = time.monotonic()
    training = submit(client, "image", ["true"], image="elearn.invalid/nothing:1")
    until(lambda: "elearn.invalid/nothing:1 can't be pulled" in client.trainings.get(training.name).reason, "told", 20)
    ended = client.trainings.wait(training.name, until="freed", timeout=90)
    assert ended.state == "failed"
    assert "can't be pulled" in ended.reason
    assert time.monotonic() - begun > 8
    assert_gone(live, training.name)


def test_what_does_not_start_says_why(client: Client, runs: str) -> None:
    nowhere = submit(client, "program", ["no-such-program"])
    failed = client.trainings.wait(nowhere.name, timeout=60)
    assert (failed.state, "no-such-program" in failed.reason) == ("failed", True)
    mounts = [{"datastore": runs, "path": "x", "sub_path": "not/there", "read_only": True}]
    missing = submit(client, "folder", ["true"], mounts=mounts)
    failed = client.trainings.wait(missing.name, timeout=60)
    assert failed.state == "failed"
    assert f"folder 'not/there' of datastore {runs!r} is not there" in failed.reason


def test_memory_beyond_the_limit_is_the_user_s_own(client: Client) -> None:
    training = submit(client, "memory", ["python3", "-c", "x = bytearray(400 * 2**20)"])
    ended = client.trainings.wait(training.name, timeout=60)
    assert (ended.state, "want of memory" in ended.reason) == ("failed", True)


def test_a_pod_that_is_taken_away_costs_no_retry(live: LiveCluster, client: Client) -> None:
    training = submit(client, "taken", SLOW, roles={"chief": {}, "ps": {}})
    client.trainings.wait(training.name, until="running", timeout=120)
    live.delete_pod(live.pod(training.name, "ps"))
    second = until(
        lambda: next((each for each in [client.trainings.get(training.name)] if each.attempt == 2), None),
        "a second attempt",
        90,
    )
    assert second.attempts[0].state == "failed"
    assert "its pod was deleted" in second.attempts[0].reason
    client.trainings.wait(training.name, until="running", timeout=120)
    client.trainings.stop(training.name)
    client.trainings.wait(training.name, until="freed", timeout=60)


def test_a_worker_beside_a_ps_comes_back_on_its_address(live: LiveCluster, client: Client, runs: str) -> None:
    script = "import os, time; f = 'out/once'; first = not os.path.exists(f); open(f, 'w'); time.sleep(0 if first else 600); raise SystemExit(1)"  # noqa: E501 - a program
    spec = ["sh", "-c", f'[ "$ELEARN_ROLE" = worker ] && exec python3 -c "{script}"; sleep 600']
    mounts = [{"datastore": runs, "path": "out", "own": True}]
    roles: dict[str, object] = {"chief": {}, "worker": {}, "ps": {}}
    training = submit(client, "back", spec, roles=roles, mounts=mounts)

    def came_back() -> bool:
        tasks = client.trainings.get(training.name).tasks
        return any((task.role, task.restarts, task.state) == ("worker", 1, "running") for task in tasks)

    until(came_back, "worker-0 runs again", 120)
    assert client.trainings.get(training.name).attempt == 1
    client.trainings.stop(training.name)
    client.trainings.wait(training.name, until="freed", timeout=60)


def test_more_than_any_node_has_is_refused_with_the_largest(client: Client) -> None:
    with pytest.raises(Invalid, match="the largest that would fit is"):
        submit(client, "gpus", ["true"], roles={"chief": {"gpu": 1000}})
    with pytest.raises(Invalid, match="the largest that would fit is"):
        submit(client, "cores", ["true"], roles={"chief": {"cpu": 100_000}})


@pytest.fixture
def fake_gpus(live: LiveCluster) -> Iterator[None]:
    """Four GPUs that nobody has, said of the first node; skipped where that is not ours to say."""
    nodes = live.call(lambda cluster: cluster.list(NODES, Node, ours=False))
    if any("nvidia.com/gpu" in node.status.allocatable for node in nodes):
        yield
        return
    name = nodes[0].metadata.name

    def say(count: str | None) -> None:
        has = {"nvidia.com/gpu": count}
        change = {"status": {"capacity": has, "allocatable": has}}
        live.call(lambda cluster: cluster.patch(NODES, name, change, subresource="status"))

    try:
        say("4")
    except ElearnError as error:
        pytest.skip(f"no node's status may be changed: {error.detail}")
    try:
        yield
    finally:
        say(None)


def accepted(client: Client, name: str, command: list[str], roles: dict[str, object]) -> Training | None:
    try:
        return submit(client, name, command, roles=roles)
    except Invalid:
        return None


def test_gpus_are_handed_out(live: LiveCluster, client: Client, fake_gpus: None) -> None:
    until(lambda: any(node.gpu for node in client.cluster().nodes), "GPUs are seen", 30)
    roles: dict[str, object] = {"chief": {}, "worker": {"gpus": 3, "gpus_per_task": 2}}
    # By a few seconds the scheduler may be behind with how large nodes are.
    training = until(lambda: accepted(client, "gpus", SLOW, roles), "GPUs are handed out", 30, every=1.0)
    client.trainings.wait(training.name, until="running", timeout=120)

    def gpus(pod: Pod) -> object:
        return pod.spec.containers[0].resources.limits.get("nvidia.com/gpu")

    assert sorted(str(gpus(pod)) for pod in live.pods(training.name)) == ["1", "2", "None"]
    assert sum(node.gpu_used for node in client.cluster().nodes) == 3
    waiting = submit(client, "gpus", ["true"], roles={"chief": {"gpu": 2}})
    until(
        lambda: "waiting for 2 GPUs" in client.trainings.get(waiting.name).reason,
        "the second training waits and says for what",
        20,
    )
    client.trainings.stop(training.name)
    ended = client.trainings.wait(waiting.name, until="freed", timeout=120)
    assert ended.state == "succeeded"


def test_secrets_come_by_reference(live: LiveCluster, product: Product, client: Client) -> None:
    value = secrets.token_hex(12)
    live.secret("team", {"token": value})
    script = 'echo "${#API_TOKEN}"; [ -n "$API_TOKEN" ] || exit 1'
    training = submit(client, "secret", ["sh", "-c", script], secrets={"API_TOKEN": {"name": "team", "key": "token"}})
    ended = client.trainings.wait(training.name, until="freed", timeout=60)
    assert ended.state == "succeeded", ended.reason
    assert list(client.trainings.logs(training.name)) == [str(len(value))]
    assert value not in json.dumps([str(event) for event in product.events(client)])
    missing = submit(client, "secret", ["true"], secrets={"API_TOKEN": {"name": "team", "key": "nothing"}})
    until(lambda: "nothing" in client.trainings.get(missing.name).reason, "the missing key is named", 30)
    client.trainings.wait(missing.name, until="freed", timeout=90)


def test_a_killed_scheduler_takes_up_what_runs(live: LiveCluster, product: Product, client: Client) -> None:
    script = ["sh", "-c", "for i in $(seq 16); do echo $i; sleep 1; done"]
    training = submit(client, "killed", script, roles={"chief": {}, "ps": {}})
    client.trainings.wait(training.name, until="running", timeout=120)
    before = {pod.metadata.uid for pod in live.pods(training.name)}
    product.await_back("scheduler", product.kill("scheduler"))
    assert {pod.metadata.uid for pod in live.pods(training.name)} == before
    ended = client.trainings.wait(training.name, until="freed", timeout=120)
    assert (ended.state, ended.attempt) == ("succeeded", 1)
    assert list(client.trainings.logs(training.name, task="chief-0")) == [str(number) for number in range(1, 17)]
    events = told(product.events(client), "training", training.name)
    assert events == ["queued", "starting", "running", "succeeded", "freed"]


@needs(RESTART, "ELEARN_TEST_RESTART_API_SERVER")
def test_a_restart_of_the_api_server_fails_nothing(live: LiveCluster, client: Client) -> None:
    script = ["sh", "-c", "for i in $(seq 25); do echo $i; sleep 1; done"]
    training = submit(client, "restart", script, roles={"chief": {}, "ps": {}})
    client.trainings.wait(training.name, until="running", timeout=120)
    subprocess.run(RESTART, shell=True, check=True, timeout=300, env=os.environ)  # noqa: S602 - the operator's own
    ended = client.trainings.wait(training.name, until="freed", timeout=180)
    assert (ended.state, ended.attempt) == ("succeeded", 1)
    assert list(client.trainings.logs(training.name, task="chief-0")) == [str(number) for number in range(1, 26)]


def test_each_project_has_a_namespace_of_its_own(live: LiveCluster, product: Product) -> None:
    connection = product.connection
    with Client.at(msgspec.structs.replace(connection, project="other")) as client:
        with product.http() as http:
            made = http.post(f"{connection.url}/v1/projects", json={"name": "other"})
            assert made.status_code == 201, made.text
        training = submit(client, "elsewhere", ["sh", "-c", "echo $ELEARN_PROJECT"])
        ended = client.trainings.wait(training.name, until="freed", timeout=90)
        assert ended.state == "succeeded", ended.reason
        assert list(client.trainings.logs(training.name)) == ["other"]
    namespaces = live.call(lambda cluster: cluster.list(NAMESPACES, Partial))
    found = next(each for each in namespaces if each.metadata.name == live.namespace("other"))
    assert found.metadata.labels["pod-security.kubernetes.io/enforce"] == "restricted"
