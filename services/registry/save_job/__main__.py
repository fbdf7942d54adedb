"""``python -m services.registry.save_job --job FILE``: save one SavedModel; the result lies beside the file.

Copy to a staging folder, look into it, hash it, and let it appear in the store by one rename. Killed at any
moment it leaves a staging folder, which the next attempt throws away, or a whole version, which it finds.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import msgspec

from services.registry.archive import Layout
from services.registry.model import Facts
from services.registry.model_store import Manifest, ModelStore
from services.registry.save_job.copy import copy_folder, disk_full
from services.registry.save_job.errors import CannotSaveError
from services.registry.save_job.job import DISK_FULL_EXIT, Job, Result, write_result
from services.registry.save_job.saved_model import DESCRIPTION, Description, describe
from shared.beneath import OutsideError, Tree

_BLOCK = 4 * 1024 * 1024


def main() -> int:
    """Run the job; the exit code is 0 whenever there is a result."""
    parser = argparse.ArgumentParser(prog="python -m services.registry.save_job")
    parser.add_argument("--job", type=Path, required=True, metavar="FILE")
    file: Path = parser.parse_args().job
    job = msgspec.json.decode(file.read_bytes(), type=Job)
    try:
        result = Result(facts=save(job))
    except CannotSaveError as error:
        result = Result(refused=str(error))
    try:
        write_result(file.parent, result)
    except OSError as error:
        if disk_full(error):
            return DISK_FULL_EXIT
        raise
    return 0


def save(job: Job) -> Facts:
    """Save, or find that it is saved.

    Raises:
        CannotSaveError: in one sentence why it can't be.
    """
    store = ModelStore(Path(job.store))
    done = store.saved(job.key)
    if done is not None:
        return done.facts
    store.remove(job.key)
    try:
        return _save(job, store)
    except CannotSaveError:
        store.remove(job.key)
        raise
    except OSError as error:
        store.remove(job.key)
        if disk_full(error):
            raise CannotSaveError("the model store's disk is full; free some space and save again") from error
        raise


def _save(job: Job, store: ModelStore) -> Facts:
    source = _source(job)
    staging = store.staging(job.key, job.attempt)
    staging.parent.mkdir(parents=True, exist_ok=True)
    entries = copy_folder(source, staging)
    description = _describe(staging, job.shown)
    layout = Layout(entries)
    facts = Facts(
        size=sum(entry.size for entry in entries if not entry.is_folder),
        files=sum(not entry.is_folder for entry in entries),
        digest=digest(staging, layout),
        archive_size=layout.size,
        framework=description.framework,
        signatures=description.signatures,
        note=description.note,
    )
    store.publish(job.key, job.attempt, Manifest(facts=facts, entries=tuple(entries)))
    return facts


def _source(job: Job) -> Tree:
    try:
        with Tree(job.volume).directory(job.path) as folder:
            root = str(Path(f"/proc/self/fd/{folder}").readlink())
        source = Tree(root)
        source.stat(DESCRIPTION)
    except OutsideError as error:
        raise CannotSaveError(f"{job.shown}: {error}") from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CannotSaveError(_not_there(job)) from error
    except PermissionError:
        raise CannotSaveError(f"{job.shown}: elearn's user has no right to read it") from None
    return source


def _not_there(job: Job) -> str:
    try:
        with Tree(job.volume).directory(job.path) as folder:
            pbtxt = (Path(f"/proc/self/fd/{folder}") / f"{DESCRIPTION}txt").exists()
    except NotADirectoryError:
        return f"{job.shown} is not a folder"
    except FileNotFoundError:
        return f"{job.shown}: there is no such folder"
    if pbtxt:
        return f"{job.shown} is a SavedModel in text form; save it in binary form ({DESCRIPTION})"
    return f"{job.shown} is not a SavedModel: it holds no {DESCRIPTION}"


def _describe(folder: Path, shown: str) -> Description:
    try:
        return describe((folder / DESCRIPTION).read_bytes())
    except CannotSaveError as error:
        raise CannotSaveError(f"{shown} is not a SavedModel: {error}") from None
    except IsADirectoryError:
        raise CannotSaveError(f"{shown} is not a SavedModel: {DESCRIPTION} is a folder") from None


def digest(folder: Path, layout: Layout) -> str:
    """``sha256:…`` of the tar of a folder."""
    hashed = hashlib.sha256()
    position = 0
    while position < layout.size:
        for piece in layout.pieces(position, _BLOCK):
            data = piece.data
            if piece.path is not None:
                with (folder / piece.path).open("rb") as file:
                    file.seek(piece.offset)
                    data = file.read(piece.length)
                if len(data) != piece.length:
                    raise CannotSaveError(f"{piece.path} was changed while it was being saved")
            hashed.update(data)
            position += len(data)
    return f"sha256:{hashed.hexdigest()}"


if __name__ == "__main__":
    sys.exit(main())
