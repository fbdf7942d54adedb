"""Dead letters: messages that a consumer gave up on, to look at, send again or drop."""

from datetime import UTC

import nats.errors
import nats.js.errors

from shared.bus.connection import Connection
from shared.bus.streams import ensure_streams
from shared.contracts.common import Page
from shared.contracts.event import DEAD_STREAM
from shared.contracts.identity import DeadLetter
from shared.errors import NotFound, Unavailable


async def list_dead_letters(connection: Connection, *, after: int = 0, limit: int = 100) -> Page[DeadLetter]:
    """Dead letters in order, from the sequence after ``after`` on.

    Raises:
        Unavailable: NATS is away.
    """
    await ensure_streams(connection)
    jetstream = connection.jetstream()
    letters: list[DeadLetter] = []
    sequence = after + 1
    while len(letters) <= limit:
        try:
            raw = await jetstream.get_msg(DEAD_STREAM, sequence, subject=">", next=True)
        except nats.js.errors.NotFoundError:
            break
        except (nats.errors.Error, TimeoutError) as error:
            raise Unavailable(f"NATS JetStream is away: {error}") from error
        letters.append(_letter(raw))
        sequence = letters[-1].sequence + 1
    more = len(letters) > limit
    items = tuple(letters[:limit])
    return Page(items=items, next=str(items[-1].sequence) if more else None)


async def resend(connection: Connection, sequence: int) -> None:
    """Publish the message again on its own subject and drop the letter.

    Who handled it before finds its id in the inbox and does nothing; who failed handles it now.

    Raises:
        NotFound: no such letter.
        Unavailable: NATS is away.
    """
    await ensure_streams(connection)
    jetstream = connection.jetstream()
    try:
        raw = await jetstream.get_msg(DEAD_STREAM, sequence)
        headers = {
            key: value
            for key, value in (raw.headers or {}).items()
            if not key.startswith("elearn-") or key in ("elearn-actor", "elearn-causation")
        }
        letter = _letter(raw)
        headers.setdefault("ce-id", letter.message_id)
        headers["Nats-Msg-Id"] = f"{letter.message_id}-again-{sequence}"
        await jetstream.publish(letter.subject, raw.data or b"", headers=headers)
        await jetstream.delete_msg(DEAD_STREAM, sequence)
    except nats.js.errors.NotFoundError:
        raise NotFound(f"no dead letter {sequence}") from None
    except (nats.errors.Error, TimeoutError) as error:
        raise Unavailable(f"NATS JetStream is away: {error}") from error


async def drop(connection: Connection, sequence: int) -> None:
    """Forget a letter.

    Raises:
        NotFound: no such letter.
        Unavailable: NATS is away.
    """
    await ensure_streams(connection)
    jetstream = connection.jetstream()
    try:
        await jetstream.get_msg(DEAD_STREAM, sequence)  # deleting does not say plainly that there is none
        await jetstream.delete_msg(DEAD_STREAM, sequence)
    except nats.js.errors.NotFoundError:
        raise NotFound(f"no dead letter {sequence}") from None
    except (nats.errors.Error, TimeoutError) as error:
        raise Unavailable(f"NATS JetStream is away: {error}") from error


def _letter(raw: object) -> DeadLetter:
    from nats.js.api import RawStreamMsg

    if not isinstance(raw, RawStreamMsg):
        raise TypeError("not a stored message")
    headers = raw.headers or {}
    moment = raw.time
    if moment is None:
        raise TypeError("a stored message without a time")
    return DeadLetter(
        sequence=raw.seq or 0,
        subject=headers.get("elearn-subject", raw.subject or ""),
        consumer=headers.get("elearn-consumer", ""),
        error=headers.get("elearn-error", ""),
        deliveries=int(headers.get("elearn-deliveries", "0")),
        time=moment if moment.tzinfo else moment.replace(tzinfo=UTC),
        message_id=headers.get("elearn-message-id", ""),
    )
