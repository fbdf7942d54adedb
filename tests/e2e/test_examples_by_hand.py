"""The examples without elearn: each must run by hand, alone and as a cluster, before a platform may run it."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.support.cluster_by_hand import ClusterByHand

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
ENOUGH = 0.95
PATIENCE = 100.0  # seconds; each of these runs takes about ten on two free cores

ALONE = {"chief": 1}
COMMANDS = {
    "digits": ["--data", "{data}", "--out", "{out}"],
    "mirrored": ["--data", "{data}", "--out", "{out}"],
    "mnist_style_tf1": ["--data_dir={data}", "--log_dir={out}"],
}
HOSTS = ["--job_name={role}", "--task_index={index}", "--ps_hosts={ps_hosts}", "--worker_hosts={worker_hosts}"]
FORMS = {
    "digits-alone": ALONE,
    "digits-cluster": {"chief": 1, "worker": 2, "ps": 1},
    "mirrored-alone": ALONE,
    "mirrored-cluster": {"chief": 1, "worker": 1},
    "mnist_style_tf1-alone": ALONE,
    "mnist_style_tf1-cluster": {"worker": 2, "ps": 1},
}

Start = Callable[..., ClusterByHand]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    script = EXAMPLES / "digits" / "prepare.py"
    subprocess.run([sys.executable, script, "--out", folder], check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def start(data: Path) -> Start:
    """Make a cluster of an example, to be entered by `with`."""

    def make(example: str, out: Path, roles: dict[str, int], *options: str) -> ClusterByHand:
        arguments = [part.replace("{data}", str(data)).replace("{out}", str(out)) for part in COMMANDS[example]]
        if example == "mnist_style_tf1" and roles != ALONE:
            arguments += HOSTS
        command = [sys.executable, str(EXAMPLES / example / "train.py"), *arguments, *options]
        return ClusterByHand(command, roles, cwd=out.parent, logs=out.parent / "process-logs")

    return make


@pytest.fixture(scope="module")
def finished(
    start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, str, dict[str, int]]]:
    """Run a form to its end, once: its output folder, the leader's log, and every exit code."""

    @cache
    def run(form: str) -> tuple[Path, str, dict[str, int]]:
        out = tmp_path_factory.mktemp(form) / "out"
        roles = FORMS[form]
        leader = "chief-0" if "chief" in roles else "worker-0"
        with start(form.removesuffix("-alone").removesuffix("-cluster"), out, roles) as cluster:
            assert cluster.wait(leader, PATIENCE) == 0, cluster.logs()
            ends_itself = ["chief", *([] if form == "digits-cluster" else ["worker"])]
            names = [f"{role}-{index}" for role, count in roles.items() for index in range(count)]
            codes = {name: cluster.wait(name, 20) for name in names if name[: name.rindex("-")] in ends_itself}
            for name in names:
                if name not in codes:
                    assert cluster.running(name), f"{name} did not wait to be ended\n{cluster.logs()}"
                    cluster.signal(name, signal.SIGTERM)
                    codes[name] = cluster.wait(name, 5)
            return out, cluster.log(leader), codes

    return run


@pytest.mark.parametrize("form", FORMS)
def test_an_example_learns_and_exports(finished: Callable[[str], tuple[Path, str, dict[str, int]]], form: str) -> None:
    out, log, codes = finished(form)
    assert float(re.findall(r"held-out accuracy ([\d.]+)", log)[-1]) >= ENOUGH
    assert (out / "export" / "saved_model.pb").is_file()
    assert not list(out.glob(".export*")), "an unfinished export was left behind"
    assert list(out.rglob("events.out.tfevents.*")), "nothing for TensorBoard"
    assert list(out.rglob("checkpoint")), "no checkpoint"
    waits_for_ever = {"digits-cluster": {"worker", "ps"}, "mnist_style_tf1-cluster": {"ps"}}.get(form, set())
    assert codes == {name: -15 if name.rpartition("-")[0] in waits_for_ever else 0 for name in codes}


