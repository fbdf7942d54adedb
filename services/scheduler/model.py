"""A training's life: what is stored of it, the table of transitions, and :func:`decide`.

Pure: no clock, no I/O. What the framework knows of roles is stored with the plan when a training is submitted
(:class:`TaskPlan`), so nothing here asks for it.

`state` is what users see. Beside it stands `holding`: an attempt that was admitted may hold compute until the
cloud has confirmed that everything is freed, whatever the state says meanwhile.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from services.scheduler.errors import IllegalTransition, WrongState
from shared.contracts.common import Instant
from shared.contracts.datastore import Volume
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
KEPT_TASKS: Final = 2000
"""Tasks of earlier attempts that stay in a record; older attempts are kept without theirs."""
KEPT_ATTEMPTS: Final = 100


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
    tasks: tuple[Task, ...] = ()
    attempts: tuple[Attempt, ...] = ()

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
    """A launch is tried again later; ``reason`` says what is in the way."""

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


# -- decide -----------------------------------------------------------------------------------------


def decide(
    record: TrainingRecord, message: Message, now: datetime, pause: Callable[[int], float] = lambda _: 0.0
) -> Decision:
    """What a message makes of a training.

    Messages that speak of an earlier attempt, or of what is known already, change nothing: every message may
    come twice and late.

    Args:
        pause: seconds to wait before the attempt that follows the n-th failure.

    Raises:
        WrongState: the state forbids what a user asked for.
        IllegalTransition: a mistake of our own.
    """
    match message:
        case Admit():
            return _admit(record, now)
        case Refused():
            return _refused(record, message, now, pause)
        case Hindered():
            if message.attempt != record.attempt or record.state != "starting" or message.reason == record.reason:
                return Decision(record=record)
            return Decision(record=msgspec.structs.replace(record, reason=message.reason))
        case Seen():
            return _seen(record, message, now, pause)
        case Vanished():
            if message.attempt != record.attempt or not record.wanted:
                return Decision(record=record)
            lost = tuple(_lost(task, now) for task in record.tasks)
            changed = msgspec.structs.replace(record, tasks=lost)
            why = f"attempt {record.attempt} was lost: its tasks ended with the machine or its services"
            return _attempt_failed(changed, why, now, pause, own_fault=False)
        case Freed():
            return _freed(record, message, now)
        case Stop():
            return _stop(record, message, now)
        case DeadlinePassed():
            if record.deadline_at is None or now < record.deadline_at:
                return Decision(record=record)
            return _end(record, "fail", f"its deadline of {_span(record.deadline or 0)} has passed", now)
        case Retry():
            return _retry(record, message, now)


def _admit(record: TrainingRecord, now: datetime) -> Decision:
    if record.holding:
        raise IllegalTransition(f"training {record.project}/{record.name} still holds compute")
    changed = msgspec.structs.replace(
        record,
        state=next_state(record, "admit"),
        reason=f"starting {_count(len(record.plan), 'task')}",
        attempt=record.attempt + 1,
        holding=True,
        deadline_from=record.deadline_from or now,
        not_before=None,
        started_at=now,
        running_at=None,
        finished_at=None,
        freed_at=None,
        tasks=tuple(Task(name=task.name, role=task.role, index=task.index, state="pending") for task in record.plan),
    )
    return Decision(record=changed, events=(Happened(noun="training", event="starting"),))


def _refused(record: TrainingRecord, message: Refused, now: datetime, pause: Callable[[int], float]) -> Decision:
    if message.attempt != record.attempt or not record.holding:
        return Decision(record=record)
    if message.for_good and record.wanted:
        return _end(record, "fail", message.reason, now)
    if not record.wanted:
        return Decision(record=record)
    changed = msgspec.structs.replace(
        record,
        state=next_state(record, "refuse"),
        reason=message.reason,
        attempt=record.attempt - 1,
        holding=False,
        not_before=now + timedelta(seconds=max(pause(1), 0.2)),
        started_at=None,
        tasks=(),
    )
    return Decision(record=changed, events=(Happened(noun="training", event="queued"),))


def _seen(record: TrainingRecord, message: Seen, now: datetime, pause: Callable[[int], float]) -> Decision:
    if message.attempt != record.attempt or not record.holding:
        return Decision(record=record)
    tasks, events = _merge(record.tasks, message.tasks)
    if tasks == record.tasks:
        return Decision(record=record)
    changed = msgspec.structs.replace(record, tasks=tasks)
    if not record.wanted:
        return Decision(record=_with_last_attempt(changed, tasks=tasks), events=events)
    if changed.state == "starting" and all(task.started_at is not None for task in tasks):
        changed = msgspec.structs.replace(
            changed,
            state=next_state(changed, "run"),
            reason=f"{_count(len(tasks), 'task')} running",
            running_at=now,
        )
        events = (*events, Happened(noun="training", event="running"))
    outcome = _outcome(changed, now, pause)
    return Decision(record=outcome.record, events=(*events, *outcome.events))


def _outcome(record: TrainingRecord, now: datetime, pause: Callable[[int], float]) -> Decision:
    """Whether the tasks, as they stand, end the attempt."""
    found = {task.name: task for task in record.tasks}
    for plan in record.plan:
        if plan.decides and found[plan.name].state == "succeeded":
            return _end(record, "succeed", f"{plan.name} ended with exit code 0", now)
    broken = [
        found[plan.name]
        for plan in sorted(record.plan, key=lambda each: not each.decides)
        if plan.on_failure != "ignore" and found[plan.name].state in ("failed", "lost", "stopped")
    ]
    by_itself = [task for task in broken if task.state == "failed"]
    if by_itself:
        first = min(by_itself, key=lambda task: task.finished_at or now)
        return _attempt_failed(record, _how_it_failed(first), now, pause, own_fault=True)
    if broken:
        what = "was ended from outside" if broken[0].state == "stopped" else "was lost"
        why = f"{broken[0].name} {what}" + (f": {broken[0].reason}" if broken[0].reason else "")
        return _attempt_failed(record, why, now, pause, own_fault=False)
    return Decision(record=record)


def _attempt_failed(
    record: TrainingRecord, why: str, now: datetime, pause: Callable[[int], float], *, own_fault: bool
) -> Decision:
    """Another attempt, as long as retries last; what the infrastructure lost does not use them up."""
    failures, losses = record.failures + own_fault, record.losses + (not own_fault)
    changed = msgspec.structs.replace(record, failures=failures, losses=losses)
    if failures > record.spec.retries:
        tried = f" (attempt {record.attempt})" if record.attempt > 1 else ""
        return _end(changed, "fail", why + tried, now)
    if losses >= MOST_LOSSES:
        return _end(changed, "fail", f"{why}; given up after {losses} losses", now)
    wait = pause(failures if own_fault else losses)
    ended = _with_attempt(changed, "failed", why, now)
    queued = msgspec.structs.replace(
        ended,
        state=next_state(record, "again"),
        reason=f"attempt {record.attempt} failed: {why}; attempt {record.attempt + 1} follows",
        not_before=now + timedelta(seconds=wait),
        started_at=None,
        running_at=None,
        finished_at=None,
    )
    return Decision(record=queued, events=(Happened(noun="training", event="retrying"),))


def _end(record: TrainingRecord, why: str, reason: str, now: datetime) -> Decision:
    state = next_state(record, why)
    changed = msgspec.structs.replace(record, state=state, reason=reason, finished_at=now, not_before=None)
    if record.wanted:
        changed = _with_attempt(changed, state, reason, now)
    elif not record.holding:
        # Between attempts, or never started: there is nothing left to free.
        changed = msgspec.structs.replace(changed, freed_at=now)
    events = [Happened(noun="training", event=state)]
    if changed.freed_at is not None:
        events.append(Happened(noun="training", event="freed"))
    return Decision(record=changed, events=tuple(events))


def _freed(record: TrainingRecord, message: Freed, now: datetime) -> Decision:
    if message.attempt != record.attempt or not record.holding or record.wanted:
        return Decision(record=record)
    tasks, events = _merge(record.tasks, message.tasks)
    tasks = tuple(_over(task, now) for task in tasks)
    changed = msgspec.structs.replace(record, tasks=tasks, holding=False)
    changed = _with_last_attempt(changed, tasks=tasks, freed_at=now)
    if record.state in ENDED:
        changed = msgspec.structs.replace(changed, freed_at=now)
        events = (*events, Happened(noun="training", event="freed"))
    return Decision(record=changed, events=events)


def _stop(record: TrainingRecord, message: Stop, now: datetime) -> Decision:
    if record.state == "stopped":
        return Decision(record=record)
    if record.state in ENDED:
        raise WrongState(f"training {record.name!r} has {record.state} already; there is nothing to stop")
    return _end(record, "stop", message.reason, now)


def _retry(record: TrainingRecord, message: Retry, now: datetime) -> Decision:
    if record.state not in ENDED:
        raise WrongState(
            f"training {record.name!r} is {record.state}; only one that has ended can be retried (stop it first)"
        )
    changed = msgspec.structs.replace(
        record,
        state=next_state(record, "retry"),
        reason="",
        sequence=message.sequence,
        queued_at=now,
        failures=0,
        losses=0,
        deadline_from=None,
        not_before=None,
        started_at=None,
        running_at=None,
        finished_at=None,
        freed_at=None,
    )
    return Decision(
        record=changed,
        events=(Happened(noun="training", event="retrying"), Happened(noun="training", event="queued")),
    )


# -- tasks and attempts -----------------------------------------------------------------------------

_FINAL: Final = frozenset({"succeeded", "failed", "stopped", "lost"})


def _merge(known: tuple[Task, ...], seen: tuple[Task, ...]) -> tuple[tuple[Task, ...], tuple[Happened, ...]]:
    """The tasks as they stand now; what is over stays over within an attempt, and news never goes back."""
    news = {task.name: task for task in seen}
    merged, events = [], []
    for task in known:
        new = news.get(task.name)
        if new is None or task.state in _FINAL or new == task or new.restarts < task.restarts:
            merged.append(task)
            continue
        if new.started_at is None and task.started_at is not None and new.state not in _FINAL:
            merged.append(task)
            continue
        merged.append(new)
        events += [Happened(noun="task", event=event, task=new) for event in _task_events(task, new)]
    return tuple(merged), tuple(events)


def _task_events(old: Task, new: Task) -> list[str]:
    events = []
    if old.started_at is None and new.started_at is not None:
        events.append("running")
    if new.restarts > old.restarts:
        events.append("restarted")
    if new.state == "succeeded":
        events.append("succeeded")
    elif new.state in ("failed", "lost"):
        events.append("failed")
    return events


def _lost(task: Task, now: datetime) -> Task:
    if task.state in _FINAL:
        return task
    return msgspec.structs.replace(task, state="lost", finished_at=now)


def _over(task: Task, now: datetime) -> Task:
    """A task of a freed attempt whose end nobody saw."""
    if task.state in _FINAL:
        return task
    return msgspec.structs.replace(task, state="stopped", finished_at=now if task.started_at else None)


def _with_attempt(record: TrainingRecord, state: TrainingState, reason: str, now: datetime) -> TrainingRecord:
    """The record with its current attempt written into the history as it ends."""
    attempt = Attempt(
        number=record.attempt,
        state=state,
        reason=reason,
        started_at=record.started_at,
        running_at=record.running_at,
        finished_at=now,
        tasks=record.tasks,
    )
    return msgspec.structs.replace(record, attempts=_bounded((*record.attempts, attempt)))


def _with_last_attempt(
    record: TrainingRecord, *, tasks: tuple[Task, ...], freed_at: datetime | None = None
) -> TrainingRecord:
    if not record.attempts or record.attempts[-1].number != record.attempt:
        return record
    last = msgspec.structs.replace(record.attempts[-1], tasks=tasks, freed_at=freed_at)
    return msgspec.structs.replace(record, attempts=(*record.attempts[:-1], last))


def _bounded(attempts: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    kept, room = [], KEPT_TASKS
    for position, attempt in enumerate(reversed(attempts[-KEPT_ATTEMPTS:])):
        room -= len(attempt.tasks)
        kept.append(attempt if room >= 0 or position == 0 else msgspec.structs.replace(attempt, tasks=()))
    return tuple(reversed(kept))


def _how_it_failed(task: Task) -> str:
    if task.signal is not None:
        how = f"{task.name} was ended by signal {task.signal}"
    elif task.exit_code is not None:
        how = f"{task.name} ended with exit code {task.exit_code}"
    else:
        how = f"{task.name} could not be started"
    if task.restarts:
        how += f" after {_count(task.restarts, 'restart')}"
    return f"{how}: {task.reason}" if task.reason else how


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _span(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)} {unit}"
    return f"{seconds:g} s"


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
        tasks=record.tasks,
        attempts=record.attempts,
        notes=record.notes,
        cause=record.cause,
    )
