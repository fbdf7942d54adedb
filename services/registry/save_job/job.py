"""What the save job is told and what it answers, both as files."""

import os
from pathlib import Path
from typing import Final

import msgspec

from services.registry.model import Facts, Key
from services.registry.model_store import write_durably

RESULT: Final = "result.json"
DISK_FULL_EXIT: Final = 28
"""Exit code where not even the result could be written, for want of room."""


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``job.json``.

    Attributes:
        volume: folder of the datastore; the job never leaves it.
        path: the SavedModel's folder in it.
        shown: how messages name that place.
        store: the model store.
    """

    project: str
    model: str
    number: int
    attempt: int
    volume: str
    path: str
    shown: str
    store: str

    @property
    def key(self) -> Key:
        """The version to save."""
        return Key(self.project, self.model, self.number)


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """``result.json``: one of the two."""

    facts: Facts | None = None
    refused: str | None = None


def write_result(folder: Path, result: Result) -> None:
    """Write the result so that it is there whole or not at all."""
    temporary = folder / f".{RESULT}.{os.getpid()}"
    try:
        write_durably(temporary, msgspec.json.encode(result))
        temporary.rename(folder / RESULT)
    finally:
        temporary.unlink(missing_ok=True)


def read_result(folder: Path) -> Result | None:
    """The result, or None where the job has not come to one."""
    try:
        return msgspec.json.decode((folder / RESULT).read_bytes(), type=Result)
    except FileNotFoundError:
        return None
