"""Who has which CPU, memory and GPUs of this machine: one file under a lock."""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from shared.errors import Internal, StorageFull
from shared.local.book import Book
from shared.local.machine import Machine, human_bytes

_ROUNDING = 1e-6  # cores: sums of 0.1 must not make a machine too small


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What one task wants: cores, bytes, whole GPUs."""

    task: str
    cpu: float = 0.0
    memory: int = 0
    gpus: int = 0


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one task has: cores, bytes, and the indices of its GPUs."""

    task: str
    cpu: float
    memory: int
    gpus: tuple[int, ...]


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What an owner holds: one part per request, in their order. ``at``: seconds since the epoch."""

    owner: str
    parts: tuple[Part, ...]
    at: float


class Shortage(msgspec.Struct, frozen=True, kw_only=True):
    """Why nothing was granted.

    Attributes:
        what: the resource that is short.
        wanted, free, total: in cores, bytes or GPUs.
        holders: owners that hold some of it, the largest first.
    """

    what: Literal["cpu", "memory", "gpu"]
    wanted: float
    free: float
    total: float
    holders: tuple[str, ...] = ()

    def words(self) -> str:
        """Such as ``waiting for 2 GPUs: 8 of 8 in use by search/ctr-41``."""
        used = self.total - self.free
        if self.what == "memory":
            wanted, use = (
                f"{human_bytes(self.wanted)} of memory",
                f"{human_bytes(used)} of {human_bytes(self.total)}",
            )
        else:
            unit = "GPU" if self.what == "gpu" else "CPU"
            wanted = f"{self.wanted:g} {unit}{'' if self.wanted == 1 else 's'}"
            use = f"{used:g} of {self.total:g}"
        shown = ", ".join(self.holders[:3])
        more = f" and {len(self.holders) - 3} more" if len(self.holders) > 3 else ""
        return f"waiting for {wanted}: {use} in use" + (f" by {shown}{more}" if shown else "")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The whole ledger at one moment. ``free_gpus``: indices nobody holds, in this home or another of this user."""

    machine: Machine
    grants: tuple[Grant, ...]
    ports: dict[str, tuple[int, ...]]
    free_cpu: float
    free_memory: int
    free_gpus: tuple[int, ...]


class Entries(msgspec.Struct, kw_only=True):
    """The ledger file."""

    version: Literal[1] = 1
    grants: dict[str, Grant] = {}
    ports: dict[str, tuple[int, ...]] = {}


