"""``python3 -P -m services.scheduler.cloud.kubernetes.prepare``: a task's init container.

It runs in elearn's own image as an ordinary user, before the task's container starts, and may run again in the same
pod. Its last line of error is the container's termination message; its exit code says whether another try makes sense.
"""

import contextlib
import errno
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import FrameType
from typing import Final, NoReturn

import msgspec

from services.scheduler.cloud.kubernetes import peers
from services.scheduler.cloud.kubernetes.preparation import (
    AWAY,
    CODE,
    REFUSED,
    VARIABLE,
    WORKSPACE,
    Folder,
    Preparation,
)
from services.scheduler.cloud.kubernetes.receiving import receive
from shared.beneath import NotAFileError, OutsideError, Tree
from shared.errors import ElearnError, Internal, Invalid, NotFound, StorageFull, Unavailable
from shared.unpacking import storing, unpack

_STAGING: Final = ".elearn-unpacking-k6q2"
_LONGEST_MESSAGE: Final = 1000
_UMASK: Final = 0o002
"""The group may write: a project that is allowed to be any user has only the group in common with us."""
_PASSING: Final = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EAGAIN)
"""What a file system says while its server is away."""
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where things are in the container."""

    code: Path = Path(CODE)
    workspace: Path = Path(WORKSPACE)
    message: Path = Path("/dev/termination-log")


def prepare(asked: Preparation, places: Places) -> None:
    """Do all that is asked; what was done before is done again, or found.

    Raises:
        Unavailable, StorageFull: another try makes sense.
        ElearnError: it does not.
    """
    for folder in asked.folders:
        find_or_make(folder)
    if asked.code:
        with storing(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as scratch:
            archive = receive(places.code, asked.code, Path(scratch), say=_say)
            unpack_into(archive, places.workspace)
    for point in asked.points:
        make_point(places.workspace, point)
    if unknown := peers.wait_for(asked.peers):
        _say(f"the cluster's DNS does not know {', '.join(unknown[:3])} yet: starting all the same")


def find_or_make(folder: Folder) -> None:
    """Make a folder of a datastore, or make sure that it is there.

    Raises:
        NotFound: it is not there.
        Invalid: it can't be made, or is none.
        Unavailable: the datastore is away.
    """
    where = f"folder {folder.path!r} of datastore {folder.datastore!r}" if folder.path else repr(folder.datastore)
    try:
        with Tree(folder.volume).directory(folder.path, make=folder.make):
            return
    except FileNotFoundError:
        raise NotFound(f"{where} is not there") from None
    except (OutsideError, NotAFileError) as problem:
        raise Invalid(f"{where}: {problem}") from None
    except OSError as problem:
        words = problem.strerror or str(problem)
        if problem.errno in _PASSING:
            raise Unavailable(f"{where} is away: {words}") from problem
        if problem.errno in (errno.EACCES, errno.EPERM):
            words += f": elearn works in it as user {os.getuid()}, group {os.getgid()}"
        raise Invalid(f"{where}: {words}") from problem


def unpack_into(archive: Path, workspace: Path) -> None:
    """Unpack an archive into a folder that exists, and may hold the same already.

    Raises:
        Malformed, Invalid, TooLarge: see :func:`shared.unpacking.unpack`.
        StorageFull: no room.
    """
    staging = workspace / _STAGING
    _remove(staging)
    try:
        unpack(archive, staging / "code")
        with storing(workspace):
            _merge(staging / "code", workspace)
    finally:
        _remove(staging)


def _merge(source: Path, target: Path) -> None:
    """Move everything of one folder into another; what was left in its place by an earlier try gives way."""
    with os.scandir(source) as entries:
        for entry in entries:
            to = target / entry.name
            if entry.is_dir(follow_symlinks=False) and to.is_dir() and not to.is_symlink():
                _merge(Path(entry.path), to)
                continue
            _share(Path(entry.path))
            if entry.is_dir(follow_symlinks=False) or to.is_dir():
                _remove(to)
            Path(entry.path).rename(to)


def _share(path: Path) -> None:
    """Let the group write: see the umask, which unpacking does not go by."""
    if path.is_symlink():
        return
    path.chmod(path.stat().st_mode | 0o020)
    if path.is_dir():
        for entry in path.iterdir():
            _share(entry)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder; none is success."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError:
        if path.is_dir() and not path.is_symlink():
            raise
        path.unlink()


def make_point(workspace: Path, path: str) -> None:
    """Make the folder below the working directory where something will be mounted.

    Raises:
        Invalid: code has a file or a link on the way.
    """
    descriptor = os.open(workspace, _DIRECTORY)
    parts = PurePosixPath(path).parts
    try:
        for at, part in enumerate(parts):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=descriptor)
            try:
                below = os.open(part, _DIRECTORY, dir_fd=descriptor)
            except (NotADirectoryError, OSError) as problem:
                if problem.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                where = "/".join(parts[: at + 1])
                raise Invalid(f"mount {path}: {where} is a link or a file in the code folder, no folder") from problem
            os.close(descriptor)
            descriptor = below
    finally:
        os.close(descriptor)


def main(environ: Mapping[str, str], places: Places) -> int:
    """Do what the environment asks; the exit code."""
    os.umask(_UMASK)
    signal.signal(signal.SIGTERM, _leave)  # the first process of a container is not ended by default
    try:
        prepare(_asked(environ), places)
    except ElearnError as error:
        return _fail(error.detail, places, AWAY if isinstance(error, Unavailable | StorageFull) else REFUSED)
    except OSError as error:
        return _fail(f"can't prepare the task: {error}", places, AWAY)
    return 0


def _asked(environ: Mapping[str, str]) -> Preparation:
    try:
        return msgspec.json.decode(environ.get(VARIABLE, ""), type=Preparation)
    except msgspec.DecodeError as error:
        raise Internal(f"{VARIABLE} can't be read: {error}") from None


def _fail(detail: str, places: Places, code: int) -> int:
    line = " ".join(detail.split())[:_LONGEST_MESSAGE]
    _say(line)
    with contextlib.suppress(OSError):  # said already
        places.message.write_text(f"{line}\n", encoding="utf-8")
    return code


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # which is not buffered beyond a line


def _leave(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(os.environ, Places()))
