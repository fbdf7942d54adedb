"""A training's wall time through elearn over the same four processes started by hand."""

import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.product import running
from benchmarks.report import report, summary
from elearn import Client
from tests.support.cluster_by_hand import ClusterByHand

_RUNS = 3
_EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
_ROLES = {"chief": 1, "worker": 2, "ps": 1}


def _by_hand(data: Path, folder: Path) -> float:
    command = [sys.executable, str(_EXAMPLE / "train.py"), "--data", str(data), "--out", str(folder / "out")]
    folder.mkdir()
    started = time.perf_counter()
    with ClusterByHand(command, _ROLES, cwd=folder, logs=folder / "logs") as cluster:
        code = cluster.wait("chief-0", 300)
        seconds = time.perf_counter() - started
    if code != 0:
        raise RuntimeError(f"the chief ended with {code}")
    return seconds


def _through_elearn(client: Client) -> float:
    started = datetime.now(UTC)
    training = client.trainings.submit(_EXAMPLE / "training.yaml")
    ended = client.trainings.wait(training.name, until="freed", timeout=300)
    if ended.state != "succeeded" or ended.finished_at is None:
        raise RuntimeError(f"{ended.name}: {ended.reason}")
    return (ended.finished_at - started).total_seconds()  # and not when the client's next look found out


def main() -> None:
    """Measure and report."""
    by_hand, through = [], []
    with running() as (client, folder):
        data, runs = folder / "data", folder / "runs"
        subprocess.run([sys.executable, str(_EXAMPLE / "prepare.py"), "--out", str(data)], check=True)
        for name, path in (("digits", data), ("runs", runs)):
            client.datastores.create({"name": name, "local": {"path": str(path)}})
        for number in range(_RUNS):
            by_hand.append(_by_hand(data, folder / f"hand-{number}"))
            through.append(_through_elearn(client))
    ratios = [one / other for one, other in zip(through, by_hand, strict=True)]
    report(
        "training_wall_time",
        wanted="ratio at most 1.05",
        ratio=round(statistics.median(ratios), 3),
        seconds=summary(through),
        baseline_seconds=summary(by_hand),
    )


if __name__ == "__main__":
    main()
