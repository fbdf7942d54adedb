"""Leaving a port to other servers that listen on it too, so that no client notices.

Stopping a gRPC server at once fails calls that it has received but not begun. So the port is given up first:
new connections reach the others alone, and those that exist are told to go, as all are every few seconds
(`connection_age_seconds`). Once they have gone, stopping fails nobody. The library has no call for giving up a
port, hence the look at this process' own sockets.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ACCEPTING: Final = 0.02
"""Seconds for connections that wait to be accepted; there are no more than that after the queue was shut."""

_LOOK: Final = 0.05


async def give_up(port: int) -> None:
    """No longer listens on a port; connections that are open stay so."""
    listening = [each for each in _sockets(port) if _listens(each)]
    try:
        for each in listening:
            each.listen(0)
        await asyncio.sleep(_ACCEPTING)
        for each in listening:
            if _listens(each):  # it may be one socket under two descriptors
                each.shutdown(socket.SHUT_RD)
    finally:
        for each in listening:
            each.close()


async def emptied(port: int, *, within: float) -> bool:
    """Waits until the last connection to a port has gone; False where one stays longer than so many seconds."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within
    while connections(port):
        if loop.time() > until:
            return False
        await asyncio.sleep(_LOOK)
    return True


def connections(port: int) -> int:
    """How many connections to a port this process holds."""
    count = 0
    for each in _sockets(port):
        count += _is_connected(each)
        each.close()
    return count


def _is_connected(each: socket.socket) -> bool:
    try:
        each.getpeername()
    except OSError:
        return False
    return True


def _listens(each: socket.socket) -> bool:
    return bool(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _sockets(port: int) -> Iterator[socket.socket]:
    """This process' TCP sockets with this local port, as duplicates that the caller closes."""
    for entry in list(Path("/proc/self/fd").iterdir()):  # before there are duplicates among them
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            found = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:
            continue  # closed meanwhile
        try:
            ours = found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == port
        except OSError:
            ours = False
        if ours:
            yield found
        else:
            found.close()
