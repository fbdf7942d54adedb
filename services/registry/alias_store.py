"""This room's SQL on aliases and their history."""

from collections.abc import Sequence
from datetime import datetime

from shared.contracts.model import Alias, AliasMove
from shared.postgres import Transaction

_COLUMNS = "project, model, name, version, moved_at, moved_by"


async def load(transaction: Transaction, project: str, model: str, name: str) -> Alias | None:
    """One alias."""
    row = await transaction.fetchrow(
        f"SELECT {_COLUMNS} FROM aliases WHERE project = $1 AND model = $2 AND name = $3",
        project,
        model,
        name,
    )
    return None if row is None else Alias(**dict(row))


async def load_of(transaction: Transaction, project: str, models: Sequence[str]) -> list[Alias]:
    """All aliases of some models, by name."""
    rows = await transaction.fetch(
        f"SELECT {_COLUMNS} FROM aliases WHERE project = $1 AND model = ANY($2::text[]) ORDER BY model, name",
        project,
        list(models),
    )
    return [Alias(**dict(row)) for row in rows]


async def put(transaction: Transaction, alias: Alias, previous: int | None) -> None:
    """Point an alias at a version, and write down that it moved."""
    await transaction.execute(
        f"INSERT INTO aliases ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT (project, model, name) DO UPDATE SET version = excluded.version,"
        " moved_at = excluded.moved_at, moved_by = excluded.moved_by",
        alias.project,
        alias.model,
        alias.name,
        alias.version,
        alias.moved_at,
        alias.moved_by,
    )
    await _moved(transaction, alias, alias.version, previous, alias.moved_at, alias.moved_by)


async def delete(transaction: Transaction, alias: Alias, now: datetime, by: str) -> None:
    """Delete an alias, and write down that it went."""
    await transaction.execute(
        "DELETE FROM aliases WHERE project = $1 AND model = $2 AND name = $3",
        alias.project,
        alias.model,
        alias.name,
    )
    await _moved(transaction, alias, None, alias.version, now, by)


async def history(transaction: Transaction, project: str, model: str, alias: str, *, limit: int) -> list[AliasMove]:
    """The latest moves of an alias, newest first."""
    rows = await transaction.fetch(
        "SELECT version, previous, moved_at, moved_by FROM alias_moves"
        " WHERE project = $1 AND model = $2 AND alias = $3 ORDER BY sequence DESC LIMIT $4",
        project,
        model,
        alias,
        limit,
    )
    return [AliasMove(**dict(row)) for row in rows]


async def _moved(
    transaction: Transaction, alias: Alias, version: int | None, previous: int | None, now: datetime, by: str
) -> None:
    await transaction.execute(
        "INSERT INTO alias_moves (project, model, alias, version, previous, moved_at, moved_by)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        alias.project,
        alias.model,
        alias.name,
        version,
        previous,
        now,
        by,
    )
