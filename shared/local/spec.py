"""What a task is (its spec) and how it is (its status): the two files the shim and the services share."""

import re
from typing import Literal

import msgspec

from shared.local.identity import ProcessIdentity

State = Literal["starting", "running", "waiting", "ending", "exited", "failed", "lost"]

FINAL: frozenset[State] = frozenset({"exited", "failed", "lost"})


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def is_id(text: str) -> bool:
    """Whether this can name a process: it becomes a folder's name."""
    return _ID.fullmatch(text) is not None


class Restart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a task that ended is started again, under the same keeper.

    Attributes:
        policy: ``never``; ``on_failure`` (any end but exit code 0), ``most`` times; ``always``.
        delays: seconds before the first, second, … restart; the last one holds for all that follow.
        healthy_after: a task that ran this many seconds before it ended waits the first delay again.
    """

    policy: Literal["never", "on_failure", "always"] = "never"
    most: int = 0
    delays: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0)
    healthy_after: float = 60.0


class BindMount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``source`` appears at ``target`` for this task only; both absolute. Made by :mod:`shared.local.directories`."""

    source: str
    target: str
    read_only: bool = False


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task to run.

    Attributes:
        argv: the command; without a slash it is looked up in the task's own PATH.
        env: the whole environment: nothing is inherited from the service.
        cwd: working directory, absolute; must exist.
        log: file to which stdout and stderr are appended, absolute; its folder must exist.
        log_limit: bytes of log kept on disk, about; the oldest half is dropped beyond. 0: unlimited.
        grace: seconds between SIGTERM and SIGKILL when it is stopped.
        mounts: what :func:`shared.local.directories.prepare` returned.
        hold: files on which the keeper holds a shared lock while it lives (``Ledger.alive_path``).
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    log: str
    log_limit: int = 256 * 1024 * 1024
    grace: float = 10.0
    restart: Restart = Restart()
    mounts: tuple[BindMount, ...] = ()
    hold: tuple[str, ...] = ()


class StoredSpec(ProcessSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``spec.json``: the spec, and which task on which boot it is for."""

    id: str
    boot: str


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a task is. Instants are seconds since the epoch.

    ``starting → running ⇄ waiting (for a restart) → ending → exited``; ``failed``: could not be started, ``error``
    says why; ``lost``: its keeper was killed (or the machine went down), how it ended is unknown, and nothing runs.

    Attributes:
        shim, task: the keeper and the current (or last) main process.
        restarts: how often it was started again.
        exit_code, signal: how the last run ended: one of them is set once it has.
        error: in words, why it could not be started or was lost.
        stop_requested: it was asked to stop before it ended.
        cpu_seconds, peak_memory: of all its ended processes; bytes of the largest.
    """

    id: str
    state: State
    shim: ProcessIdentity
    task: ProcessIdentity | None = None
    restarts: int = 0
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    stop_requested: bool = False
    cpu_seconds: float = 0.0
    peak_memory: int = 0

    @property
    def finished(self) -> bool:
        """Nothing of it runs, nothing of it will."""
        return self.state in FINAL

    @property
    def succeeded(self) -> bool:
        """It ended by itself with exit code 0."""
        return self.state == "exited" and self.exit_code == 0

    def words(self) -> str:
        """The state in words for a reason or a log line."""
        if self.error is not None:
            return self.error
        if self.state in ("exited", "waiting", "ending"):
            how = f"signal {self.signal}" if self.exit_code is None else f"exit code {self.exit_code}"
            return f"ended by {how}" if self.exit_code is None else f"ended with {how}"
        return self.state


class Synced(msgspec.Struct, frozen=True):
    """A watch has told all there is; from here on come changes."""


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """A process's record was removed."""

    id: str
