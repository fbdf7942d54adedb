"""Cutting a stream of bytes into lines. Pure."""

from collections.abc import Awaitable, Callable
from typing import Final

from shared.contracts.common import Chunk

_LONGEST: Final = 64 * 1024


class LineCutter:
    """Puts a prefix before each line of a stream that comes in arbitrary parts.

    Lines over 64 KiB are broken, so that memory stays bounded.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self._held = b""

    def cut(self, part: bytes) -> bytes:
        """The lines that end in ``part``, each with the prefix."""
        *lines, self._held = (self._held + part).split(b"\n")
        out = [self._prefix + line + b"\n" for line in lines]
        if len(self._held) > _LONGEST:
            out.append(self._prefix + self._held + b"\n")
            self._held = b""
        return b"".join(out)

    def rest(self) -> bytes:
        """The last line, where no line end came."""
        held, self._held = self._held, b""
        return self._prefix + held + b"\n" if held else b""


async def last_lines(read: Callable[[int, int], Awaitable[Chunk]], lines: int, block: int) -> int:
    """Where the last ``lines`` lines begin.

    Args:
        read: reads from an offset (a negative one counts from the end) at most so many bytes.
        block: how many bytes to look through at a time.
    """
    chunk = await read(-block, block)
    wanted = lines + (1 if chunk.data.endswith(b"\n") else 0)
    if wanted == 0:
        return chunk.offset + len(chunk.data)
    while True:
        seen = chunk.data.count(b"\n")
        if seen >= wanted:
            place = len(chunk.data)
            for _ in range(wanted):
                place = chunk.data.rfind(b"\n", 0, place)
            return chunk.offset + place + 1
        if chunk.offset == 0 or not chunk.data:
            return chunk.offset
        wanted -= seen
        before = max(0, chunk.offset - block)
        chunk = await read(before, chunk.offset - before)
