"""Names are found in time, or not at all."""

import asyncio
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from services.api.resolver import HastyResolver


class Silent(AbstractResolver):
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        await asyncio.Event().wait()
        return []

    async def close(self) -> None:
        """Nothing to let go of."""


async def test_a_name_that_nobody_answers_for_is_given_up() -> None:
    async with asyncio.timeout(5):
        with pytest.raises(OSError, match="no name server answered within"):
            await HastyResolver(Silent(), seconds=0.01).resolve("digits.example")


async def test_a_name_that_is_known_is_found() -> None:
    resolver = HastyResolver()
    assert [found["host"] for found in await resolver.resolve("localhost", 80)] == ["127.0.0.1"]
    await resolver.close()
