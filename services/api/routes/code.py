"""``/v1/projects/{project}/code/{digest}``: archives of code, named by what is in them."""

import asyncio
import hashlib
import secrets
import tempfile
from pathlib import Path
from typing import BinaryIO, Final, cast

import msgspec
from aiohttp import web

from services.api.bodies import body_parts
from services.api.routes.streams import RANGE_HEADERS, send
from services.api.table import Answer, Call, NoQuery, Route
from shared.contracts import training
from shared.contracts.common import CHUNK_BYTES, Chunk
from shared.contracts.training import CodeArchive, CodeChunk, CodeRequest, ReadCode
from shared.errors import Invalid, NotFound
from shared.unpacking import CODE, Limits, storing, verify

PATH = "/v1/projects/{project}/code/{digest}"
_PUT_SECONDS: Final = 60.0


async def _put(call: Call[None, NoQuery]) -> Answer:
    """Take an archive whole, look through it, and only then hand it on."""
    project, digest = call.project, call.path["digest"]
    folder = call.gateway.settings.home / "uploads"
    with storing(folder):
        spool = await asyncio.to_thread(_spool, folder)
    # The file has no name: whatever becomes of this process, nothing of it stays behind.
    try:
        size = await _receive(call, spool, folder, digest)
        limits = msgspec.structs.replace(CODE, compressed=call.gateway.settings.code_limit)
        await asyncio.to_thread(_verify, spool, limits)
        known = await _stat(call)
        if known is None:
            await _hand_on(call, spool, size)
            known = await call.gateway.bus.call(training.STAT_CODE, CodeRequest(project=project, digest=digest))
            return Answer(body=known, status=201, location=call.request.path)
        return Answer(body=known, status=200, location=call.request.path)
    finally:
        await asyncio.to_thread(spool.close)


def _spool(folder: Path) -> BinaryIO:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))


async def _receive(call: Call[None, NoQuery], spool: BinaryIO, folder: Path, digest: str) -> int:
    """Write the body down.

    Raises:
        Invalid: it is not what the digest names.
        TooLarge, StorageFull: there is no room for it.
    """
    found, size = hashlib.sha256(), 0
    with storing(folder):
        async for part in body_parts(call.request, call.gateway.settings.code_limit):
            found.update(part)
            size += len(part)
            await asyncio.to_thread(spool.write, part)
        await asyncio.to_thread(spool.flush)
    if f"sha256:{found.hexdigest()}" != digest:
        raise Invalid.field("digest", f"the {size} bytes that came have the digest sha256:{found.hexdigest()}")
    return size


def _verify(spool: BinaryIO, limits: Limits) -> None:
    spool.seek(0)
    verify(spool, limits)
    spool.seek(0)


async def _hand_on(call: Call[None, NoQuery], spool: BinaryIO, size: int) -> None:
    project, digest, upload = call.project, call.path["digest"], secrets.token_hex(16)
    offset = 0
    while offset < size:
        data = await asyncio.to_thread(spool.read, CHUNK_BYTES)
        part = CodeChunk(
            project=project,
            digest=digest,
            upload=upload,
            offset=offset,
            data=data,
            end=offset + len(data) >= size,
        )
        await call.gateway.bus.call(training.PUT_CODE, part, timeout=_PUT_SECONDS)
        offset += len(data)


async def _stat(call: Call[None, NoQuery]) -> CodeArchive | None:
    request = CodeRequest(project=call.project, digest=call.path["digest"])
    try:
        return await call.gateway.bus.call(training.STAT_CODE, request)
    except NotFound:
        return None


async def _get(call: Call[None, NoQuery]) -> web.StreamResponse:
    bus, project, digest = call.gateway.bus, call.project, call.path["digest"]
    found = await bus.call(training.STAT_CODE, CodeRequest(project=project, digest=digest))

    async def read(offset: int, _: int) -> Chunk:
        return await bus.call(training.READ_CODE, ReadCode(project=project, digest=digest, offset=offset))

    headers = {"Content-Type": "application/x-tar"}
    return await send(call, read, size=found.size, etag=f'"{digest}"', headers=headers)


ROUTES = (
    Route(
        method="PUT",
        path=PATH,
        operation="putCode",
        noun="code",
        summary="Upload an archive of code (tar, plain or gzip); a training names it by its digest",
        handle=_put,
        scope="write",
        new=frozenset({"digest"}),
        takes="application/x-tar",
        reply=CodeArchive,
        statuses=(201, 200),
        verb=training.PUT_CODE,
    ),
    Route(
        method="GET",
        path=PATH,
        operation="getCode",
        noun="code",
        summary="Fetch an archive of code; HEAD tells whether it is there",
        handle=_get,
        scope="read",
        gives="application/x-tar",
        statuses=(200, 206, 304),
        problems=(404, 416),
        verb=training.READ_CODE,
        reads=RANGE_HEADERS,
    ),
)
