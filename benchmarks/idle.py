"""What the idle control plane costs: memory, and share of a core."""

import os
import time
from pathlib import Path

from benchmarks.product import running
from benchmarks.report import report

_SETTLE = 45.0
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


def _cpu_seconds(pids: list[int]) -> dict[int, float]:
    """Seconds that each process has used so far, without those that have ended."""
    used = {}
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        used[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def _memory(pids: list[int], field: str) -> float:
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # ended meanwhile
        for line in lines:
            if line.startswith(field + ":"):
                total += int(line.split()[1])
    return total / 1024


def _names(pids: list[int]) -> dict[str, int]:
    """Resident megabytes by what the process is."""
    sizes: dict[str, int] = {}
    for pid in pids:
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        name = next((each for each in arguments if each.startswith(("services.", "elearn.up"))), "")
        name = name or Path(arguments[0].split(":")[0]).name or "?"
        sizes[name] = sizes.get(name, 0) + round(_memory([pid], "Rss"))
    return sizes


def main() -> None:
    """Measure and report."""
    with running() as (_, folder):
        time.sleep(_SETTLE)
        pids = _processes(folder / "home")
        before, started = _cpu_seconds(pids), time.perf_counter()
        time.sleep(_WATCHED)
        pids = _processes(folder / "home")
        after = _cpu_seconds(pids)
        share = sum(after[pid] - before.get(pid, 0.0) for pid in after) / (time.perf_counter() - started)
        report(
            "idle_control_plane",
            wanted="under 450 MB resident, under 2 % of a core",
            processes=len(pids),
            resident_mb=round(_memory(pids, "Rss")),
            proportional_mb=round(_memory(pids, "Pss")),
            core_percent=round(100 * share, 2),
            resident_mb_of=_names(pids),
        )


if __name__ == "__main__":
    main()
