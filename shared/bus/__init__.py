"""The bus: the only place that knows NATS.

* :meth:`Bus.call` asks another service and raises its errors again (:mod:`shared.bus.rpc`);
* :class:`Consumer` describes what a room listens to (:mod:`shared.bus.consume`);
* :meth:`Bus.events` reads lifecycle events (:mod:`shared.bus.events`).
"""

from collections.abc import AsyncGenerator
from datetime import datetime
from typing import TypeVar

import msgspec

from shared.bus import dead_letters, events, rpc
from shared.bus.connection import Connection
from shared.bus.consume import Consumer
from shared.bus.message import Message
from shared.contracts.common import Page
from shared.contracts.event import PREFIX, Event
from shared.contracts.identity import DeadLetter
from shared.contracts.rpc import Verb

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)

__all__ = ["Bus", "Connection", "Consumer", "Message"]


class Bus:
    """What a room may do on the bus besides publishing, which goes through its outbox."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def up(self) -> bool:
        """Whether NATS is there now."""
        return self._connection.up

    async def call(self, verb: Verb[Q, R], request: Q, *, timeout: float = 10.0) -> R:
        """Ask a service; see :func:`shared.bus.rpc.call`."""
        return await rpc.call(self._connection, verb, request, timeout=timeout)

    def events(
        self, *, since: int | datetime | None = None, subject: str = f"{PREFIX}.>", follow: bool = True
    ) -> AsyncGenerator[Event, None]:
        """Read lifecycle events; see :func:`shared.bus.events.read_events`."""
        return events.read_events(self._connection, since=since, subject=subject, follow=follow)

    async def dead_letters(self, *, after: int = 0, limit: int = 100) -> Page[DeadLetter]:
        """List dead letters."""
        return await dead_letters.list_dead_letters(self._connection, after=after, limit=limit)

    async def resend_dead_letter(self, sequence: int) -> None:
        """Send a dead letter again."""
        await dead_letters.resend(self._connection, sequence)

    async def drop_dead_letter(self, sequence: int) -> None:
        """Forget a dead letter."""
        await dead_letters.drop(self._connection, sequence)
