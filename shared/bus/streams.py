"""The two streams: lifecycle events and dead letters. Whoever comes first makes them."""

from typing import Final

import nats.errors
import nats.js.errors
from nats.js.api import DiscardPolicy, StreamConfig

from shared.bus.connection import Connection
from shared.contracts.event import DEAD_STREAM, PREFIX, STREAM
from shared.errors import Unavailable

_DAY: Final = 86400
DEAD_PREFIX: Final = "elearn.dead"


async def ensure_streams(connection: Connection) -> str:
    """Make sure that both streams are there; answers the identity of the event stream.

    The identity changes when the stream was lost and made anew.

    Raises:
        Unavailable: NATS or its JetStream is away.
    """
    jetstream = connection.jetstream()
    try:
        info = None
        for config in (
            StreamConfig(
                name=DEAD_STREAM,
                subjects=[f"{DEAD_PREFIX}.>"],
                max_age=90 * _DAY,
                max_bytes=256 * 2**20,
                discard=DiscardPolicy.OLD,
            ),
            StreamConfig(
                name=STREAM,
                subjects=[f"{PREFIX}.>"],
                max_age=30 * _DAY,
                max_bytes=2 * 2**30,
                discard=DiscardPolicy.OLD,
                duplicate_window=120,
            ),
        ):
            try:
                info = await jetstream.stream_info(str(config.name))
            except nats.js.errors.NotFoundError:
                info = await jetstream.add_stream(config)
    except (nats.errors.Error, TimeoutError) as error:
        raise Unavailable(f"NATS JetStream is away: {error}") from error
    return str(info.created) if info is not None else ""
