"""A storage cloud in memory, with knobs: what the datastore room is tested against besides the real ones."""

import asyncio
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

from services.datastore.cloud.port import (
    Capabilities,
    Directory,
    Observation,
    Provided,
    Removed,
    Synced,
    Unprovided,
)
from services.datastore.errors import NoSuchFile
from shared.contracts.common import Chunk
from shared.contracts.datastore import DatastoreSpec, FileEntry, LocalVolume, Probe, Volume
from shared.contracts.problem import FieldError
from shared.errors import Conflict, Invalid


class FakeStorage:
    """Args: refuse: why every directory is refused, or nothing."""

    capabilities = Capabilities(cloud="fake", backends=("local", "nfs"), keeps_files="the files stay")

    def __init__(self, *, refuse: str = "") -> None:
        self.refuse = refuse
        self.directories: dict[str, Observation] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.uploads: dict[tuple[str, str, str], bytearray] = {}
        self.calls: list[str] = []
        self._changed: list[asyncio.Queue[Observation]] = []

    async def admit(self, spec: DatastoreSpec) -> list[FieldError]:
        return []

    async def provision(self, directory: Directory) -> None:
        self.calls.append(f"provision {directory.uid}")
        if directory.uid in self.directories:
            return
        path = directory.spec.local.path if directory.spec.local else f"/fake/{directory.uid}"
        if self.refuse:
            self.tell(Unprovided(uid=directory.uid, reason=self.refuse))
        else:
            self.files.setdefault(path, {})
            self.tell(Provided(uid=directory.uid, volume=LocalVolume(path=path)))

    async def release(self, uid: str) -> None:
        self.calls.append(f"release {uid}")
        if self.directories.pop(uid, None) is not None:
            self.tell(Removed(uid=uid))

    def tell(self, observation: Observation) -> None:
        if isinstance(observation, Provided | Unprovided):
            self.directories[observation.uid] = observation
        for queue in self._changed:
            queue.put_nowait(observation)

    async def watch(self) -> AsyncGenerator[Observation, None]:
        queue: asyncio.Queue[Observation] = asyncio.Queue()
        self._changed.append(queue)
        try:
            for observation in tuple(self.directories.values()):
                yield observation
            yield Synced()
            while True:
                yield await queue.get()
        finally:
            self._changed.remove(queue)

    def _of(self, volume: Volume) -> dict[str, bytes]:
        assert isinstance(volume, LocalVolume)
        return self.files[volume.path]

    async def probe(self, volume: Volume, *, read_only: bool) -> Probe:
        self._of(volume)
        return Probe(ok=True, message="in memory", seconds=0.001, writable=not read_only)

    async def list(self, volume: Volume, path: str, *, after: str | None, limit: int) -> list[FileEntry]:
        _check(path)
        prefix = f"{path}/" if path else ""
        files = self._of(volume)
        if path and not any(name.startswith(prefix) for name in files):
            raise Conflict("not a folder") if path in files else NoSuchFile(path)
        names = {name[len(prefix) :].split("/")[0] for name in files if name.startswith(prefix)}
        chosen = sorted(name for name in names if after is None or name > after)[:limit]
        return [await self.stat(volume, prefix + name) for name in chosen]

    async def stat(self, volume: Volume, path: str) -> FileEntry:
        _check(path)
        files = self._of(volume)
        when = datetime.fromtimestamp(time.time(), UTC)
        if path in files:
            return FileEntry(path=path, kind="file", size=len(files[path]), modified_at=when)
        if not path or any(name.startswith(f"{path}/") for name in files):
            return FileEntry(path=path, kind="directory", size=0, modified_at=when)
        raise NoSuchFile(path)

    async def read(self, volume: Volume, path: str, *, offset: int, length: int) -> Chunk:
        entry = await self.stat(volume, path)
        if entry.kind != "file":
            raise Conflict("a folder")
        data = self._of(volume)[path][offset : offset + length]
        return Chunk(data=data, offset=offset, total=entry.size, end=offset + len(data) >= entry.size)

    async def write(self, volume: Volume, path: str, *, upload: str, offset: int, data: bytes, end: bool) -> None:
        _check(path)
        assert isinstance(volume, LocalVolume)
        if not path or any(name.startswith(f"{path}/") for name in self._of(volume)):
            raise Conflict("a folder")
        key = (volume.path, path, upload)
        if offset == 0:
            self.uploads[key] = bytearray()
        if key not in self.uploads or len(self.uploads[key]) < offset:
            raise Conflict("begin again")
        self.uploads[key][offset:] = data
        if end:
            self._of(volume)[path] = bytes(self.uploads.pop(key))

    async def delete(self, volume: Volume, path: str) -> None:
        entry = await self.stat(volume, path)
        if not path:
            raise Invalid.field("path", "the top")
        if entry.kind == "directory":
            raise Conflict("not empty")
        del self._of(volume)[path]

    async def sweep(self, volume: Volume, *, older_than: float) -> int:
        assert isinstance(volume, LocalVolume)
        if older_than > 0:
            return 0
        old = [key for key in self.uploads if key[0] == volume.path]
        for key in old:
            del self.uploads[key]
        return len(old)


def _check(path: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        raise Invalid.field("path", "leads out")
