"""Small files that are whole or absent, also after a crash."""

import contextlib
import os
import secrets
from pathlib import Path
from typing import TypeVar

import msgspec

from elearn.up.errors import HomeError

T = TypeVar("T")


def write_atomically(path: Path, content: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Put ``content`` at ``path`` under a name of its own first, so that no reader sees half of it.

    Args:
        durable: whether it must also survive a power failure.

    Raises:
        OSError: no room, no right.
    """
    making = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        making.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            making.unlink()
        raise


def read_struct(path: Path, kind: type[T]) -> T | None:
    """The JSON struct at ``path``, or None where there is none.

    Raises:
        HomeError: the file holds something else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise HomeError(f"{path} is damaged ({error}): remove it to have it made anew") from error
