"""All of this room's SQL on models and versions; :mod:`services.registry.alias_store` has that on aliases."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

import msgspec

from services.registry.model import Key, StoredVersion
from shared.codec import decode_document, encode_document
from shared.postgres import Transaction


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model with what is counted over its versions."""

    project: str
    name: str
    created_at: datetime
    versions: int
    latest: int | None


_MODELS = (
    "SELECT m.project, m.name, m.created_at, count(v.number) AS versions,"
    " max(v.number) FILTER (WHERE v.state = 'ready') AS latest FROM models m"
    " LEFT JOIN versions v ON v.project = m.project AND v.model = m.name AND NOT v.removing"
    " WHERE m.project = $1 AND NOT m.deleted"
)


async def next_number(transaction: Transaction, project: str, model: str, now: datetime) -> int:
    """A number for a new version; makes the model, or brings it back, and locks it."""
    number: int = await transaction.fetchval(
        "INSERT INTO models (project, name, last_number, created_at) VALUES ($1, $2, 1, $3)"
        " ON CONFLICT (project, name) DO UPDATE SET last_number = models.last_number + 1, deleted = false,"
        " created_at = CASE WHEN models.deleted THEN excluded.created_at ELSE models.created_at END"
        " RETURNING last_number",
        project,
        model,
        now,
    )
    return number


async def lock_model(transaction: Transaction, project: str, model: str) -> bool:
    """Keep others from changing a model, its versions and aliases; False if there is none."""
    return bool(
        await transaction.fetchval(
            "SELECT true FROM models WHERE project = $1 AND name = $2 AND NOT deleted FOR UPDATE",
            project,
            model,
        )
    )


async def mark_deleted(transaction: Transaction, project: str, model: str) -> None:
    """Hide a model from its users."""
    await transaction.execute("UPDATE models SET deleted = true WHERE project = $1 AND name = $2", project, model)


async def load_model(transaction: Transaction, project: str, name: str) -> StoredModel | None:
    """One model."""
    row = await transaction.fetchrow(f"{_MODELS} AND m.name = $2 GROUP BY m.project, m.name", project, name)
    return None if row is None else StoredModel(**dict(row))


async def page_of_models(transaction: Transaction, project: str, *, after: str, limit: int) -> list[StoredModel]:
    """Models by name, from behind ``after``; one more than ``limit`` if there are more."""
    rows = await transaction.fetch(
        f"{_MODELS} AND m.name > $2 GROUP BY m.project, m.name ORDER BY m.name LIMIT $3",
        project,
        after,
        limit + 1,
    )
    return [StoredModel(**dict(row)) for row in rows]


async def insert_version(transaction: Transaction, version: StoredVersion) -> None:
    """Add a version under a number just taken."""
    await transaction.execute(
        "INSERT INTO versions (project, model, number, state, labels, document, created_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        version.project,
        version.model,
        version.number,
        version.state,
        encode_document(version.labels),
        encode_document(version),
        version.created_at,
    )


async def load_version(transaction: Transaction, key: Key, *, lock: bool = False) -> StoredVersion | None:
    """One version, whether its users still see it or not."""
    row = await transaction.fetchrow(
        "SELECT document FROM versions WHERE project = $1 AND model = $2 AND number = $3"
        + (" FOR UPDATE" if lock else ""),
        *key,
    )
    return None if row is None else decode_document(StoredVersion, row["document"])


async def save_version(transaction: Transaction, version: StoredVersion) -> None:
    """Write a version that was loaded with a lock."""
    await transaction.execute(
        "UPDATE versions SET state = $4, removing = $5, document = $6"
        " WHERE project = $1 AND model = $2 AND number = $3",
        *version.key,
        version.state,
        version.removing,
        encode_document(version),
    )


async def drop_version(transaction: Transaction, key: Key) -> None:
    """Remove a version's row."""
    await transaction.execute("DELETE FROM versions WHERE project = $1 AND model = $2 AND number = $3", *key)


