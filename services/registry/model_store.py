"""The model store on disk. Everything here blocks.

    <root>/<project>/<model>/<number>/        a SavedModel, whole: what model servers read
    <root>/.manifests/<project>/<model>/<number>.json
    <root>/.staging/<project>.<model>.<number>.<attempt>/   a copy under way
    <root>/.trash/…                               on its way out

A version appears by one rename, after its manifest has been written.
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

import msgspec

from services.registry.archive import Entry
from services.registry.model import Facts, Key

_TRIES: Final = 5


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
        return relative_path(key)

    def version(self, key: Key) -> Path:
        """Where a version lies."""
        return self.root / self.relative(key)

    def staging(self, key: Key, attempt: int) -> Path:
        """Where one attempt puts a version together."""
        return self.root / ".staging" / f"{_flat(key)}.{attempt}"

    def saved(self, key: Key) -> Manifest | None:
        """The manifest of a version that lies here whole, or None."""
        if not self.version(key).is_dir():
            return None
        try:
            return msgspec.json.decode(self._manifest(key).read_bytes(), type=Manifest)
        except FileNotFoundError:
            return None

    def publish(self, key: Key, attempt: int, manifest: Manifest) -> None:
        """Make what lies in the attempt's staging folder the version, at once and for good.

        Raises:
            OSError: the version is there already, the disk is full.
        """
        path = self._manifest(key)
        temporary = self._staged_manifest(key, attempt)
        try:
            write_durably(temporary, msgspec.json.encode(manifest))
            _rename_into(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _rename_into(self.staging(key, attempt), self.version(key))

    def clear_staging(self, key: Key, attempt: int) -> None:
        """Remove what an interrupted copy left."""
        _delete(self.staging(key, attempt))
        _delete(self._staged_manifest(key, attempt))

    def remove(self, key: Key) -> None:
        """Remove a version and all that was left of saving it; what is gone is success."""
        self._discard(self.version(key), key)
        self._manifest(key).unlink(missing_ok=True)
        for folder in (".staging", ".trash"):
            for left in (self.root / folder).glob(f"{_flat(key)}.*"):
                _delete(left)
        for parent in (self.version(key).parent, self._manifest(key).parent):
            for empty in (parent, parent.parent):
                with contextlib.suppress(OSError):  # not empty, or not there
                    empty.rmdir()

    def _discard(self, version: Path, key: Key) -> None:
        """At once, by a rename, so that nobody ever meets half a version."""
        if not os.path.lexists(version):
            return
        going = self.root / ".trash" / f"{_flat(key)}.{secrets.token_hex(4)}"
        try:
            going.parent.mkdir(parents=True, exist_ok=True)
            version.rename(going)
        except OSError:  # a disk can be too full even for that
            going = version
        shutil.rmtree(going)

    def _staged_manifest(self, key: Key, attempt: int) -> Path:
        return self.root / ".staging" / f"{_flat(key)}.{attempt}.json"

    def _manifest(self, key: Key) -> Path:
        return self.root / ".manifests" / key.project / key.model / f"{key.number}.json"


def relative_path(key: Key) -> str:
    """Where a version lies in any model store, relative to its root."""
    return f"{key.project}/{key.model}/{key.number}"


def _flat(key: Key) -> str:
    return f"{key.project}.{key.model}.{key.number}"


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _rename_into(source: Path, target: Path) -> None:
    """Rename, making the parents; another's removal of its last version may take them away in between."""
    for left in reversed(range(_TRIES)):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
        except FileNotFoundError:
            if not left:
                raise
        else:
            sync_folder(target.parent)
            return


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
