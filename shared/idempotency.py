"""The same request twice under one ``Idempotency-Key`` is one request."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from shared import context
from shared.errors import Conflict
from shared.postgres import Transaction

R = TypeVar("R", bound=msgspec.Struct)


async def once(
    transaction: Transaction,
    verb: str,
    scope: str,
    request: msgspec.Struct,
    reply: type[R],
    make: Callable[[], Awaitable[R]],
) -> R:
    """The reply of ``make``, or the one that an earlier request under the same key was given.

    Args:
        verb, scope: what the key is unique within: the operation and, say, the project.
        request: what was asked; asking something else under the same key is a conflict.

    Raises:
        Conflict: the key was used for another request.
    """
    key = context.current().idempotency_key
    if key is None:
        return await make()
    digest = hashlib.sha256(msgspec.msgpack.encode(request)).hexdigest()
    await transaction.execute("SELECT pg_advisory_xact_lock(hashtext($1))", f"{verb}\x1f{scope}\x1f{key}")
    row = await transaction.fetchrow(
        "SELECT request, reply FROM idempotency WHERE verb = $1 AND scope = $2 AND key = $3", verb, scope, key
    )
    if row is not None:
        if row["request"] != digest:
            raise Conflict(f"the Idempotency-Key {key!r} was used for another request; choose a new one")
        return msgspec.msgpack.decode(row["reply"], type=reply)
    made = await make()
    await transaction.execute(
        "INSERT INTO idempotency (verb, scope, key, request, reply) VALUES ($1, $2, $3, $4, $5)",
        verb,
        scope,
        key,
        digest,
        msgspec.msgpack.encode(made),
    )
    return made
