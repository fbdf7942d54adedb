"""What is stored of a training, the messages that change it, and the table of its transitions: pure.

What a message makes of a training is in :mod:`services.scheduler.decide`. What the framework knows of roles is
stored with the plan when a training is submitted (:class:`TaskPlan`), so neither asks for it.

`state` is what users see. Beside it stands `holding`: an attempt that was admitted may hold compute until the
cloud has confirmed that everything is freed, whatever the state says meanwhile.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from services.scheduler.errors import IllegalTransition
from shared.contracts.common import Instant
from shared.contracts.datastore import ClaimVolume, Volume
from shared.contracts.training import (
    ENDED,
    Attempt,
    RoleName,
    Task,
    Training,
    TrainingSpec,
    TrainingState,
)

OnFailure = Literal["fail", "restart", "ignore"]

MOST_LOSSES: Final = 20
"""Attempts lost to the infrastructure before a training is given up."""


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """Resources of one task, or their sum: cores, bytes, whole GPUs."""

    cpu: float = 0.0
    memory: int = 0
    gpu: int = 0

    def __add__(self, other: "Demand") -> "Demand":
        return Demand(cpu=self.cpu + other.cpu, memory=self.memory + other.memory, gpu=self.gpu + other.gpu)


class TaskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One task as it will be started in every attempt.

    Attributes:
        decides: its end decides how the training ends.
        on_failure: what its failure means: the attempt fails, the cloud starts it again on its address
            (and the attempt fails once the cloud gives up), or nothing.
    """

    name: str
    role: RoleName
    index: int
    demand: Demand
    decides: bool
    on_failure: OnFailure


class MountPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A mount with its datastore resolved.

    Attributes:
        path: relative to the working directory, or absolute; normalised.
        folder: what is mounted, relative to the volume; empty for its top.
        own: ``folder`` is this training's own and is made by the cloud.
    """

    datastore: str
    path: str
    volume: Volume
    folder: str = ""
    read_only: bool = False
    own: bool = False


def claims_of(mounts: Iterable[MountPlan]) -> tuple[str, ...]:
    """What of these mounts one machine alone can mount, each once."""
    volumes = (mount.volume for mount in mounts)
    names = (
        f"{volume.namespace}/{volume.claim_name}"
        for volume in volumes
        if isinstance(volume, ClaimVolume) and volume.single_node
    )
    return tuple(dict.fromkeys(names))


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a cloud can do, checked when a spec is admitted.

    Attributes:
        absolute_mounts: directories may appear at absolute paths.
        absolute_mounts_missing: why they may not, in words.
        images: it runs the container image of a spec.
        volumes: kinds of volumes that it can mount (tags of the contract's union).
    """

    absolute_mounts: bool = True
    absolute_mounts_missing: str = ""
    images: bool = True
    volumes: frozenset[str] = frozenset({"local", "claim", "host_path"})


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as its cloud sees it.

    Attributes:
        total: what trainings may ever have of it.
        others: what is handed out to anything but trainings, by holder in words (``serving default/digits``).
    """

    name: str
    total: Demand
    others: dict[str, Demand] = {}
    gpu_type: str = ""


class TrainingRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that is stored of a training.

    Attributes:
        sequence: place in the order of arrival; a retry by hand gets a new one.
        holding: the current attempt was admitted and is not known to be freed.
        failures: attempts that failed by their own fault; losses: by the infrastructure's.
        deadline: seconds from ``deadline_from``.
        not_before: no next attempt before this instant.
        unfreed: why the current attempt could not be freed so far, in words.
    """

    project: str
    name: str
    spec: TrainingSpec
    plan: tuple[TaskPlan, ...]
    sequence: int
    created_at: Instant
    queued_at: Instant
    state: TrainingState = "queued"
    mounts: tuple[MountPlan, ...] = ()
    reason: str = ""
    attempt: int = 0
    holding: bool = False
    failures: int = 0
    losses: int = 0
    deadline: float | None = None
    deadline_from: Instant | None = None
    not_before: Instant | None = None
    created_by: str = ""
    cause: str = ""
    traceparent: str = ""
    notes: tuple[str, ...] = ()
    started_at: Instant | None = None
    running_at: Instant | None = None
    finished_at: Instant | None = None
    freed_at: Instant | None = None
    unfreed: str = ""
    tasks: tuple[Task, ...] = ()
    attempts: tuple[Attempt, ...] = ()

    @property
    def claims(self) -> tuple[str, ...]:
        """What of its storage one machine alone can mount: all its tasks have to run there."""
        return claims_of(self.mounts)

    @property
    def demand(self) -> Demand:
        """What all tasks take together."""
        return sum((task.demand for task in self.plan), Demand())

    @property
    def deadline_at(self) -> datetime | None:
        """When the training is over, whatever it does; None: never, or not started yet."""
        if self.deadline is None or self.deadline_from is None or self.state in ENDED:
            return None
        return self.deadline_from + timedelta(seconds=self.deadline)

    @property
    def wanted(self) -> bool:
        """Its tasks should run."""
        return self.state in ("starting", "running")

    @property
    def active(self) -> bool:
        """The controller has something to do with it, now or later."""
        return self.holding or self.state not in ENDED


