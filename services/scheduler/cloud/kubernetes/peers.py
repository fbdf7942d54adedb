"""Waits until the cluster's DNS knows the pods that a task will talk to.

A pod's name is known a moment after the pod has an address, so that the quickest of a cluster would not find the
others: some programs try again, others end. A name is known before its pod runs: nobody waits for images here.
"""

import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

PATIENCE: Final = 60.0
"""Seconds after which the task starts all the same: it may be able to wait for its peers itself."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0


def is_known(host: str) -> bool:
    """Whether a host's name has an address."""
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return True


def wait_for(
    hosts: Sequence[str],
    *,
    patience: float = PATIENCE,
    look: Callable[[str], bool] = is_known,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Wait until all names are known, or patience is at its end.

    Returns:
        Those that are not.
    """
    until = clock() + patience
    pause = _FIRST_PAUSE
    unknown = list(hosts)
    while unknown := [host for host in unknown if not look(host)]:
        if clock() >= until:
            break
        sleep(pause)
        pause = min(_LONGEST_PAUSE, pause * 1.5)
    return unknown
