"""Free TCP ports of the loopback that stay ours while a server restarts."""

import random
import socket
from collections.abc import Collection, Sequence
from pathlib import Path

from elearn.up.errors import PortTakenError
from elearn.up.state import Ports

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


def choose(wanted: int | None, known: Ports | None, services: Sequence[str], default: int) -> Ports:
    """The ports of a platform: those it had before where they are still free.

    Args:
        wanted: of the gateway; None for the one before, 0 for any that is free.
        known: those it had before.
        services: the names of the services, each of which answers for its health on a port of its own.
        default: the gateway's, where nothing else is said.

    Raises:
        PortTakenError: the gateway's belongs to another program.
        OSError: no port is free.
    """
    taken: set[int] = set()

    def again(port: int | None) -> int:
        chosen = port if port is not None and port not in taken and is_free(port) else pick(taken)
        taken.add(chosen)
        return chosen

    if wanted == 0:
        api = again(known.api if known else None)
    else:
        api = wanted or (known.api if known else default)
        if not is_free(api):
            raise PortTakenError(
                f"port {api} belongs to another program: choose another with --port N, or --port 0 for any"
            )
        taken.add(api)
    return Ports(
        api=api,
        nats=again(known.nats if known else None),
        postgres=again(known.postgres if known else None),
        health={name: again(known.health.get(name) if known else None) for name in services},
    )
