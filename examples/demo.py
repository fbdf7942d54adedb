"""The main job on real data, from nothing to predictions, on this machine (`make demo`):

bring elearn up, name two directories, train handwritten digits on a TensorFlow cluster of four processes, see its
compute freed, save a version, serve it with two replicas, predict over gRPC and REST, look at what happened.

Everything lives in a folder of its own and is gone at the end, also after Ctrl-C; `--home DIR` keeps the data.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from elearn import Client
from elearn.cli.events import line_of
from elearn.cli.follow import follow_to_end
from elearn.cli.output import size, table
from elearn.client.connection import Connection
from elearn.grpc import PredictClient, PredictError
from elearn.up import Event, Ready, down, up
from shared.errors import ElearnError, Internal

EXAMPLE = Path(__file__).parent / "digits"
WANTED_ACCURACY = 0.95
ROWS_OVER_REST = 32


class Steps:
    """Says what is done, and keeps how long it took."""

    def __init__(self) -> None:
        self.took: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        print(f"\n== {what}", flush=True)
        began = time.monotonic()
        yield
        self.took.append((what, time.monotonic() - began))


@contextlib.contextmanager
def running(home: Path, steps: Steps) -> Iterator[str]:
    """elearn, up on a free port of this machine; its address. Down again at the end, whatever happens.

    It is tied to this process, so that even a kill -9 of it leaves nothing running.
    """
    ready = threading.Event()
    addresses: list[str] = []
    failures: list[BaseException] = []

    def report(event: Event) -> None:
        if isinstance(event, Ready):
            addresses.append(event.url)
            ready.set()

    def hold() -> None:
        try:
            up(home, 0, report=report)
        except ElearnError as error:
            failures.append(error)
        finally:
            ready.set()

    holder = threading.Thread(target=hold, name="elearn up", daemon=True)
    try:
        with steps.step("bring elearn up: NATS, PostgreSQL and five services"):
            holder.start()
            ready.wait()
            if not addresses:
                raise failures[0] if failures else Internal("elearn ended before it was ready")
            print(f"at {addresses[0]}, in {home}")
        yield addresses[0]
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # impatience must not leave anything running
        with steps.step("take everything down"):
            down(home)
            holder.join(30)


def main_job(client: Client, data: Path, preparing: "subprocess.Popen[bytes]", steps: Steps) -> float:
    """The main job; the accuracy on held-out digits."""
    with steps.step("real data: the handwritten digits that scikit-learn carries"):
        if preparing.wait(120) != 0:
            raise Internal(f"preparing the data ended with exit status {preparing.returncode}")

    with steps.step("name two directories: datastores `digits` and `runs`"):
        for name in ("digits", "runs"):
            client.datastores.create({"name": name, "local": {"path": str(data / name)}})
            datastore = client.datastores.wait(name, timeout=60)
            print(f"{name}: {datastore.backend}, {datastore.state}")

    with steps.step("train: 1 chief, 2 workers and 1 parameter server"):
        submitted = client.trainings.submit(EXAMPLE / "training.yaml")
        print(f"{submitted.name}: {' '.join(submitted.spec.command)}")
        (training,) = follow_to_end(client, [submitted.name], logs_out=True)
        if training.state != "succeeded" or training.freed_at is None or training.finished_at is None:
            raise Internal(f"training {training.name} {training.state}: {training.reason}")

    with steps.step("compute is freed; the record stays"):
        print(f"freed {(training.freed_at - training.finished_at).total_seconds():.2f} s after the chief's end")
        table(
            ("task", "state", "exit"),
            [
                (task.name, task.state, task.exit_code if task.signal is None else f"signal {task.signal}")
                for task in training.tasks
            ],
        )
        for node in client.cluster().nodes:
            print(f"{node.name}: {node.cpu_used:g} of {node.cpu:g} CPU, {size(node.memory_used)} memory in use")
            if node.cpu_used or node.memory_used or node.gpu_used:
                raise Internal(f"{node.name} still holds resources of a training that has ended")

    with steps.step("save: what the save job made of it"):
        version = client.models.wait_saved("digits", training.name, timeout=120)
        print(f"{version.model} version {version.number}: {size(version.size)} in {version.files} files")
        print(f"{version.digest}, made by {version.lineage.training} from {version.lineage.code}")

    with steps.step("serve: 2 replicas"):
        client.servings.create({"name": "digits", "model": "digits", "version": version.number, "replicas": 2})
        serving = client.servings.wait("digits", timeout=180)
        if serving.endpoint is None:
            raise Internal("the serving is ready and has no endpoint")
        print(f"gRPC {serving.endpoint.grpc}   REST {serving.endpoint.rest}:predict")

    with np.load(data / "digits" / "digits.npz") as arrays:
        pixels, digits = arrays["x_test"], arrays["y_test"]

    with steps.step(f"predict {len(digits)} held-out digits over gRPC"):
        with PredictClient(serving.endpoint.grpc) as grpc:
            over_grpc = grpc.predict("digits", {"pixels": pixels}, timeout=30).outputs["digit"]
        accuracy = float(np.mean(over_grpc == digits))
        print(f"right: {int(np.sum(over_grpc == digits))} of {len(digits)}")

    with steps.step(f"predict {ROWS_OVER_REST} of them over REST"):
        answer = client.servings.predict("digits", instances=pixels[:ROWS_OVER_REST].tolist())
        over_rest = [row["digit"] for row in answer.predictions or []]
        print(f"predicted {' '.join(map(str, over_rest[:16]))} …")
        print(f"written   {' '.join(map(str, digits[:16]))} …")
        if over_rest != over_grpc[:ROWS_OVER_REST].tolist():
            raise Internal("REST and gRPC do not answer the same")

    with steps.step("look back: every lifecycle event"):
        for event in client.events(follow=False):
            print(line_of(event))
    return accuracy


@contextlib.contextmanager
def place(given: Path | None) -> Iterator[Path]:
    """A fresh folder that is removed at the end, or the one that was given, which stays."""
    if given is not None:
        given.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(given.iterdir()):
            raise Internal(f"{given} is not empty: name a new folder, or leave --home out")
        yield given.absolute()
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix="elearn-demo-", dir=cache))
    except OSError:
        home = Path(tempfile.mkdtemp(prefix="elearn-demo-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def demo(home: Path, steps: Steps) -> float:
    data = home / "data"
    prepare = [sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(data / "digits")]
    with subprocess.Popen(prepare) as preparing:  # while elearn starts
        try:
            with running(home, steps) as url, contextlib.ExitStack() as stack:
                token = (home / "token").read_text().strip()
                client = stack.enter_context(Client.at(Connection(url=url, token=token)))
                return main_job(client, data, preparing, steps)
        finally:
            preparing.terminate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="a new folder, which stays; by default one that is removed")
    given: Path | None = parser.parse_args().home
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    steps = Steps()
    try:
        with place(given) as home:
            accuracy = demo(home, steps)
    except KeyboardInterrupt:
        print("\ndemo: given up; nothing is left running", file=sys.stderr)
        return 130
    except (ElearnError, PredictError, OSError, subprocess.TimeoutExpired) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    print()
    took = [(what.partition(":")[0], f"{seconds:.1f} s") for what, seconds in steps.took]
    total = sum(seconds for _, seconds in steps.took)
    table(("step", "took"), [*took, ("everything", f"{total:.1f} s")])
    print(f"\naccuracy on held-out digits: {accuracy:.4f}")
    if accuracy < WANTED_ACCURACY:
        print(f"demo: that is below {WANTED_ACCURACY}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
