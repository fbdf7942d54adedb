"""Reading lifecycle events from the stream: a replay, then what happens from now on."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Final

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from shared.bus.connection import Connection
from shared.bus.consume import ConsumerLostError, Pull
from shared.bus.message import message_from
from shared.bus.streams import ensure_streams
from shared.context import CAUSATION_HEADER, TRACE_HEADER
from shared.contracts.event import PREFIX, STREAM, Event
from shared.errors import Unavailable

_log = structlog.get_logger(__name__)

_INACTIVE: Final = 60.0


async def read_events(
    connection: Connection, *, since: int | datetime | None, subject: str, follow: bool = True
) -> AsyncGenerator[Event, None]:
    """Events for ever, in the stream's order, none twice.

    Args:
        since: go on after this sequence, or from this time; None: only what happens from now on.
        subject: a filter with NATS wildcards.
        follow: False ends with the last event that the stream holds.

    Raises:
        Unavailable: NATS is away at the start. Later on it is waited for.
    """
    last: int | None = since if isinstance(since, int) else None
    start = since if isinstance(since, datetime) else None
    stream = await ensure_streams(connection)
    pause = 0.2
    while True:
        try:
            now_stream = await ensure_streams(connection)
            if now_stream != stream:
                stream, last, start = now_stream, 0, None
            if last is None and start is None:
                last = (await connection.jetstream().stream_info(STREAM)).state.last_seq
            consumer, pending = await _passing_consumer(connection, subject, last, start)
            if not follow and not pending:
                return
            async with contextlib.aclosing(Pull(connection, consumer, batch=128).messages()) as messages:
                async for raw in messages:
                    event = event_from(raw)
                    if event.sequence is not None:
                        last = event.sequence
                    pause = 0.2
                    yield event
                    if not follow and not raw.metadata.num_pending:
                        return
        except (ConsumerLostError, Unavailable, TimeoutError, nats.errors.Error) as error:
            _log.info("event reader interrupted", error=str(error))
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)


async def _passing_consumer(
    connection: Connection, subject: str, last: int | None, start: datetime | None
) -> tuple[str, int]:
    """The name of a consumer that forgets itself, and how many events it has before it."""
    config = ConsumerConfig(
        filter_subject=subject,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=_INACTIVE,
        mem_storage=True,
        max_deliver=-1,
    )
    if last is not None:
        config = config.evolve(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=last + 1)
    elif start is not None:
        config = config.evolve(
            deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=start.astimezone(UTC).isoformat()
        )
    info = await connection.jetstream().add_consumer(STREAM, config)
    return str(info.name), info.num_pending or 0


def event_from(raw: Msg) -> Event:
    """A delivery as a CloudEvent; what a pipeline published plainly gets the attributes it lacks."""
    metadata = raw.metadata
    moment = metadata.timestamp
    headers = raw.headers or {}
    message = message_from(
        raw.subject,
        headers,
        raw.data,
        sequence=metadata.sequence.stream,
        deliveries=metadata.num_delivered,
        time=moment if moment.tzinfo else moment.replace(tzinfo=UTC),
    )
    try:
        data = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(raw.data))) if raw.data else msgspec.Raw(b"null")
    except msgspec.DecodeError:
        data = msgspec.Raw(msgspec.json.encode(raw.data.decode(errors="replace")))
    return Event(
        id=message.id,
        source=headers.get("ce-source", "pipeline"),
        type=headers.get("ce-type", f"{PREFIX}.{message.noun}.{message.event}"),
        subject=raw.subject,
        time=message.time,
        data=data,
        sequence=message.sequence,
        traceparent=headers.get(TRACE_HEADER),
        causation=headers.get(CAUSATION_HEADER),
    )
