"""The shim: a small process per task that starts it, outlives the service, and records its end.

It reads ``spec.json`` in its state directory and writes ``status.json``; the lock on ``lock``, held for its life, makes
sure that no task is ever started twice.

Run as ``python -I -S -E shim.py STATE_DIRECTORY`` it is up in some fifteen milliseconds, most of them Python's own.
Without an argument it is a nursery: it reads directories from the socket that is its standard input and forks a shim
for each within a millisecond or two, until the service at the other end of the socket has gone.
"""
# ruff: noqa: PTH100, PTH110, PTH120

import _socket
import fcntl
import os
import sys

STARTED, ALREADY_RUNNING, CANNOT_RECORD = 0, 75, 74  # the answers; the last one also when a shim died without one

_FOUR_BYTES = 4  # a file descriptor in a control message
_LONGEST_PATH = 8192


def keep(directory: str, answer: int) -> None:
    """Be the shim: start the task, write one byte to ``answer`` as soon as it runs (or can't), stay to its end."""
    from keeper import Keeper  # type: ignore[import-not-found,unused-ignore]
    from lowlevel import read_json  # type: ignore[import-not-found,unused-ignore]

    os.setsid()
    os.chdir(directory)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(answer, bytes([ALREADY_RUNNING]))
        return
    if os.path.exists("status.json"):
        os.write(answer, bytes([STARTED]))
        return
    null = os.open("/dev/null", os.O_RDWR)
    own_log = os.open("shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard, target in ((0, null), (1, own_log), (2, own_log)):
        os.dup2(target, standard)
    Keeper(read_json("spec.json"), answer).run()


def main(directory: str) -> int:
    """Start one shim in a process that nobody is parent of; its answer."""
    asked, answer = os.pipe()
    if os.fork() == 0:
        os.close(asked)
        _keep_and_exit(directory, answer)
    os.close(answer)
    return (os.read(asked, 1) or bytes([CANNOT_RECORD]))[0]


def nurse() -> None:
    """Fork a shim for every directory that comes with a descriptor for the answer."""
    import keeper  # type: ignore[import-not-found,unused-ignore]  # noqa: F401  # once, for all that are forked

    requests = _socket.socket(fileno=os.dup(0))
    os.chdir("/")
    while True:
        directory, controls, _, _ = requests.recvmsg(
            _LONGEST_PATH, _socket.CMSG_SPACE(_FOUR_BYTES), _socket.MSG_CMSG_CLOEXEC
        )
        if not directory:
            return
        answer = int.from_bytes(controls[0][2][:_FOUR_BYTES], sys.byteorder)
        child = os.fork()
        if child == 0:
            # The grandchild is the shim: its parent ends at once, so nobody has to wait for it.
            if os.fork():
                os._exit(0)
            requests.close()
            _keep_and_exit(os.fsdecode(directory), answer)
        os.close(answer)
        os.waitpid(child, 0)


def _keep_and_exit(directory: str, answer: int) -> None:
    status = 1
    try:
        keep(directory, answer)
        status = 0
    except BaseException:  # noqa: BLE001  # whatever it is must not run on in the caller's stack
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)  # no clean-up of the interpreter: it costs milliseconds and holds nothing


if __name__ == "__main__":
    # Isolated (-I), Python looks for modules in its own library only.
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    if len(sys.argv) > 1:
        os._exit(main(sys.argv[1]))
    if os.fork() == 0:
        nurse()
    os._exit(0)
