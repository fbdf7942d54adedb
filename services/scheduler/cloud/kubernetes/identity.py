"""What the objects of a training are called, and how they are found again: names, labels, the roster. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from services.scheduler.model import Demand, OnFailure, TaskPlan
from shared.contracts.training import ROLES, RoleName
from shared.kube.names import PROJECT, ROOM, object_name

ROOM_NAME: Final = "scheduler"
WORK: Final = "elearn.dev/work"
TRAINING_WORK: Final = "training"
BOARD_WORK: Final = "board"
TRAINING: Final = "elearn.dev/training"
ATTEMPT: Final = "elearn.dev/attempt"
ROLE: Final = "elearn.dev/role"
FIRST: Final = "elearn.dev/first-index"
INDEX: Final = "batch.kubernetes.io/job-completion-index"
ROSTER: Final = "elearn.dev/roster"
HELD_BACK: Final = "elearn.dev/held-back"
"""Annotation of a Job that we suspended ourselves as its attempt ends: others suspend Jobs too."""
QUEUE: Final = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY: Final = "kueue.x-k8s.io/priority-class"

TASK_PORT: Final = 2222
CONTAINER: Final = "task"
PREPARING: Final = "prepare"

_SUFFIX: Final = len("-evaluator-rest") + len("-9999") + len("-abcde")
"""What a Job's name adds to the Service's, an Indexed Job's pods to that, and Kubernetes to their names."""


class AttemptKey(NamedTuple):
    """Which attempt of which training."""

    project: str
    name: str
    attempt: int


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks of one role that are alike, and so are the pods of one Job.

    Where the GPUs of a role do not divide evenly, its last task gets the rest, in a Job of its own.

    Attributes:
        first: index of the first of them within the role.
        suffix: what tells its Job from the others of the attempt.
    """

    role: RoleName
    first: int
    count: int
    demand: Demand
    on_failure: OnFailure

    @property
    def suffix(self) -> str:
        return f"{self.role}-rest" if self.first else self.role


class Roster(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks an attempt has: written on its Service, so that what is missing can be told.

    Attributes:
        restarts: how often a task of a group that may be restarted is.
        released: all Jobs were made, and let go: one that is missing was deleted by somebody.
    """

    groups: tuple[Group, ...]
    restarts: int = 0
    released: bool = False


def groups_of(plan: Sequence[TaskPlan]) -> tuple[Group, ...]:
    """A plan's tasks as groups; the tasks of a role differ in their last one at the most."""
    groups: list[Group] = []
    for task in plan:
        last = groups[-1] if groups else None
        if last is not None and (last.role, last.demand) == (task.role, task.demand):
            groups[-1] = msgspec.structs.replace(last, count=last.count + 1)
        else:
            groups.append(
                Group(role=task.role, first=task.index, count=1, demand=task.demand, on_failure=task.on_failure)
            )
    return tuple(groups)


def service_name(key: AttemptKey, installation: str) -> str:
    """The headless Service that owns everything of an attempt."""
    return object_name(installation, key.project, key.name, str(key.attempt), room=_SUFFIX)


def job_name(key: AttemptKey, group: Group, installation: str) -> str:
    """The Job of a group."""
    return f"{service_name(key, installation)}-{group.suffix}"


def address_of(key: AttemptKey, group: Group, index: int, *, installation: str, namespace: str) -> str:
    """Where a task is reached by the others: the host name of its pod, which outlives the pod.

    Args:
        index: within the role.
    """
    host = f"{job_name(key, group, installation)}-{index - group.first}"
    return f"{host}.{service_name(key, installation)}.{namespace}.svc:{TASK_PORT}"


def attempt_labels(key: AttemptKey) -> dict[str, str]:
    """The labels of everything of an attempt."""
    return {
        ROOM: ROOM_NAME,
        WORK: TRAINING_WORK,
        PROJECT: key.project,
        TRAINING: key.name,
        ATTEMPT: str(key.attempt),
    }


def group_labels(key: AttemptKey, group: Group) -> dict[str, str]:
    """The labels of a group's Job and pods."""
    return {**attempt_labels(key), ROLE: group.role, FIRST: str(group.first)}


def attempt_of(labels: Mapping[str, str]) -> AttemptKey | None:
    """Which attempt an object belongs to, by its labels."""
    try:
        if labels[WORK] != TRAINING_WORK:
            return None
        return AttemptKey(labels[PROJECT], labels[TRAINING], int(labels[ATTEMPT]))
    except (KeyError, ValueError):
        return None


def task_of(labels: Mapping[str, str]) -> tuple[RoleName, int] | None:
    """Which task a pod is, by its labels."""
    role = labels.get(ROLE, "")
    try:
        return (role, int(labels[FIRST]) + int(labels.get(INDEX, "0"))) if role in ROLES else None
    except (KeyError, ValueError):
        return None
