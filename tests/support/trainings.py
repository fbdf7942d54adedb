"""Trainings for tests: records and tasks in few words."""

from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import msgspec

from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.model import Demand, NodeState, Seen, TrainingRecord
from services.scheduler.spec import plan_tasks
from shared.contracts.common import Quantity, parse_duration
from shared.contracts.training import Mount, Role, Roles, Task, TaskState, TrainingSpec

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """So many seconds after the beginning of the test's time."""
    return START + timedelta(seconds=seconds)


class Asked(TypedDict, total=False):
    """What tests ask for in a spec, besides its name and its command."""

    code: str
    env: dict[str, str]
    mounts: tuple[Mount, ...]
    roles: Roles
    retries: int
    deadline: Quantity
    labels: dict[str, str]
    tensorboard: str


def spec(**fields: Any) -> TrainingSpec:
    return TrainingSpec(**{"name": "t", "command": ("true",), **fields})


def cluster(*, workers: int = 0, ps: int = 0, evaluator: int = 0, chief: int = 1) -> Roles:
    return Roles(
        chief=Role(replicas=chief),
        worker=Role(replicas=workers),
        ps=Role(replicas=ps),
        evaluator=Role(replicas=evaluator),
    )


def record(name: str = "t-1", sequence: int = 1, **fields: Any) -> TrainingRecord:
    """A queued training; fields of the spec by keyword."""
    asked = spec(**fields)
    return TrainingRecord(
        project="p",
        name=name,
        spec=asked,
        plan=plan_tasks(asked, TensorFlow()),
        sequence=sequence,
        created_at=START,
        queued_at=START,
        deadline=None if asked.deadline is None else parse_duration(asked.deadline),
    )


def task(record: TrainingRecord, name: str, state: TaskState, **fields: Any) -> Task:
    """One task of a training in a state, as its cloud would show it."""
    plan = next(each for each in record.plan if each.name == name)
    values: dict[str, Any] = {}
    if state not in ("pending", "starting"):
        values["started_at"] = at(1)
    if state in ("succeeded", "failed", "stopped", "lost"):
        values["finished_at"] = at(2)
    if state == "succeeded":
        values["exit_code"] = 0
    if state == "failed":
        values["exit_code"] = 1
    return Task(**{"name": name, "role": plan.role, "index": plan.index, "state": state, **values, **fields})


def seen(record: TrainingRecord, others: TaskState = "running", **states: TaskState | Task) -> Seen:
    """All tasks in the state ``others``, but for those named (``worker_1="failed"``)."""
    given = {name.replace("_", "-"): state for name, state in states.items()}
    tasks = []
    for plan in record.plan:
        state = given.get(plan.name, others)
        tasks.append(state if isinstance(state, Task) else task(record, plan.name, state))
    return Seen(attempt=record.attempt, tasks=tuple(tasks))


def demand(cpu: float = 0.0, memory: int = 0, gpu: int = 0) -> Demand:
    return Demand(cpu=cpu, memory=memory, gpu=gpu)


def node(name: str = "n1", cpu: float = 8, memory: int = 2**34, gpu: int = 0, **fields: Any) -> NodeState:
    return NodeState(name=name, total=Demand(cpu=cpu, memory=memory, gpu=gpu), **fields)


replace = msgspec.structs.replace
