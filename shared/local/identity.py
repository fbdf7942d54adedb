"""Who a process is: a pid alone is soon another's, so a pid goes with its start time and the boot it belongs to."""

import contextlib
import functools
import os
import select
import signal as signals
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

MARKER = "ELEARN_PROCESS"  # the environment variable by which everything of a task is found in /proc


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A process of this machine, safe against pid reuse.

    Attributes:
        started: start time in clock ticks since boot (field 22 of ``/proc/<pid>/stat``).
        boot: the kernel's boot id.
    """

    pid: int
    started: int
    boot: str


@functools.cache
def boot_id() -> str:
    """The id of this machine's current boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a living process; None when there is none (a zombie is dead)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return ProcessIdentity(pid=pid, started=int(fields[19]), boot=boot_id())


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether exactly this process still runs."""
    return identify(identity.pid) == identity


def open_pidfd(identity: ProcessIdentity) -> int | None:
    """A descriptor that becomes readable when the process has ended; None when it has already.

    The caller closes it.
    """
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if is_alive(identity):  # checked after opening: from here on the descriptor can mean no other process
        return descriptor
    os.close(descriptor)
    return None


def send(identity: ProcessIdentity, number: signals.Signals) -> bool:
    """Signal exactly this process; False when it has gone."""
    descriptor = open_pidfd(identity)
    if descriptor is None:
        return False
    try:
        signals.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def wait_ended(descriptors: list[int], timeout: float) -> bool:
    """Wait until every pidfd's process has ended, at most ``timeout`` seconds; True if all have."""
    poll = select.poll()
    waiting = set(descriptors)
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    until = time.monotonic() + timeout
    while waiting and (left := until - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            waiting.discard(descriptor)
    return not waiting


def marked(prefix: str) -> Iterator[tuple[ProcessIdentity, str]]:
    """Living processes whose environment holds the marker with a value that begins with ``prefix``, and the value.

    Costs a read of every own process's environment: for clean-up, not for polling.
    """
    wanted = f"{MARKER}={prefix}".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            environment = Path(f"/proc/{entry.name}/environ").read_bytes()
        except OSError:  # another user's, or gone meanwhile
            continue
        for variable in environment.split(b"\0"):
            if variable.startswith(wanted):
                identity = identify(int(entry.name))
                if identity is not None:
                    yield identity, os.fsdecode(variable.partition(b"=")[2])
                break


def kill_marked(value: str, *, beneath: bool = False, timeout: float = 5.0) -> int:
    """SIGKILL all that carries the marker ``value`` (or a value beneath it, as paths go) and wait until it has gone.

    Returns how many processes were found.
    """
    found = 0
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        living = [
            identity
            for identity, marker in marked(value)
            if marker == value or (beneath and marker.startswith(value.rstrip("/") + "/"))
        ]
        if not living:
            break
        found += len(living)
        with contextlib.ExitStack() as opened:
            descriptors = []
            for identity in living:
                descriptor = open_pidfd(identity)
                if descriptor is None:
                    continue
                opened.callback(os.close, descriptor)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    signals.pidfd_send_signal(descriptor, signals.SIGKILL)
                descriptors.append(descriptor)
            wait_ended(descriptors, max(0.0, until - time.monotonic()))
    return found
