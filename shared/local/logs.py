"""Reading a task's log while it grows: from an offset, its last lines, or live until the task has finished.

Offsets are bytes from the start of all that was ever written. When a log grew over its limit, the keeper
freed its oldest part (a hole in the file): reading there goes on behind it, as the chunk's offset tells.
"""

import asyncio
import codecs
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

LONGEST_LINE = 64 * 1024  # bytes; a longer one comes in pieces
_CHUNK = 256 * 1024
_QUICK, _SLOW = 0.02, 0.5  # seconds between looks at a log that somebody follows


class LogChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a log.

    Attributes:
        offset: where the text begins: later than asked for when older text was dropped.
        text: whole lines where possible; what is not UTF-8 is replaced.
        next: where to go on.
        end: there was no more at that moment.
    """

    offset: int
    text: str
    next: int
    end: bool


def read(path: Path, offset: int = 0, limit: int = _CHUNK) -> LogChunk:
    """At most ``limit`` bytes from ``offset``, cut after a line where there is one. A missing file is an empty log.

    Blocks briefly: call it in a thread.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return LogChunk(offset=offset, text="", next=offset, end=True)
    try:
        size = os.fstat(descriptor).st_size
        start = _skip_hole(descriptor, offset, size)
        data = os.pread(descriptor, max(limit, 4), start)
    finally:
        os.close(descriptor)
    end = start + len(data) >= size
    if start > offset:
        cut = _first_whole_line(data)
        start, data = start + cut, data[cut:]
    newline = data.rfind(b"\n") + 1
    if newline:
        data = data[:newline]
    elif not end or len(data) >= limit:
        data = data[: _whole_characters(data)]
    after = start + len(data)
    return LogChunk(offset=start, text=data.decode("utf-8", "replace"), next=after, end=after >= size)


def tail(path: Path, lines: int, limit: int = 1024 * 1024) -> LogChunk:
    """The last ``lines`` lines, or fewer where they would be more than ``limit`` bytes. Blocks briefly."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            first = _skip_hole(file.fileno(), 0, size)
            found, start, block = -1, size, 8192
            data = b""
            while start > first and len(data) < limit and found < 0:
                step = min(block, start - first, limit - len(data))
                start -= step
                file.seek(start)
                data = file.read(step) + data
                block *= 2
                found = _nth_line_from_end(data, lines)
    except FileNotFoundError:
        return LogChunk(offset=0, text="", next=0, end=True)
    if found < 0:
        found = _first_whole_line(data) if start > 0 else 0
    return LogChunk(offset=start + found, text=data[found:].decode("utf-8", "replace"), next=size, end=True)


async def follow(path: Path, finished: Callable[[], Awaitable[bool]], offset: int = 0) -> AsyncIterator[LogChunk]:
    """A log from ``offset``, and what is written from now on; ends when ``finished()`` says so and all was read.

    A line comes when it is complete, or longer than :data:`LONGEST_LINE`, or has stood unfinished for a moment (a
    progress bar). Looks at the file's size at growing intervals, from 20 ms to half a second.
    """
    pause = _QUICK
    while True:
        done = await finished()  # asked before reading: what was written until then is read below
        chunk = await asyncio.to_thread(read, path, offset)
        if chunk.text:
            offset = chunk.next
            pause = _QUICK
            yield chunk
        elif chunk.end and done:
            return
        if chunk.end and not done:
            await asyncio.sleep(pause)
            pause = min(_SLOW, pause * 1.5)


def lines(chunk: LogChunk) -> list[str]:
    """A chunk's lines without their ends; one longer than :data:`LONGEST_LINE` characters comes in pieces."""
    found = []
    for line in chunk.text.split("\n"):
        found += [line[at : at + LONGEST_LINE] for at in range(0, len(line), LONGEST_LINE)] or [""]
    return found[:-1] if chunk.text.endswith("\n") else found


def _skip_hole(descriptor: int, offset: int, size: int) -> int:
    offset = min(max(offset, 0), size)
    if offset == size:
        return offset
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError:  # a file system without holes, or one at the very end
        return offset


def _first_whole_line(data: bytes) -> int:
    """Where the first line begins that was not cut off in front; 0 when there is but one line."""
    newline = data.find(b"\n") + 1
    return newline if newline < len(data) else 0


def _whole_characters(data: bytes) -> int:
    """How many bytes hold whole characters: a chunk must not cut one in two."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return len(data) - len(decoder.getstate()[0])


def _nth_line_from_end(data: bytes, lines: int) -> int:
    """Where the last ``lines`` lines begin; -1 when the data has fewer."""
    at = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return -1
    return at + 1
