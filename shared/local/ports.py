"""TCP ports for addresses that tasks bind later, reserved in the ledger file."""

import random
import socket
from pathlib import Path

from shared.errors import Unavailable
from shared.local.ledger import Ledger

_LOWEST = 20000  # below lie the ports people know by heart
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Ports:
    """Reserves ports so that no two owners get the same, in this home or another of this user.

    They come from outside the kernel's ephemeral range where it leaves room, so that no outgoing connection takes
    one between its reservation and the moment its task binds it. Methods block briefly: call them in a thread.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def reserve(self, owner: str, count: int) -> tuple[int, ...]:
        """``count`` ports that could be bound a moment ago; an owner that has as many gets the same again.

        Raises:
            Unavailable: there are not that many.
        """
        with self._ledger.locked() as entries:
            held = entries.ports.get(owner, ())
            if len(held) >= count:
                return held[:count]
            with self._ledger.book.open(self._ledger.alive_path) as book:
                others = book.taken_by_others()
                taken = {port for ports in entries.ports.values() for port in ports}
                found = list(held)
                for port in _candidates():
                    if len(found) == count:
                        break
                    if port not in taken and f"port:{port}" not in others and can_bind(port):
                        found.append(port)
                if len(found) < count:
                    raise Unavailable(f"only {len(found)} of {count} ports are free on this machine", retry=30)
                entries.ports[owner] = tuple(found)
                book.hold(self._ledger.booked(entries))
            return tuple(found)

    def release(self, owner: str) -> None:
        """Give an owner's ports back, and nothing else it holds; having none is success."""
        with self._ledger.locked() as entries:
            if entries.ports.pop(owner, None) is not None:
                with self._ledger.book.open(self._ledger.alive_path) as book:
                    book.hold(self._ledger.booked(entries))


def can_bind(port: int) -> bool:
    """Whether nothing listens on this port, on any address of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no hindrance
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104  # never listens; a listener on any address makes it fail
        except OSError:
            return False
    return True


def _candidates() -> list[int]:
    try:
        low, high = (int(word) for word in _RANGE.read_text(encoding="ascii").split())
    except OSError:
        low, high = 32768, 60999
    outside = [*range(_LOWEST, low), *range(high + 1, 65536)]
    inside = list(range(max(low, _LOWEST), high + 1))
    random.shuffle(outside)
    random.shuffle(inside)
    return outside + inside  # the ephemeral range only when nothing else is left
