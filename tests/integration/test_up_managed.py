"""One process that is kept running."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from elearn.up.errors import HomeError, StartError
from elearn.up.managed import Ailment, Managed, Spec
from elearn.up.state import ServiceState


class Watched:
    """A managed process and the states it went through."""

    def __init__(
        self,
        folder: Path,
        program: str,
        *,
        grace: float = 10.0,
        command: str = sys.executable,
        ready: Callable[[], Awaitable[bool]] | None = None,
        **more: Any,
    ) -> None:
        self.marker = folder / "ready"
        self.states: asyncio.Queue[ServiceState] = asyncio.Queue()
        self.broken: list[BaseException] = []
        spec = Spec(
            name="thing",
            command=(command, "-I", "-S", "-c", program, str(self.marker)),
            environment={},
            folder=folder,
            log=folder / "thing.log",
            ready=ready or self._ready,
            before=self._before,
            grace=grace,
            **more,
        )
        self.managed = Managed(spec, lambda managed: self.states.put_nowait(managed.state), self.broken.append)
        self.managed.start()

    async def _ready(self) -> bool:
        return self.marker.exists()

    async def _before(self) -> None:
        self.marker.unlink(missing_ok=True)

    async def until(self, state: str) -> ServiceState:
        async with asyncio.timeout(20):
            while (seen := await self.states.get()).state != state:
                pass
        return seen


SERVE = "import sys, signal; open(sys.argv[1], 'w').close(); signal.pause()"


async def test_it_is_started_again_at_once_and_counted(tmp_path: Path) -> None:
    watched = Watched(tmp_path, SERVE)
    await watched.managed.ready()
    first = (await watched.until("ready")).process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    between = await watched.until("restarting")
    assert (between.reason, between.process, between.restarts) == ("was ended by SIGKILL", None, 1)
    second = (await watched.until("ready")).process
    assert second is not None
    assert second != first
    await watched.managed.stop()
    assert (await watched.until("stopped")).process is None
    assert watched.broken == []


async def test_one_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    watched = Watched(tmp_path, f"import signal; signal.signal(15, signal.SIG_IGN)\n{SERVE}", grace=0.05)
    await watched.managed.ready()
    process = (await watched.until("ready")).process
    assert process is not None
    async with asyncio.timeout(10):
        await watched.managed.stop()
    assert not Path(f"/proc/{process.pid}").exists()


async def test_one_that_never_becomes_ready_fails_with_its_last_words(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "raise SystemExit('no such setting')")
    with pytest.raises(StartError, match=r"thing ended with status 1: no such setting \(see .*thing\.log\)"):
        await watched.managed.ready()
    await watched.managed.stop()


async def test_a_program_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "", command="/no/such/program")
    with pytest.raises(StartError, match="could not be started"):
        await watched.managed.ready()
    await watched.managed.stop()


async def test_stopping_during_the_pause_does_not_wait_for_it(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "raise SystemExit(3)")
    with pytest.raises(StartError):
        await watched.managed.ready()
    for _ in range(2):  # by now the pauses last seconds
        await watched.until("restarting")
    async with asyncio.timeout(1):
        await watched.managed.stop()
    assert watched.managed.state.state == "stopped"


async def test_a_hopeless_first_start_fails_and_a_later_one_goes_on(tmp_path: Path) -> None:
    full = HomeError("no space left")
    asked: list[bool | HomeError] = [True, False, full, full, True]

    async def ready() -> bool:
        answer = asked.pop(0)
        if isinstance(answer, HomeError):
            raise answer
        return answer

    watched = Watched(tmp_path, SERVE, ready=ready)
    first = (await watched.until("ready")).process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    await watched.until("restarting")
    assert (await watched.until("starting")).reason is None
    assert (await watched.until("starting")).reason == "no space left"
    assert (await watched.until("ready")).reason is None
    await watched.managed.stop()
    assert watched.broken == []

    asked = [full]
    watched = Watched(tmp_path, SERVE, ready=ready)
    with pytest.raises(HomeError, match="no space left"):
        await watched.managed.ready()
    await watched.managed.stop()


async def test_what_is_ill_is_started_again_once_that_helps(tmp_path: Path) -> None:
    ill = Ailment(reason="stores nothing", curable=False)
    told: list[tuple[int, Ailment | None]] = []

    async def ails(pid: int) -> Ailment | None:
        answer = [None, ill, ill, Ailment(reason="stores nothing", curable=True), None][min(len(told), 4)]
        told.append((pid, answer))
        return answer

    watched = Watched(tmp_path, SERVE, ails=ails, look=0.01)
    first = (await watched.until("ready")).process
    assert first is not None
    seen = await watched.until("unready")
    assert (seen.process, seen.reason) == (first, "stores nothing")
    await watched.until("restarting")
    second = (await watched.until("ready")).process
    assert second is not None
    assert second != first
    assert [pid for pid, _ in told[:4]] == [first.pid] * 4
    async with asyncio.timeout(20):
        while len(told) < 6:
            await asyncio.sleep(0.005)
    assert {pid for pid, _ in told[4:]} == {second.pid}
    assert watched.managed.state.state == "ready"
    await watched.managed.stop()
    assert watched.broken == []
