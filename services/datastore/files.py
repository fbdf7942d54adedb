"""Files of datastores: each request is checked against the row, then handed to the cloud."""

from services.datastore import store
from services.datastore.cloud.port import StorageCloud
from services.datastore.errors import NoSuchDatastore, NotReady, ReadOnly
from services.datastore.model import StoredDatastore
from shared.contracts.common import Chunk, Done, Named, Page
from shared.contracts.datastore import (
    FileEntry,
    FileRequest,
    ListFiles,
    Probe,
    ReadFile,
    Volume,
    WriteFile,
)
from shared.errors import Invalid
from shared.paging import decode_cursor, encode_cursor, fitting
from shared.postgres import Database


class Files:
    """Browsing and probing."""

    def __init__(self, database: Database, cloud: StorageCloud) -> None:
        self._database = database
        self._cloud = cloud

    async def probe(self, request: Named) -> Probe:
        """Try whether a datastore works."""
        stored, volume = await self._ready(request.project, request.name)
        return await self._cloud.probe(volume, read_only=stored.spec.read_only)

    async def list(self, request: ListFiles) -> Page[FileEntry]:
        """A page of a folder, by name."""
        cursor = decode_cursor(request.cursor, str)
        _, volume = await self._ready(request.project, request.name)
        found = await self._cloud.list(
            volume, request.path, after=str(cursor[0]) if cursor else None, limit=request.limit + 1
        )
        shown = tuple(fitting(found[: request.limit]))
        more = len(found) > len(shown)
        return Page(items=shown, next=encode_cursor(shown[-1].path.rpartition("/")[2]) if more and shown else None)

    async def stat(self, request: FileRequest) -> FileEntry:
        """What lies at a path."""
        _, volume = await self._ready(request.project, request.name)
        return await self._cloud.stat(volume, request.path)

    async def read(self, request: ReadFile) -> Chunk:
        """A part of a file."""
        _, volume = await self._ready(request.project, request.name)
        return await self._cloud.read(volume, request.path, offset=request.offset, length=request.length)

    async def write(self, request: WriteFile) -> Done:
        """One part of an upload.

        Raises:
            ReadOnly: the datastore may not be written.
        """
        if not request.upload:
            raise Invalid.field("upload", "must not be empty")
        if request.offset < 0:
            raise Invalid.field("offset", "must not be negative")
        volume = await self._writable(request.project, request.name)
        await self._cloud.write(
            volume,
            request.path,
            upload=request.upload,
            offset=request.offset,
            data=request.data,
            end=request.end,
        )
        return Done()

    async def delete(self, request: FileRequest) -> Done:
        """Delete a file, a link, or an empty folder.

        Raises:
            ReadOnly: the datastore may not be written.
        """
        volume = await self._writable(request.project, request.name)
        await self._cloud.delete(volume, request.path)
        return Done()

    async def _writable(self, project: str, name: str) -> Volume:
        stored, volume = await self._ready(project, name)
        if stored.spec.read_only:
            raise ReadOnly(name)
        return volume

    async def _ready(self, project: str, name: str) -> tuple[StoredDatastore, Volume]:
        async with self._database.transaction() as transaction:
            stored = await store.load(transaction, project, name)
        if stored is None:
            raise NoSuchDatastore(project, name)
        if stored.state != "ready" or stored.volume is None:
            raise NotReady(name, stored.state, stored.reason)
        return stored, stored.volume
