"""How much of this machine there is to hand out."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from shared.errors import Invalid
from shared.local.gpus import Gpu, inventory

_UNITS = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's capacity.

    Attributes:
        cpu: cores, possibly fractional.
        memory: bytes.
        gpus: whole GPUs, by index.
    """

    cpu: float
    memory: int
    gpus: tuple[Gpu, ...] = ()


def detect(environ: Mapping[str, str] = os.environ) -> Machine:
    """This machine: cores and memory that this process may use (affinity, cgroup limits), and its GPUs.

    ``ELEARN_CPUS`` (a number) and ``ELEARN_MEMORY`` (such as ``8Gi``) say otherwise, ``ELEARN_FAKE_GPUS`` too.

    Raises:
        Invalid: one of these can't be read.
        Unavailable: the NVIDIA driver is there and does not answer.
    """
    cpus, memory = environ.get("ELEARN_CPUS", ""), environ.get("ELEARN_MEMORY", "")
    return Machine(
        cpu=_number(cpus) if cpus else _cores(),
        memory=_bytes(memory) if memory else _memory(),
        gpus=inventory(environ),
    )


def human_bytes(count: float) -> str:
    """A size for people: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{_short(count)} {unit}"
        count /= 1024
    return f"{_short(count)} TiB"


def _short(count: float) -> str:
    return f"{count:.2f}".rstrip("0").rstrip(".")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise Invalid.field("ELEARN_CPUS", f"{text!r} is not a number of cores")
    return value


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMGT]i?|Ki)?B?", text.strip())
    if match is None:
        raise Invalid.field("ELEARN_MEMORY", f"{text!r} is not a size such as 8Gi")
    return int(float(match[1]) * _UNITS["Ki" if match[2] == "ki" else match[2] or ""])


def _cores() -> float:
    cores = float(len(os.sched_getaffinity(0)))
    for group in _cgroups():
        words = _words(group / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            cores = min(cores, int(words[0]) / int(words[1]))
    quota, period = (
        _words(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")),
        _words(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
    )
    if quota and period and int(quota[0]) > 0:
        cores = min(cores, int(quota[0]) / int(period[0]))
    return round(cores, 3)


def _memory() -> int:
    total = 0
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    for group in _cgroups():
        words = _words(group / "memory.max")
        if words and words[0] != "max":
            total = min(total, int(words[0]))
    words = _words(Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    return min(total, int(words[0])) if words else total


def _cgroups() -> list[Path]:
    """This process's control group (v2) and all above it: each may set a limit."""
    own = ""
    try:
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            if line.startswith("0::"):
                own = line[3:]
    except OSError:
        return []
    group = Path("/sys/fs/cgroup") / own.lstrip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to("/sys/fs/cgroup"))]


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []
