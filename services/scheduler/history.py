"""Tasks as news of them come in, and the attempts that lie behind a training: pure."""

from datetime import datetime
from typing import Final

import msgspec

from services.scheduler.model import Happened, TrainingRecord
from shared.contracts.training import Attempt, Task, TrainingState

KEPT_TASKS: Final = 1000
"""Tasks of earlier attempts that stay in a record; older attempts are kept without theirs."""
KEPT_ATTEMPTS: Final = 100

FINAL: Final = frozenset({"succeeded", "failed", "stopped", "lost"})


def merge(known: tuple[Task, ...], seen: tuple[Task, ...]) -> tuple[tuple[Task, ...], tuple[Happened, ...]]:
    """The tasks as they stand now; what is over stays over within an attempt, and news never goes back."""
    news = {task.name: task for task in seen}
    merged, events = [], []
    for task in known:
        new = news.get(task.name)
        if new is None or task.state in FINAL or new == task or new.restarts < task.restarts:
            merged.append(task)
            continue
        if new.started_at is None and task.started_at is not None:
            if new.state not in FINAL:
                merged.append(task)
                continue
            # Of what is gone, a cloud may know no more than that.
            new = msgspec.structs.replace(new, started_at=task.started_at, node=new.node or task.node)
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


def lost(task: Task, now: datetime) -> Task:
    if task.state in FINAL:
        return task
    return msgspec.structs.replace(task, state="lost", finished_at=now)


def over(task: Task, now: datetime) -> Task:
    """A task of a freed attempt whose end nobody saw."""
    if task.state in FINAL:
        return task
    return msgspec.structs.replace(task, state="stopped", finished_at=now if task.started_at else None)


def with_attempt(record: TrainingRecord, state: TrainingState, reason: str, now: datetime) -> TrainingRecord:
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


def with_last_attempt(
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


def how_it_failed(task: Task) -> str:
    if task.signal is not None:
        how = f"{task.name} was ended by signal {task.signal}"
    elif task.exit_code is not None:
        how = f"{task.name} ended with exit code {task.exit_code}"
    else:
        how = f"{task.name} could not be started"
    if task.restarts:
        how += f" after {count(task.restarts, 'restart')}"
    return f"{how}: {task.reason}" if task.reason else how


def count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
