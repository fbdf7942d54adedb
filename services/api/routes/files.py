"""``…/datastores/{name}/files/{path}``: list folders, fetch, put and delete files of a datastore."""

import hashlib
import secrets
from typing import Annotated
from urllib.parse import quote

import msgspec
from aiohttp import web

from services.api.bodies import body_parts
from services.api.routes import datastores
from services.api.routes.streams import RANGE_HEADERS, send
from services.api.table import Answer, Call, NoQuery, Route
from shared.contracts import datastore
from shared.contracts.common import CHUNK_BYTES, Chunk, Page, relative_path_problem
from shared.contracts.datastore import FileEntry, FileRequest, ListFiles, ReadFile, WriteFile
from shared.errors import Invalid

PATH = datastores.BASE + "/{name}/files/{path}"
KIND_HEADER = "Elearn-Kind"
_WRITE_SECONDS = 60.0


class Folder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a folder's listing.

    Attributes:
        limit: how many entries at the most.
        cursor: ``next`` of the page before.
        stat: ``true`` answers what lies at the path itself, be it a folder or a file.
    """

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 500
    cursor: str | None = None
    stat: bool = False


def _path(call: Call[None, Folder] | Call[None, NoQuery], *, may_be_top: bool) -> str:
    path = call.path["path"].rstrip("/")
    if path == "" and may_be_top:
        return path
    problem = relative_path_problem(path)
    if problem is not None:
        raise Invalid.field("path", problem)
    return path


async def _get(call: Call[None, Folder]) -> Answer | web.StreamResponse:
    bus, project, name = call.gateway.bus, call.project, call.name
    path = _path(call, may_be_top=True)
    entry = await bus.call(datastore.STAT_FILE, FileRequest(project=project, name=name, path=path))
    if call.query.stat:
        return Answer(body=entry, headers={KIND_HEADER: entry.kind})
    if entry.kind == "directory":
        listing = ListFiles(project=project, name=name, path=path, limit=call.query.limit, cursor=call.query.cursor)
        return Answer(body=await bus.call(datastore.LIST_FILES, listing), headers={KIND_HEADER: "directory"})

    async def read(offset: int, length: int) -> Chunk:
        return await bus.call(
            datastore.READ_FILE,
            ReadFile(project=project, name=name, path=path, offset=offset, length=min(length, CHUNK_BYTES)),
        )

    changed = f"{entry.size}-{entry.modified_at.timestamp()}"
    return await send(
        call,
        read,
        size=entry.size,
        etag=f'"{hashlib.sha256(changed.encode()).hexdigest()[:32]}"',
        headers={
            "Content-Type": "application/octet-stream",
            "Last-Modified": entry.modified_at.strftime("%a, %d %b %Y %H:%M:%S GMT"),
            KIND_HEADER: entry.kind,
        },
    )


async def _put(call: Call[None, NoQuery]) -> Answer:
    bus, project, name = call.gateway.bus, call.project, call.name
    path = _path(call, may_be_top=False)
    upload, offset = secrets.token_hex(16), 0
    held: bytes | None = None

    async def write(data: bytes, *, end: bool) -> None:
        part = WriteFile(project=project, name=name, path=path, upload=upload, offset=offset, data=data, end=end)
        await bus.call(datastore.WRITE_FILE, part, timeout=_WRITE_SECONDS)

    # One part is held back, so that the last one can be marked as such and the file appears whole.
    async for part in body_parts(call.request, call.gateway.settings.file_limit):
        if held is not None:
            await write(held, end=False)
            offset += len(held)
        held = part
    await write(held or b"", end=True)
    entry = await bus.call(datastore.STAT_FILE, FileRequest(project=project, name=name, path=path))
    location = f"/v1/projects/{project}/datastores/{name}/files/{quote(path)}"
    return Answer(body=entry, status=201, location=location)


async def _delete(call: Call[None, NoQuery]) -> Answer:
    request = FileRequest(project=call.project, name=call.name, path=_path(call, may_be_top=False))
    await call.gateway.bus.call(datastore.DELETE_FILE, request)
    return Answer(status=204)


ROUTES = (
    Route(
        method="GET",
        path=PATH,
        operation="getFile",
        noun="datastore",
        summary="List a folder, or fetch a file",
        handle=_get,
        scope="read",
        query=Folder,
        reply=Page[FileEntry],
        or_else=FileEntry,
        gives="application/octet-stream",
        statuses=(200, 206, 304),
        problems=(404, 416),
        verb=datastore.LIST_FILES,
        reads=RANGE_HEADERS,
        sets={KIND_HEADER: "`directory` where the answer is a listing, `file` where it is a file's bytes."},
    ),
    Route(
        method="PUT",
        path=PATH,
        operation="putFile",
        noun="datastore",
        summary="Put a file; it appears whole or not at all",
        handle=_put,
        scope="write",
        takes="application/octet-stream",
        reply=FileEntry,
        statuses=(201,),
        problems=(404, 409),
        verb=datastore.WRITE_FILE,
    ),
    Route(
        method="DELETE",
        path=PATH,
        operation="deleteFile",
        noun="datastore",
        summary="Delete a file, or a folder and all that is in it",
        handle=_delete,
        scope="write",
        statuses=(204,),
        problems=(404, 409),
        verb=datastore.DELETE_FILE,
    ),
)
