"""What the datastore room asks of a cloud."""

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

import msgspec

from shared.contracts.common import Chunk
from shared.contracts.datastore import Backend, DatastoreSpec, FileEntry, Probe, Volume
from shared.contracts.problem import FieldError


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud can do; a spec that asks for more is refused when it comes in.

    Attributes:
        cloud: its name, for sentences.
        backends: kinds of storage that it makes into directories.
        keeps_files: what becomes of the files when a datastore is deleted, as a sentence.
        hints: what an operator would have to provide for backends that are not offered.
    """

    cloud: str
    backends: tuple[Backend, ...]
    keeps_files: str
    hints: Mapping[Backend, str] = {}


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """A directory to provide; ``uid`` is its identity, the rest is for people and for labels."""

    uid: str
    project: str
    name: str
    spec: DatastoreSpec


class Provided(msgspec.Struct, frozen=True, kw_only=True):
    """The directory is there and can be mounted as ``volume``."""

    uid: str
    volume: Volume
    note: str = ""


class Unprovided(msgspec.Struct, frozen=True, kw_only=True):
    """The directory can't be provided, or is no longer there."""

    uid: str
    reason: str


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud holds nothing of it any more."""

    uid: str


class Synced(msgspec.Struct, frozen=True):
    """A watch has told all there is; from here on come changes."""


Observation = Provided | Unprovided | Removed | Synced


class StorageCloud(Protocol):
    """Makes storage look like directories.

    Paths are relative to the volume; one that leads outside, by ``..`` or by a symbolic link, raises
    ``Invalid``. Time-outs are the driver's: what does not answer raises ``Unavailable``.
    """

    capabilities: Capabilities

    async def admit(self, spec: DatastoreSpec) -> list[FieldError]:
        """What keeps this cloud from ever providing it, known at once; its backend is one of ours."""

    async def provision(self, directory: Directory) -> None:
        """Begin to provide a directory; :meth:`watch` tells how it went. Idempotent by uid.

        Raises:
            StorageFull: not even a record of it could be written.
        """

    async def release(self, uid: str) -> None:
        """Let go of a directory, files untouched; what is gone is success. The watch tells ``Removed``."""

    def watch(self) -> AsyncGenerator[Observation, None]:
        """What is there, then :class:`Synced`, then every change; never ends."""

    async def probe(self, volume: Volume, *, read_only: bool) -> Probe:
        """Try whether it works: write, rename, read back and delete a file, or list where it is read-only."""

    async def list(self, volume: Volume, path: str, *, after: str | None, limit: int) -> list[FileEntry]:
        """Entries of a folder in the order of their names, from the one that follows the name ``after``."""

    async def stat(self, volume: Volume, path: str) -> FileEntry:
        """What lies at a path."""

    async def read(self, volume: Volume, path: str, *, offset: int, length: int) -> Chunk:
        """A part of a file."""

    async def write(self, volume: Volume, path: str, *, upload: str, offset: int, data: bytes, end: bool) -> None:
        """One part of an upload; the file appears, whole, with the last.

        Raises:
            Conflict: the part before this one is missing: begin again.
            StorageFull: no room.
        """

    async def delete(self, volume: Volume, path: str) -> None:
        """Delete a file, a link, or an empty folder."""

    async def sweep(self, volume: Volume, *, older_than: float) -> int:
        """Remove uploads that were abandoned that many seconds ago; how many there were."""
