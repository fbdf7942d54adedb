"""The process that stands for the machine of the local cloud in containers: process 1 of their PID namespace.

It does what the first process of any machine does: it adopts those whose parent has ended and reaps them, for a
keeper of a task outlives the service that started it. It lives until it is told to end.
"""

import os
import signal
import sys


def main() -> int:
    """Reap until SIGTERM or SIGINT."""
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    while signal.sigwait(signals) == signal.SIGCHLD:
        reap()
    return 0


def reap() -> None:
    """Collect every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


if __name__ == "__main__":
    sys.exit(main())
