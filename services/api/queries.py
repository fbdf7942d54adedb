"""Reads of what the gateway itself owns."""

from services.api import store
from services.api.errors import UnknownProject
from services.api.model import AuditEntry, Principal, StoredToken
from shared.contracts.common import Page
from shared.contracts.identity import Project, Token
from shared.paging import decode_cursor, encode_cursor
from shared.postgres import Database


def shown(token: StoredToken, secret: str | None = None) -> Token:
    """A token as users see it."""
    return Token(
        name=token.name,
        scope=token.scope,
        created_at=token.created_at,
        projects=token.projects,
        expires_at=token.expires_at,
        created_by=token.created_by,
        secret=secret,
    )


async def get_project(database: Database, name: str) -> Project:
    """A project.

    Raises:
        UnknownProject: there is none.
    """
    async with database.transaction() as t:
        row = await store.find_project(t, name)
    if row is None:
        raise UnknownProject(name)
    return row.project


async def list_projects(database: Database, principal: Principal, limit: int, cursor: str | None) -> Page[Project]:
    """The projects that a principal may know of."""
    only = principal.projects or None
    async with database.transaction() as t:
        found = await store.list_projects(t, _after(cursor), limit + 1, only)
    more = len(found) > limit
    return Page(items=tuple(found[:limit]), next=encode_cursor(found[limit - 1].name) if more else None)


async def list_tokens(database: Database, limit: int, cursor: str | None) -> Page[Token]:
    """Tokens, without their secrets."""
    async with database.transaction() as t:
        found = await store.list_tokens(t, _after(cursor), limit + 1)
    more = len(found) > limit
    return Page(
        items=tuple(shown(token) for token in found[:limit]),
        next=encode_cursor(found[limit - 1].name) if more else None,
    )


async def list_audit(
    database: Database, limit: int, cursor: str | None, project: str | None, actor: str | None
) -> Page[AuditEntry]:
    """The audit log, newest first."""
    key = decode_cursor(cursor, int)
    before = int(key[0]) if key is not None else None
    async with database.transaction() as t:
        found = await store.list_audit(t, before, limit + 1, project, actor)
    more = len(found) > limit
    return Page(
        items=tuple(entry for _, entry in found[:limit]),
        next=encode_cursor(found[limit - 1][0]) if more else None,
    )


def _after(cursor: str | None) -> str:
    key = decode_cursor(cursor, str)
    return str(key[0]) if key is not None else ""
