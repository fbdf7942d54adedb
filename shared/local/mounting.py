"""Bind mounts in a mount namespace of one's own, as an ordinary user (user namespace) or as root.

Standard library only, and no neighbours: the shim imports it in the forked child that becomes the task, and
``python -I -S -E mounting.py SCRATCH`` is the probe that tries for real what this machine allows.
"""
# ruff: noqa: PTH102, PTH103, PTH106, PTH115, PTH110, PTH112, PTH118, PTH120, PTH123, PTH208, PTH211
# pathlib would cost the shim's child more than all the mounts.

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Sequence
from typing import NamedTuple

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = (
    1,
    2,
    4,
    32,
    4096,
    16384,
    1 << 19,
)
_MS_RELATIME = 1 << 21
_MNT_DETACH = 2
_ST_TO_MS = ((2, 2), (4, 4), (8, 8), (1024, 1024), (2048, 2048), (4096, _MS_RELATIME))
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1
_MOST_MIRRORED = 1000
_STAGE = "/tmp"  # noqa: S108  # exists everywhere; covered for a moment, in our own namespace
_OLD_ROOT = ".elearn-old-root"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


class Bind(NamedTuple):
    """``source`` is to appear at ``target``; both absolute."""

    source: str
    target: str
    read_only: bool


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def enter(binds: Sequence[Bind]) -> None:
    """Move this process (and what it starts) into a mount namespace where every bind is in place.

    The process must be single-threaded. Nothing outside the namespace changes.

    Raises:
        OSError: what was refused, in words.
    """
    _unshare()
    opened = []  # inside the namespace (a mount of another one can't be bound), before a mount may hide a source
    for bind in binds:
        try:
            opened.append(os.open(bind.source, os.O_PATH | os.O_CLOEXEC))
        except OSError as problem:
            raise OSError(f"mount source {bind.source}: {problem.strerror}") from problem
    missing = _missing(binds)
    if "/" in missing:
        _new_root()
    for directory, targets in sorted(missing.items()):
        if directory != "/":
            _mirror(directory, targets[0])
        for target in targets:
            os.makedirs(target, exist_ok=True)
    for bind, source in zip(binds, opened, strict=True):
        _mount(f"/proc/self/fd/{source}", bind.target, _MS_BIND | _MS_REC, f"{bind.source} at {bind.target}")
        if bind.read_only:
            _make_read_only(bind.target)
        os.close(source)
    if "/" in missing:  # only now: from a root that was left, nothing can be bound
        _leave_old_root()
    for directory in missing:
        # What is written beside the mounts would vanish with the namespace: better refused than lost.
        _mount("none", directory, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV, directory)


def _unshare() -> None:
    if os.geteuid() == 0 and _libc.unshare(_CLONE_NEWNS) == 0:
        _mount("none", "/", _MS_REC | _MS_SLAVE, "/ as slave")
        return
    user, group = os.geteuid(), os.getegid()
    if _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS) != 0:
        raise OSError(f"user namespaces are not allowed here: {os.strerror(ctypes.get_errno())}")
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(content)


def _mount(source: str, target: str, flags: int, what: str, kind: str = "", data: str = "") -> None:
    result = _libc.mount(source.encode(), os.fsencode(target), kind.encode() or None, flags, data.encode() or None)
    if result != 0:
        raise OSError(f"can't mount {what}: {os.strerror(ctypes.get_errno())}")


def _make_read_only(target: str) -> None:
    """Read-only with everything mounted below it, keeping the flags each mount has already."""
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    if result == 0:
        return
    if ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM):
        raise OSError(f"can't make {target} read-only: {os.strerror(ctypes.get_errno())}")
    for point in _mount_points_at(target):  # before Linux 5.12, one by one
        has = os.statvfs(point).f_flag
        flags = sum(mount for flag, mount in _ST_TO_MS if has & flag)
        _mount("none", point, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | flags, f"{point} read-only")


def _mount_points_at(target: str) -> list[str]:
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            point = os.fsdecode(line.split()[4].decode("unicode_escape").encode("latin-1"))
            if point == target or point.startswith(target.rstrip("/") + "/"):
                found.append(point)
    return sorted(set(found))


