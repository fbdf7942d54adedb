"""What this room asks of the registry: which version an alias means, and where versions lie."""

import asyncio
from collections.abc import Iterable
from datetime import datetime

import msgspec

from services.serving.model import Source
from shared.bus import Bus
from shared.contracts import model as contract
from shared.contracts.model import AliasRequest, ResolveVersion


class Meant(msgspec.Struct, frozen=True, kw_only=True):
    """The version that an alias points at, and since when."""

    version: int
    moved_at: datetime


class Registry:
    """Asks over the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def alias(self, project: str, model: str, alias: str) -> Meant:
        """The version that an alias points at.

        Raises:
            NotFound: there is no such model or alias.
            Unavailable: the registry is away.
        """
        found = await self._bus.call(contract.GET_ALIAS, AliasRequest(project=project, model=model, alias=alias))
        return Meant(version=found.version, moved_at=found.moved_at)

    async def locate(self, project: str, model: str, versions: Iterable[int]) -> tuple[Source, ...]:
        """Where versions lie.

        Raises:
            NotFound: there is no such model or version.
            Conflict: a version is not ready.
            Unavailable: the registry is away.
        """
        return tuple(await asyncio.gather(*(self._locate(project, model, number) for number in sorted(versions))))

    async def _locate(self, project: str, model: str, number: int) -> Source:
        found = await self._bus.call(contract.RESOLVE, ResolveVersion(project=project, model=model, version=number))
        return Source(number=found.number, volume=found.volume, path=found.path)
