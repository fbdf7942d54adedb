"""A folder of code on its way to elearn: packed, and sent only where it is not there yet."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from elearn.client.transport import Transport
from shared.errors import Invalid, NotFound

_BLOCK: Final = 1 << 18
DIGEST_PREFIX: Final = "sha256:"


def is_digest(code: str) -> bool:
    """Whether ``code`` names an archive that was sent before, and not a folder."""
    return code.startswith(DIGEST_PREFIX)


def send_code(transport: Transport, base: str, folder: Path) -> str:
    """Pack a folder and send it, unless elearn has the same already.

    Returns:
        Its digest, for the ``code`` of a spec.

    Raises:
        Invalid: it is not a folder, or holds what can't be packed.
        TooLarge: it is over the limit of what code may be.
    """
    from shared.archive import pack  # on demand: most commands never pack anything

    if not folder.is_dir():
        raise Invalid.field("code", f"{folder} is not a folder")
    with tempfile.TemporaryDirectory(prefix="elearn-code-") as scratch:
        archive = Path(scratch) / "code.tar.gz"
        packed = pack(folder, archive)
        path = f"{base}/code/{packed.digest}"
        if not _is_there(transport, path):
            transport.send(
                "PUT",
                path,
                headers={"Content-Type": "application/gzip", "Content-Length": str(packed.size)},
                content=lambda: blocks(archive),
            )
    return packed.digest


def blocks(path: Path) -> Iterator[bytes]:
    """A file's bytes, a block at a time."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _is_there(transport: Transport, path: str) -> bool:
    try:
        transport.send("HEAD", path)
    except NotFound:
        return False
    return True