async def load_at_work(transaction: Transaction, jobs: Collection[Key]) -> list[StoredVersion]:
    """Versions that are saving or being removed, and those of ``jobs``."""
    keys = list(jobs)
    rows = await transaction.fetch(
        "SELECT document FROM versions WHERE state = 'saving' OR removing"
        " UNION ALL SELECT v.document FROM unnest($1::text[], $2::text[], $3::integer[]) AS k (p, m, n)"
        " JOIN versions v ON v.project = k.p AND v.model = k.m AND v.number = k.n"
        " WHERE NOT (v.state = 'saving' OR v.removing)",
        [key.project for key in keys],
        [key.model for key in keys],
        [key.number for key in keys],
    )
    return [decode_document(StoredVersion, row["document"]) for row in rows]


async def load_versions_of(transaction: Transaction, project: str, model: str) -> list[StoredVersion]:
    """All versions of a model that its users see, locked."""
    rows = await transaction.fetch(
        "SELECT document FROM versions WHERE project = $1 AND model = $2 AND NOT removing ORDER BY number FOR UPDATE",
        project,
        model,
    )
    return [decode_document(StoredVersion, row["document"]) for row in rows]


async def page_of_versions(
    transaction: Transaction,
    project: str,
    model: str,
    *,
    below: int | None,
    limit: int,
    state: str | None,
    labels: Mapping[str, str],
) -> list[StoredVersion]:
    """Versions, newest first, from the one below ``below``; one more than ``limit`` if there are more."""
    rows = await transaction.fetch(
        "SELECT document FROM versions WHERE project = $1 AND model = $2 AND NOT removing"
        " AND ($3::integer IS NULL OR number < $3) AND ($4::text IS NULL OR state = $4)"
        " AND labels @> $5::jsonb ORDER BY number DESC LIMIT $6",
        project,
        model,
        below,
        state,
        encode_document(labels),
        limit + 1,
    )
    return [decode_document(StoredVersion, row["document"]) for row in rows]


async def claim_origin(transaction: Transaction, project: str, origin: str, model: str) -> bool:
    """Note that a training's attempt is being saved; False if it was before."""
    return bool(
        await transaction.fetchval(
            "INSERT INTO automatic_saves (project, origin, model, number) VALUES ($1, $2, $3, 0)"
            " ON CONFLICT DO NOTHING RETURNING true",
            project,
            origin,
            model,
        )
    )


async def note_origin(transaction: Transaction, project: str, origin: str, number: int) -> None:
    """Note which version an attempt was saved as."""
    await transaction.execute(
        "UPDATE automatic_saves SET number = $3 WHERE project = $1 AND origin = $2", project, origin, number
    )


async def servings_of(
    transaction: Transaction, project: str, model: str, numbers: Sequence[int]
) -> dict[int, tuple[str, ...]]:
    """For each version of a model the servings that hold it, in the order of their names."""
    rows = await transaction.fetch(
        "SELECT serving, numbers FROM version_uses WHERE project = $1 AND model = $2"
        " AND numbers && $3::integer[] ORDER BY serving",
        project,
        model,
        list(numbers),
    )
    return {number: tuple(row["serving"] for row in rows if number in row["numbers"]) for number in numbers}


async def put_use(
    transaction: Transaction,
    project: str,
    serving: str,
    model: str,
    numbers: Sequence[int],
    told_at: datetime,
) -> None:
    """Note which versions a serving holds, unless something newer is known of it."""
    await transaction.execute(
        "INSERT INTO version_uses (project, serving, told_at, model, numbers) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (project, serving) DO UPDATE SET told_at = excluded.told_at, model = excluded.model,"
        " numbers = excluded.numbers WHERE version_uses.told_at <= excluded.told_at",
        project,
        serving,
        told_at,
        model,
        list(numbers),
    )


async def forget_uses(transaction: Transaction, before: datetime) -> None:
    """Drop rows of servings that have held nothing since."""
    await transaction.execute("DELETE FROM version_uses WHERE numbers = '{}' AND told_at < $1", before)
