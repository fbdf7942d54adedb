"""Reading tar archives that somebody sent: typed refusals, bounded memory and disk, nothing outside the folder.

Everything here blocks: call it in a thread, or in a job of its own.
"""

import contextlib
import errno
import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

import msgspec

from shared.errors import Conflict, Invalid, Malformed, StorageFull, TooLarge

_BLOCK = 1 << 20
_LONGEST_NAME, _DEEPEST = 1024, 64
_LONGEST_HEADER = 1 << 20  # a header that says it is longer is an attack on our memory
_BYTES_PER_HEADER = 4096  # what names and padding may add to each member


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive may hold: bytes of all files, their number (directories count), bytes as sent."""

    total: int = 2**30
    files: int = 50_000
    compressed: int = 2**29


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive holds: members (directories included) and bytes of all files together."""

    files: int
    total: int


CODE = Limits()

_HEADER_ERRORS = (
    tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
)


def verify(archive: BinaryIO | Path, limits: Limits = CODE) -> Contents:
    """Read an archive through without writing anything; raises what :func:`unpack` would."""
    return _read(archive, None, limits)


def unpack(archive: BinaryIO | Path, target: Path, limits: Limits = CODE) -> Contents:
    """Make ``target`` from a tar, plain or gzip-compressed: complete, or not at all.

    Owners, times and set-id bits of the archive are not taken over.

    Raises:
        Malformed: not such an archive, cut off, or damaged.
        Invalid: a member that would leave the folder (absolute, ``..``, a link that leads outside), a device,
            a name twice.
        TooLarge: over a limit, found before more than the limit was written.
        Conflict: ``target`` exists and is not empty.
        StorageFull: no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with storing(target):
        staging = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        with storing(target):
            contents = _read(archive, staging, limits)
            staging.chmod(0o755)
            try:
                staging.rename(target)
            except OSError as problem:
                if problem.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise Conflict(f"{target} exists already") from problem
                raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return contents


def _read(archive: BinaryIO | Path, staging: Path | None, limits: Limits) -> Contents:
    with contextlib.ExitStack() as stack:
        raw: BinaryIO = stack.enter_context(archive.open("rb")) if isinstance(archive, Path) else archive
        sent = _Bounded(raw, limits.compressed, f"more than {limits.compressed:,} bytes were sent")
        start = sent.read(512)
        sent.unread(start)
        stream: IO[bytes] = sent  # type: ignore[assignment]  # read() is all that is used
        if start.startswith(b"\x1f\x8b"):
            stream = stack.enter_context(gzip.GzipFile(fileobj=sent, mode="rb"))  # type: ignore[call-overload]
        elif start[257:262] != b"ustar":
            raise Malformed("not a tar archive (plain or compressed with gzip)")
        most = limits.total + limits.files * _BYTES_PER_HEADER
        content = _Bounded(stream, most, f"it unpacks to more than {limits.total:,} bytes")
        reader = _Reader(staging, limits)
        try:
            with tarfile.open(fileobj=content, mode="r|", tarinfo=_Member) as tar:  # type: ignore[call-overload]
                for member in tar:
                    reader.take(tar, member)
            while content.read(_BLOCK):  # the checksum comes last
                pass
        except (
            tarfile.TarError,
            EOFError,
            zlib.error,
            gzip.BadGzipFile,
            UnicodeError,
            ValueError,
        ) as problem:
            raise Malformed(f"the archive is cut off or damaged: {problem}") from problem
        return reader.finish()


class _Bounded:
    """A readable that refuses to give more than it may."""

    def __init__(self, source: IO[bytes], most: int, words: str) -> None:
        self._source = source
        self._left = most
        self._words = words
        self._ahead = b""

    def unread(self, data: bytes) -> None:
        self._ahead = data

    def read(self, size: int = -1) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        data = self._source.read(_BLOCK if size < 0 else size)
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge(f"the archive is too large: {self._words}")
        return data


class _Member(tarfile.TarInfo):
    """A member whose headers are checked where :mod:`tarfile` would believe them, or end in silence."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except _HEADER_ERRORS as problem:  # past the first member, tarfile takes these for the end
            raise Malformed(f"the archive is cut off or damaged: {problem}") from problem
        except RecursionError as problem:
            raise Malformed("the archive has headers upon headers") from problem

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        special = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"X")
        if self.type in special and self.size > _LONGEST_HEADER:
            raise Invalid("the archive has a header that is far too long")
        if self.size < 0:
            raise Malformed("the archive has a member of negative size")
        return super()._proc_member(tar)  # type: ignore[misc,no-any-return]


