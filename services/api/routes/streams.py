"""Sending bytes that a room hands out chunk by chunk, with ranges, and never half of them unnoticed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from services.api.errors import RangeNotSatisfiable
from services.api.ranges import Outside, Span, is_known, requested_span
from services.api.table import Call
from shared.contracts.common import Chunk
from shared.errors import Unavailable

Read = Callable[[int, int], Awaitable[Chunk]]
"""Reads from an offset on, at most so many bytes."""

RANGE_HEADERS = {
    "Range": "One range of bytes, so that a download that was cut goes on where it ended.",
    "If-Range": "Heed `Range` only if the thing still has this `ETag`.",
    "If-None-Match": "Answer 304 if the thing still has this `ETag`.",
}


async def send(
    call: Call[Any, Any], read: Read, *, size: int, etag: str, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Answer with a thing of ``size`` bytes, or with the part of it that was asked for.

    Raises:
        RangeNotSatisfiable: that part lies outside.
    """
    request = call.request
    fixed = {**headers, "ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if is_known(request.headers, etag):
        return web.Response(status=304, headers=fixed)
    try:
        span = requested_span(request.headers, etag, size)
    except Outside:
        raise RangeNotSatisfiable(size) from None
    response = web.StreamResponse(status=206 if span.partial else 200, headers=fixed)
    response.content_length = span.length
    if span.partial:
        response.headers["Content-Range"] = f"bytes {span.start}-{span.start + span.length - 1}/{size}"
    if call.is_head or span.length == 0:
        await response.prepare(request)
        await response.write_eof()
        return response
    await _copy(call, response, read, span)
    return response


async def _copy(call: Call[Any, Any], response: web.StreamResponse, read: Read, span: Span) -> None:
    """Send a span, reading the next chunk while the last one is on its way."""
    offset, end = span.start, span.start + span.length
    coming = asyncio.ensure_future(read(offset, end - offset))
    try:
        while offset < end:
            chunk = await coming
            data = chunk.data[: end - offset]
            if not data:
                raise Unavailable("there are fewer bytes than were promised")
            offset += len(data)
            if offset < end:
                coming = asyncio.ensure_future(read(offset, end - offset))
            if not response.prepared:
                await response.prepare(call.request)
            await response.write(data)
        await response.write_eof()
    finally:
        if not coming.done():
            coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
