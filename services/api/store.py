"""All SQL of the gateway: projects, tokens, the audit log."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from services.api.model import AuditEntry, StoredToken
from shared.codec import decode_document, encode_document
from shared.contracts.identity import Project
from shared.postgres import Transaction


class ProjectRow(msgspec.Struct, frozen=True, kw_only=True):
    """A project and when its deletion began, if one did."""

    project: Project
    deleting_at: datetime | None


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    """A token and the digest of its secret."""

    token: StoredToken
    digest: bytes


async def insert_project(t: Transaction, project: Project) -> bool:
    """Add a project; False: its name is taken."""
    made = await t.fetchval(
        "INSERT INTO project (name, document) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true",
        project.name,
        encode_document(project),
    )
    return bool(made)


async def find_project(t: Transaction, name: str, *, lock: bool = False) -> ProjectRow | None:
    """A project; ``lock``: nobody else changes it before this transaction ends."""
    row = await t.fetchrow(
        "SELECT document, deleting_at FROM project WHERE name = $1" + (" FOR UPDATE" if lock else ""), name
    )
    if row is None:
        return None
    return ProjectRow(project=decode_document(Project, row["document"]), deleting_at=row["deleting_at"])


async def list_projects(t: Transaction, after: str, limit: int, only: Sequence[str] | None) -> list[Project]:
    """Projects by name, after a name; ``only``: none but these."""
    rows = await t.fetch(
        "SELECT document FROM project WHERE name > $1 AND ($3::text[] IS NULL OR name = ANY($3))"
        " ORDER BY name LIMIT $2",
        after,
        limit,
        None if only is None else list(only),
    )
    return [decode_document(Project, row["document"]) for row in rows]


async def mark_deleting(t: Transaction, name: str, at: datetime | None) -> None:
    """Begin a project's deletion, or give it up (None)."""
    await t.execute("UPDATE project SET deleting_at = $2 WHERE name = $1", name, at)


async def delete_project(t: Transaction, name: str) -> None:
    """Remove a project's row."""
    await t.execute("DELETE FROM project WHERE name = $1", name)


async def insert_token(t: Transaction, token: StoredToken, digest: bytes) -> bool:
    """Add a token; False: its name is taken."""
    made = await t.fetchval(
        "INSERT INTO token (name, digest, document) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING RETURNING true",
        token.name,
        digest,
        encode_document(token),
    )
    return bool(made)


async def find_token(t: Transaction, digest: bytes) -> TokenRow | None:
    """The token whose secret has this digest."""
    row = await t.fetchrow("SELECT digest, document FROM token WHERE digest = $1", digest)
    if row is None:
        return None
    return TokenRow(token=decode_document(StoredToken, row["document"]), digest=row["digest"])


async def list_tokens(t: Transaction, after: str, limit: int) -> list[StoredToken]:
    """Tokens by name, after a name."""
    rows = await t.fetch("SELECT document FROM token WHERE name > $1 ORDER BY name LIMIT $2", after, limit)
    return [decode_document(StoredToken, row["document"]) for row in rows]


async def delete_token(t: Transaction, name: str) -> bool:
    """Remove a token; False: there is none of that name."""
    gone = await t.fetchval("DELETE FROM token WHERE name = $1 RETURNING true", name)
    return bool(gone)


async def insert_audit(t: Transaction, entries: Sequence[AuditEntry]) -> None:
    """Add entries to the audit log."""
    await t.executemany(
        "INSERT INTO audit (at, actor, method, path, project, status, trace) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [(e.at, e.actor, e.method, e.path, e.project, e.status, e.trace) for e in entries],
    )


async def list_audit(
    t: Transaction, before: int | None, limit: int, project: str | None, actor: str | None
) -> list[tuple[int, AuditEntry]]:
    """Entries with their sequence numbers, newest first, older than one of them."""
    rows = await t.fetch(
        "SELECT sequence, at, actor, method, path, project, status, trace FROM audit"
        " WHERE ($1::bigint IS NULL OR sequence < $1) AND ($3::text IS NULL OR project = $3)"
        " AND ($4::text IS NULL OR actor = $4) ORDER BY sequence DESC LIMIT $2",
        before,
        limit,
        project,
        actor,
    )
    return [
        (
            row["sequence"],
            AuditEntry(
                at=row["at"],
                actor=row["actor"],
                method=row["method"],
                path=row["path"],
                project=row["project"],
                status=row["status"],
                trace=row["trace"],
            ),
        )
        for row in rows
    ]


async def purge_audit(t: Transaction, before: datetime, most: int) -> int:
    """Remove at most ``most`` entries older than ``before``; answers how many went."""
    gone = await t.fetch(
        "DELETE FROM audit WHERE sequence IN (SELECT sequence FROM audit WHERE at < $1 LIMIT $2) RETURNING sequence",
        before,
        most,
    )
    return len(gone)
