"""Becomes another program under another identity; run as a script by a bare interpreter, never imported.

    python -I -S launch.py [--inside UID GID] [--become UID GID] [--end-with PID] -- PROGRAM [ARGUMENT...]

``--inside`` enters a user namespace of its own, in which the calling user is called UID: PostgreSQL, which
refuses to be root, then sees an ordinary user while files stay root's, so that folders only root may enter
remain open to it. ``--become`` gives up root for good. ``--end-with`` has the kernel end the program
when the process PID, its parent, dies. The process id stays the same throughout.
"""

import ctypes
import os
import signal
import sys

REFUSED = 77
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _enter_namespace(uid: int, gid: int) -> None:
    outside_uid, outside_gid = os.geteuid(), os.getegid()
    if _libc().unshare(_CLONE_NEWUSER) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "unshare")
    for path, text in (
        ("/proc/self/setgroups", "deny"),  # the kernel wants this before an unprivileged gid_map
        ("/proc/self/uid_map", f"{uid} {outside_uid} 1\n"),
        ("/proc/self/gid_map", f"{gid} {outside_gid} 1\n"),
    ):
        with open(path, "w") as file:  # noqa: PTH123 - pathlib costs a third of this script's time
            file.write(text)


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _end_with(parent: int) -> None:
    if _libc().prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "prctl")
    if os.getppid() != parent:
        raise OSError(0, "the parent has already gone", str(parent))


def main(arguments: list[str]) -> int:
    """Apply the options in order and become the program; returns only when that is refused."""
    options, program = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    try:
        while options:
            name = options.pop(0)
            if name == "--inside":
                _enter_namespace(int(options.pop(0)), int(options.pop(0)))
            elif name == "--become":
                _become(int(options.pop(0)), int(options.pop(0)))
            elif name == "--end-with":
                _end_with(int(options.pop(0)))
            else:
                raise ValueError(f"unknown option {name}")
        os.execv(program[0], program)  # noqa: S606 - a shell is what this avoids
    except (OSError, ValueError) as error:
        sys.stderr.write(f"launch: {error}\n")
    return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
