"""The connection to NATS: opened once, kept for ever, and honest about being away."""

import asyncio
from typing import Self
from urllib.parse import urlsplit

import nats
import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext

from shared.errors import Unavailable
from shared.supervise import Wake

_log = structlog.get_logger(__name__)


class Connection:
    """A NATS connection that reconnects for ever.

    Args:
        url: server with user and password; several, joined by commas, are tried in turn.
        name: the service's name; replies come to inboxes below ``_INBOX_<name>``, so that a user's
            permissions can be limited to its own.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self.name = name
        self.inbox_prefix = f"_INBOX_{name}"
        self._client = Client()
        self._on_reconnect: set[Wake] = set()

    async def open(self) -> Self:
        """Connect.

        Raises:
            Unavailable: no server answers.
        """
        try:
            # The library retries a first connection for ever where it may reconnect for ever.
            async with asyncio.timeout(3):
                await self._client.connect(
                    servers=self._url.split(","),
                    name=f"elearn-{self.name}",
                    inbox_prefix=self.inbox_prefix,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    connect_timeout=3,
                    ping_interval=20,
                    max_outstanding_pings=2,
                    error_cb=self._note_error,
                    disconnected_cb=self._note_disconnected,
                    reconnected_cb=self._note_reconnected,
                )
        except (OSError, TimeoutError, nats.errors.Error) as error:
            await self._client.close()
            self._client = Client()
            where = urlsplit(self._url.split(",")[0]).netloc.rpartition("@")[2]
            raise Unavailable(f"NATS at {where} is away: {error}") from error
        return self

    async def close(self) -> None:
        """Flush what is under way, for at most three seconds, and disconnect."""
        try:
            async with asyncio.timeout(3):
                await self._client.flush(timeout=2)
        except (TimeoutError, nats.errors.Error):
            pass
        if not self._client.is_connected:
            # The library writes what is left to the connection even so, and where that fails leaves it open.
            self._client._pending = []
            self._client._pending_data_size = 0
        try:
            await self._client.close()
        except OSError as error:  # lost at this very moment
            _log.debug("nats", error=repr(error))

    @property
    def up(self) -> bool:
        """Whether the server is there now."""
        return self._client.is_connected

    def require(self) -> Client:
        """The client.

        Raises:
            Unavailable: the server is away now.
        """
        if not self._client.is_connected:
            raise Unavailable("the message bus (NATS) is away; try again")
        return self._client

    def jetstream(self) -> JetStreamContext:
        """JetStream on this connection.

        Raises:
            Unavailable: the server is away now.
        """
        return self.require().jetstream(timeout=5)

    def add_reconnect_wake(self, wake: Wake) -> None:
        """Ring ``wake`` whenever the connection was lost and is there again."""
        self._on_reconnect.add(wake)

    def drop_reconnect_wake(self, wake: Wake) -> None:
        """No longer ring ``wake``."""
        self._on_reconnect.discard(wake)

    async def _note_error(self, error: Exception) -> None:
        _log.debug("nats", error=repr(error))

    async def _note_disconnected(self) -> None:
        if not self._client.is_closed:
            _log.warning("nats is away")

    async def _note_reconnected(self) -> None:
        _log.info("nats is back")
        for wake in tuple(self._on_reconnect):
            wake.ring()