SCORE = """
import json, sys
import numpy as np, tensorflow as tf
data = np.load(sys.argv[1] + "/digits.npz")
for folder in sys.argv[2:]:
    signature = tf.saved_model.load(folder).signatures["serving_default"]
    (name, spec), = signature.structured_input_signature[1].items()
    outputs = signature(**{name: tf.constant(data["x_test"])})
    digit = outputs["digit" if "digit" in outputs else "classes"].numpy()
    right = float((digit == data["y_test"]).mean())
    shapes = {key: [spec.dtype.name, spec.shape.as_list()] for key, spec in signature.structured_outputs.items()}
    print(json.dumps({"input": [name, spec.dtype.name, spec.shape.as_list()], "outputs": shapes, "right": right}))
"""


def test_the_exports_predict_what_the_trainings_measured(
    finished: Callable[[str], tuple[Path, str, dict[str, int]]], data: Path
) -> None:
    runs = {form: finished(form) for form in FORMS}
    folders = [str(out / "export") for out, _, _ in runs.values()]
    told = subprocess.run(
        [sys.executable, "-c", SCORE, str(data), *folders], check=True, timeout=60, stdout=subprocess.PIPE
    ).stdout.splitlines()
    for (form, (_, log, _)), line in zip(runs.items(), told, strict=True):
        scored = json.loads(line)
        measured = float(re.findall(r"held-out accuracy ([\d.]+)", log)[-1])
        assert scored["right"] == pytest.approx(measured, abs=1e-4), form
        if not form.startswith("mnist"):
            assert scored["input"] == ["pixels", "float32", [None, 64]]
            assert scored["outputs"] == {"digit": ["int64", [None]], "probabilities": ["float32", [None, 10]]}


def test_digits_survive_a_worker_and_go_on_after_a_lost_parameter_server(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    slowly = ["--step-delay", "0.02", "--checkpoint-every", "1"]
    with start("digits", out, FORMS["digits-cluster"], *slowly) as cluster:
        cluster.wait_for("chief-0", "step 46/", PATIENCE)
        cluster.signal("worker-1", signal.SIGKILL)
        assert cluster.wait("worker-1", 5) == -signal.SIGKILL
        cluster.start("worker-1")
        cluster.wait_for("chief-0", "step 207/", PATIENCE)  # the other worker goes on
        cluster.signal("ps-0", signal.SIGKILL)
        assert cluster.wait("chief-0", 20) == 1, cluster.logs()
        assert "the training is lost" in cluster.log("chief-0")

    # What a cluster saved, a single process restores; told to stop, it saves first.
    with start("digits", out, ALONE, *slowly) as alone:
        alone.wait_for("chief-0", "held-out", PATIENCE)
        alone.signal("chief-0", signal.SIGTERM)
        assert alone.wait("chief-0", 5) == 128 + signal.SIGTERM, alone.logs()
        log = alone.log("chief-0")
    went_on = re.search(r"going on from .*, step (\d+)\n", log)
    saved = re.search(r"checkpoint saved at step (\d+)\n", log)
    assert went_on, log
    assert saved, log
    assert 0 < int(went_on[1]) < int(saved[1])
    assert (out / "checkpoints" / f"ckpt-{saved[1]}.index").is_file()
    assert not (out / "export").exists()


def test_mirrored_workers_fall_together_and_go_on(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with start("mirrored", out, FORMS["mirrored-cluster"], "--epochs=100000", "--checkpoint-every=1") as cluster:
        cluster.wait_for("chief-0", "epoch 8/", PATIENCE)
        cluster.signal("worker-0", signal.SIGKILL)
        assert cluster.wait("chief-0", 40) == 1, cluster.logs()
    reached = int(re.findall(r"epoch (\d+)/", cluster.log("chief-0"))[-1])

    epochs = f"--epochs={reached + 3}"
    with start("mirrored", out, FORMS["mirrored-cluster"], epochs, "--checkpoint-every=1") as cluster:
        assert cluster.wait("chief-0", PATIENCE) == 0, cluster.logs()
        assert cluster.wait("worker-0", 20) == 0, cluster.logs()
        for name in ("chief-0", "worker-0"):
            assert "going on from" in cluster.log(name)
