"""Files of one folder: list, stat, ranged read, atomic write in parts, delete. Everything here blocks."""

import contextlib
import errno
import hashlib
import heapq
import os
import secrets
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, Literal

from services.datastore.cloud.local.told import told
from shared.beneath import Spot, Tree
from shared.contracts.common import CHUNK_BYTES, Chunk, relative_path_problem
from shared.contracts.datastore import FileEntry, Probe
from shared.errors import Conflict, ElearnError, Invalid

UPLOADS: Final = ".elearn-uploads"
"""Folder at the top of a datastore that holds unfinished uploads; not listed, gone when it is empty."""

_TRIES: Final = 20
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def list_folder(root: str, path: str, *, after: str | None, limit: int) -> list[FileEntry]:
    """At most ``limit`` entries, by name, of those behind ``after``; memory is that of one page."""
    _check(path)
    with told(path), Tree(root).directory(path) as folder:
        with os.scandir(folder) as found:
            names = heapq.nsmallest(
                limit,
                (
                    entry.name
                    for entry in found
                    if entry.name != UPLOADS and (after is None or _sort_key(entry.name) > after)
                ),
                key=_sort_key,
            )
        entries = []
        prefix = "/".join(part for part in path.split("/") if part not in ("", "."))
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                entries.append(_entry(Spot(folder, name), f"{prefix}/{name}" if prefix else name))
        return entries


def stat_path(root: str, path: str) -> FileEntry:
    """What lies at a path, links followed."""
    _check(path)
    with told(path), Tree(root).at(path) as spot:
        return _entry(spot, path)


def read_file(root: str, path: str, *, offset: int, length: int) -> Chunk:
    """At most ``length`` bytes of a file (never more than a message takes), from ``offset`` on."""
    _check(path)
    if offset < 0 or length < 1:
        raise Invalid.field("offset" if offset < 0 else "length", "must not be negative; length is at least 1")
    length = min(length, CHUNK_BYTES)
    with told(path):
        descriptor = Tree(root).open_file(path)
        try:
            total = os.fstat(descriptor).st_size
            data = os.pread(descriptor, length, offset) if offset < total else b""
        finally:
            os.close(descriptor)
    return Chunk(data=data, offset=offset, total=total, end=offset + len(data) >= total)


def write_part(root: str, path: str, *, upload: str, offset: int, data: bytes, end: bool) -> None:
    """Take one part of an upload; only the unfinished file is kept, so any process may take the next."""
    _check(path)
    tree = Tree(root)
    temporary = hashlib.sha256(f"{path}\0{upload}".encode()).hexdigest()[:32]
    with told(path):
        if offset == 0:
            _check_target(tree, path)
        try:
            for _ in range(_TRIES):
                with _uploads_folder(tree) as uploads:
                    if _append(uploads, temporary, offset, data, end=end):
                        if end:
                            _publish(tree, uploads, temporary, path)
                        return
        finally:
            _drop_uploads(tree)
        raise FileNotFoundError(errno.ENOENT, "the folder of uploads vanishes again and again")


@contextlib.contextmanager
def _uploads_folder(tree: Tree) -> Iterator[int]:
    """The folder of uploads; another upload that ends removes it, even while it is being opened."""
    with contextlib.ExitStack() as entered:
        for left in reversed(range(_TRIES)):
            try:
                uploads = entered.enter_context(tree.directory(UPLOADS, make=True))
                break
            except FileNotFoundError:
                if not left:
                    raise
        yield uploads


