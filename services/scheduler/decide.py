"""What a message makes of a training: pure, no clock, no I/O."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from services.scheduler.errors import IllegalTransition, WrongState
from services.scheduler.history import count, how_it_failed, lost, merge, over, with_attempt, with_last_attempt
from services.scheduler.model import (
    MOST_LOSSES,
    Admit,
    DeadlinePassed,
    Decision,
    Freed,
    Happened,
    Hindered,
    Message,
    Refused,
    Retry,
    Seen,
    Stop,
    TrainingRecord,
    Vanished,
    next_state,
)
from shared.contracts.training import ENDED, Task

REFUSED_PAUSE: Final = 2.0
"""Seconds before a launch that found no room is tried again: what the ledger and the rows say differs for a moment."""


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
            return Decision(record=_hindered(record, message))
        case Seen():
            return _seen(record, message, now, pause)
        case Vanished():
            if message.attempt != record.attempt or not record.wanted:
                return Decision(record=record)
            gone = tuple(lost(task, now) for task in record.tasks)
            changed = msgspec.structs.replace(record, tasks=gone)
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
        reason=f"starting {count(len(record.plan), 'task')}",
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


def _hindered(record: TrainingRecord, message: Hindered) -> TrainingRecord:
    if message.attempt != record.attempt or not record.holding:
        return record
    changed = record
    if record.state == "starting":
        changed = msgspec.structs.replace(record, reason=message.reason)
    elif record.state == "queued":
        reason = f"waiting until attempt {record.attempt} is freed: {message.reason}"
        changed = msgspec.structs.replace(record, unfreed=message.reason, reason=reason)
    elif not record.wanted:
        changed = msgspec.structs.replace(record, unfreed=message.reason)
    return record if changed == record else changed  # it is tried again and again, and stored once


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
        not_before=now + timedelta(seconds=max(pause(1), REFUSED_PAUSE)),
        started_at=None,
        tasks=(),
    )
    return Decision(record=changed, events=(Happened(noun="training", event="queued"),))


def _seen(record: TrainingRecord, message: Seen, now: datetime, pause: Callable[[int], float]) -> Decision:
    if message.attempt != record.attempt or not record.holding:
        return Decision(record=record)
    tasks, events = merge(record.tasks, message.tasks)
    if tasks == record.tasks:
        return Decision(record=record)
    changed = msgspec.structs.replace(record, tasks=tasks)
    if not record.wanted:
        return Decision(record=with_last_attempt(changed, tasks=tasks), events=events)
    if changed.state == "starting" and _all_run(changed):
        changed = msgspec.structs.replace(
            changed,
            state=next_state(changed, "run"),
            reason=_how_it_runs(tasks),
            running_at=now,
        )
        events = (*events, Happened(noun="training", event="running"))
    elif changed.state == "running":
        changed = msgspec.structs.replace(changed, reason=_how_it_runs(tasks))
    elif changed.state == "starting":
        changed = msgspec.structs.replace(changed, reason=_why_it_starts(tasks))
    outcome = _outcome(changed, now, pause)
    return Decision(record=outcome.record, events=(*events, *outcome.events))


def _all_run(record: TrainingRecord) -> bool:
    """Every task runs, or has; one that nobody depends on may have failed to."""
    found = {task.name: task for task in record.tasks}
    return all(
        found[plan.name].started_at is not None
        or (plan.on_failure == "ignore" and found[plan.name].finished_at is not None)
        for plan in record.plan
    )


def _why_it_starts(tasks: Sequence[Task]) -> str:
    """What keeps the tasks from running, in the words of the first that says something."""
    return _with_words(f"starting {count(len(tasks), 'task')}", tasks)


def _how_it_runs(tasks: Sequence[Task]) -> str:
    """How many run, and what is the matter with the first that says something."""
    running, all_of_them = sum(task.state == "running" for task in tasks), count(len(tasks), "task")
    return _with_words(f"{all_of_them if running == len(tasks) else f'{running} of {all_of_them}'} running", tasks)


def _with_words(reason: str, tasks: Sequence[Task]) -> str:
    for task in tasks:
        if task.reason and task.finished_at is None:
            return f"{reason}: {task.name}: {task.reason}"
    return reason


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
        if first.started_at is None:
            # There is no such program: the next attempt would find none either.
            return _end(record, "fail", how_it_failed(first), now)
        return _attempt_failed(record, how_it_failed(first), now, pause, own_fault=True)
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
    ended = with_attempt(changed, "failed", why, now)
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
        changed = with_attempt(changed, state, reason, now)
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
    tasks, events = merge(record.tasks, message.tasks)
    tasks = tuple(over(task, now) for task in tasks)
    changed = msgspec.structs.replace(record, tasks=tasks, holding=False)
    if record.unfreed:
        changed = msgspec.structs.replace(changed, unfreed="", reason="" if record.state == "queued" else record.reason)
    changed = with_last_attempt(changed, tasks=tasks, freed_at=now)
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


def _span(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{int(seconds // size)} {unit}"
    return f"{seconds:g} s"