# -- messages ---------------------------------------------------------------------------------------


class Admit(msgspec.Struct, frozen=True, kw_only=True):
    """It is its turn and there is room."""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud did not launch the attempt and left nothing behind.

    Attributes:
        for_good: trying again would not help.
    """

    attempt: int
    reason: str
    for_good: bool


class Hindered(msgspec.Struct, frozen=True, kw_only=True):
    """A launch or freeing is tried again later; ``reason`` says what is in the way."""

    attempt: int
    reason: str


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """How the tasks of an attempt stand in the cloud; those not named were not seen."""

    attempt: int
    tasks: tuple[Task, ...]


class Vanished(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud, which sees everything, sees nothing of an attempt that ran."""

    attempt: int


class Freed(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud has given back all compute of an attempt; ``tasks`` is how they ended, where known."""

    attempt: int
    tasks: tuple[Task, ...] = ()


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants it to end."""

    reason: str


class DeadlinePassed(msgspec.Struct, frozen=True, kw_only=True):
    """The stored deadline lies in the past."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants another attempt of an ended training."""

    sequence: int


Message = Admit | Refused | Hindered | Seen | Vanished | Freed | Stop | DeadlinePassed | Retry


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """A lifecycle event to be published with the change: of the training, or of one of its tasks."""

    noun: Literal["training", "task"]
    event: str
    task: Task | None = None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a message makes of a record; the record itself and no events where it makes nothing."""

    record: TrainingRecord
    events: tuple[Happened, ...] = ()


# -- the table --------------------------------------------------------------------------------------

TRANSITIONS: Final[dict[tuple[TrainingState, str], TrainingState]] = {
    ("queued", "admit"): "starting",
    ("queued", "stop"): "stopped",
    ("queued", "fail"): "failed",
    ("starting", "refuse"): "queued",
    ("starting", "run"): "running",
    ("starting", "again"): "queued",
    ("starting", "succeed"): "succeeded",
    ("starting", "fail"): "failed",
    ("starting", "stop"): "stopped",
    ("running", "again"): "queued",
    ("running", "succeed"): "succeeded",
    ("running", "fail"): "failed",
    ("running", "stop"): "stopped",
    ("succeeded", "retry"): "queued",
    ("failed", "retry"): "queued",
    ("stopped", "retry"): "queued",
}
"""Every change of state there is: (from, why) to."""


def next_state(record: TrainingRecord, why: str) -> TrainingState:
    """The state that follows.

    Raises:
        IllegalTransition: the table has no such change.
    """
    try:
        return TRANSITIONS[record.state, why]
    except KeyError:
        story = ", ".join(f"attempt {each.number} {each.state}: {each.reason}" for each in record.attempts)
        raise IllegalTransition(
            f"training {record.project}/{record.name} is {record.state} in attempt {record.attempt} "
            f"({record.reason or 'no reason'}) and can't {why}; before: {story or 'nothing'}"
        ) from None


# -- what others see --------------------------------------------------------------------------------


def view(record: TrainingRecord) -> Training:
    """The training as users and events see it."""
    return Training(
        project=record.project,
        name=record.name,
        spec=record.spec,
        state=record.state,
        created_at=record.created_at,
        reason=record.reason,
        attempt=record.attempt,
        created_by=record.created_by,
        started_at=record.started_at,
        running_at=record.running_at,
        finished_at=record.finished_at,
        freed_at=record.freed_at,
        unfreed=record.unfreed,
        tasks=record.tasks,
        attempts=record.attempts,
        notes=record.notes,
        cause=record.cause,
    )
