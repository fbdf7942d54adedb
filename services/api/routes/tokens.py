"""``/v1/tokens``: who may do what; and the log of what they did."""

import secrets

import msgspec

from services.api import queries, store
from services.api.model import TOKEN_PREFIX, AuditEntry, StoredToken, digest_of, make_token
from services.api.routes.listing import Limit, Paging
from services.api.table import Answer, Call, NoQuery, Route
from shared import idempotency
from shared.clock import now
from shared.contracts.common import Name, Page
from shared.contracts.identity import Token, TokenSpec
from shared.errors import Conflict, Invalid, NotFound


class Audit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the audit log.

    Attributes:
        limit: how many entries at the most.
        cursor: ``next`` of the page before.
        project: only what concerned this project.
        actor: only what this token asked for.
    """

    limit: Limit = 100
    cursor: str | None = None
    project: Name | None = None
    actor: Name | None = None


async def _create(call: Call[TokenSpec, NoQuery]) -> Answer:
    """Make a token; its secret is answered this once, and also not again under the same Idempotency-Key."""
    gateway, spec = call.gateway, call.body
    secret: str | None = None
    async with gateway.database.transaction() as t:

        async def make() -> StoredToken:
            nonlocal secret
            for name in spec.projects:
                if await store.find_project(t, name) is None:
                    raise Invalid.field("projects", f"there is no project {name!r}")
            token = make_token(spec, call.principal.name, now())
            secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
            if not await store.insert_token(t, token, digest_of(secret)):
                raise Conflict(f"token {spec.name!r} exists already; choose another name, or delete it first")
            return token

        made = await idempotency.once(t, "create_token", "", spec, StoredToken, make)
    return Answer(body=queries.shown(made, secret), status=201, location=f"/v1/tokens/{made.name}")


async def _list(call: Call[None, Paging]) -> Answer:
    return Answer(body=await queries.list_tokens(call.gateway.database, call.query.limit, call.query.cursor))


async def _delete(call: Call[None, NoQuery]) -> Answer:
    async with call.gateway.database.transaction() as t:
        gone = await store.delete_token(t, call.name)
    call.gateway.access.forget_token(call.name)
    if not gone:
        raise NotFound(f"there is no token {call.name!r}")
    return Answer(status=204)


async def _audit(call: Call[None, Audit]) -> Answer:
    query = call.query
    page = await queries.list_audit(call.gateway.database, query.limit, query.cursor, query.project, query.actor)
    return Answer(body=page)


ROUTES = (
    Route(
        method="POST",
        path="/v1/tokens",
        operation="createToken",
        noun="token",
        summary="Make a token; its secret is shown this once",
        handle=_create,
        scope="admin",
        reach="everywhere",
        body=TokenSpec,
        reply=Token,
        statuses=(201,),
        problems=(409,),
        example={"name": "nightly", "scope": "write", "projects": ["default"], "lifetime": "30d"},
    ),
    Route(
        method="GET",
        path="/v1/tokens",
        operation="listTokens",
        noun="token",
        summary="List tokens, without their secrets",
        handle=_list,
        scope="admin",
        reach="everywhere",
        query=Paging,
        reply=Page[Token],
    ),
    Route(
        method="DELETE",
        path="/v1/tokens/{name}",
        operation="deleteToken",
        noun="token",
        summary="Delete a token: within seconds it is good for nothing",
        handle=_delete,
        scope="admin",
        reach="everywhere",
        statuses=(204,),
        problems=(404,),
    ),
    Route(
        method="GET",
        path="/v1/audit",
        operation="listAudit",
        noun="audit",
        summary="Who asked for which change, newest first",
        handle=_audit,
        scope="admin",
        reach="everywhere",
        query=Audit,
        reply=Page[AuditEntry],
    ),
)
