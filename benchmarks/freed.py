"""The chief's exit to everything freed, for processes that honour SIGTERM."""

from datetime import UTC, datetime
from pathlib import Path

from benchmarks.product import running
from benchmarks.report import report, summary
from elearn import Client

_RUNS = 100
_CHIEF = (
    "import os, pathlib, sys, time\n"
    "if os.environ['ELEARN_ROLE'] != 'chief':\n"
    "    time.sleep(3600)\n"
    "time.sleep(0.3)\n"
    "pathlib.Path(os.environ['BENCH_OUT']).write_text(str(time.time()))\n"
)


def _once(client: Client, out: Path) -> float:
    training = client.trainings.submit(
        {
            "name": "bench",
            "command": ["python", "-c", _CHIEF],
            "env": {"BENCH_OUT": str(out)},
            "roles": {
                role: {"replicas": count, "cpu": 0.1, "memory": "64Mi"}
                for role, count in (("chief", 1), ("worker", 2), ("ps", 1))
            },
        }
    )
    ended = client.trainings.wait(training.name, until="freed", timeout=60)
    if ended.state != "succeeded" or ended.freed_at is None:
        raise RuntimeError(f"{ended.name}: {ended.state}: {ended.reason}")
    return (ended.freed_at - datetime.fromtimestamp(float(out.read_text()), UTC)).total_seconds()


def main() -> None:
    """Measure and report."""
    with running() as (client, folder):
        seconds = [_once(client, folder / f"exit-{number}") for number in range(_RUNS)]
    report("exit_to_freed", wanted="p99 under 0.7 s", seconds=summary(seconds))


if __name__ == "__main__":
    main()
