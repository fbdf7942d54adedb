"""Keeps a service of the local cloud running within its container:  again.py COMMAND [ARGUMENT...]

A container ends with its first process, and everything in it is killed then. Were that process the service itself, a
crash of the scheduler would take every training with it. So this is the first process: it starts the service
again when it ends by itself, and the tasks' keepers, which are the service's neighbours here, live on. It ends, with
all the container holds, only when it is told to.
"""

import os
import signal
import sys
import time

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_HEALTHY_AFTER = 30.0
_GRACE = 8.0
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main(command: list[str]) -> int:
    """Run the command for ever; the exit code is that of its last run, once told to end."""
    if not command:
        sys.stderr.write("again: name a command\n")
        return 2
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    failures = 0
    while True:
        began = time.monotonic()
        code, told = _run(command)
        if told:
            return code
        failures = 0 if time.monotonic() - began > _HEALTHY_AFTER else failures + 1
        pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
        sys.stderr.write(f"again: {' '.join(command)} ended with {code}; starting it again in {pause:g} s\n")
        if _wait({signal.SIGTERM, signal.SIGINT}, pause) is not None:
            return 0


def _run(command: list[str]) -> tuple[int, bool]:
    """Run the command once; its exit code (that of a shell for a signal), and whether we were told to end."""
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        try:
            os.execvp(command[0], command)  # noqa: S606 - a shell is what this avoids
        except OSError as problem:
            sys.stderr.write(f"again: {command[0]}: {problem.strerror}\n")
        os._exit(127)
    told = False
    give_up: float | None = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return (128 - code if code < 0 else code), told
        left = None if give_up is None else max(0.0, give_up - time.monotonic())
        if left == 0.0:
            os.kill(child, signal.SIGKILL)
            give_up = None
            continue
        if _wait(_SIGNALS, left) in (signal.SIGTERM, signal.SIGINT) and not told:
            told = True
            give_up = time.monotonic() + _GRACE
            os.kill(child, signal.SIGTERM)


def _wait(signals: set[signal.Signals], seconds: float | None) -> int | None:
    """The signal that came, or None after so many seconds."""
    if seconds is None:
        return int(signal.sigwait(signals))
    came = signal.sigtimedwait(signals, seconds)
    return None if came is None else came.si_signo


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
