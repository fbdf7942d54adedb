"""What the local driver holds: one small file for each directory that it provides. Everything here blocks."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from services.datastore.cloud.local.told import told

_SUFFIX: Final = ".json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that was asked for.

    Attributes:
        path: with its symbolic links resolved.
        settled: the folder is there, or was refused; else making it may have been interrupted.
        made: we made the folder; it was not there before.
        refused: why it could not be provided.
    """

    uid: str
    project: str
    name: str
    path: str
    settled: bool = False
    made: bool = False
    refused: str = ""


class Records:
    """The records below one folder, written atomically."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, record: Record) -> None:
        """Write a record.

        Raises:
            StorageFull: no room for it.
        """
        with told(str(self._folder)):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=self._folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(msgspec.json.encode(record))
                    file.flush()
                    os.fsync(file.fileno())
                Path(temporary).rename(self._path(record.uid))
            except OSError:
                Path(temporary).unlink(missing_ok=True)
                raise

    def get(self, uid: str) -> Record | None:
        """The record of a directory, or None."""
        try:
            return msgspec.json.decode(self._path(uid).read_bytes(), type=Record)
        except FileNotFoundError:
            return None

    def all(self) -> dict[str, Record]:
        """Every record, by uid."""
        found: dict[str, Record] = {}
        with contextlib.suppress(FileNotFoundError):
            for file in sorted(self._folder.iterdir()):
                if file.suffix == _SUFFIX and (record := self.get(file.stem)):
                    found[record.uid] = record
        return found

    def drop(self, uid: str) -> None:
        """Remove a record; one that is gone is success."""
        self._path(uid).unlink(missing_ok=True)

    def _path(self, uid: str) -> Path:
        return self._folder / f"{uid}{_SUFFIX}"
