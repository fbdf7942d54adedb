"""The outbox: events are rows written with the state they speak of; one relay publishes them in order."""

import asyncio
import uuid
from typing import Final

import asyncpg
import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import PubAck

from shared import context
from shared.bus.connection import Connection
from shared.bus.streams import ensure_streams
from shared.clock import now
from shared.contracts.event import PREFIX, subject_of
from shared.errors import StorageFull, Unavailable
from shared.postgres import Database, Transaction
from shared.supervise import Wake

_log = structlog.get_logger(__name__)

CHANNEL: Final = "outbox"
_BATCH: Final = 1000
_IDLE: Final = 300.0
_ACK_TIMEOUT: Final = 5.0
_HEADERS: Final = msgspec.json.Decoder(dict[str, str])


class Outbox:
    """Where a room writes down what it tells the world.

    Args:
        source: the room, as ``ce-source`` names it.
    """

    def __init__(self, source: str) -> None:
        self._source = f"elearn/{source}"

    async def append(
        self, transaction: Transaction, noun: str, event: str, project: str, name: str, data: msgspec.Struct
    ) -> str:
        """Record an event, to be published once the transaction has committed; answers its id.

        Lock the row that the event speaks of first: rows of one resource then stand in the order of
        its changes.
        """
        identifier = uuid.uuid4()
        cause = context.current()
        headers = {
            "ce-specversion": "1.0",
            "ce-id": str(identifier),
            "ce-source": self._source,
            "ce-type": f"{PREFIX}.{noun}.{event}",
            "ce-time": now().isoformat().replace("+00:00", "Z"),
            "content-type": "application/json",
            context.TRACE_HEADER: context.continued_trace(cause.traceparent),
        }
        if cause.causation:
            headers[context.CAUSATION_HEADER] = cause.causation
        if cause.actor:
            headers[context.ACTOR_HEADER] = cause.actor
        await transaction.execute(
            "WITH added AS (INSERT INTO outbox (id, subject, headers, body) VALUES ($1, $2, $3, $4))"
            " SELECT pg_notify('outbox', '')",
            identifier,
            subject_of(noun, event, project, name),
            msgspec.json.encode(headers).decode(),
            msgspec.json.encode(data),
        )
        return str(identifier)


class Relay:
    """Publishes a room's outbox to JetStream; runs only in the replica that leads.

    Publishing is pipelined: a batch goes out whole and its acknowledgements are awaited together. What
    was published but not yet marked when the process died goes out again under the same
    ``Nats-Msg-Id``; the stream or the inboxes swallow it.
    """

    def __init__(self, database: Database, connection: Connection, wake: Wake) -> None:
        self._database = database
        self._connection = connection
        self._wake = wake
        self._publisher: JetStreamContext | None = None

    async def run(self) -> None:
        """Publish for ever; a database or a bus that is away is waited for, and room on a full disk."""
        self._connection.add_reconnect_wake(self._wake)
        pause = 0.1
        try:
            while True:
                try:
                    await self._follow_stream()
                    await self._publish_pending()
                    pause = 0.1
                except (Unavailable, StorageFull, TimeoutError, nats.errors.Error) as error:
                    _log.info("outbox waits", error=str(error) or repr(error), pause=pause)
                    await self._wake.wait(pause)
                    pause = min(5.0, pause * 2)
                else:
                    await self._wake.wait(_IDLE)
        finally:
            self._connection.drop_reconnect_wake(self._wake)

    async def _follow_stream(self) -> None:
        """Where the stream is not the one that rows were published to, publish the log again."""
        identity = await ensure_streams(self._connection)
        async with self._database.transaction() as transaction:
            known = await transaction.fetchval("SELECT identity FROM outbox_stream")
            if known == identity:
                return
            await transaction.execute(
                "INSERT INTO outbox_stream (identity) VALUES ($1)"
                " ON CONFLICT (singleton) DO UPDATE SET identity = excluded.identity",
                identity,
            )
            if known is not None:
                count = await transaction.execute(
                    "UPDATE outbox SET published_at = NULL WHERE published_at IS NOT NULL"
                )
                _log.warning("the event stream is a new one: publishing again from the log", rows=count)

    async def _publish_pending(self) -> None:
        """Publish what is unpublished; the database reads ahead and marks while JetStream acknowledges."""
        rows = await self._read(0)
        acknowledged: list[int] = []
        while rows or acknowledged:
            marking, acknowledged = acknowledged, []
            last = rows[-1]["sequence"] if len(rows) == _BATCH else None
            sent = await self._send(rows)
            outcomes = await asyncio.gather(
                self._acknowledged(rows, sent, acknowledged),
                self._read(last),
                self._mark(marking),
                return_exceptions=True,
            )
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    await self._mark(acknowledged)
                    raise outcome
            rows = outcomes[1] if isinstance(outcomes[1], list) else []

    async def _read(self, after: int | None) -> list[asyncpg.Record]:
        if after is None:
            return []
        async with self._database.transaction() as transaction:
            return await transaction.fetch(
                "SELECT sequence, id, subject, headers, body FROM outbox"
                " WHERE published_at IS NULL AND sequence > $1 ORDER BY sequence LIMIT $2",
                after,
                _BATCH,
            )

    async def _send(self, rows: list[asyncpg.Record]) -> list["asyncio.Future[PubAck]"]:
        jetstream = self._jetstream()
        sent: list[asyncio.Future[PubAck]] = []
        try:
            for row in rows:
                headers = _HEADERS.decode(row["headers"])
                headers["Nats-Msg-Id"] = str(row["id"])
                sent.append(await jetstream.publish_async(row["subject"], row["body"], headers=headers))
        except BaseException:
            for future in sent:
                future.cancel()
            raise
        return sent

    async def _acknowledged(
        self, rows: list[asyncpg.Record], sent: list["asyncio.Future[PubAck]"], acknowledged: list[int]
    ) -> None:
        try:
            async with asyncio.timeout(_ACK_TIMEOUT):
                outcomes = await asyncio.gather(*sent, return_exceptions=True)
        except TimeoutError:
            raise Unavailable("JetStream acknowledges nothing") from None
        for row, outcome in zip(rows, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                # Those after it are published again, so that their order holds.
                raise Unavailable(f"JetStream refused an event: {outcome!r}")
            acknowledged.append(row["sequence"])

    async def _mark(self, sequences: list[int]) -> None:
        if sequences:
            async with self._database.transaction() as transaction:
                await transaction.execute(
                    "UPDATE outbox SET published_at = now() WHERE sequence = ANY($1::bigint[])", sequences
                )

    def _jetstream(self) -> JetStreamContext:
        # Kept for the connection's life: each one subscribes to an inbox of its own for acknowledgements.
        self._connection.require()
        if self._publisher is None:
            self._publisher = self._connection.jetstream()
        return self._publisher


async def sweep(database: Database, retention_days: float) -> None:
    """Forget what is older than the retention: published events, handled messages, given replies."""
    async with database.transaction() as transaction:
        await transaction.execute(
            "DELETE FROM outbox WHERE published_at IS NOT NULL AND recorded_at < now() - $1 * interval '1 day'",
            retention_days,
        )
        await transaction.execute(
            "DELETE FROM inbox WHERE received_at < now() - $1 * interval '1 day'", retention_days * 2
        )
        await transaction.execute("DELETE FROM idempotency WHERE replied_at < now() - interval '1 day'")
