"""The shim: a small process per task that starts it, outlives the service, and records its end.

Run as ``python -I -S -E shim.py STATE_DIRECTORY``. It reads ``spec.json`` there and writes ``status.json``; the lock on
``lock``, held for the shim's life, makes sure that no task is ever started twice.

It must be up in about ten milliseconds. So it imports next to nothing, and all that is large lies in modules of its
own, which Python compiles once and not at every start.
"""
# ruff: noqa: PTH100, PTH110, PTH120

import fcntl
import os
import sys

ALREADY_RUNNING = 75  # exit status: another shim holds the lock
CANNOT_RECORD = 74  # exit status: the state directory can't be written


def main(directory: str) -> int:
    """Start the shim proper in a process that nobody is parent of; return when its task runs, or can't."""
    # Isolated (-I), Python looks for modules in its own library only.
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    os.chdir(directory)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ALREADY_RUNNING
    if os.path.exists("status.json"):
        return 0
    waiting, ready = os.pipe()
    if os.fork():
        os.close(ready)
        os.read(waiting, 1)  # ends when the other side closes, be it by dying
        return 0 if os.path.exists("status.json") else CANNOT_RECORD
    os.close(waiting)
    os.setsid()
    from keeper import Keeper  # type: ignore[import-not-found,unused-ignore]
    from lowlevel import read_json  # type: ignore[import-not-found,unused-ignore]

    null = os.open("/dev/null", os.O_RDWR)
    own_log = os.open("shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard, target in ((0, null), (1, own_log), (2, own_log)):
        os.dup2(target, standard)
    Keeper(read_json("spec.json"), ready).run()
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))  # no clean-up of the interpreter: it costs milliseconds and holds nothing