def delete_path(root: str, path: str) -> None:
    """Delete a file, a link itself, or an empty folder."""
    _check(path)
    with told(path), Tree(root).at(path, follow=False) as spot:
        if spot.name == ".":
            raise Invalid.field("path", "the top of a datastore can't be deleted; delete the datastore")
        found = os.stat(spot.name, dir_fd=spot.directory, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(spot.name, dir_fd=spot.directory)
        else:
            os.unlink(spot.name, dir_fd=spot.directory)


def sweep(root: str, *, older_than: float) -> int:
    """Remove unfinished uploads that nobody has added to for ``older_than`` seconds; how many there were."""
    tree = Tree(root)
    until = time.time() - older_than
    removed = 0
    with told(UPLOADS):
        try:
            with tree.directory(UPLOADS) as uploads:
                with os.scandir(uploads) as found:
                    old = [each.name for each in found if each.stat(follow_symlinks=False).st_mtime < until]
                for name in old:
                    os.unlink(name, dir_fd=uploads)
                    removed += 1
        except FileNotFoundError:
            return removed
    _drop_uploads(tree)
    return removed


def probe(root: str, *, read_only: bool) -> Probe:
    """Write, rename, read back and delete a file; where nothing may be written, list."""
    started = time.monotonic()
    free: int | None = None
    try:
        with told(""), Tree(root).directory("") as top:
            space = os.fstatvfs(top)
            free = space.f_bavail * space.f_frsize
            if read_only:
                with os.scandir(top) as found:
                    next(found, None)
            else:
                _try_writing(top)
    except ElearnError as error:
        return Probe(
            ok=False,
            message=error.detail,
            seconds=time.monotonic() - started,
            writable=False,
            free_bytes=free,
        )
    done = "listed" if read_only else "wrote, renamed, read back and deleted a file"
    return Probe(ok=True, message=done, seconds=time.monotonic() - started, writable=not read_only, free_bytes=free)


def _try_writing(top: int) -> None:
    first = f".elearn-probe-{secrets.token_hex(8)}"
    second = f"{first}-renamed"
    content = secrets.token_bytes(4096)
    try:
        descriptor = os.open(first, _NEW | os.O_EXCL, 0o600, dir_fd=top)
        try:
            os.write(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(first, second, src_dir_fd=top, dst_dir_fd=top)
        descriptor = os.open(second, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            same = os.read(descriptor, len(content) + 1) == content
        finally:
            os.close(descriptor)
        if not same:
            raise OSError(errno.EIO, "a file read back differs from what was written")
    finally:
        for name in (first, second):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=top)


def _check(path: str) -> None:
    if path and (problem := relative_path_problem(path)):
        raise Invalid.field("path", problem)
    if UPLOADS in path.split("/"):
        raise Invalid.field("path", f"{UPLOADS} is reserved for unfinished uploads")


def _sort_key(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _entry(spot: Spot, path: str) -> FileEntry:
    found = os.stat(spot.name, dir_fd=spot.directory, follow_symlinks=False)
    kind: Literal["file", "directory", "symlink", "other"] = "other"
    target = None
    if stat.S_ISREG(found.st_mode):
        kind = "file"
    elif stat.S_ISDIR(found.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(found.st_mode):
        kind = "symlink"
        target = _sort_key(os.readlink(spot.name, dir_fd=spot.directory))
    return FileEntry(
        path=_sort_key(path),  # a name that is not UTF-8 is shown with escapes
        kind=kind,
        size=found.st_size if kind == "file" else 0,
        modified_at=datetime.fromtimestamp(max(0.0, found.st_mtime), UTC),
        target=target,
    )


def _check_target(tree: Tree, path: str) -> None:
    """Refuse at the first part what could only fail at the last."""
    try:
        with tree.at(path) as spot:
            if spot.name == ".":
                raise IsADirectoryError(errno.EISDIR, "is a directory")
            found = os.stat(spot.name, dir_fd=spot.directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory")


def _append(uploads: int, temporary: str, offset: int, data: bytes, *, end: bool) -> bool:
    """Add a part; False when the folder of uploads was removed, empty, since it was opened."""
    flags = (_NEW | os.O_TRUNC) if offset == 0 else (_NEW & ~os.O_CREAT)
    try:
        descriptor = os.open(temporary, flags, 0o666, dir_fd=uploads)
    except FileNotFoundError:
        if offset == 0:
            return False
        raise Conflict("this upload is not known (any more); begin again with its first part") from None
    try:
        size = os.fstat(descriptor).st_size
        if size < offset:
            raise Conflict(f"the part from byte {size} to {offset} is missing; begin again with the first part")
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view = view[written:]
            offset += written
        if end:
            os.ftruncate(descriptor, offset)
            os.fsync(descriptor)
    except OSError:
        os.unlink(temporary, dir_fd=uploads)
        raise
    finally:
        os.close(descriptor)
    return True


def _publish(tree: Tree, uploads: int, temporary: str, path: str) -> None:
    with tree.at(path, make_parents=True) as spot:
        try:
            os.rename(temporary, spot.name, src_dir_fd=uploads, dst_dir_fd=spot.directory)
        except OSError:
            os.unlink(temporary, dir_fd=uploads)
            raise
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=spot.directory)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _drop_uploads(tree: Tree) -> None:
    with contextlib.suppress(OSError), tree.at(UPLOADS, follow=False) as spot:  # not empty: others upload
        os.rmdir(spot.name, dir_fd=spot.directory)
