"""Small tasks for tests of the local cloud's machinery."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict, Unpack

import pytest

from shared.local.identity import identify
from shared.local.processes import LocalProcesses, ProcessSpec, end_all, processes_root
from shared.local.spec import BindMount, Restart

PATH = "/usr/local/bin:/usr/bin:/bin"


class Settings(TypedDict, total=False):
    """What :meth:`Home.spec` may be told of a task."""

    env: dict[str, str] | None
    cwd: str | None
    log: str | None
    log_limit: int
    grace: float
    restart: Restart | None
    mounts: tuple[BindMount, ...]
    hold: tuple[str, ...]


class Home:
    """An ELEARN_HOME with one room, and an easy way to say what is to run."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.work = home / "work"
        self.work.mkdir(parents=True)
        self.log = home / "task.log"
        self.processes = self.again()

    def again(self) -> LocalProcesses:
        """Another service over the same root."""
        return LocalProcesses(processes_root(self.home, "room"))

    def shell(self, script: str, **settings: Unpack[Settings]) -> ProcessSpec:
        return self.spec("/bin/sh", "-c", script, **settings)

    def python(self, script: str, **settings: Unpack[Settings]) -> ProcessSpec:
        return self.spec(sys.executable, "-I", "-S", "-u", "-c", script, **settings)

    def spec(
        self,
        *argv: str,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        log: str | None = None,
        log_limit: int = 0,
        grace: float = 10.0,
        restart: Restart | None = None,
        mounts: tuple[BindMount, ...] = (),
        hold: tuple[str, ...] = (),
    ) -> ProcessSpec:
        return ProcessSpec(
            argv=argv,
            env={"PATH": PATH, **(env or {})},
            cwd=cwd or str(self.work),
            log=log or str(self.log),
            log_limit=log_limit,
            grace=grace,
            restart=restart or Restart(),
            mounts=mounts,
            hold=hold,
        )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    yield made
    end_all(made.home, grace=0.2)


def is_running(pid: int) -> bool:
    return identify(pid) is not None


def pid_in(path: Path) -> int:
    return int(path.read_text())


def exists(path: Path) -> bool:
    return os.path.lexists(path)


async def until_exists(path: Path, seconds: float = 10.0) -> None:
    """Wait for a file that a task writes: it has no other way to tell us."""
    async with asyncio.timeout(seconds):
        while not path.exists() or not path.read_text():
            await asyncio.sleep(0.005)
