"""Copies a folder out of a datastore, never following a link out of it."""

import errno
import os
import stat
from pathlib import Path
from typing import Final

from services.registry.archive import Entry
from services.registry.model_store import sync_folder
from services.registry.save_job.errors import CannotSaveError
from shared.beneath import NotAFileError, OutsideError, Tree, open_regular

MOST_ENTRIES: Final = 100_000
_BLOCK: Final = 4 * 1024 * 1024
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def copy_folder(source: Tree, target: Path) -> list[Entry]:
    """Copy everything below ``source`` to the new folder ``target``; files come out read-only and on disk.

    A symbolic link to a file of the folder becomes that file.

    Raises:
        CannotSaveError: something in it can't be kept: a link that leads out, a pipe, an odd name.
        OSError: of the target, a full disk for one.
    """
    entries: list[Entry] = []
    _folder(source, "", target, entries)
    return entries


def disk_full(error: OSError) -> bool:
    """Whether there is no room left, on the disk or in a quota."""
    return error.errno in _FULL


def _folder(source: Tree, path: str, target: Path, entries: list[Entry]) -> None:
    target.mkdir()
    with source.directory(path) as folder:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - of a descriptor
    for name in names:
        here = f"{path}/{name}" if path else name
        _check(here, entries)
        found = source.stat(here, follow=False)
        if stat.S_ISLNK(found.st_mode) and _leads_to_folder(source, here):
            raise CannotSaveError(f"{here} is a symbolic link to a folder; only links to files are followed")
        if stat.S_ISDIR(found.st_mode):
            entries.append(Entry(path=here, size=-1))
            _folder(source, here, target / name, entries)
        else:
            entries.append(Entry(path=here, size=_file(source, here, target / name)))
    sync_folder(target)


def _check(path: str, entries: list[Entry]) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise CannotSaveError(f"the name of {path.encode('utf-8', 'backslashreplace').decode()} is not UTF-8") from None
    if len(entries) >= MOST_ENTRIES:
        raise CannotSaveError(f"it holds more than {MOST_ENTRIES} files and folders")


def _leads_to_folder(source: Tree, path: str) -> bool:
    try:
        return stat.S_ISDIR(source.stat(path).st_mode)
    except (OSError, OutsideError):
        return False  # said in words when it is opened


def _file(source: Tree, path: str, target: Path) -> int:
    try:
        with source.at(path) as spot:
            reading = open_regular(spot)
    except NotAFileError as error:
        raise CannotSaveError(f"{path} can't be kept: {error}") from None
    except OutsideError:
        raise CannotSaveError(f"{path} is a symbolic link that leads out of the folder") from None
    except FileNotFoundError:
        raise CannotSaveError(f"{path} is a symbolic link to what is not there, or went away meanwhile") from None
    except PermissionError:
        raise CannotSaveError(f"elearn's user has no right to read {path}") from None
    try:
        return _copy(reading, target)
    finally:
        os.close(reading)


def _copy(reading: int, target: Path) -> int:
    size = 0
    writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while block := os.read(reading, _BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(writing, view) :]
            size += len(block)
        os.fchmod(writing, 0o444)
        os.fsync(writing)
    finally:
        os.close(writing)
    return size
