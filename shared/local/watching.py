"""One watch over a root of processes: wake-ups by datagram and pidfd, and a slow look at everything."""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from shared.local.identity import open_pidfd
from shared.local.spec import ProcessStatus, Removed, Synced, is_id

if TYPE_CHECKING:
    from shared.local.processes import LocalProcesses

_log = structlog.get_logger(__name__)

_QUEUE = Path("/proc/sys/net/unix/max_dgram_qlen")
_QUEUE_BY_DEFAULT: Final = 10


class Watcher:
    """Holds a socket that keepers write to, and a pidfd for each living keeper."""

    def __init__(self, processes: "LocalProcesses", resync: float) -> None:
        self._processes = processes
        self._resync = resync
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._dirty: set[str] = set()
        self._queue = _length_of_queue()
        self._everything = True
        self._known: dict[str, ProcessStatus] = {}
        self._keepers: dict[str, int] = {}
        self._socket: socket.socket | None = None
        self._path = processes.watchers() / f"{os.getpid()}-{secrets.token_hex(4)}.sock"

    async def open(self) -> None:
        """Register for wake-ups, before the first look, so that nothing falls between."""
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.setblocking(False)
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Through the open folder, for a socket's path has 108 bytes only.
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                receiver.bind(f"/proc/self/fd/{folder}/{self._path.name}")
            finally:
                os.close(folder)
        except OSError as problem:
            receiver.close()
            _log.warning("no wake-ups here, looking every few seconds", path=str(self._path), error=str(problem))
            return
        self._socket = receiver
        self._loop.add_reader(receiver, self._received)

    def close(self) -> None:
        """Unregister; nothing stays behind."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._path.unlink(missing_ok=True)
        for id in tuple(self._keepers):
            self._forget_keeper(id)

    async def changes(self) -> AsyncGenerator[ProcessStatus | Removed | Synced, None]:
        """See :meth:`LocalProcesses.watch`."""
        synced = False
        while True:
            self._woken.clear()
            ids = set(self._dirty)
            self._dirty.clear()
            everything, self._everything = self._everything, False
            if everything:
                ids.update(await asyncio.to_thread(self._processes.ids), self._known)
            for id in sorted(ids):
                change = await self._look(id)
                if change is not None:
                    yield change
            if not synced:
                synced = True
                yield Synced()
            await self._wake()

    async def _wake(self) -> None:
        try:
            async with asyncio.timeout(self._resync):
                await self._woken.wait()
        except TimeoutError:
            self._everything = True

    async def _look(self, id: str) -> ProcessStatus | Removed | None:
        known = self._known.get(id)
        status = await self._processes.status(id)
        if status is None:
            self._forget_keeper(id)
            return Removed(id=id) if self._known.pop(id, None) is not None else None
        if status.finished:
            self._forget_keeper(id)
        elif id not in self._keepers:
            self._mind_keeper(status)
        self._known[id] = status
        return status if status != known else None

    def _mind_keeper(self, status: ProcessStatus) -> None:
        descriptor = open_pidfd(status.shim)
        if descriptor is None:  # it ended since we read its status
            self._mark(status.id)
            return
        self._keepers[status.id] = descriptor
        self._loop.add_reader(descriptor, self._keeper_ended, status.id)

    def _keeper_ended(self, id: str) -> None:
        self._forget_keeper(id)
        self._mark(id)

    def _forget_keeper(self, id: str) -> None:
        descriptor = self._keepers.pop(id, None)
        if descriptor is not None:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)

    def _received(self) -> None:
        if self._socket is None:
            return
        count = 0
        while True:
            try:
                id = self._socket.recv(1024).decode("utf-8", "replace")
            except BlockingIOError:
                break
            count += 1
            if is_id(id):
                self._mark(id)
        if count >= self._queue:  # it was full: senders may have given up
            self._everything = True
            self._woken.set()

    def _mark(self, id: str) -> None:
        self._dirty.add(id)
        self._woken.set()


def _length_of_queue() -> int:
    """How many wake-ups wait for a reader that is busy; the rest is lost."""
    try:
        return int(_QUEUE.read_text())
    except (OSError, ValueError):
        return _QUEUE_BY_DEFAULT
