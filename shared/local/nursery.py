"""A service's nursery: one small process that forks shims, so that a task's start does not wait for Python's."""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path

from shared.local import shim

_ANSWER_SECONDS = 30.0
_DEATH_SECONDS = 0.5  # who is killed closes files one by one: that of the answer, perhaps, before its own socket
_INHERITED = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH")  # what its Python may need; nothing else of the service's


class Nursery:
    """Starts shims; its process is started with the first one, again should it be killed, and ends with the service.

    Methods block and may be called from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: _Descriptor | None = None

    def warm(self) -> None:
        """Have the process ready."""
        self._ready()

    def start(self, directory: Path) -> int:
        """Start the shim of a state directory; its answer (see :mod:`shared.local.shim`)."""
        answer = shim.CANNOT_RECORD
        for _ in range(2):  # a nursery may have been killed since the last start: then once more, with a new one
            nursery = self._ready()
            asked, answering = os.pipe()
            try:
                try:
                    nursery.send(os.fsencode(directory), answering)
                except (BrokenPipeError, ConnectionError):
                    self._forget(nursery)
                    continue
                finally:
                    os.close(answering)
                answer = _read_answer(asked)
            finally:
                os.close(asked)
            if answer != shim.CANNOT_RECORD or nursery.outlives(_DEATH_SECONDS):
                break
            self._forget(nursery)
        return answer

    def _ready(self) -> "_Descriptor":
        with self._lock:
            if self._socket is None:
                self._socket = _spawn()
            return self._socket

    def _forget(self, nursery: "_Descriptor") -> None:
        with self._lock:
            if self._socket is nursery:
                self._socket = None


class _Descriptor:
    """Our end of a nursery's socket; closed, and the nursery with it, when nobody uses it any more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def send(self, message: bytes, descriptor: int) -> None:
        with socket.socket(fileno=os.dup(self._descriptor)) as own:
            socket.send_fds(own, [message], [descriptor], socket.MSG_NOSIGNAL)

    def outlives(self, seconds: float) -> bool:
        """Whether the nursery is still there after so long; at once False where it is not."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return not poll.poll(seconds * 1000)  # only a hang-up is ever told


def _spawn() -> _Descriptor:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        # It forks and returns at once: nobody has to wait for it, and it ends by itself when our socket closes.
        subprocess.run(
            [sys.executable, "-I", "-S", "-E", shim.__file__],
            env={key: os.environ[key] for key in _INHERITED if key in os.environ},
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
            timeout=_ANSWER_SECONDS,
        )
        return _Descriptor(os.dup(ours.fileno()))


def _read_answer(descriptor: int) -> int:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(_ANSWER_SECONDS * 1000):
        return shim.CANNOT_RECORD
    with contextlib.suppress(InterruptedError):
        return (os.read(descriptor, 1) or bytes([shim.CANNOT_RECORD]))[0]
    return shim.CANNOT_RECORD
