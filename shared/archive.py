"""Folders as tar archives: the same content packs to the same bytes, and nothing escapes when unpacked.

Everything here blocks: call it in a thread, or in a job of its own. (Reading archives is in :mod:`shared.unpacking`.)
"""

import gzip
import hashlib
import heapq
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from shared.errors import Conflict, Invalid, TooLarge
from shared.ignore import FILE_NAME, Ignore
from shared.unpacking import CODE, Contents, Limits, inside, storing, unpack, verify

__all__ = ["CODE", "Contents", "Limits", "Packed", "digest_of", "pack", "unpack", "verify"]


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """An archive that was written.

    Attributes:
        digest: ``sha256:<hex>`` of its bytes.
        size: its bytes.
        files: how many members it has, directories included.
        total: bytes of all files together.
    """

    digest: str
    size: int
    files: int
    total: int


def pack(
    folder: Path, target: Path, *, compress: bool = True, everything: bool = False, limits: Limits = CODE
) -> Packed:
    """Write ``folder`` as a tar (gzip-compressed or plain) to ``target``: complete, or not at all.

    Sorted, owned by nobody, of no time; only a file's executable bit is kept of its mode. The plain form
    is the same byte for byte on every machine; the compressed one as far as their zlib is.

    Args:
        everything: leave nothing out; by default what ``.elearnignore`` names stays behind, and caches.

    Raises:
        Invalid: not a folder, a link that leads out of it, a socket or device, a name that is not UTF-8.
        TooLarge: over a limit; names the largest files.
        Conflict: a file changed meanwhile.
        StorageFull: no room for the archive.
    """
    if not folder.is_dir():
        raise Invalid(f"{folder} is not a folder")
    members = list(_members(folder, None if everything else _ignore(folder), limits))
    with (
        storing(target),
        tempfile.NamedTemporaryFile(prefix=".packing-", dir=target.parent, delete=False) as out,
    ):
        try:
            tee = _Tee(out)
            if compress:
                with gzip.GzipFile(filename="", mode="wb", fileobj=tee, compresslevel=6, mtime=0) as zipped:
                    _write(zipped, folder, members)
            else:
                _write(tee, folder, members)
            if tee.size > limits.compressed:
                raise TooLarge(f"{folder} is {tee.size:,} bytes when packed: the most is {limits.compressed:,}")
            out.flush()
            Path(out.name).chmod(0o644)
            Path(out.name).rename(target)
        except BaseException:
            Path(out.name).unlink(missing_ok=True)
            raise
    return Packed(
        digest=f"sha256:{tee.digest.hexdigest()}",
        size=tee.size,
        files=len(members),
        total=sum(member.info.size for member in members),
    )


class _Packing(NamedTuple):
    info: tarfile.TarInfo
    source: Path


class _Tee:
    """A file that knows the digest and the size of what went through."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()


def _ignore(folder: Path) -> Ignore:
    try:
        return Ignore((folder / FILE_NAME).read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return Ignore()
    except (OSError, UnicodeDecodeError) as problem:
        raise Invalid(f"{FILE_NAME} can't be read: {problem}") from problem


def _members(folder: Path, ignore: Ignore | None, limits: Limits) -> Iterator[_Packing]:
    root = folder.resolve()
    total = 0
    largest: list[tuple[int, str]] = []
    for files, (name, entry) in enumerate(_walk(folder, "", ignore), 1):
        info = _describe(name, entry, root)
        total += info.size
        heapq.heappush(largest, (info.size, name))
        if len(largest) > 3:
            heapq.heappop(largest)
        if files > limits.files:
            raise TooLarge(f"{folder} holds more than {limits.files:,} files: name some in {FILE_NAME}")
        yield _Packing(info, Path(entry.path))
    if total > limits.total:
        most = ", ".join(f"{name} ({size:,})" for size, name in sorted(largest, reverse=True))
        raise TooLarge(
            f"{folder} holds {total:,} bytes, the most is {limits.total:,}: "
            f"name large files in {FILE_NAME}, such as {most}"
        )


def _walk(folder: Path, above: str, ignore: Ignore | None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as problem:
        raise Invalid(f"{folder} can't be read: {problem.strerror}") from problem
    for entry in entries:
        name = above + entry.name
        is_directory = entry.is_dir(follow_symlinks=False)
        if ignore is not None and ignore.ignores(name, is_directory=is_directory):
            continue
        yield name, entry
        if is_directory:
            yield from _walk(Path(entry.path), name + "/", ignore)


def _describe(name: str, entry: os.DirEntry[str], root: Path) -> tarfile.TarInfo:
    try:
        name.encode()
    except UnicodeEncodeError as problem:
        raise Invalid(f"the name of {name!r} is not UTF-8: rename it, or name it in {FILE_NAME}") from problem
    info = tarfile.TarInfo(name)
    if entry.is_symlink():
        info.type = tarfile.SYMTYPE
        info.mode = 0o777
        info.linkname = str(Path(entry.path).readlink())
        if info.linkname.startswith("/") or not inside(Path(entry.path), root):
            raise Invalid(
                f"{name} is a link that leads out of the folder ({info.linkname}): copy its target in, "
                f"mount a datastore, or name it in {FILE_NAME}"
            )
    elif entry.is_dir(follow_symlinks=False):
        info.type = tarfile.DIRTYPE
        info.mode = 0o755
    elif entry.is_file(follow_symlinks=False):
        found = entry.stat(follow_symlinks=False)
        info.size = found.st_size
        info.mode = 0o755 if found.st_mode & 0o100 else 0o644
    else:
        raise Invalid(f"{name} is neither file, folder nor link: name it in {FILE_NAME}")
    return info


def _write(out: "gzip.GzipFile | _Tee", folder: Path, members: list[_Packing]) -> None:
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for info, source in members:
            if not info.isreg():
                tar.addfile(info)
                continue
            try:
                descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as problem:
                raise Invalid(f"{info.name} can't be read: {problem.strerror}") from problem
            with os.fdopen(descriptor, "rb") as file:
                if os.fstat(descriptor).st_size != info.size:
                    raise Conflict(f"{info.name} changed while {folder} was packed: try again")
                try:
                    tar.addfile(info, file)
                except OSError as problem:
                    if problem.errno is None:  # tarfile's own: the file is shorter now
                        raise Conflict(f"{info.name} changed while {folder} was packed: try again") from problem
                    raise


def digest_of(path: Path) -> str:
    """``sha256:<hex>`` of a file's bytes."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
