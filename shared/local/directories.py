"""Directories at their mount paths: real binds in the task's own namespace, or symlinks where that is not allowed."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from shared.errors import Invalid, Unsupported
from shared.local import mounting
from shared.local.spec import BindMount

_PROBE_SECONDS = 20.0


class Mount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``source``, an existing directory, is to be seen at ``path``: absolute, or relative to the working directory."""

    source: str
    path: str
    read_only: bool = False


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What mounts can be on this machine.

    Attributes:
        absolute_mounts: a mount may be at an absolute path.
        enforces_read_only: a read-only mount can't be written; otherwise that is left to the program's good will.
        why: what this machine refused, in words; empty when it does everything.
    """

    absolute_mounts: bool
    enforces_read_only: bool
    why: str = ""

    @property
    def namespaces(self) -> bool:
        """Mounts are real binds that only their task sees."""
        return self.enforces_read_only


SYMLINKS_ONLY = Capabilities(absolute_mounts=False, enforces_read_only=False, why="mounts are symlinks here")


def probe() -> Capabilities:
    """Try for real what this machine allows to this user. Blocks some 50 ms: call it once, in a thread."""
    with tempfile.TemporaryDirectory(prefix="elearn-probe-") as scratch:
        try:
            answer = subprocess.run(
                [sys.executable, "-I", "-S", "-E", mounting.__file__, scratch],
                capture_output=True,
                text=True,
                timeout=_PROBE_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as problem:
            return Capabilities(absolute_mounts=False, enforces_read_only=False, why=f"mounts: {problem}")
    relative, absolute, *_ = [*answer.stdout.split("\n"), "", ""]
    return Capabilities(absolute_mounts=not absolute, enforces_read_only=not relative, why=relative or absolute)


def check(mounts: Sequence[Mount], capabilities: Capabilities) -> None:
    """Refuse mounts whose paths can never be made: what can be said before there is a working directory.

    Raises:
        Invalid: a path that leaves the working directory by ``..``, is empty, the working directory or the root itself,
            or lies in another mount.
        Unsupported: an absolute path where this machine can't mount one.
    """
    for at, mount in enumerate(mounts):
        field = f"mounts[{at}].path"
        path = PurePosixPath(mount.path)
        if not mount.path or "\0" in mount.path or not path.name:
            raise Invalid.field(field, f"{mount.path!r} is not a path to mount at")
        if ".." in path.parts:
            raise Invalid.field(field, f"{mount.path} must not contain '..'")
        if path.is_absolute() and not capabilities.absolute_mounts:
            raise Unsupported(
                f"{field}: {mount.path} is absolute, which this machine can't do ({capabilities.why}): "
                f"use a path relative to the working directory"
            )
        for other in mounts[:at]:
            if path.is_relative_to(other.path) or PurePosixPath(other.path).is_relative_to(path):
                raise Invalid.field(field, f"{mount.path} and {other.path} lie in one another")
        if path.is_absolute() and path.parts[1] in ("proc", "sys", "dev"):
            raise Invalid.field(field, f"{mount.path} belongs to the system")


def prepare(cwd: Path, mounts: Sequence[Mount], capabilities: Capabilities) -> tuple[BindMount, ...]:
    """Make what the mounts need, for ``ProcessSpec.mounts``: mount points for real binds, else the symlinks themselves.

    Doing it again, for a restart or another task in the same working directory, changes nothing. Blocks briefly.

    Raises:
        Invalid: what :func:`check` refuses; a path that leads through a link of the code folder or over its
            files; a source that is no directory.
        Unsupported: see :func:`check`.
    """
    check(mounts, capabilities)
    cwd = cwd.resolve(strict=True)
    binds = []
    for at, mount in enumerate(mounts):
        field = f"mounts[{at}]"
        source = Path(mount.source)
        if not source.is_absolute() or not source.is_dir():
            raise Invalid.field(field, f"{mount.source} is not a directory")
        source = source.resolve()
        path = PurePosixPath(mount.path)
        if path.is_absolute():
            target = _absolute_target(field, path)
        elif capabilities.namespaces:
            with _opened(field, cwd, path.parts):
                target = cwd / path
        else:
            _link(field, cwd, path, source)
            continue
        binds.append(BindMount(source=str(source), target=str(target), read_only=mount.read_only))
    return tuple(binds)


def _absolute_target(field: str, path: PurePosixPath) -> Path:
    """Where an absolute mount really goes; its mount point is made where an ordinary ``mkdir`` can.

    Where it can't (``/data`` for an ordinary user), the task's namespace shows one that exists nowhere else.
    """
    target = Path(os.path.realpath(path))
    if target == Path("/") or target.parts[1] in ("proc", "sys", "dev"):
        raise Invalid.field(f"{field}.path", f"{path} belongs to the system")
    if target.exists() and not target.is_dir():
        raise Invalid.field(f"{field}.path", f"{path} is a file on this machine")
    above = target.parent
    while not above.is_dir():
        above = above.parent
    if above != Path("/"):
        with contextlib.suppress(PermissionError, OSError):
            target.mkdir(parents=True, exist_ok=True)
    return target


@contextlib.contextmanager
def _opened(field: str, cwd: Path, parts: Sequence[str]) -> Iterator[int]:
    """The directory ``parts`` below ``cwd``, made where missing, reached without following any link."""
    descriptor = os.open(cwd, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for at, part in enumerate(parts):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, mode=0o755, dir_fd=descriptor)
            try:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            except OSError as problem:
                where = "/".join(parts[: at + 1])
                raise Invalid.field(
                    f"{field}.path", f"{where} is a link or a file in the code folder, not a directory"
                ) from problem
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _link(field: str, cwd: Path, path: PurePosixPath, source: Path) -> None:
    with _opened(field, cwd, path.parts[:-1]) as parent:
        try:
            if os.readlink(path.name, dir_fd=parent) == str(source):
                return
            raise Invalid.field(f"{field}.path", f"{path} is a link in the code folder")
        except FileNotFoundError:
            pass
        except OSError:  # not a link
            try:
                os.rmdir(path.name, dir_fd=parent)
            except OSError as problem:
                raise Invalid.field(
                    f"{field}.path",
                    f"{path} holds files of the code folder, and this machine can't mount over them",
                ) from problem
        try:
            os.symlink(source, path.name, dir_fd=parent)
        except FileExistsError:
            # Another task of the same training was quicker; look at what it made.
            if os.readlink(path.name, dir_fd=parent) != str(source):
                raise Invalid.field(f"{field}.path", f"{path} is taken by another mount") from None