class Ledger:
    """Hands out a machine. All methods block for a millisecond or so (a locked file): call them in a thread.

    CPU and memory are counted, not enforced; GPUs and ports are exclusive, real GPUs also among all homes of a user.
    Every service that shares the ledger opens it with the same machine.

    Args:
        path: the file; its folder is made.
        machine: what there is.
        book: where GPUs and ports are booked for the whole machine.
    """

    def __init__(self, path: Path, machine: Machine, book: Book | None = None) -> None:
        self.machine = machine
        self._path = path.absolute()
        self._book = book or Book()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._alive = os.open(self.alive_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._alive, fcntl.LOCK_SH)

    @property
    def alive_path(self) -> Path:
        """Locked while this home lives. Put it into ``ProcessSpec.hold`` of every task that has GPUs or ports."""
        return self._path.with_name(self._path.name + ".alive")

    def close(self) -> None:
        """Let go of the alive file; grants stay."""
        os.close(self._alive)

    def acquire(self, owner: str, requests: Sequence[Request]) -> Grant | Shortage:
        """All of it or nothing. An owner that holds something gets the same answer again."""
        with self.locked() as entries:
            held = entries.grants.get(owner)
            if held is not None:
                return held
            with self._book.open(self.alive_path) as book:
                others = book.taken_by_others() if self._has_real_gpus else {}
                answer = _decide(self.machine, entries, others, owner, requests, time.time())
                if isinstance(answer, Grant):
                    entries.grants[owner] = answer
                    book.hold(self.booked(entries))
            return answer

    def release(self, owner: str) -> bool:
        """Give back all an owner holds, ports included; False when it held nothing, which is success too."""
        with self.locked() as entries:
            grant, ports = entries.grants.pop(owner, None), entries.ports.pop(owner, None)
            if grant is None and ports is None:
                return False
            with self._book.open(self.alive_path) as book:
                book.hold(self.booked(entries))
            return True

    def snapshot(self) -> Snapshot:
        """Everything at this moment."""
        with self.locked() as entries, self._book.open(self.alive_path) as book:
            others = book.taken_by_others() if self._has_real_gpus else {}
            parts = [part for grant in entries.grants.values() for part in grant.parts]
            return Snapshot(
                machine=self.machine,
                grants=tuple(entries.grants.values()),
                ports=dict(entries.ports),
                free_cpu=round(self.machine.cpu - sum(part.cpu for part in parts), 6),
                free_memory=self.machine.memory - sum(part.memory for part in parts),
                free_gpus=_free_gpus(self.machine, entries, others),
            )

    def fits_ever(self, requests: Sequence[Request]) -> str | None:
        """None when the requests fit an empty machine; else words that name the largest that would."""
        return fits_ever(self.machine, requests)

    @property
    def book(self) -> Book:
        """Where GPUs and ports are booked for the whole machine."""
        return self._book

    @property
    def _has_real_gpus(self) -> bool:
        return any(not gpu.fake for gpu in self.machine.gpus)

    def booked(self, entries: Entries) -> list[tuple[str, str]]:
        """What of the entries is booked for the whole machine, with its owner."""
        real = {gpu.index: gpu.uuid for gpu in self.machine.gpus if not gpu.fake}
        gpus = [
            (f"gpu:{real[index]}", owner)
            for owner, grant in entries.grants.items()
            for part in grant.parts
            for index in part.gpus
            if index in real
        ]
        return gpus + [(f"port:{port}", owner) for owner, ports in entries.ports.items() for port in ports]

    @contextmanager
    def locked(self) -> Iterator[Entries]:
        """The entries under the file's lock; written back when they changed and nothing was raised.

        Raises:
            StorageFull: they can't be written.
            Internal: the file can't be read.
        """
        lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self._read()
            entries = msgspec.json.decode(before, type=Entries) if before else Entries()
            yield entries
            after = msgspec.json.encode(entries)
            if after != before:
                self._write(after)
        except msgspec.MsgspecError as problem:
            raise Internal(f"the ledger {self._path} can't be read: {problem}") from problem
        finally:
            os.close(lock)

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""

    def _write(self, content: bytes) -> None:
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f"{self._path.name}.", dir=self._path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).rename(self._path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as problem:
            raise StorageFull(f"the ledger {self._path} can't be written: {problem.strerror}") from problem


def fits_ever(machine: Machine, requests: Sequence[Request]) -> str | None:
    """None when the requests fit an empty machine; else words that name the largest that would. Pure."""
    cpu, memory, gpus = _totals(requests)
    if gpus > len(machine.gpus):
        have = len(machine.gpus)
        return f"{gpus} GPU{'' if gpus == 1 else 's'} in all will never fit: " + (
            f"the most is {have}" if have else "this machine has none"
        )
    if memory > machine.memory:
        return f"{human_bytes(memory)} of memory in all will never fit: the most is {human_bytes(machine.memory)}"
    if cpu > machine.cpu + _ROUNDING:
        return f"{cpu:g} CPUs in all will never fit: the most is {machine.cpu:g}"
    return None


def _totals(requests: Sequence[Request]) -> tuple[float, int, int]:
    return (
        round(sum(one.cpu for one in requests), 6),
        sum(one.memory for one in requests),
        sum(one.gpus for one in requests),
    )


def _free_gpus(machine: Machine, entries: Entries, others: dict[str, str]) -> tuple[int, ...]:
    taken = {index for grant in entries.grants.values() for part in grant.parts for index in part.gpus}
    return tuple(gpu.index for gpu in machine.gpus if gpu.index not in taken and f"gpu:{gpu.uuid}" not in others)


def _decide(
    machine: Machine,
    entries: Entries,
    others: dict[str, str],
    owner: str,
    requests: Sequence[Request],
    now: float,
) -> Grant | Shortage:
    """The grant or the shortage; the rarest resource speaks first."""
    cpu, memory, gpus = _totals(requests)
    used_cpu, used_memory, _ = _used(entries)
    free = list(_free_gpus(machine, entries, others))
    if gpus > len(free):
        return _shortage("gpu", gpus, len(free), len(machine.gpus), entries, tuple(sorted(set(others.values()))))
    if memory > machine.memory - used_memory:
        return _shortage("memory", memory, machine.memory - used_memory, machine.memory, entries)
    if cpu > machine.cpu - used_cpu + _ROUNDING:
        return _shortage("cpu", cpu, round(machine.cpu - used_cpu, 6), machine.cpu, entries)
    parts = []
    for request in requests:
        taken, free = free[: request.gpus], free[request.gpus :]
        parts.append(Part(task=request.task, cpu=request.cpu, memory=request.memory, gpus=tuple(taken)))
    return Grant(owner=owner, parts=tuple(parts), at=now)


def _used(entries: Entries) -> tuple[float, int, int]:
    parts = [part for grant in entries.grants.values() for part in grant.parts]
    return (
        sum(part.cpu for part in parts),
        sum(part.memory for part in parts),
        sum(len(part.gpus) for part in parts),
    )


def _shortage(
    what: Literal["cpu", "memory", "gpu"],
    wanted: float,
    free: float,
    total: float,
    entries: Entries,
    others: tuple[str, ...] = (),
) -> Shortage:
    def amount(grant: Grant) -> float:
        sizes = {
            "cpu": sum(part.cpu for part in grant.parts),
            "memory": float(sum(part.memory for part in grant.parts)),
            "gpu": float(sum(len(part.gpus) for part in grant.parts)),
        }
        return sizes[what]

    held = sorted((grant for grant in entries.grants.values() if amount(grant) > 0), key=amount, reverse=True)
    holders = (*(grant.owner for grant in held), *(f"{owner} (another home)" for owner in others))
    return Shortage(what=what, wanted=wanted, free=free, total=total, holders=holders)
