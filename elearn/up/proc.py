"""Finding and ending processes of an embedded platform that need not be children of the caller."""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from shared.local.identity import ProcessIdentity, identify, open_pidfd, send, wait_ended

MARK = "ELEARN_SUPERVISED"
"""Environment variable that names a process of `elearn up` to itself and to those who look for it."""


def end(processes: Iterable[ProcessIdentity], grace: float, first: signal.Signals = signal.SIGTERM) -> None:
    """End processes: ask, wait at most ``grace`` seconds, kill. Those that have gone are no trouble."""
    with contextlib.ExitStack() as opened:
        left = {}
        for process in processes:
            descriptor = open_pidfd(process)
            if descriptor is not None:
                opened.callback(os.close, descriptor)
                left[descriptor] = process
        for process in left.values():
            send(process, first)
        if not wait_ended(list(left), grace):
            for process in left.values():
                send(process, signal.SIGKILL)
            wait_ended(list(left), 10.0)


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty where it can't be read."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if b"=" in entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def arguments(pid: int) -> list[str]:
    """The command line of a process; empty where it can't be read."""
    try:
        content = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(each) for each in content.split(b"\0")[:-1]]


def parent(pid: int) -> int | None:
    """The id of a process's parent; None where it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return None


def all_pids() -> list[int]:
    """Every process that can be seen from here."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def supervised(home: Path) -> dict[str, list[ProcessIdentity]]:
    """Processes that an `elearn up` of this home started and that still run, recorded or not, by name."""
    found: dict[str, list[ProcessIdentity]] = {}
    for pid in all_pids():
        environ = environment(pid)
        name = environ.get(MARK)
        # What they started may have inherited the mark; whatever we start leads a session of its own.
        if name is None or environ.get("ELEARN_HOME") != str(home) or not _leads_session(pid):
            continue
        process = identify(pid)
        if process is not None:
            found.setdefault(name, []).append(process)
    return found


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False
