"""Downloading the archive of a model version: resumed, checked, unpacked whole or not at all."""

import errno
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from elearn.client.errors import Damaged
from elearn.client.transport import Transport
from shared.contracts.model import Version
from shared.errors import Invalid, StorageFull, Unavailable

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes in all."""

_FRUITLESS_TRIES: Final = 5


def download_archive(
    transport: Transport, path: str, version: Version, to: Path, *, unpack: bool, progress: Progress
) -> Path:
    """See :meth:`elearn.client.models.Models.download`."""
    to = to.absolute()
    if to.is_symlink() or (to.exists() and not (unpack and to.is_dir() and not any(to.iterdir()))):
        raise Invalid.field("to", f"{to} is there already: name one that is not")
    digest = version.digest.removeprefix("sha256:")
    # Named by what it becomes, so that a part of another version is never gone on with.
    part = to.with_name(f".{to.name}.{digest[:16]}.part")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        _fetch(transport, path, version, part, progress)
        _check(part, digest, version)
        if unpack:
            _unpack(part, to)
            part.unlink()
        else:
            part.replace(to)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no space left at {to.parent}; the download goes on where it was") from error
        raise Invalid.field("to", f"can't write {error.filename or to}: {error.strerror or error}") from error
    return to


def _fetch(transport: Transport, path: str, version: Version, part: Path, progress: Progress) -> None:
    """Bring the whole archive into ``part``, going on after what is in it already."""
    fruitless = 0
    with part.open("ab") as file:
        while (there := file.tell()) < version.archive_size:
            headers = {"Range": f"bytes={there}-"} if there else {}
            try:
                with transport.stream(path, headers=headers, quiet=60.0) as response:
                    if there and response.status_code != httpx.codes.PARTIAL_CONTENT:
                        file.truncate(0)  # this gateway gives it from the start only
                        file.seek(0)
                    for block in response.iter_bytes():
                        file.write(block)
                        progress(file.tell(), version.archive_size)
            except Unavailable:
                fruitless = fruitless + 1 if file.tell() <= there else 0
                if fruitless >= _FRUITLESS_TRIES:
                    raise
                time.sleep(0.2 * fruitless)
            else:
                if file.tell() <= there:
                    break  # it ended short of its size: the digest will tell


def _check(part: Path, digest: str, version: Version) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        part.unlink()
        raise Damaged(
            f"{version.model} version {version.number} arrived with the digest sha256:{found} in place of "
            f"sha256:{digest}: nothing of it was kept, download it again"
        )


def _unpack(part: Path, to: Path) -> None:
    from shared.unpacking import Limits, unpack  # on demand: most commands never unpack anything

    # The digest has told already that these are the bytes that were saved: only the disk bounds them.
    unpack(part, to, Limits(total=1 << 50, files=10_000_000, compressed=1 << 50))
