"""The inbox: each message takes effect once for each consumer."""

from shared.postgres import Transaction


async def accept(transaction: Transaction, consumer: str, message_id: str) -> bool:
    """Record a message as handled; False if it was handled before.

    A concurrent delivery waits here for the first one's transaction and takes over if that rolls back.
    """
    inserted = await transaction.fetchval(
        "INSERT INTO inbox (consumer, message_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
        consumer,
        message_id,
    )
    return bool(inserted)
