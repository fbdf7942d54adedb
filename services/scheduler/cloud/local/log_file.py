"""Reading a task's log as bytes: offsets are those of the file, whatever was dropped from its start."""

import os
from pathlib import Path

from services.scheduler.cloud.port import LogPart


def read(path: Path, offset: int, length: int) -> LogPart:
    """At most ``length`` bytes from ``offset``, a negative one counting from the end. Blocks briefly.

    Where the keeper has freed the oldest part of a log over its limit, reading goes on behind the hole.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return LogPart(data=b"", offset=max(offset, 0), size=0)
    try:
        size = os.fstat(descriptor).st_size
        start = max(size + offset, 0) if offset < 0 else offset
        if start < size:
            start = _behind_hole(descriptor, start)
        return LogPart(data=os.pread(descriptor, length, start), offset=start, size=size)
    finally:
        os.close(descriptor)


def _behind_hole(descriptor: int, offset: int) -> int:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError:
        return offset  # a file system that knows no holes


def last_line(path: Path) -> str:
    """The last line that says something, or nothing. Blocks briefly."""
    text = read(path, -4096, 4096).data.decode("utf-8", "replace")
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
