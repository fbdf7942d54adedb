"""The files in a task's folder."""

import contextlib
import os
import tempfile
from pathlib import Path

import msgspec

from shared.local.identity import MARKER, boot_id
from shared.local.spec import ProcessSpec, ProcessStatus, StoredSpec


def read_status(directory: Path) -> ProcessStatus | None:
    """How a task was when its keeper last wrote; None when it never has.

    A file that can't be read is none: only a power cut leaves one (states before the last are not forced to disk).
    """
    try:
        return msgspec.json.decode((directory / "status.json").read_bytes(), type=ProcessStatus)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def read_spec(directory: Path) -> StoredSpec:
    """What was asked for."""
    return msgspec.json.decode((directory / "spec.json").read_bytes(), type=StoredSpec)


def boot_of_spec(directory: Path) -> str | None:
    """The boot on which a task was asked for; None when none was; empty when a power cut damaged the file."""
    try:
        return read_spec(directory).boot
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError:
        return ""


def write_spec(directory: Path, id: str, spec: ProcessSpec) -> None:
    """Write the spec unless there is one: whoever comes first decides what runs."""
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__}
    fields["env"] = {**spec.env, MARKER: str(directory)}
    stored = StoredSpec(id=id, boot=boot_id(), **fields)
    descriptor, temporary = tempfile.mkstemp(prefix="spec.", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(stored))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, directory / "spec.json")
    finally:
        Path(temporary).unlink()


def write(directory: Path, name: str, content: bytes) -> None:
    """Replace a file durably: complete, or not at all."""
    descriptor, temporary = tempfile.mkstemp(prefix=f"{name}.", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).rename(directory / name)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
