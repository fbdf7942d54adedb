"""Names of model servers, found within seconds or not at all."""

import asyncio
import errno
import socket
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

_SECONDS: Final = 3.0


class HastyResolver(AbstractResolver):
    """The system's resolver, which may ask for half a minute where a name server is silent.

    Args:
        seconds: how long a name may take.
    """

    def __init__(self, inner: AbstractResolver | None = None, *, seconds: float = _SECONDS) -> None:
        self._inner = inner or ThreadedResolver()
        self._seconds = seconds

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See aiohttp.

        Raises:
            OSError: it is not known, or nobody says so in time.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._inner.resolve(host, port, family)
        except TimeoutError:
            words = f"no name server answered within {self._seconds:g} s"
            raise OSError(errno.ETIMEDOUT, words) from None

    async def close(self) -> None:
        """Let go of it."""
        await self._inner.close()
