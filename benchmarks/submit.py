"""Submit over REST to the first user process started, over the bare cost of starting that process."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.product import running
from benchmarks.report import report, summary
from elearn import Client

_RUNS = 30
_PROGRAM = "import os, time; open(os.environ['BENCH_OUT'], 'w').write(str(time.time()))"


def _bare(out: Path) -> float:
    started = time.time()
    subprocess.run([sys.executable, "-c", _PROGRAM], env={**os.environ, "BENCH_OUT": str(out)}, check=True)
    return float(out.read_text()) - started


def _through_elearn(client: Client, out: Path) -> float:
    started = time.time()
    training = client.trainings.submit(
        {"name": "bench", "command": ["python", "-c", _PROGRAM], "env": {"BENCH_OUT": str(out)}}
    )
    ended = client.trainings.wait(training.name, until="freed", timeout=60)
    if ended.state != "succeeded":
        raise RuntimeError(f"{ended.name}: {ended.reason}")
    return float(out.read_text()) - started


def main() -> None:
    """Measure and report."""
    bare, through = [], []
    with running() as (client, folder):
        _through_elearn(client, folder / "warm")
        for number in range(_RUNS):
            bare.append(_bare(folder / f"bare-{number}"))
            through.append(_through_elearn(client, folder / f"elearn-{number}"))
    report(
        "submit_to_process",
        wanted="ratio at most 5",
        ratio=round(statistics.median(through) / statistics.median(bare), 2),
        seconds=summary(through),
        baseline_seconds=summary(bare),
    )


if __name__ == "__main__":
    main()
