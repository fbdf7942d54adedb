"""Where the server listens: an address as gRPC writes it, and a socket for REST."""

import contextlib
import socket
from typing import Final

from shared.listening import addresses

_EVERY: Final = "::"


def usable(host: str) -> str:
    """The one address to listen at for a host (:func:`shared.listening.addresses`): ``::`` takes IPv4 too."""
    return addresses(host)[-1]


def written(host: str, port: int) -> str:
    """Host and port as one text."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bound(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """A TCP socket that is bound; on ``::`` it takes connections over IPv4 too.

    Raises:
        OSError: the port can't be had.
    """
    with contextlib.ExitStack() as undo:
        made = undo.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse_port))
        if host == _EVERY:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, port))
        undo.pop_all()
        return made
