"""gRPC health, whose watches end with the server."""

import asyncio
from typing import Any, Final

from grpc_health.v1 import health

_FAREWELL: Final = 0.1
"""Seconds for the last state to be told."""


class Health(health.aio.HealthServicer):  # type: ignore[misc]  # comes without types
    """The standard servicer; :meth:`end_watches` lets go of clients that watch."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - gRPC's name
        """Tells every change of state until the client leaves or the server does."""
        watch = asyncio.create_task(super().Watch(request, context), name="health watch")
        self._watches.add(watch)
        try:
            await asyncio.wait({watch})
            if not watch.cancelled():
                watch.result()
        finally:
            watch.cancel()
            self._watches.discard(watch)

    async def end_watches(self) -> None:
        """Ends every watch, in good order: the last thing that it told was NOT_SERVING."""
        if self._watches:
            await asyncio.wait(self._watches, timeout=_FAREWELL)
        for watch in self._watches:
            watch.cancel()
