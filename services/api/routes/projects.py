"""``/v1/projects``: the tenants."""

import asyncio

from services.api import queries, store
from services.api.errors import UnknownProject
from services.api.gateway import Gateway
from services.api.model import deletion_stands, keep_reason
from services.api.routes.listing import Paging
from services.api.table import Answer, Call, NoQuery, Route
from shared import idempotency
from shared.clock import now
from shared.contracts import datastore, model, serving, training
from shared.contracts.common import DEFAULT_PROJECT, ListRequest, Page
from shared.contracts.identity import Project, ProjectEvent, ProjectSpec
from shared.contracts.rpc import AnyVerb
from shared.errors import Conflict
from shared.outbox import Outbox
from shared.postgres import Database, Transaction

_OWNED: dict[str, AnyVerb] = {
    "training": training.LIST,
    "serving": serving.LIST,
    "model": model.LIST_MODELS,
    "datastore": datastore.LIST,
}
_SHOWN = 3


async def _create(call: Call[ProjectSpec, NoQuery]) -> Answer:
    gateway, spec = call.gateway, call.body
    project = Project(name=spec.name, created_at=now(), description=spec.description, created_by=call.principal.name)
    async with gateway.database.transaction() as t:

        async def make() -> Project:
            if not await _add(t, gateway.outbox, project):
                raise Conflict(f"project {spec.name!r} exists already")
            return project

        made = await idempotency.once(t, "create_project", "", spec, Project, make)
    gateway.access.forget_project(made.name)
    return Answer(body=made, status=201, location=f"/v1/projects/{made.name}")


async def _add(t: Transaction, outbox: Outbox, project: Project) -> bool:
    made = await store.insert_project(t, project)
    if made:
        event = ProjectEvent(project=project)
        await outbox.append(t, "project", "created", project.name, project.name, event)
    return made


async def ensure_default(database: Database, outbox: Outbox) -> None:
    """Make the project that always exists, where it does not.

    Raises:
        Unavailable: the database is away.
    """
    project = Project(
        name=DEFAULT_PROJECT, created_at=now(), description="The project that always exists", created_by="api"
    )
    async with database.transaction() as t:
        await _add(t, outbox, project)


async def _list(call: Call[None, Paging]) -> Answer:
    page = await queries.list_projects(call.gateway.database, call.principal, call.query.limit, call.query.cursor)
    return Answer(body=page)


async def _get(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await queries.get_project(call.gateway.database, call.project))


async def _delete(call: Call[None, NoQuery]) -> Answer:
    """Shut the project, make sure that it is empty, and remove it: in that order, so that nothing slips in."""
    gateway, name = call.gateway, call.project
    reason = keep_reason(name, {})
    if reason is not None:
        raise Conflict(reason)
    began = now()
    async with gateway.database.transaction() as t:
        row = await store.find_project(t, name, lock=True)
        if row is None:
            raise UnknownProject(name)
        if deletion_stands(row.deleting_at, began):
            raise Conflict(f"project {name!r} is being deleted already")
        await store.mark_deleting(t, name, began)
    gateway.access.forget_project(name)
    try:
        reason = keep_reason(name, await _owned(gateway, name))
        if reason is not None:
            raise Conflict(reason)
        async with gateway.database.transaction() as t:
            await store.delete_project(t, name)
            event = ProjectEvent(project=row.project)
            await gateway.outbox.append(t, "project", "deleted", name, name, event)
    except BaseException:
        async with gateway.database.transaction() as t:
            await store.mark_deleting(t, name, None)
        raise
    finally:
        gateway.access.forget_project(name)
    return Answer(status=204)


async def _owned(gateway: Gateway, name: str) -> dict[str, tuple[str, ...]]:
    """By noun, the first few things that a project owns."""
    request = ListRequest(project=name, limit=_SHOWN)
    pages = await asyncio.gather(*(gateway.bus.call(verb, request) for verb in _OWNED.values()))
    return {noun: tuple(item.name for item in page.items) for noun, page in zip(_OWNED, pages, strict=True)}


ROUTES = (
    Route(
        method="POST",
        path="/v1/projects",
        operation="createProject",
        noun="project",
        summary="Make a project",
        handle=_create,
        scope="admin",
        reach="everywhere",
        body=ProjectSpec,
        reply=Project,
        statuses=(201,),
        problems=(409,),
        example={"name": "search", "description": "ranking models"},
    ),
    Route(
        method="GET",
        path="/v1/projects",
        operation="listProjects",
        noun="project",
        summary="List the projects that the token is good for",
        handle=_list,
        scope="read",
        reach="any",
        query=Paging,
        reply=Page[Project],
    ),
    Route(
        method="GET",
        path="/v1/projects/{project}",
        operation="getProject",
        noun="project",
        summary="Look at a project",
        handle=_get,
        scope="read",
        reply=Project,
        problems=(404,),
    ),
    Route(
        method="DELETE",
        path="/v1/projects/{project}",
        operation="deleteProject",
        noun="project",
        summary="Delete a project that owns nothing any more",
        handle=_delete,
        scope="admin",
        reach="everywhere",
        statuses=(204,),
        problems=(404, 409),
    ),
)
