"""The nursery that forks shims: replaced when it is killed, gone with its service."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shared.local import nursery, shim
from shared.local.identity import ProcessIdentity
from shared.local.records import write_spec
from tests.support.local_processes import Home, home, is_running

__all__ = ["home"]


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A nursery inherits HOME: by it we tell ours from those of other services on this machine."""
    monkeypatch.setenv("HOME", str(tmp_path))


def pid_of_nursery(home: Home, shim: ProcessIdentity) -> int:
    mark = f"HOME={home.home.parent}".encode()
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if words.endswith(b"/shared/local/shim.py\0") and mark in environment.split(b"\0"):
            found[int(folder.name)] = parent
    # What it forks a shim with may not have ended yet.
    (only,) = (pid for pid, parent in found.items() if pid != shim.pid and parent not in found)
    return only


async def test_a_killed_one_is_replaced_and_its_tasks_live_on(home: Home) -> None:
    status = await home.processes.start("a", home.shell("exec sleep 60"))
    os.kill(pid_of_nursery(home, status.shim), signal.SIGKILL)
    await home.processes.start("b", home.shell("exec sleep 60"))
    assert {status.state for status in await home.processes.list()} == {"running"}


async def test_one_that_is_killed_with_a_start_in_its_hands_is_replaced(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: list[nursery._Descriptor] = []

    def spawn() -> nursery._Descriptor:
        """The first one takes the request, and dies: its end of the answer closes before its socket does."""
        if spawned:
            return really_spawn()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        spawned.append(nursery._Descriptor(ours.detach()))
        threading.Thread(target=die, args=(theirs,)).start()
        return spawned[0]

    def die(theirs: socket.socket) -> None:
        _, descriptors, _, _ = socket.recv_fds(theirs, 8192, 1)
        os.close(descriptors[0])
        asked_whether_it_lives.wait(10)
        theirs.close()

    def outlives(self: nursery._Descriptor, seconds: float) -> bool:
        asked_whether_it_lives.set()
        return really_outlives(self, seconds)

    asked_whether_it_lives = threading.Event()
    really_spawn, really_outlives = nursery._spawn, nursery._Descriptor.outlives
    monkeypatch.setattr(nursery, "_spawn", spawn)
    monkeypatch.setattr(nursery._Descriptor, "outlives", outlives)
    assert (await home.processes.start("a", home.shell("exec sleep 60"))).state == "running"


async def test_ends_with_its_service(home: Home) -> None:
    other = home.again()
    status = await other.start("a", home.shell("exec sleep 60"))
    pid = pid_of_nursery(home, status.shim)
    del other
    async with asyncio.timeout(10):
        while is_running(pid):
            await asyncio.sleep(0.005)


async def test_the_shim_also_starts_alone(home: Home) -> None:
    folder = home.processes.root / "a"
    folder.mkdir(parents=True)
    write_spec(folder, "a", home.shell("exec sleep 60"))
    command = [sys.executable, "-I", "-S", "-E", shim.__file__, str(folder)]
    answers = [(await asyncio.to_thread(subprocess.run, command, check=False)).returncode for _ in range(2)]
    assert answers == [shim.STARTED, shim.ALREADY_RUNNING]
    status = await home.processes.start("a", home.shell("exit 1"))
    assert status.state == "running"
