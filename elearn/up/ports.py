"""Free TCP ports of the loopback that stay ours while a server restarts."""

import random
import socket
from collections.abc import Collection
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10240


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:``port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _below_ephemeral() -> int:
    try:
        lowest = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lowest = 32768
    return lowest if lowest > _LOWEST + 1000 else 65536


def pick(taken: Collection[int] = ()) -> int:
    """A free port below the range from which the kernel serves outgoing connections.

    Within that range a client that reconnects to a server which is away may be given the server's own port.

    Raises:
        OSError: none was found.
    """
    highest = _below_ephemeral()
    chooser = random.SystemRandom()
    for _ in range(500):
        port = chooser.randrange(_LOWEST, highest)
        if port not in taken and is_free(port):
            return port
    raise OSError("no free TCP port on 127.0.0.1")
