"""A process's status as a task of a training: pure."""

from datetime import UTC, datetime

from services.scheduler.cloud.local.layout import Place, TaskId, role_and_index
from shared.contracts.training import Task, TaskState
from shared.local.spec import ProcessStatus

LONGEST_REASON = 240


def task_from(identity: TaskId, status: ProcessStatus, place: Place, node: str, last_words: str) -> Task:
    """The task as the status shows it.

    Args:
        last_words: the last line of its log, where it failed.
    """
    role, index = role_and_index(identity.task)
    state = _state(status)
    ended = status.finished
    started = None if status.state == "failed" else status.started_at
    reason = ""
    if state == "failed":
        reason = status.error or last_words
    elif state == "lost":
        reason = status.error or "its keeper process was killed"
    elif state == "stopped":
        reason = "told to stop"
    elif status.state == "waiting":
        reason = f"{status.words()}; starting it again"
    return Task(
        name=identity.task,
        role=role,
        index=index,
        state=state,
        address=place.address,
        node=node,
        gpus=place.gpus,
        restarts=status.restarts,
        exit_code=status.exit_code if ended else None,
        signal=status.signal if ended else None,
        reason=reason[:LONGEST_REASON],
        started_at=_instant(started),
        finished_at=_instant(status.finished_at) if ended else None,
    )


def _state(status: ProcessStatus) -> TaskState:
    match status.state:
        case "starting" | "waiting":
            return "starting"
        case "running" | "ending":
            return "running"
        case "failed":
            return "failed"
        case "lost":
            return "lost"
        case "exited":
            if status.stop_requested:
                return "stopped"
            return "succeeded" if status.exit_code == 0 else "failed"


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
