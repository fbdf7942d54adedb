"""A folder whose entries are reached without ever leaving it: neither by ``..`` nor by a symbolic link.

Paths are walked one component at a time on open directory descriptors, links are followed by hand, so
nothing that somebody renames or links meanwhile can lead outside. Everything here blocks: call it from a
thread. Errors of the file system (``FileNotFoundError``, ``PermissionError`` …) pass through as they are.
"""

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ON_THE_WAY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # needs no right to list
_MOST_LINKS: Final = 40


class OutsideError(Exception):
    """A path leads out of the folder, or round in circles; the message says how, in words."""


class NotAFileError(Exception):
    """What lies at a path is not an ordinary file; the message says what it is."""


class Spot(NamedTuple):
    """Where an entry is, or would be: an open directory and a name in it (``.`` for the top itself)."""

    directory: int
    name: str


class Tree:
    """The folder ``root`` and what is below it.

    Args:
        root: absolute path. A symbolic link in it is refused each time the tree is opened, so a root that
            was checked once can't be pointed elsewhere afterwards.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.normpath(root)

    @contextlib.contextmanager
    def at(self, path: str, *, follow: bool = True, make_parents: bool = False) -> Iterator[Spot]:
        """Where ``path`` is; the last component need not exist.

        Args:
            follow: whether a link at the very end is followed; links on the way always are.
            make_parents: make the folders on the way that do not exist.

        Raises:
            OutsideError: the path leaves the tree.
            OSError: as the file system says: a folder on the way is missing, is a file, is forbidden.
        """
        walk = _Walk(self.root, path)
        try:
            yield walk.to_the_end(follow=follow, make_parents=make_parents)
        finally:
            walk.close()

    @contextlib.contextmanager
    def directory(self, path: str, *, make: bool = False) -> Iterator[int]:
        """An open descriptor of the folder at ``path`` (``""``: the top).

        Args:
            make: make it, and its parents, where they do not exist.
        """
        with self.at(path, make_parents=make) as spot:
            if make and spot.name != ".":
                with contextlib.suppress(FileExistsError):
                    os.mkdir(spot.name, dir_fd=spot.directory)
            descriptor = os.open(spot.name, _DIRECTORY, dir_fd=spot.directory)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open_file(self, path: str) -> int:
        """A descriptor for reading the ordinary file at ``path``; the caller closes it.

        Raises:
            NotAFileError: a folder, a pipe, a device.
        """
        with self.at(path) as spot:
            return open_regular(spot)

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """What lies at ``path``."""
        with self.at(path, follow=follow) as spot:
            return os.stat(spot.name, dir_fd=spot.directory, follow_symlinks=False)


def open_regular(spot: Spot) -> int:
    """Open an ordinary file for reading, without ever waiting on a pipe or a device.

    Raises:
        NotAFileError: it is something else.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    found = os.stat(spot.name, dir_fd=spot.directory, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        raise NotAFileError(f"it is {kind_in_words(found.st_mode)}, not a file")
    descriptor = os.open(spot.name, flags, dir_fd=spot.directory)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise NotAFileError(f"it is {kind_in_words(found.st_mode)}, not a file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def kind_in_words(mode: int) -> str:
    """What a file mode is of: ``a folder``, ``a symbolic link``, ``a pipe`` …"""
    for test, words in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISREG, "a file"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return words
    return "a device"


class _Walk:
    """One walk down from the root; ``stack`` holds the folders on the way, the root first."""

    def __init__(self, root: str, path: str) -> None:
        self._root = root
        self._path = path
        self._stack: list[int] = []
        self._links = 0

    def close(self) -> None:
        while self._stack:
            os.close(self._stack.pop())

    def to_the_end(self, *, follow: bool, make_parents: bool) -> Spot:
        if "\0" in self._path:
            raise OutsideError("the path holds a NUL")
        if self._path.startswith("/"):
            raise OutsideError(f"{self._path!r} must be relative")
        self._stack.append(_open_root(self._root))
        parts = _parts(self._path)
        while parts:
            part = parts.popleft()
            if part == "..":
                if len(self._stack) == 1:
                    raise OutsideError(f"{self._path!r} leads out of its folder")
                os.close(self._stack.pop())
                continue
            target = self._link_target(part) if (parts or follow) else None
            if target is not None:
                self._follow(target, parts)
                continue
            if not parts:
                return Spot(self._stack[-1], part)
            self._enter(part, make=make_parents)
        return Spot(self._stack[-1], ".")

    def _enter(self, part: str, *, make: bool) -> None:
        try:
            self._stack.append(os.open(part, _ON_THE_WAY, dir_fd=self._stack[-1]))
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=self._stack[-1])
            self._stack.append(os.open(part, _ON_THE_WAY, dir_fd=self._stack[-1]))

    def _link_target(self, part: str) -> str | None:
        try:
            return os.readlink(part, dir_fd=self._stack[-1])
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # not a link; not there
                return None
            raise

    def _follow(self, target: str, parts: deque[str]) -> None:
        self._links += 1
        if self._links > _MOST_LINKS:
            raise OutsideError(f"{self._path!r} goes round in circles of symbolic links")
        if target.startswith("/"):
            inside = os.path.normpath(target)
            if inside != self._root and not inside.startswith(self._root.rstrip("/") + "/"):
                raise OutsideError(f"{self._path!r} leads outside by a symbolic link to {target!r}")
            while len(self._stack) > 1:
                os.close(self._stack.pop())
            target = os.path.relpath(inside, self._root)
        parts.extendleft(reversed(_parts(target)))


def _parts(path: str) -> deque[str]:
    return deque(part for part in path.split("/") if part not in ("", "."))


def _open_root(root: str) -> int:
    descriptor = os.open("/", _ON_THE_WAY)
    for part in _parts(root):
        try:
            deeper = os.open(part, _ON_THE_WAY, dir_fd=descriptor)
        except OSError as error:
            linked = _is_link(part, descriptor)
            if linked:
                raise OutsideError(f"{root!r} has a symbolic link in it now: {part!r}") from error
            error.filename = root
            raise
        finally:
            os.close(descriptor)
        descriptor = deeper
    return descriptor


def _is_link(part: str, directory: int) -> bool:
    try:
        os.readlink(part, dir_fd=directory)
    except OSError:
        return False
    return True
