"""Where a server listens."""

import socket
from typing import Final

EVERYWHERE: Final = "*"
"""A host: every address of this machine, of each family that it has."""

_ALL: Final = ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104 - for who asks for it


def addresses(host: str) -> tuple[str, ...]:
    """The addresses to listen at for a host of the settings.

    Families are tried: a kernel may have no IPv6, or have it switched off, and a listener would fail for want of it.
    """
    if host != EVERYWHERE:
        return (host,)
    return tuple(address for family, address in _ALL if _is_there(family, address))


def _is_there(family: int, address: str) -> bool:
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
