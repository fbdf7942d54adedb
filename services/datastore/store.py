"""All of this room's SQL."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from services.datastore.model import StoredDatastore
from shared.codec import decode_document, encode_document
from shared.postgres import Transaction


async def insert(transaction: Transaction, stored: StoredDatastore) -> bool:
    """Add a datastore; False if there is one of that name."""
    return bool(
        await transaction.fetchval(
            "INSERT INTO datastores (project, name, uid, state, labels, document, created_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING true",
            stored.project,
            stored.name,
            stored.uid,
            stored.state,
            encode_document(stored.spec.labels),
            encode_document(stored),
            stored.created_at,
        )
    )


async def load(transaction: Transaction, project: str, name: str, *, lock: bool = False) -> StoredDatastore | None:
    """One datastore, by name; with ``lock`` nobody else changes it until the transaction ends."""
    row = await transaction.fetchrow(
        "SELECT document FROM datastores WHERE project = $1 AND name = $2" + (" FOR UPDATE" if lock else ""),
        project,
        name,
    )
    return None if row is None else decode_document(StoredDatastore, row["document"])


async def load_by_uid(transaction: Transaction, uid: str) -> StoredDatastore | None:
    """One datastore, by uid, locked."""
    row = await transaction.fetchrow("SELECT document FROM datastores WHERE uid = $1 FOR UPDATE", uid)
    return None if row is None else decode_document(StoredDatastore, row["document"])


async def load_named(transaction: Transaction, project: str, names: Sequence[str]) -> dict[str, StoredDatastore]:
    """Those of these datastores that exist, by name."""
    rows = await transaction.fetch(
        "SELECT document FROM datastores WHERE project = $1 AND name = ANY($2::text[])", project, list(names)
    )
    found = (decode_document(StoredDatastore, row["document"]) for row in rows)
    return {stored.name: stored for stored in found}


async def load_all(transaction: Transaction) -> list[StoredDatastore]:
    """Every datastore of every project."""
    rows = await transaction.fetch("SELECT document FROM datastores ORDER BY project, name")
    return [decode_document(StoredDatastore, row["document"]) for row in rows]


async def page(
    transaction: Transaction,
    project: str,
    *,
    after: str,
    limit: int,
    state: str | None,
    labels: Mapping[str, str],
) -> list[StoredDatastore]:
    """Datastores of a project by name, from behind ``after`` on; one more than ``limit`` if there are more."""
    rows = await transaction.fetch(
        "SELECT document FROM datastores WHERE project = $1 AND name > $2"
        " AND ($3::text IS NULL OR state = $3) AND labels @> $4::jsonb ORDER BY name LIMIT $5",
        project,
        after,
        state,
        encode_document(labels),
        limit + 1,
    )
    return [decode_document(StoredDatastore, row["document"]) for row in rows]


async def save(transaction: Transaction, stored: StoredDatastore) -> None:
    """Write a datastore that was loaded with a lock."""
    await transaction.execute(
        "UPDATE datastores SET state = $2, document = $3 WHERE uid = $1",
        stored.uid,
        stored.state,
        encode_document(stored),
    )


async def delete(transaction: Transaction, uid: str) -> None:
    """Remove a datastore's row."""
    await transaction.execute("DELETE FROM datastores WHERE uid = $1", uid)


async def users_of(transaction: Transaction, project: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For each datastore the trainings that hold it, in the order of their names."""
    rows = await transaction.fetch(
        "SELECT training, datastores FROM datastore_uses WHERE project = $1 AND datastores && $2::text[]"
        " ORDER BY training",
        project,
        list(names),
    )
    return {name: tuple(row["training"] for row in rows if name in row["datastores"]) for name in names}


async def put_use(
    transaction: Transaction, project: str, training: str, datastores: Sequence[str], told_at: datetime
) -> None:
    """Note what a training holds, unless something newer is known of it."""
    await transaction.execute(
        "INSERT INTO datastore_uses (project, training, told_at, datastores) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (project, training) DO UPDATE SET told_at = excluded.told_at,"
        " datastores = excluded.datastores WHERE datastore_uses.told_at <= excluded.told_at",
        project,
        training,
        told_at,
        list(datastores),
    )


async def forget_uses(transaction: Transaction, before: datetime) -> None:
    """Drop rows of trainings that have held nothing since."""
    await transaction.execute("DELETE FROM datastore_uses WHERE datastores = '{}' AND told_at < $1", before)
