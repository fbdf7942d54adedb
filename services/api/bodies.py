"""Reading what a request carries, never more of it than is allowed."""

from collections.abc import AsyncIterator

from aiohttp import web

from shared.contracts.common import CHUNK_BYTES, format_memory
from shared.errors import TooLarge


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is over the limit of {format_memory(limit)} ({limit} bytes)")


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        TooLarge: it has more than ``limit`` bytes.
    """
    body = bytearray()
    async for part in body_parts(request, limit):
        body += part
    return bytes(body)


async def body_parts(request: web.Request, limit: int, size: int = CHUNK_BYTES) -> AsyncIterator[bytes]:
    """The body in parts of ``size`` bytes, the last one shorter; nothing at all where it is empty.

    Raises:
        TooLarge: it has more than ``limit`` bytes; said at once where its length is announced.
    """
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    total = 0
    held = bytearray()
    async for part in request.content.iter_any():
        total += len(part)
        if total > limit:
            raise _too_large(limit)
        held += part
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)
