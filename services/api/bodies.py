"""Reading what a request carries, never more of it than is allowed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from shared.contracts.common import CHUNK_BYTES, format_memory
from shared.errors import Malformed, TooLarge

_IDLE_SECONDS: Final = 60.0


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {format_memory(limit)} ({limit} bytes)")


async def _more(request: web.Request) -> bytes:
    """What has come of the body; nothing at its end.

    Raises:
        Malformed: nothing came for a long while.
    """
    try:
        async with asyncio.timeout(_IDLE_SECONDS):
            return await request.content.readany()
    except TimeoutError:
        raise Malformed(f"nothing of the body came for {_IDLE_SECONDS:g} s") from None


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        TooLarge: it has more than ``limit`` bytes.
        Malformed: it does not come.
    """
    body = bytearray()
    async for part in body_parts(request, limit):
        body += part
    return bytes(body)


async def body_parts(request: web.Request, limit: int, size: int = CHUNK_BYTES) -> AsyncIterator[bytes]:
    """The body in parts of ``size`` bytes, the last one shorter; nothing at all where it is empty.

    Raises:
        TooLarge: it has more than ``limit`` bytes; said at once where its length is announced.
        Malformed: it does not come.
    """
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    total = 0
    held = bytearray()
    while part := await _more(request):
        total += len(part)
        if total > limit:
            raise _too_large(limit)
        held += part
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)