class _Reader:
    """Takes one member after the other into a fresh folder that nobody else writes to."""

    def __init__(self, staging: Path | None, limits: Limits) -> None:
        self._staging = staging
        self._limits = limits
        self._files = 0
        self._total = 0
        self._seen: dict[str, bytes] = {}
        self._links: list[tuple[str, str]] = []

    def take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = _safe_name(member.name)
        self._files += 1
        if self._files > self._limits.files:
            raise TooLarge(f"the archive holds more than {self._limits.files:,} files")
        if member.isdir():
            self._note(name, tarfile.DIRTYPE)
        elif not name:
            raise Invalid(f"the archive has a file named {member.name!r}")
        elif member.issym():
            self._note(name, tarfile.SYMTYPE)
            self._links.append((name, member.linkname))
        elif member.islnk():
            self._take_hard_link(name, _safe_name(member.linkname))
        elif member.isreg() and not member.issparse():
            self._take_file(tar, member, name)
        else:
            raise Invalid(f"{member.name} in the archive is neither an ordinary file, folder nor link")

    def finish(self) -> Contents:
        """Make the links, last of all, so that nothing was written through one; check where each leads."""
        for name, linkname in self._links:
            self._check_link(name, linkname)
        if self._staging is not None:
            root = Path(os.path.realpath(self._staging))
            for name, linkname in self._links:
                (self._staging / name).symlink_to(linkname)
            for name, linkname in self._links:
                if not inside(self._staging / name, root):
                    raise _leads_outside(name, linkname)
        return Contents(files=self._files, total=self._total)

    def _note(self, name: str, kind: bytes) -> None:
        """Remember a member and the folders it lies in; two that can't both be are refused."""
        for folder in reversed(PurePosixPath(name).parents):
            self._remember(str(folder), tarfile.DIRTYPE)
        self._remember(name, kind)

    def _remember(self, name: str, kind: bytes) -> None:
        if name in ("", "."):
            return
        known = self._seen.get(name)
        if known is None:
            self._seen[name] = kind
            if len(self._seen) > 2 * self._limits.files:
                raise TooLarge(f"the archive holds more than {self._limits.files:,} files")
            if kind == tarfile.DIRTYPE and self._staging is not None:
                (self._staging / name).mkdir()
                (self._staging / name).chmod(0o755)
        elif not (known == kind == tarfile.DIRTYPE):
            raise Invalid(f"{name} is in the archive twice")

    def _take_file(self, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        self._total += member.size
        if self._total > self._limits.total:
            raise TooLarge(f"the archive is too large: it unpacks to more than {self._limits.total:,} bytes")
        self._note(name, tarfile.REGTYPE)
        if self._staging is None:
            return
        content = tar.extractfile(member)
        if content is None:
            raise Malformed(f"{name} in the archive has no content")
        mode = 0o755 if member.mode & 0o100 else 0o644
        with content, (self._staging / name).open("xb") as file:
            shutil.copyfileobj(content, file, _BLOCK)
            os.fchmod(file.fileno(), mode)

    def _take_hard_link(self, name: str, of: str) -> None:
        if self._seen.get(of) != tarfile.REGTYPE:
            raise Invalid(f"{name} in the archive is a hard link to {of}, which is no file before it")
        self._note(name, tarfile.REGTYPE)
        if self._staging is not None:
            (self._staging / name).hardlink_to(self._staging / of)

    def _check_link(self, name: str, linkname: str) -> None:
        """Refuse what leads outside by its own words; what does so through other links is found on disk."""
        if linkname.startswith("/") or "\0" in linkname or not linkname:
            raise _leads_outside(name, linkname)
        depth = len(PurePosixPath(name).parts) - 1
        for part in linkname.split("/"):
            if part == "..":
                depth -= 1
            elif part not in ("", "."):
                depth += 1
            if depth < 0:
                raise _leads_outside(name, linkname)


def _leads_outside(name: str, linkname: str) -> Invalid:
    return Invalid(f"{name} in the archive is a link that leads outside ({linkname})")


def _safe_name(name: str) -> str:
    """The member's path below the folder; empty for the folder itself."""
    try:
        name.encode()
    except UnicodeEncodeError as problem:
        raise Invalid(f"a name in the archive is not UTF-8: {name!r}") from problem
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/"):
        raise Invalid(f"{name} in the archive is an absolute path")
    if ".." in parts:
        raise Invalid(f"{name} in the archive leaves the folder by '..'")
    if "\0" in name or len(name) > _LONGEST_NAME or len(parts) > _DEEPEST:
        raise Invalid(f"a name in the archive is too long or too deep: {name[:80]}…")
    return "/".join(parts)


@contextlib.contextmanager
def storing(target: Path) -> Iterator[None]:
    """Say in our words that there is no room at ``target``."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no room at {target}: {problem.strerror}") from problem
        if problem.errno == errno.ENAMETOOLONG:
            raise Invalid(f"a name in the archive is too long for {target}") from problem
        raise


def inside(path: Path, root: Path) -> bool:
    """Whether a path, with every link followed, lies in the (resolved) root."""
    return Path(os.path.realpath(path)).is_relative_to(root)
