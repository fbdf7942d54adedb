"""Log files that processes append to themselves, kept small from outside.

The processes hold the files open and outlive the supervisor, so a log is copied away and emptied in place
rather than renamed: whoever appends goes on in the same file.
"""

import os
import shutil
from pathlib import Path

import msgspec

LARGEST = 10 * 2**20
"""Bytes after which a log is turned over."""
KEPT = 3
"""Older parts that are kept beside it: NAME.log.1 is the youngest."""


def open_log(path: Path) -> int:
    """A descriptor that appends to the log; readable by its owner alone."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def turn_over(path: Path, largest: int = LARGEST, kept: int = KEPT) -> bool:
    """Move the log's content to NAME.1 (and that to NAME.2 …) when it has grown beyond ``largest`` bytes.

    Returns:
        Whether it was turned over.
    """
    try:
        if path.stat().st_size <= largest:
            return False
    except FileNotFoundError:
        return False
    parts = [path.with_name(f"{path.name}.{number}") for number in range(1, kept + 1)]
    making = path.with_name(f"{path.name}.new")
    with path.open("rb") as source, making.open("wb") as target:
        making.chmod(0o600)
        while True:
            shutil.copyfileobj(source, target)
            # What is appended between this look and the next line is lost: microseconds, once per turn.
            if os.fstat(source.fileno()).st_size == source.tell():
                os.truncate(path, 0)
                break
    for older, younger in zip(reversed(parts), reversed(parts[:-1]), strict=False):
        if younger.exists():
            younger.replace(older)
    making.replace(parts[0])
    return True


def last_line(path: Path) -> str | None:
    """The last line that says something, shortened; None where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return next((_in_words(line.strip())[-300:] for line in reversed(lines) if line.strip()), None)


class _Entry(msgspec.Struct):
    event: str
    error: str = ""


def _in_words(line: str) -> str:
    try:
        entry = msgspec.json.decode(line, type=_Entry)
    except msgspec.DecodeError:
        return line
    return f"{entry.event}: {entry.error}" if entry.error else entry.event
