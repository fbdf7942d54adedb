"""What the scheduler asks of a cloud: run a gang of tasks, free it, read its logs, show a TensorBoard.

Every call is idempotent, and derived from stored state: who calls may have died before it heard the answer. A cloud
that can't be reached raises ``Unavailable``; that is never taken for an answer.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, Protocol

import msgspec

from services.scheduler.model import Capabilities, MountPlan, NodeState, TaskPlan
from shared.contracts.problem import FieldError
from shared.contracts.training import Task, TrainingSpec


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to be launched."""

    project: str
    name: str
    attempt: int
    spec: TrainingSpec
    plan: tuple[TaskPlan, ...]
    mounts: tuple[MountPlan, ...]


class AttemptSeen(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt stands: every task of it that the cloud knows."""

    project: str
    name: str
    attempt: int
    tasks: tuple[Task, ...]


class AttemptGone(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud knows nothing of an attempt any more."""

    project: str
    name: str
    attempt: int


class Synced(msgspec.Struct, frozen=True):
    """Everything that is there has been shown; from here on come changes."""


Observation = AttemptSeen | AttemptGone | Synced


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What a cloud says of a spec before it is admitted.

    Attributes:
        errors: what it can't do, by field.
        notes: what it does otherwise than a user might expect.
    """

    errors: tuple[FieldError, ...] = ()
    notes: tuple[str, ...] = ()


class LogPart(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a log.

    Attributes:
        offset: where they begin; later than asked for where older text was dropped.
        size: bytes of the whole log at that moment.
    """

    data: bytes
    offset: int
    size: int


class BoardPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A TensorBoard to be shown: ``path`` is the folder of event files, in the volume of ``mount``."""

    project: str
    name: str
    mount: MountPlan
    path: str
    path_prefix: str


Work = Callable[[], Coroutine[Any, Any, None]]
"""Something that goes on for ever."""


class TrainingCloud(Protocol):
    """One cloud."""

    name: str

    def leading(self) -> Mapping[str, Work]:
        """What has to go on in the replica that leads, by name."""

    def everywhere(self) -> Mapping[str, Work]:
        """What has to go on in every replica, by name."""

    async def capabilities(self) -> Capabilities:
        """What it can do."""

    async def examine(self, project: str, spec: TrainingSpec) -> Examination:
        """What it can't do, or does in its own way, of this spec."""

    async def capacity(self) -> tuple[NodeState, ...]:
        """Its machines; what trainings hold of them is known from the rows."""

    async def launch(self, launch: Launch) -> None:
        """Start all tasks of an attempt; those that were started before are left as they are.

        Raises:
            NoRoomLeft: the resources are not free any more; nothing was left behind.
            CannotLaunch: it will never start like this; nothing was left behind.
            Unavailable, StorageFull: try again; what was begun is found again.
        """

    async def free(self, project: str, name: str, attempt: int) -> tuple[Task, ...]:
        """End an attempt's tasks and give back everything it held; returns when that is done.

        Returns:
            How its tasks ended, as far as is known. Logs stay. What is gone already is success.
        """

    async def settle(self, holding: frozenset[tuple[str, str, int]]) -> None:
        """Give back what is handed out to attempts that none of ``holding`` is, and of which nothing is to be seen.

        Asked once by whoever begins to lead: a database that was restored may know less than the cloud.
        """

    async def forget(self, project: str, name: str) -> None:
        """Remove the logs and whatever else is kept of a training's attempts; all of them are freed."""

    async def logs(self, project: str, name: str, attempt: int, task: str, *, offset: int, length: int) -> LogPart:
        """A part of a task's log; a negative offset counts from the end. No log yet is an empty one."""

    def watch(self) -> AsyncGenerator[Observation, None]:
        """What is there, then :class:`Synced`, then changes. It never ends; iterate under ``aclosing``."""

    async def open_board(self, board: BoardPlan) -> str:
        """Start a TensorBoard unless it runs, and wait until it answers; its base URL.

        Raises:
            Unsupported: there is no TensorBoard here, in words.
        """

    async def close_board(self, project: str, name: str) -> None:
        """End a training's TensorBoard; none is success."""

    async def close(self) -> None:
        """Let go of what the driver itself holds; tasks go on."""
