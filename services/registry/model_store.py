"""The model store on disk. Everything here blocks.

    <root>/<project>/<model>/<number>/        a SavedModel, whole: what model servers read
    <root>/.manifests/<project>/<model>/<number>.json
    <root>/.staging/<project>.<model>.<number>/   a copy under way
    <root>/.trash/…                               on its way out

A version appears by one rename, after its manifest has been written.
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path

import msgspec

from services.registry.archive import Entry
from services.registry.model import Facts, Key


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a version consists of, and what is known of it."""

    facts: Facts
    entries: tuple[Entry, ...]


class ModelStore:
    """Versions below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def relative(self, key: Key) -> str:
        """Where a version lies, relative to the root."""
        return f"{key.project}/{key.model}/{key.number}"

    def version(self, key: Key) -> Path:
        """Where a version lies."""
        return self.root / self.relative(key)

    def staging(self, key: Key) -> Path:
        """Where a version is being put together."""
        return self.root / ".staging" / f"{key.project}.{key.model}.{key.number}"

    def saved(self, key: Key) -> Manifest | None:
        """The manifest of a version that lies here whole, or None."""
        if not self.version(key).is_dir():
            return None
        try:
            return msgspec.json.decode(self._manifest(key).read_bytes(), type=Manifest)
        except FileNotFoundError:
            return None

    def publish(self, key: Key, manifest: Manifest) -> None:
        """Make what lies in the staging folder the version, at once and for good.

        Raises:
            FileExistsError, OSError: the version is there already.
        """
        path = self._manifest(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            write_durably(temporary, msgspec.json.encode(manifest))
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
        target = self.version(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.staging(key).rename(target)
        sync_folder(target.parent)

    def clear_staging(self, key: Key) -> None:
        """Remove what an interrupted copy left."""
        self._discard(self.staging(key), key)

    def remove(self, key: Key) -> None:
        """Remove a version and all that was left of saving it; what is gone is success."""
        self._discard(self.version(key), key)
        self._manifest(key).unlink(missing_ok=True)
        self.clear_staging(key)
        for left in (self.root / ".trash").glob(f"{self.staging(key).name}.*"):
            shutil.rmtree(left)
        for folder in (self.version(key).parent, self._manifest(key).parent):
            for empty in (folder, folder.parent):
                with contextlib.suppress(OSError):  # not empty, or not there
                    empty.rmdir()

    def _discard(self, folder: Path, key: Key) -> None:
        if not os.path.lexists(folder):
            return
        trash = self.root / ".trash"
        trash.mkdir(parents=True, exist_ok=True)
        going = trash / f"{self.staging(key).name}.{secrets.token_hex(4)}"
        folder.rename(going)  # at once: nobody ever meets half a version
        shutil.rmtree(going)

    def _manifest(self, key: Key) -> Path:
        return self.root / ".manifests" / key.project / key.model / f"{key.number}.json"


def write_durably(path: Path, content: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
