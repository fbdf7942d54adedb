"""One process that is kept running: started, watched until it is ready, started again when it ends."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elearn.up import backoff, logfiles
from elearn.up.errors import StartError
from elearn.up.state import ProcessState, ServiceState
from shared.errors import ElearnError
from shared.local.identity import identify

_log = logging.getLogger("elearn.up")
_HOPELESS = 3
"""Ends before it was ever ready after which its first start counts as failed."""


async def _nothing() -> None:
    return


@dataclass(frozen=True, kw_only=True)
class Ailment:
    """What a process that runs can't do any more."""

    reason: str
    curable: bool
    """Whether a new start would help now."""


async def _well(pid: int) -> Ailment | None:
    del pid
    return None


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How a process is run."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    ready: Callable[[], Awaitable[bool]]
    """Asked every few milliseconds after each start until it says yes, or raises what makes it hopeless."""
    before: Callable[[], Awaitable[None]] = field(default=_nothing)
    """Done before each start."""
    ails: Callable[[int], Awaitable[Ailment | None]] = field(default=_well)
    """Asked every few seconds, with its process id, once it is ready: whether it must be started again."""
    look: float = 5.0
    """Seconds between two such questions."""
    stop_signal: signal.Signals = signal.SIGTERM
    grace: float = 10.0
    """Seconds between the stop signal and SIGKILL."""


class Managed:
    """Keeps one process running until told to stop."""

    def __init__(
        self, spec: Spec, changed: Callable[["Managed"], None], broken: Callable[[BaseException], None]
    ) -> None:
        """
        Args:
            changed: told of every new state, at once.
            broken: told when the keeping itself ended by an error: a mistake of ours.
        """
        self.spec = spec
        self.state = ServiceState(name=spec.name, state="starting")
        self._changed = changed
        self._broken = broken
        self._complains = False
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self) -> None:
        """Begin to keep it running."""
        self._keeping = asyncio.create_task(self._keep(), name=f"keep {self.spec.name}")
        self._keeping.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(error)

    async def ready(self) -> None:
        """Wait until it was ready for the first time.

        Raises:
            StartError: it ended several times without ever being ready.
        """
        await asyncio.shield(self._first)

    async def stop(self) -> None:
        """Ask it to end, wait for its grace, kill it; returns when it has gone."""
        if self._keeping is None:
            return
        self._stopping.set()
        self._signal(self.spec.stop_signal)
        if self._process is not None:
            self._set("stopping")
        done, _ = await asyncio.wait({self._keeping}, timeout=self.spec.grace)
        if not done:
            _log.warning("%s did not end within %.0f s: killing it", self.spec.name, self.spec.grace)
            self._signal(signal.SIGKILL)
            await asyncio.wait({self._keeping})
        self._set("stopped")
        if self._first.done():
            self._first.exception()  # seen: whoever waited for it may have left already
        else:
            self._first.cancel()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _set(self, state: ProcessState, reason: str | None = None) -> None:
        process = None if self._process is None else identify(self._process.pid)
        restarts = self.state.restarts + (state == "restarting")
        self.state = ServiceState(name=self.spec.name, state=state, process=process, restarts=restarts, reason=reason)
        self._changed(self)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        ends = 0
        while not self._stopping.is_set():
            began = loop.time()
            reason = await self._run_once()
            if self._stopping.is_set():
                return
            ends = backoff.ends_in_a_row(ends, loop.time() - began)
            pause = backoff.pause(ends)
            if self._complains:
                said = await asyncio.to_thread(logfiles.last_line, self.spec.log)
                reason = f"{reason}: {said or 'it said nothing'}"
            _log.warning("%s %s; starting it again in %.2f s", self.spec.name, reason, pause)
            self._set("restarting", reason)
            if ends >= _HOPELESS and not self._first.done():
                self._first.set_exception(StartError(f"{self.spec.name} {reason} (see {self.spec.log})"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _run_once(self) -> str:
        """Run the process to its end; says how that was."""
        self._complains = False
        try:
            await self.spec.before()
            self._process = await self._spawn()
        except OSError as error:
            return f"could not be started ({error.strerror or error})"
        self._set("starting")
        if self._stopping.is_set():
            self._signal(self.spec.stop_signal)
        watching = asyncio.create_task(self._watch(), name=f"watch {self.spec.name}")
        watching.add_done_callback(self._watched)
        try:
            code = await self._process.wait()
        finally:
            self._process = None
            watching.cancel()
            await asyncio.wait({watching})
        self._complains = code > 0
        if code >= 0:
            return f"ended with status {code}"
        return f"was ended by {signal.Signals(-code).name}"

    async def _spawn(self) -> asyncio.subprocess.Process:
        log = logfiles.open_log(self.spec.log)
        try:
            return await asyncio.create_subprocess_exec(
                *self.spec.command,
                env=dict(self.spec.environment),
                cwd=self.spec.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is for the supervisor alone
            )
        finally:
            os.close(log)

    def _watched(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._first.done():
            self._broken(error)
        else:
            self._first.set_exception(error)

    async def _watch(self) -> None:
        while not await self._answers():
            await asyncio.sleep(0.02)
        if not self._stopping.is_set():
            self._set("ready")
        if not self._first.done():
            self._first.set_result(None)
        if self.spec.ails is not _well:
            await self._mind()

    async def _mind(self) -> None:
        """Say when it is ill, and end it where it would be well after a new start."""
        while True:
            await asyncio.sleep(self.spec.look)
            process = self._process
            if process is None or self._stopping.is_set():
                return
            ailment = await self.spec.ails(process.pid)
            if ailment is None:
                continue
            if ailment.reason != self.state.reason:
                _log.warning("%s is ill: %s", self.spec.name, ailment.reason)
                self._set("unready", ailment.reason)
            if ailment.curable:
                _log.warning("%s: starting it again", self.spec.name)
                self._signal(self.spec.stop_signal)
                await asyncio.sleep(self.spec.grace)
                self._signal(signal.SIGKILL)

    async def _answers(self) -> bool:
        try:
            return await self.spec.ready()
        except ElearnError as error:
            if not self._first.done():
                raise
            # It has been ready before: what it lacks now, room on the disk say, may come back.
            if error.detail != self.state.reason:
                _log.warning("%s: %s", self.spec.name, error.detail)
                self._set("starting", error.detail)
            await asyncio.sleep(0.5)
            return False
