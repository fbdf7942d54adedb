"""What the idle control plane costs: memory, and share of a core."""

import os
import time
from pathlib import Path

from benchmarks.product import running
from benchmarks.report import report

_SETTLE = 15.0
_WATCHED = 60.0


def _processes(home: Path) -> list[int]:
    """Every process that carries the home in its environment or its arguments, and their children."""
    found: set[int] = set()
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            text = (entry / "environ").read_bytes() + b"\0" + (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(home).encode() in text:
            found.add(int(entry.name))
    grown = True
    while grown:
        grown = False
        for child, parent in parents.items():
            if parent in found and child not in found:
                found.add(child)
                grown = True
    return sorted(found)


def _cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory(pids: list[int], field: str) -> float:
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(field + ":"):
                total += int(line.split()[1])
    return total / 1024


def main() -> None:
    """Measure and report."""
    with running() as (_, folder):
        time.sleep(_SETTLE)
        pids = _processes(folder / "home")
        before, started = _cpu_seconds(pids), time.perf_counter()
        time.sleep(_WATCHED)
        share = (_cpu_seconds(pids) - before) / (time.perf_counter() - started)
        report(
            "idle_control_plane",
            wanted="under 450 MB resident, under 2 % of a core",
            processes=len(pids),
            resident_mb=round(_memory(pids, "Rss")),
            proportional_mb=round(_memory(pids, "Pss")),
            core_percent=round(100 * share, 2),
        )


if __name__ == "__main__":
    main()
