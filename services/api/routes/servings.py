"""``/v1/projects/{project}/servings``: deploy, watch, change, roll back and delete."""

from typing import Annotated

import msgspec

from services.api.routes.listing import Servings, list_request
from services.api.table import Answer, Call, NoQuery, Route
from shared.contracts import serving
from shared.contracts.common import Named, Page
from shared.contracts.serving import (
    CreateServing,
    RollbackServing,
    Serving,
    ServingPatch,
    ServingSpec,
    UpdateServing,
)

BASE = "/v1/projects/{project}/servings"


class Rollback(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to go back to.

    Attributes:
        revision: its number; without it, the last good one before the current.
    """

    revision: Annotated[int, msgspec.Meta(ge=1)] | None = None


def _location(made: Serving) -> str:
    return f"/v1/projects/{made.project}/servings/{made.name}"


async def _create(call: Call[ServingSpec, NoQuery]) -> Answer:
    request = CreateServing(project=call.project, spec=call.body)
    made = await call.gateway.bus.call(serving.CREATE, request)
    return Answer(body=made, status=202 if made.state == "deploying" else 201, location=_location(made))


async def _list(call: Call[None, Servings]) -> Answer:
    return Answer(body=await call.gateway.bus.call(serving.LIST, list_request(call.project, call.query)))


async def _get(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(serving.GET, Named(project=call.project, name=call.name)))


async def _update(call: Call[ServingPatch, NoQuery]) -> Answer:
    request = UpdateServing(project=call.project, name=call.name, patch=call.body)
    changed = await call.gateway.bus.call(serving.UPDATE, request)
    return Answer(body=changed, location=_location(changed))


async def _rollback(call: Call[Rollback, NoQuery]) -> Answer:
    request = RollbackServing(project=call.project, name=call.name, revision=call.body.revision)
    changed = await call.gateway.bus.call(serving.ROLLBACK, request)
    return Answer(body=changed, status=202, location=_location(changed))


async def _delete(call: Call[None, NoQuery]) -> Answer:
    await call.gateway.bus.call(serving.DELETE, Named(project=call.project, name=call.name))
    call.gateway.endpoints.forget(lambda key, _: key == (call.project, call.name))
    return Answer(status=204)


ROUTES = (
    Route(
        method="POST",
        path=BASE,
        operation="createServing",
        noun="serving",
        summary="Serve a model's version, or follow an alias",
        handle=_create,
        scope="write",
        body=ServingSpec,
        reply=Serving,
        statuses=(202, 201),
        problems=(404, 409),
        verb=serving.CREATE,
        example={"name": "digits", "model": "digits", "version": 1, "replicas": 2},
    ),
    Route(
        method="GET",
        path=BASE,
        operation="listServings",
        noun="serving",
        summary="List servings",
        handle=_list,
        scope="read",
        query=Servings,
        reply=Page[Serving],
        verb=serving.LIST,
    ),
    Route(
        method="GET",
        path=BASE + "/{name}",
        operation="getServing",
        noun="serving",
        summary="Look at a serving: its state, endpoint and revisions",
        handle=_get,
        scope="read",
        reply=Serving,
        problems=(404,),
        verb=serving.GET,
    ),
    Route(
        method="PATCH",
        path=BASE + "/{name}",
        operation="updateServing",
        noun="serving",
        summary="Change version, alias, replicas or traffic",
        handle=_update,
        scope="write",
        body=ServingPatch,
        reply=Serving,
        problems=(404, 409),
        verb=serving.UPDATE,
        example={"version": 2},
    ),
    Route(
        method="POST",
        path=BASE + "/{name}/rollback",
        operation="rollbackServing",
        noun="serving",
        summary="Go back to an earlier revision",
        handle=_rollback,
        scope="write",
        body=Rollback,
        optional=True,
        reply=Serving,
        statuses=(202,),
        problems=(404, 409),
        verb=serving.ROLLBACK,
    ),
    Route(
        method="DELETE",
        path=BASE + "/{name}",
        operation="deleteServing",
        noun="serving",
        summary="End a serving",
        handle=_delete,
        scope="write",
        statuses=(204,),
        problems=(404, 409),
        verb=serving.DELETE,
    ),
)
