"""Names of things on this machine: processes, owners in the ledger, files. Pure.

$ELEARN_HOME/trainings/<project>/<name>/<attempt>/
    work/<task>/       working directory, gone once the attempt is freed
    logs/<task>.log    stays until the training is deleted
    placement.json     addresses and GPUs as they were handed out
"""

import re
from pathlib import Path
from typing import Final

import msgspec

from shared.contracts.training import ROLES, RoleName

_OWNER: Final = re.compile(r"[-a-z0-9]+/[-a-z0-9]+ attempt \d+")


class TaskId(msgspec.Struct, frozen=True, kw_only=True):
    """Which task of which attempt a process is."""

    project: str
    name: str
    attempt: int
    task: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What one task was given."""

    address: str = ""
    gpus: tuple[str, ...] = ()


Placement = dict[str, Place]


def process_id(project: str, name: str, attempt: int, task: str) -> str:
    """The id of a task's process; names hold no dots."""
    return f"t.{project}.{name}.{attempt}.{task}"


def attempt_prefix(project: str, name: str, attempt: int) -> str:
    """What the ids of all processes of an attempt begin with."""
    return f"t.{project}.{name}.{attempt}."


def parse_process_id(text: str) -> TaskId | None:
    """The task of a process; None for a process that is no task."""
    parts = text.split(".")
    if len(parts) != 5 or parts[0] != "t" or not parts[3].isdigit():
        return None
    return TaskId(project=parts[1], name=parts[2], attempt=int(parts[3]), task=parts[4])


def role_and_index(task: str) -> tuple[RoleName, int]:
    """``worker-1`` as a role and an index."""
    word, _, index = task.rpartition("-")
    return next(role for role in ROLES if role == word), int(index)


def board_id(project: str, name: str) -> str:
    """The id of a TensorBoard's process, and who holds its port."""
    return f"b.{project}.{name}"


def owner(project: str, name: str, attempt: int) -> str:
    """Who holds an attempt's resources, as others that wait for them read it."""
    return f"{project}/{name} attempt {attempt}"


def is_ours(text: str) -> bool:
    """Whether an owner in the ledger is an attempt of a training."""
    return _OWNER.fullmatch(text) is not None


class Layout:
    """Paths below the trainings' folder."""

    def __init__(self, home: Path) -> None:
        self.root = home.absolute() / "trainings"

    def training(self, project: str, name: str) -> Path:
        return self.root / project / name

    def attempt(self, project: str, name: str, attempt: int) -> Path:
        return self.training(project, name) / str(attempt)

    def work(self, project: str, name: str, attempt: int) -> Path:
        return self.attempt(project, name, attempt) / "work"

    def logs(self, project: str, name: str, attempt: int) -> Path:
        return self.attempt(project, name, attempt) / "logs"

    def log(self, project: str, name: str, attempt: int, task: str) -> Path:
        return self.logs(project, name, attempt) / f"{task}.log"

    def placement(self, project: str, name: str, attempt: int) -> Path:
        return self.attempt(project, name, attempt) / "placement.json"

    def board(self, project: str, name: str) -> Path:
        return self.training(project, name) / "board"
