"""Tasks as processes of this machine that outlive the service that started them.

Every task has a folder ``<root>/<id>`` with ``spec.json``, ``status.json`` and a lock that its keeper
(:mod:`shared.local.keeper`) holds while it lives. The files are the truth: any number of services may look at one root,
and a restarted one finds everything again.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import signal as signals
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import msgspec
import structlog

from shared.errors import Conflict, ElearnError, Internal, Invalid, StorageFull
from shared.local import shim
from shared.local.identity import (
    ProcessIdentity,
    boot_id,
    is_alive,
    kill_marked,
    open_pidfd,
    send,
    wait_ended,
)
from shared.local.nursery import Nursery
from shared.local.records import boot_of_spec, read_spec, read_status, write, write_spec
from shared.local.spec import (
    BindMount,
    ProcessSpec,
    ProcessStatus,
    Removed,
    Restart,
    Synced,
    is_id,
)
from shared.local.watching import Watcher

__all__ = [
    "BindMount",
    "LocalProcesses",
    "ProcessIdentity",
    "ProcessSpec",
    "ProcessStatus",
    "Removed",
    "Restart",
    "Synced",
    "end_all",
    "processes_root",
]

_log = structlog.get_logger(__name__)

_WATCHERS = ".watchers"
_START_SECONDS = 30.0
_STOP_MARGIN_SECONDS = 15.0  # past the grace: the keeper itself waits 10 s for what hangs in the kernel
_LOCK_SECONDS = 1.0


def processes_root(home: Path, room: str) -> Path:
    """Where a room of this ELEARN_HOME keeps its processes; :func:`end_all` finds them there."""
    return home / "processes" / room


class LocalProcesses:
    """The processes beneath one root.

    Args:
        root: their folder, absolute; made (0700) when the first one starts.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._nursery = Nursery()

    async def start(self, id: str, spec: ProcessSpec) -> ProcessStatus:
        """Start a task unless there is one with this id already, living or finished, which is then returned as it is.

        Returns when the task runs, or could not be started: then the state is ``failed`` and ``error`` says why.

        Raises:
            Invalid: the id or the spec can't be used.
            StorageFull: no room to record it; nothing was started.
            Internal: it can't be recorded, or its keeper can't be started, for another reason; nothing was started.
        """
        _check(id, spec)
        return await asyncio.to_thread(self._start, id, spec)

    async def stop(self, id: str, grace: float | None = None) -> ProcessStatus | None:
        """End a task and everything it started; returns when all of it has gone, with its final status.

        SIGTERM, after ``grace`` seconds (default: its spec's) SIGKILL. A task that has ended, or never was, is success.

        Raises:
            Internal: it can't be killed (it hangs in the kernel).
        """
        _check_id(id)
        status = await asyncio.to_thread(self._ask_to_stop, id, grace)
        if status is None or status.finished:
            return status
        if grace is None:
            grace = (await asyncio.to_thread(read_spec, self.root / id)).grace
        if not await _ended(status.shim, grace + _STOP_MARGIN_SECONDS):
            send(status.shim, signals.SIGKILL)
            await _ended(status.shim, _STOP_MARGIN_SECONDS)
        final = await asyncio.to_thread(self._refresh, id)
        if final is not None and not final.finished:
            raise Internal(f"process {id} (pid {final.shim.pid}) can't be ended")
        return final

    async def wait(self, id: str, timeout: float | None = None) -> ProcessStatus:
        """Wait until a task has finished; its final status.

        Raises:
            TimeoutError: it has not within ``timeout`` seconds.
            Conflict: there is no such task.
        """
        async with asyncio.timeout(timeout):
            while True:
                status = await self.status(id)
                if status is None:
                    raise Conflict(f"there is no process {id}")
                if status.finished:
                    return status
                await _ended(status.shim, None)

    async def status(self, id: str) -> ProcessStatus | None:
        """How a task is; None when there is none."""
        _check_id(id)
        return await asyncio.to_thread(self._refresh, id)

    async def list(self, prefix: str = "") -> tuple[ProcessStatus, ...]:
        """All tasks whose id begins with ``prefix``, by id; also those that were asked for and not started yet."""
        return await asyncio.to_thread(self._list, prefix)

    async def signal(self, id: str, number: signals.Signals) -> bool:
        """Send a signal to a task's process group; False when it does not run now."""
        _check_id(id)
        status = await asyncio.to_thread(self._refresh, id)
        if status is None or status.task is None or status.state != "running" or not is_alive(status.task):
            return False
        try:
            os.killpg(status.task.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def remove(self, id: str) -> None:
        """Forget a finished task (its log stays where the spec put it); one that is not there is success.

        Raises:
            Conflict: it still runs.
        """
        _check_id(id)
        await asyncio.to_thread(self._remove, id)

    async def watch(self, resync: float = 10.0) -> AsyncGenerator[ProcessStatus | Removed | Synced, None]:
        """What is there, then :class:`Synced`, then every change; never ends.

        Several changes of one task in quick succession may come as the last of them. Iterate under ``aclosing``.

        Args:
            resync: seconds after which everything is looked at again, should a wake-up have been lost.
        """
        watcher = Watcher(self, resync)
        try:
            # Who watches will start something: by then the nursery is ready.
            await asyncio.to_thread(self._nursery.warm)
            await watcher.open()
            async with contextlib.aclosing(watcher.changes()) as changes:
                async for change in changes:
                    yield change
        finally:
            watcher.close()

    # -- files; called in threads

    def watchers(self) -> Path:
        """The folder of the watchers' sockets."""
        return self.root / _WATCHERS

    def ids(self) -> tuple[str, ...]:
        """The ids of all tasks recorded here."""
        try:
            return tuple(sorted(entry.name for entry in os.scandir(self.root) if is_id(entry.name)))
        except FileNotFoundError:
            return ()

    def _list(self, prefix: str) -> tuple[ProcessStatus, ...]:
        found = []
        for id in self.ids():
            if id.startswith(prefix):
                status = self._refresh(id)
                if status is None and boot_of_spec(self.root / id) is not None:
                    status = ProcessStatus(id=id, state="starting", shim=_nobody())
                if status is not None:
                    found.append(status)
        return tuple(found)

    def _start(self, id: str, spec: ProcessSpec) -> ProcessStatus:
        directory = self.root / id
        known = self._refresh(id)
        if known is not None:
            return known
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_spec(directory, id, spec)
        except OSError as problem:
            kind = StorageFull if problem.errno in (errno.ENOSPC, errno.EDQUOT) else Internal
            raise kind(f"can't record process {id} in {self.root}: {problem.strerror}") from problem
        answer = self._nursery.start(directory)
        until = time.monotonic() + _START_SECONDS
        while (status := self._refresh(id)) is None:
            # Another service is starting it at this very moment, and holds the lock: its status comes in milliseconds.
            if answer != shim.ALREADY_RUNNING or time.monotonic() > until:
                raise _start_problem(id, directory)
            time.sleep(0.005)
        return status

    def _ask_to_stop(self, id: str, grace: float | None) -> ProcessStatus | None:
        status = self._refresh(id) or self._forbid(id)
        if status is None or status.finished:
            return status
        if grace is not None:
            with contextlib.suppress(OSError):  # a full disk must not keep a task running: its spec's grace holds
                write(self.root / id, "stop.json", msgspec.json.encode({"grace": grace}))
        send(status.shim, signals.SIGTERM)
        return status

    def _forbid(self, id: str) -> ProcessStatus | None:
        """Of a task that was asked for and has no status: let a start under way say so, or see that none follows."""
        directory = self.root / id
        if boot_of_spec(directory) is None:
            return None
        with _locked(directory, while_=lambda: read_status(directory) is None) as locked:
            status = read_status(directory)
            if status is not None or not locked:
                return status
            now = time.time()
            final = ProcessStatus(
                id=id,
                state="failed",
                shim=_nobody(),
                created_at=now,
                finished_at=now,
                error="stopped before it was started",
                stop_requested=True,
            )
            write(directory, "status.json", msgspec.json.encode(final))
        self.tell_watchers(id)
        return final

    def _refresh(self, id: str) -> ProcessStatus | None:
        """The status, finalised first should its keeper have died without recording the end."""
        directory = self.root / id
        status = read_status(directory)
        if status is None:
            boot = boot_of_spec(directory)
            if boot is None or boot == boot_id():
                return None  # nothing recorded yet: it may be started
            status = ProcessStatus(id=id, state="starting", shim=_nobody(boot))
        if status.finished or is_alive(status.shim):
            return status
        return self._finalise(directory, status)

    def _finalise(self, directory: Path, status: ProcessStatus) -> ProcessStatus:
        # The lock may be held by a child of the dead keeper that has not become the task yet, or by another service
        # that is doing the same.
        with _locked(directory) as locked:
            current = read_status(directory) or status
            if not locked or current.finished:
                return current
            kill_marked(str(directory))
            known = current.state == "ending" and (current.exit_code is not None or current.signal is not None)
            same_boot = current.shim.boot == boot_id()
            why = "its keeper process was killed" if same_boot else "the machine was restarted"
            final = msgspec.structs.replace(
                current,
                state="exited" if known else "lost",
                finished_at=time.time(),
                error=None if known else f"lost: {why}",
            )
            try:
                write(directory, "status.json", msgspec.json.encode(final))
            except OSError as problem:  # it is true all the same, and found out again next time
                _log.warning("can't record the end of a process", process=status.id, error=str(problem))
                return final
        self.tell_watchers(status.id)
        return final

    def _remove(self, id: str) -> None:
        directory = self.root / id
        status = self._refresh(id)
        if status is not None and not status.finished:
            raise Conflict(f"process {id} still runs: stop it first")
        grave = self.root / f".removed-{id}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            directory.rename(grave)
        except FileNotFoundError:
            return
        for each in self.root.glob(".removed-*"):  # this one, and what a killed service left
            shutil.rmtree(each, ignore_errors=True)
        self.tell_watchers(id)

    def tell_watchers(self, id: str) -> None:
        """Wake every watcher for one task: best effort."""
        try:
            folder = os.open(self.watchers(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            for name in os.listdir(folder):  # noqa: PTH208  # an open folder has no path
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    sender.setblocking(False)
                    with contextlib.suppress(OSError):
                        sender.sendto(id.encode(), f"/proc/self/fd/{folder}/{name}")
        finally:
            os.close(folder)


def end_all(home: Path, grace: float = 5.0) -> int:
    """End every task of an ELEARN_HOME, whichever room started it; how many were running.

    Blocks until all have gone: up to ``grace`` seconds for those that honour SIGTERM, some more for the rest.
    """
    everything = (home / "processes").resolve()
    rooms = [LocalProcesses(path) for path in everything.glob("*") if path.is_dir()]
    asked = 0
    running: dict[int, ProcessStatus] = {}
    for room in rooms:
        for id in room.ids():
            status = room._ask_to_stop(id, grace)
            if status is not None and not status.finished:
                asked += 1
                descriptor = open_pidfd(status.shim)
                if descriptor is not None:
                    running[descriptor] = status
    if running and not wait_ended(list(running), grace + 2.0):
        for status in running.values():
            send(status.shim, signals.SIGKILL)
        wait_ended(list(running), 5.0)
    for descriptor in running:
        os.close(descriptor)
    kill_marked(str(everything), beneath=True)
    for room in rooms:
        room._list("")  # finalises those whose keeper had to be killed
    return asked


@contextlib.contextmanager
def _locked(directory: Path, while_: Callable[[], bool] = lambda: True) -> Iterator[bool]:
    """The lock of a task that no keeper holds; False when it is not to be had for a second, or ``while_`` ends."""
    try:
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # removed meanwhile
        yield False
        return
    try:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until or not while_():
                    yield False
                    return
                time.sleep(0.005)
            else:
                yield True
                return
    finally:
        os.close(lock)


def _nobody(boot: str | None = None) -> ProcessIdentity:
    """The keeper of a task that never had one."""
    return ProcessIdentity(pid=0, started=0, boot=boot_id() if boot is None else boot)


async def _ended(identity: ProcessIdentity, timeout: float | None) -> bool:
    """Wait until a process has ended; False when it has not within ``timeout`` seconds."""
    descriptor = open_pidfd(identity)
    if descriptor is None:
        return True
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _resolve, ended)
    try:
        async with asyncio.timeout(timeout):
            await ended
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return True


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _check_id(id: str) -> None:
    if not is_id(id):
        raise Invalid.field("id", f"{id!r} can't name a process: letters, digits, dot, dash and underscore, up to 200")


def _check(id: str, spec: ProcessSpec) -> None:
    _check_id(id)
    if not spec.argv or not spec.argv[0]:
        raise Invalid.field("command", "is empty")
    for text in (*spec.argv, *spec.env, *spec.env.values(), spec.cwd, spec.log):
        if "\0" in text:
            raise Invalid.field("command", "a command or an environment can't hold a zero byte")
    for name, path in (("cwd", spec.cwd), ("log", spec.log)):
        if not Path(path).is_absolute():
            raise Invalid.field(name, f"{path} is not an absolute path")


def _start_problem(id: str, directory: Path) -> ElearnError:
    output = b""
    with contextlib.suppress(OSError):
        output = (directory / "shim.log").read_bytes()
    lines = output.decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else "its keeper ended without a word"
    if "No space left" in last or "Disk quota" in last:
        return StorageFull(f"can't start process {id}: {last}")
    return Internal(f"can't start process {id}: {last}")