def _missing(binds: Sequence[Bind]) -> dict[str, list[str]]:
    """The targets that don't exist, by the deepest directory above them that does."""
    missing: dict[str, list[str]] = {}
    for bind in binds:
        if not os.path.isdir(bind.target):
            above = os.path.dirname(bind.target)
            while not os.path.isdir(above):
                above = os.path.dirname(above)
            missing.setdefault(above, []).append(bind.target)
    return missing


def _mirror(directory: str, target: str) -> None:
    """Cover a directory by a small memory file system that shows all of it, and can be written.

    So that a mount point can appear in a directory where we may not make one.
    """
    names = os.listdir(directory)
    if len(names) > _MOST_MIRRORED:
        raise OSError(f"can't make {target}: {directory} holds more than {_MOST_MIRRORED} entries")
    held = {name: os.open(os.path.join(directory, name), os.O_PATH | os.O_NOFOLLOW) for name in names}
    _mount_memory(directory)
    for name, descriptor in held.items():
        mode = os.fstat(descriptor).st_mode
        link = os.readlink("", dir_fd=descriptor) if stat.S_ISLNK(mode) else ""
        _show(f"/proc/self/fd/{descriptor}", os.path.join(directory, name), mode, link)
        os.close(descriptor)


def _new_root() -> None:
    """Stand in a new root that shows all of the old one, and can be written; the old one stays at a hidden place."""
    _mount_memory(_STAGE)
    os.chdir(_STAGE)
    os.mkdir(_OLD_ROOT)
    if _libc.syscall(ctypes.c_long(_pivot_root_number()), b".", _OLD_ROOT.encode()) != 0:
        raise OSError(f"can't change the root: {os.strerror(ctypes.get_errno())}")
    os.chdir("/")
    for name in os.listdir(f"/{_OLD_ROOT}"):
        source = f"/{_OLD_ROOT}/{name}"
        mode = os.lstat(source).st_mode
        _show(source, f"/{name}", mode, os.readlink(source) if stat.S_ISLNK(mode) else "")


def _leave_old_root() -> None:
    if _libc.umount2(f"/{_OLD_ROOT}".encode(), _MNT_DETACH) != 0:
        raise OSError(f"can't leave the old root: {os.strerror(ctypes.get_errno())}")
    os.rmdir(f"/{_OLD_ROOT}")


def _mount_memory(at: str) -> None:
    _mount("elearn", at, _MS_NOSUID | _MS_NODEV, f"a memory file system at {at}", "tmpfs", "mode=0755")


def _show(source: str, path: str, mode: int, link: str) -> None:
    """Let a file, folder or link appear at another path."""
    if link:
        os.symlink(link, path)
        return
    if stat.S_ISDIR(mode):
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    _mount(source, path, _MS_BIND | _MS_REC, path)


def _pivot_root_number() -> int:
    return {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}[os.uname().machine]


def _try(scratch: str, target: str) -> str:
    """Bind a folder read-only at ``target`` in a child; what went wrong in words, or nothing."""
    source = os.path.join(scratch, "source")
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:
        words = ""
        try:
            enter([Bind(source, target, True)])
            if not os.path.exists(os.path.join(target, "seen")):
                words = "the mount does not show its source"
            try:
                os.mkdir(os.path.join(target, "written"))
                words = "a read-only mount could be written"
            except OSError as problem:
                if problem.errno != errno.EROFS:
                    words = f"a read-only mount answers oddly: {problem.strerror}"
        except (OSError, KeyError) as problem:
            words = str(problem) or repr(problem)
        os.write(telling, words.encode())
        os._exit(0)
    os.close(telling)
    answer = b""
    while chunk := os.read(told, 4096):
        answer += chunk
    os.waitpid(pid, 0)
    os.close(told)
    return answer.decode()


def main(scratch: str) -> None:
    """Print two lines: why relative, and why absolute mounts don't work; empty where they do."""
    for name in ("source", "target"):
        os.makedirs(os.path.join(scratch, name), exist_ok=True)
    os.makedirs(os.path.join(scratch, "source", "seen"), exist_ok=True)
    relative = _try(scratch, os.path.join(scratch, "target"))
    absolute = relative or _try(scratch, "/elearn-probe/of/mounts")
    sys.stdout.write(f"{relative}\n{absolute}\n")


if __name__ == "__main__":
    main(sys.argv[1])
