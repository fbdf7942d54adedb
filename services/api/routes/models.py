"""``/v1/projects/{project}/models``: versions, aliases, and the download of what was saved."""

import base64
from typing import Annotated

import msgspec
from aiohttp import web

from services.api.parameters import labels_of
from services.api.routes.listing import Labelled, Versions
from services.api.routes.streams import RANGE_HEADERS, send
from services.api.table import Answer, Call, NoQuery, Route
from shared.contracts import model
from shared.contracts.common import Chunk, ListRequest, Named, Page
from shared.contracts.model import (
    Alias,
    AliasMove,
    AliasRequest,
    ListVersions,
    Model,
    ReadArchive,
    SaveRequest,
    SaveVersion,
    SetAlias,
    Version,
    VersionNumber,
    VersionRequest,
)
from shared.errors import Conflict

BASE = "/v1/projects/{project}/models"
_VERSION = BASE + "/{name}/versions/{n}"
_ALIAS = BASE + "/{name}/aliases/{alias}"


class AliasTarget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where an alias shall point."""

    version: Annotated[int, msgspec.Meta(ge=1)]


def _named(call: Call[None, NoQuery]) -> Named:
    return Named(project=call.project, name=call.name)


def _version(call: Call[None, NoQuery]) -> VersionRequest:
    number: VersionNumber = int(call.path["n"])
    return VersionRequest(project=call.project, model=call.name, number=number)


def _alias(call: Call[None, NoQuery]) -> AliasRequest:
    return AliasRequest(project=call.project, model=call.name, alias=call.path["alias"])


async def _list(call: Call[None, Labelled]) -> Answer:
    query = call.query
    request = ListRequest(project=call.project, limit=query.limit, cursor=query.cursor, labels=labels_of(query.label))
    return Answer(body=await call.gateway.bus.call(model.LIST_MODELS, request))


async def _get(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(model.GET_MODEL, _named(call)))


async def _delete(call: Call[None, NoQuery]) -> Answer:
    await call.gateway.bus.call(model.DELETE_MODEL, _named(call))
    return Answer(status=204)


async def _save(call: Call[SaveRequest, NoQuery]) -> Answer:
    request = SaveVersion(project=call.project, model=call.name, save=call.body)
    made = await call.gateway.bus.call(model.SAVE, request)
    location = f"/v1/projects/{made.project}/models/{made.model}/versions/{made.number}"
    return Answer(body=made, status=202 if made.state == "saving" else 201, location=location)


async def _list_versions(call: Call[None, Versions]) -> Answer:
    query = call.query
    request = ListVersions(
        project=call.project,
        model=call.name,
        limit=query.limit,
        cursor=query.cursor,
        state=query.state,
        labels=labels_of(query.label),
    )
    return Answer(body=await call.gateway.bus.call(model.LIST_VERSIONS, request))


async def _get_version(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(model.GET_VERSION, _version(call)))


async def _delete_version(call: Call[None, NoQuery]) -> Answer:
    await call.gateway.bus.call(model.DELETE_VERSION, _version(call))
    return Answer(status=204)


async def _archive(call: Call[None, NoQuery]) -> web.StreamResponse:
    bus, wanted = call.gateway.bus, _version(call)
    found = await bus.call(model.GET_VERSION, wanted)
    if found.state != "ready" or not found.digest:
        raise Conflict(
            f"version {wanted.number} of model {wanted.model!r} is {found.state}: it can be downloaded once it is ready"
        )

    async def read(offset: int, _: int) -> Chunk:
        request = ReadArchive(project=wanted.project, model=wanted.model, number=wanted.number, offset=offset)
        return await bus.call(model.READ_ARCHIVE, request, timeout=30.0)

    digest = base64.b64encode(bytes.fromhex(found.digest.removeprefix("sha256:"))).decode()
    headers = {
        "Content-Type": "application/x-tar",
        "Content-Disposition": f'attachment; filename="{wanted.model}-{wanted.number}.tar"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Digest": f"sha-256={digest}",
    }
    return await send(call, read, size=found.archive_size, etag=f'"{found.digest}"', headers=headers)


async def _list_aliases(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(model.LIST_ALIASES, _named(call)))


async def _set_alias(call: Call[AliasTarget, NoQuery]) -> Answer:
    request = SetAlias(project=call.project, model=call.name, alias=call.path["alias"], version=call.body.version)
    return Answer(body=await call.gateway.bus.call(model.SET_ALIAS, request))


async def _get_alias(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(model.GET_ALIAS, _alias(call)))


async def _delete_alias(call: Call[None, NoQuery]) -> Answer:
    await call.gateway.bus.call(model.DELETE_ALIAS, _alias(call))
    return Answer(status=204)


async def _alias_history(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(model.ALIAS_HISTORY, _alias(call)))


ROUTES = (
    Route(
        method="GET",
        path=BASE,
        operation="listModels",
        noun="model",
        summary="List models",
        handle=_list,
        scope="read",
        query=Labelled,
        reply=Page[Model],
        verb=model.LIST_MODELS,
    ),
    Route(
        method="GET",
        path=BASE + "/{name}",
        operation="getModel",
        noun="model",
        summary="Look at a model",
        handle=_get,
        scope="read",
        reply=Model,
        problems=(404,),
        verb=model.GET_MODEL,
    ),
    Route(
        method="DELETE",
        path=BASE + "/{name}",
        operation="deleteModel",
        noun="model",
        summary="Delete a model with all its versions, none of which is served",
        handle=_delete,
        scope="write",
        statuses=(204,),
        problems=(404, 409),
        verb=model.DELETE_MODEL,
    ),
    Route(
        method="POST",
        path=BASE + "/{name}/versions",
        operation="saveVersion",
        noun="model",
        summary="Save a SavedModel, of a training or in a datastore, as the next version",
        handle=_save,
        scope="write",
        body=SaveRequest,
        new=frozenset({"name"}),
        reply=Version,
        statuses=(202, 201),
        problems=(404, 409),
        verb=model.SAVE,
        example={"training": "digits-1", "path": "out/export"},
    ),
    Route(
        method="GET",
        path=BASE + "/{name}/versions",
        operation="listVersions",
        noun="model",
        summary="List the versions of a model",
        handle=_list_versions,
        scope="read",
        query=Versions,
        reply=Page[Version],
        problems=(404,),
        verb=model.LIST_VERSIONS,
    ),
    Route(
        method="GET",
        path=_VERSION,
        operation="getVersion",
        noun="model",
        summary="Look at a version",
        handle=_get_version,
        scope="read",
        reply=Version,
        problems=(404,),
        verb=model.GET_VERSION,
    ),
    Route(
        method="DELETE",
        path=_VERSION,
        operation="deleteVersion",
        noun="model",
        summary="Delete a version that is not served and that no alias names",
        handle=_delete_version,
        scope="write",
        statuses=(204,),
        problems=(404, 409),
        verb=model.DELETE_VERSION,
    ),
    Route(
        method="GET",
        path=_VERSION + "/archive",
        operation="downloadVersion",
        noun="model",
        summary="Download a version as a tar",
        handle=_archive,
        scope="read",
        gives="application/x-tar",
        statuses=(200, 206, 304),
        problems=(404, 409, 416),
        verb=model.READ_ARCHIVE,
        reads=RANGE_HEADERS,
        sets={"Repr-Digest": "SHA-256 of the whole tar (RFC 9530); `Digest` has it in the old form."},
    ),
    Route(
        method="GET",
        path=BASE + "/{name}/aliases",
        operation="listAliases",
        noun="model",
        summary="List the aliases of a model",
        handle=_list_aliases,
        scope="read",
        reply=Page[Alias],
        problems=(404,),
        verb=model.LIST_ALIASES,
    ),
    Route(
        method="PUT",
        path=_ALIAS,
        operation="setAlias",
        noun="model",
        summary="Point an alias at a version",
        handle=_set_alias,
        scope="write",
        body=AliasTarget,
        new=frozenset({"alias"}),
        reply=Alias,
        problems=(404, 409),
        verb=model.SET_ALIAS,
        example={"version": 1},
    ),
    Route(
        method="GET",
        path=_ALIAS,
        operation="getAlias",
        noun="model",
        summary="Look at an alias",
        handle=_get_alias,
        scope="read",
        reply=Alias,
        problems=(404,),
        verb=model.GET_ALIAS,
    ),
    Route(
        method="DELETE",
        path=_ALIAS,
        operation="deleteAlias",
        noun="model",
        summary="Delete an alias",
        handle=_delete_alias,
        scope="write",
        statuses=(204,),
        problems=(404, 409),
        verb=model.DELETE_ALIAS,
    ),
    Route(
        method="GET",
        path=_ALIAS + "/history",
        operation="aliasHistory",
        noun="model",
        summary="Where an alias has pointed, newest first",
        handle=_alias_history,
        scope="read",
        reply=Page[AliasMove],
        problems=(404,),
        verb=model.ALIAS_HISTORY,
    ),
)
