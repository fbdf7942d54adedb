"""Durable consumers: each message is handled in one transaction with its inbox row, then acknowledged.

Pulling is done here and not with the library's ``fetch``: a fetch of several messages waits for the
whole batch, and one that was under way when the server restarted may stay silent for good.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from shared import context, inbox
from shared.bus.connection import Connection
from shared.bus.message import Message, message_from
from shared.bus.streams import DEAD_PREFIX, ensure_streams
from shared.contracts.event import STREAM
from shared.errors import StorageFull, Unavailable
from shared.postgres import Database, Transaction
from shared.supervise import Wake

_log = structlog.get_logger(__name__)

_BATCH: Final = 64
_HEARTBEAT: Final = 15.0
_PULL_EXPIRES: Final = 120.0
_ACK_WAIT: Final = 60.0
_DELAYS: Final = (0.2, 1.0, 5.0, 15.0, 60.0)
_MOST_DELIVERIES: Final = len(_DELAYS) + 1

Handler = Callable[[Transaction, Message], Awaitable[None]]


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    """What a room listens to.

    Attributes:
        durable: the consumer's name, shared by all replicas of the room: ``registry-trainings``.
        subjects: filters, none a part of another.
        handle: called within the transaction that also holds the inbox row; whatever it raises rolls
            both back, and the message comes again after a growing pause, then goes to the dead letters.
    """

    durable: str
    subjects: tuple[str, ...]
    handle: Handler


class ConsumerLostError(Exception):
    """The pull must be set up again: the server restarted, or the consumer is gone."""


class Pull:
    """One pull subscription on a durable or passing consumer: messages as they come."""

    def __init__(self, connection: Connection, consumer: str, *, batch: int = _BATCH) -> None:
        self._connection = connection
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{consumer}"
        self._batch = batch
        self._reconnected = Wake()

    async def messages(self) -> AsyncGenerator[Msg, None]:
        """Messages for ever; iterate under ``aclosing``.

        Raises:
            ConsumerLostError: set the consumer up again.
            Unavailable: NATS is away.
        """
        client = self._connection.require()
        inbox_subject = client.new_inbox()
        subscription = await client.subscribe(inbox_subject)
        self._connection.add_reconnect_wake(self._reconnected)
        lost = asyncio.create_task(self._reconnected.wait(), name=f"reconnect watch of {self._subject}")
        outstanding = 0
        try:
            while True:
                if outstanding <= self._batch // 2:
                    request = {
                        "batch": self._batch - outstanding,
                        "expires": int(_PULL_EXPIRES * 1e9),
                        "idle_heartbeat": int(_HEARTBEAT * 1e9),
                    }
                    await client.publish(self._subject, msgspec.json.encode(request), inbox_subject)
                    outstanding = self._batch
                message = await self._next(subscription.next_msg(timeout=_HEARTBEAT * 2.5), lost)
                status = (message.headers or {}).get("Status")
                if status is None or message.reply.startswith("$JS.ACK"):
                    outstanding -= 1
                    yield message
                elif status in ("404", "408"):
                    pending = (message.headers or {}).get("Nats-Pending-Messages")
                    outstanding -= int(pending) if pending else outstanding
                elif status != "100":
                    raise ConsumerLostError(f"pull ended with status {status}")
        except (TimeoutError, nats.errors.Error) as error:
            raise ConsumerLostError(repr(error)) from error
        finally:
            lost.cancel()
            self._connection.drop_reconnect_wake(self._reconnected)
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as error:
                _log.debug("unsubscribe", error=repr(error))

    @staticmethod
    async def _next(coming: Awaitable[Msg], lost: "asyncio.Task[bool]") -> Msg:
        waiting = asyncio.ensure_future(coming)
        try:
            await asyncio.wait({waiting, lost}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return waiting.result()
            raise ConsumerLostError("reconnected")
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)  # it may end with an error of its own


async def run_consumer(connection: Connection, database: Database, room: str, consumer: Consumer) -> None:
    """Deliver a consumer's messages to its handler, for ever.

    A database or bus that is away, or a full disk, is waited for; it uses up no delivery.
    """
    pause = 0.2
    while True:
        try:
            await ensure_streams(connection)
            await connection.jetstream().add_consumer(
                STREAM,
                ConsumerConfig(
                    durable_name=consumer.durable,
                    filter_subjects=list(consumer.subjects),
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=_ACK_WAIT,
                    max_deliver=-1,
                    max_ack_pending=_BATCH * 4,
                    deliver_policy=DeliverPolicy.ALL,
                ),
            )
            pulling = Pull(connection, consumer.durable)
            async with contextlib.aclosing(pulling.messages()) as messages:
                async for raw in messages:
                    pause = 0.2
                    await _deliver(connection, database, room, consumer, raw)
        except (ConsumerLostError, Unavailable, TimeoutError, nats.errors.Error) as error:
            _log.info("consumer interrupted", consumer=consumer.durable, error=str(error))
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)


async def _deliver(connection: Connection, database: Database, room: str, consumer: Consumer, raw: Msg) -> None:
    metadata = raw.metadata
    message = message_from(
        raw.subject,
        raw.headers or {},
        raw.data,
        sequence=metadata.sequence.stream,
        deliveries=metadata.num_delivered,
        time=_utc(metadata.timestamp),
    )
    with context.caused_by(message.cause(room)):
        if message.deliveries > _MOST_DELIVERIES + 2:
            await _bury(connection, consumer, message, "its handling ended this service again and again")
            await raw.term()
            return
        try:
            await _handle(database, consumer, message, raw)
        except Exception as error:  # noqa: BLE001 - whatever it is, the message must come again or be kept
            if message.deliveries >= _MOST_DELIVERIES:
                _log.exception("message is dead", consumer=consumer.durable, subject=message.subject)
                await _bury(connection, consumer, message, repr(error))
                await raw.term()
            else:
                delay = _DELAYS[min(message.deliveries, len(_DELAYS)) - 1]
                _log.warning(
                    "message not handled",
                    consumer=consumer.durable,
                    subject=message.subject,
                    error=repr(error),
                    again_in=delay,
                    exc_info=True,
                )
                await raw.nak(delay=delay)
        else:
            await raw.ack()


async def _handle(database: Database, consumer: Consumer, message: Message, raw: Msg) -> None:
    pause = 0.2
    while True:
        try:
            async with asyncio.timeout(_ACK_WAIT / 2), database.transaction() as transaction:
                if await inbox.accept(transaction, consumer.durable, message.id):
                    await consumer.handle(transaction, message)
            return
        except (Unavailable, StorageFull) as error:
            _log.info("waiting to handle a message", consumer=consumer.durable, error=str(error))
            await raw.in_progress()
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)


async def _bury(connection: Connection, consumer: Consumer, message: Message, error: str) -> None:
    headers = dict(message.headers)
    headers.pop("Nats-Msg-Id", None)
    headers |= {
        "elearn-subject": message.subject,
        "elearn-consumer": consumer.durable,
        "elearn-error": " ".join(error.split())[:500],
        "elearn-deliveries": str(message.deliveries),
        "elearn-message-id": message.id,
    }
    await connection.jetstream().publish(f"{DEAD_PREFIX}.{consumer.durable}", message.body, headers=headers)


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
