"""Moving files between this machine and a datastore: several at a time, each whole or not at all."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final, TypeVar

import httpx

from elearn.client.code import blocks
from elearn.client.transport import Content, Transport
from shared.contracts.datastore import FileEntry
from shared.errors import ElearnError, Invalid, StorageFull, Unavailable

Address = Callable[[str], str]
"""The URL's path of a path in the datastore."""
Moved = Callable[[str, int], None]
J = TypeVar("J")

KIND_HEADER: Final = "Elearn-Kind"
_AT_A_TIME: Final = 4
_BLOCK: Final = 1 << 20
_TRIES: Final = 3


@contextmanager
def opened(transport: Transport, address: str, path: str) -> Iterator[httpx.Response]:
    """A file's bytes as they arrive.

    Raises:
        Invalid: it is a folder.
    """
    with transport.stream(address) as response:
        if response.headers.get(KIND_HEADER) == "directory":
            raise Invalid.field("path", f"{path!r} is a folder")
        yield response


def put(transport: Transport, address: str, content: Content, size: int) -> FileEntry:
    """Put one file."""
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    return transport.decode(transport.send("PUT", address, headers=headers, content=content), FileEntry)


def upload(transport: Transport, address: Address, source: Path, path: str, moved: Moved) -> int:
    """See :meth:`elearn.client.datastores.Datastores.upload`."""
    jobs = list(_to_upload(source, path))

    def one(job: tuple[Path, str]) -> tuple[str, int]:
        file, target = job
        try:
            size = file.stat().st_size
            put(transport, address(target), lambda: _exactly(file, size), size)
        except OSError as error:
            raise Invalid(f"can't read {file}: {error.strerror or error}") from error
        return target, size

    return _several(one, jobs, moved)


def download(
    transport: Transport,
    address: Address,
    found: FileEntry,
    entries: Iterable[FileEntry],
    to: Path,
    moved: Moved,
) -> int:
    """See :meth:`elearn.client.datastores.Datastores.download`."""
    base = PurePosixPath(found.path)
    if found.kind != "directory" and to.is_dir():
        to = to / base.name
    jobs: list[tuple[FileEntry, Path]] = []
    try:
        for entry in entries:
            below = PurePosixPath(entry.path).relative_to(base) if found.kind == "directory" else PurePosixPath()
            if ".." in below.parts or below.is_absolute():
                raise Invalid(f"the datastore names a file {entry.path!r}: that leads outside")
            target = to / below
            if entry.kind == "directory":
                target.mkdir(parents=True, exist_ok=True)
            elif entry.kind == "symlink":
                _link(entry, below, target)
            elif entry.kind == "file":
                target.parent.mkdir(parents=True, exist_ok=True)
                jobs.append((entry, target))
        if found.kind == "directory":
            to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _local(error, to) from error

    def one(job: tuple[FileEntry, Path]) -> tuple[str, int]:
        entry, target = job
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            _fetch(transport, address(entry.path), entry.path, unfinished)
            unfinished.replace(target)
        except OSError as error:
            raise _local(error, target) from error
        finally:
            unfinished.unlink(missing_ok=True)
        return entry.path, target.stat().st_size

    return _several(one, jobs, moved)


def _fetch(transport: Transport, address: str, path: str, target: Path) -> None:
    for tries in range(_TRIES):
        try:
            with opened(transport, address, path) as response, target.open("wb") as file:
                for block in response.iter_bytes(_BLOCK):
                    file.write(block)
        except Unavailable:
            if tries == _TRIES - 1:
                raise
        else:
            return


def _to_upload(source: Path, path: str) -> Iterator[tuple[Path, str]]:
    folder = path.strip("/")
    if source.is_file():
        inside = path == "" or path.endswith("/")
        yield source, "/".join(part for part in (folder, source.name if inside else "") if part)
        return
    if not source.is_dir():
        raise Invalid.field("source", f"{source} is neither a file nor a folder")
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source).as_posix()
        if file.is_file():
            yield file, f"{folder}/{name}" if folder else name
        elif file.is_symlink() and file.is_dir():
            raise Invalid.field("source", f"{file} is a link to a folder, which can't be put: put the folder itself")
        elif not file.is_dir():
            raise Invalid.field("source", f"{file} is neither a file nor a folder")


def _exactly(file: Path, size: int) -> Iterator[bytes]:
    """The file's bytes as announced; one that grows or shrinks meanwhile is not sent as something else."""
    sent = 0
    for block in blocks(file):
        sent += len(block)
        if sent > size:
            break
        yield block
    if sent != size:
        raise Invalid(f"{file} changed while it was read: try again")


def _link(entry: FileEntry, below: PurePosixPath, target: Path) -> None:
    """Make a symbolic link as it is in the datastore, if it stays inside of what is downloaded."""
    points = PurePosixPath(entry.target or "")
    depth = len(below.parts) - 1
    for part in points.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            break
    if points.is_absolute() or depth < 0 or not entry.target:
        raise Invalid(f"{entry.path} is a link to {entry.target!r}, which is not in what is downloaded")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    target.symlink_to(entry.target)


def _several(one: Callable[[J], tuple[str, int]], jobs: list[J], moved: Moved) -> int:
    """Do the jobs, a few at a time; the first that fails ends the rest."""
    from concurrent.futures import ThreadPoolExecutor  # on demand: most commands move nothing

    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="elearn-files") as pool:
        doing = [pool.submit(one, job) for job in jobs]
        try:
            for each in doing:
                moved(*each.result())
        except BaseException:
            for each in doing:
                each.cancel()
            raise
    return len(doing)


def _local(error: OSError, where: Path) -> ElearnError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"no space left at {where}")
    return Invalid.field("to", f"can't write {error.filename or where}: {error.strerror or error}")
