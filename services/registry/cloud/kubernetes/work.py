"""``python -m services.registry.cloud.kubernetes.work``: what a save or clean-up Job's pod does.

It has no right to the API: the outcome leaves as the container's termination message, packed; one that is too long for
that (4 KiB) as a line of its log, named by the message.
"""

import base64
import errno
import os
import sys
import traceback
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from services.registry.model import Key
from services.registry.model_store import ModelStore
from services.registry.save_job import job as files
from services.registry.save_job.__main__ import save
from services.registry.save_job.copy import disk_full
from services.registry.save_job.errors import CannotSaveError

SOURCE: Final = "/source"
STORE: Final = "/store"
VARIABLE: Final = "ELEARN_WORK"
LONGEST: Final = 4096
IN_LOG: Final = "log"
_PACKED: Final = "packed:"
_MESSAGE: Final = Path("/dev/termination-log")


class Save(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="save"):
    """Save a version."""

    job: files.Job


class Remove(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="remove"):
    """Remove a version and all that was left of saving it."""

    project: str
    model: str
    number: int
    store: str


Work = Save | Remove


def perform(work: Work) -> files.Result:
    """Do it.

    Raises:
        OSError: of the store or the source; the Job is lost, and tried again.
    """
    if isinstance(work, Remove):
        ModelStore(Path(work.store)).remove(Key(work.project, work.model, work.number))
        return files.Result()
    try:
        return files.Result(facts=save(work.job))
    except CannotSaveError as error:
        return files.Result(refused=str(error))


def pack(result: files.Result) -> str:
    """A result as one line of text."""
    return _PACKED + base64.b85encode(zlib.compress(msgspec.json.encode(result), 9)).decode()


def unpack(text: str) -> files.Result | None:
    """The result in a termination message or a log, or None where there is none."""
    for line in reversed(text.splitlines()):
        if line.startswith(_PACKED):
            try:
                return msgspec.json.decode(zlib.decompress(base64.b85decode(line[len(_PACKED) :])), type=files.Result)
            except (ValueError, zlib.error, msgspec.DecodeError):
                return None
    return None


def outcome(environ: Mapping[str, str]) -> tuple[int, str]:
    """Do what the environment says; exit code and packed result, or what went wrong."""
    work = msgspec.json.decode(environ[VARIABLE], type=Work)
    try:
        return 0, pack(perform(work))
    except OSError as error:
        if disk_full(error):
            return files.DISK_FULL_EXIT, "the model store is full"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and isinstance(work, Save):
            who = f"user {os.getuid()}"
            return 0, pack(files.Result(refused=f"{who} has no right to write to the model store: {error.strerror}"))
        return 1, " ".join(traceback.format_exception_only(error)[-1].split())


def main() -> int:
    """Run as a pod's only process."""
    code, text = outcome(os.environ)
    if len(text.encode()) > LONGEST:
        sys.stdout.write(text + "\n")
        text = IN_LOG
    _MESSAGE.write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
