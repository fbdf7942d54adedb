"""All of this room's SQL."""

from collections.abc import Mapping
from datetime import datetime

from services.serving.model import StoredServing
from shared.codec import decode_document, encode_document
from shared.postgres import Transaction


async def insert(transaction: Transaction, stored: StoredServing) -> bool:
    """Add a serving; False if there is one of that name."""
    return bool(
        await transaction.fetchval(
            "INSERT INTO servings (project, name, uid, model, state, labels, document, created_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING RETURNING true",
            stored.project,
            stored.name,
            stored.uid,
            stored.spec.model,
            stored.state,
            encode_document(stored.spec.labels),
            encode_document(stored),
            stored.created_at,
        )
    )


async def load(transaction: Transaction, project: str, name: str, *, lock: bool = False) -> StoredServing | None:
    """One serving, by name; with ``lock`` nobody else changes it until the transaction ends."""
    row = await transaction.fetchrow(
        "SELECT document FROM servings WHERE project = $1 AND name = $2" + (" FOR UPDATE" if lock else ""),
        project,
        name,
    )
    return None if row is None else decode_document(StoredServing, row["document"])


async def load_by_uid(transaction: Transaction, uid: str) -> StoredServing | None:
    """One serving, by uid, locked."""
    row = await transaction.fetchrow("SELECT document FROM servings WHERE uid = $1 FOR UPDATE", uid)
    return None if row is None else decode_document(StoredServing, row["document"])


async def load_of_model(transaction: Transaction, project: str, model: str) -> list[StoredServing]:
    """The servings of a model, locked, always in the same order."""
    rows = await transaction.fetch(
        "SELECT document FROM servings WHERE project = $1 AND model = $2 ORDER BY name FOR UPDATE",
        project,
        model,
    )
    return [decode_document(StoredServing, row["document"]) for row in rows]


async def load_all(transaction: Transaction) -> list[StoredServing]:
    """Every serving of every project."""
    rows = await transaction.fetch("SELECT document FROM servings ORDER BY project, name")
    return [decode_document(StoredServing, row["document"]) for row in rows]


async def page(
    transaction: Transaction,
    project: str,
    *,
    before: tuple[datetime, str] | None,
    limit: int,
    state: str | None,
    labels: Mapping[str, str],
) -> list[StoredServing]:
    """Servings of a project, newest first, from behind ``before`` on; one more than ``limit`` if there are more."""
    created_at, name = before or (None, None)
    rows = await transaction.fetch(
        "SELECT document FROM servings WHERE project = $1"
        " AND ($2::timestamptz IS NULL OR (created_at, name) < ($2, $3))"
        " AND ($4::text IS NULL OR state = $4) AND labels @> $5::jsonb"
        " ORDER BY created_at DESC, name DESC LIMIT $6",
        project,
        created_at,
        name,
        state,
        encode_document(labels),
        limit + 1,
    )
    return [decode_document(StoredServing, row["document"]) for row in rows]


async def save(transaction: Transaction, stored: StoredServing) -> None:
    """Write a serving that was loaded with a lock."""
    await transaction.execute(
        "UPDATE servings SET state = $2, document = $3 WHERE uid = $1",
        stored.uid,
        stored.state,
        encode_document(stored),
    )


async def delete(transaction: Transaction, uid: str) -> None:
    """Remove a serving's row."""
    await transaction.execute("DELETE FROM servings WHERE uid = $1", uid)
