"""Reads answered over request and reply."""

from services.registry import alias_store, changes, store
from services.registry.cloud.port import JobCloud
from services.registry.errors import NoSuchAlias, NoSuchModel, NoSuchVersion, VersionNotReady
from services.registry.model import Key, StoredVersion
from shared.contracts.common import CHUNK_BYTES, Chunk, ListRequest, Named, Page
from shared.contracts.model import (
    Alias,
    ListVersions,
    Model,
    ReadArchive,
    ResolveVersion,
    ServableVersion,
    Version,
    VersionRequest,
)
from shared.errors import Invalid
from shared.paging import decode_cursor, encode_cursor, fitting
from shared.postgres import Database, Transaction


class Queries:
    """What this room answers without changing anything."""

    def __init__(self, database: Database, cloud: JobCloud) -> None:
        self._database = database
        self._cloud = cloud

    async def list_models(self, request: ListRequest) -> Page[Model]:
        """Models of a project by name.

        Raises:
            Invalid: models have neither states nor labels; versions do.
        """
        for field in ("state", "labels"):
            if getattr(request, field):
                raise Invalid.field(field, "models can't be filtered by it; versions can")
        cursor = decode_cursor(request.cursor, str)
        async with self._database.transaction() as transaction:
            found = await store.page_of_models(
                transaction, request.project, after=str(cursor[0]) if cursor else "", limit=request.limit
            )
            shown = fitting(found[: request.limit])
            aliases = await alias_store.load_of(transaction, request.project, [each.name for each in shown])
        return Page(
            items=tuple(_model(each, aliases) for each in shown),
            next=encode_cursor(shown[-1].name) if len(found) > len(shown) else None,
        )

    async def get_model(self, request: Named) -> Model:
        """One model.

        Raises:
            NoSuchModel: there is none.
        """
        async with self._database.transaction() as transaction:
            found = await store.load_model(transaction, request.project, request.name)
            if found is None:
                raise NoSuchModel(request.project, request.name)
            return _model(found, await alias_store.load_of(transaction, request.project, [request.name]))

    async def list_versions(self, request: ListVersions) -> Page[Version]:
        """Versions of a model, newest first.

        Raises:
            NoSuchModel: there is none.
        """
        cursor = decode_cursor(request.cursor, int)
        async with self._database.transaction() as transaction:
            if await store.load_model(transaction, request.project, request.model) is None:
                raise NoSuchModel(request.project, request.model)
            found = await store.page_of_versions(
                transaction,
                request.project,
                request.model,
                below=int(cursor[0]) if cursor else None,
                limit=request.limit,
                state=request.state,
                labels=request.labels,
            )
            shown = fitting(found[: request.limit])
            versions = await changes.shown_versions(transaction, request.project, request.model, shown)
        return Page(items=tuple(versions), next=encode_cursor(shown[-1].number) if len(found) > len(shown) else None)

    async def get_version(self, request: VersionRequest) -> Version:
        """One version.

        Raises:
            NoSuchVersion: there is none.
        """
        async with self._database.transaction() as transaction:
            stored = await _load(transaction, Key(request.project, request.model, request.number))
            shown = await changes.shown_versions(transaction, request.project, request.model, [stored])
        return shown[0]

    async def read_archive(self, request: ReadArchive) -> Chunk:
        """A part of a ready version's tar; from any offset, so that a download can be resumed.

        Raises:
            NoSuchVersion, VersionNotReady: there is nothing to download.
        """
        if request.offset < 0:
            raise Invalid.field("offset", "must not be negative")
        key = Key(request.project, request.model, request.number)
        async with self._database.transaction() as transaction:
            await _load_ready(transaction, key)
        return await self._cloud.open_archive(key, offset=request.offset, length=CHUNK_BYTES)

    async def resolve(self, request: ResolveVersion) -> ServableVersion:
        """Where a ready version lies, by number or by alias.

        Raises:
            NoSuchVersion, NoSuchAlias, VersionNotReady: there is nothing to serve.
        """
        if (request.version is None) == (request.alias is None):
            raise Invalid.field("version", "give either a version or an alias")
        async with self._database.transaction() as transaction:
            number = request.version
            if request.alias is not None:
                alias = await alias_store.load(transaction, request.project, request.model, request.alias)
                if alias is None:
                    if await store.load_model(transaction, request.project, request.model) is None:
                        raise NoSuchModel(request.project, request.model)
                    raise NoSuchAlias(request.model, request.alias)
                number = alias.version
            key = Key(request.project, request.model, number or 0)
            stored = await _load_ready(transaction, key)
        return ServableVersion(
            project=key.project,
            model=key.model,
            number=key.number,
            volume=await self._cloud.volume(key.project),
            path=self._cloud.path(key),
            digest=stored.facts.digest if stored.facts else "",
        )


async def _load(transaction: Transaction, key: Key) -> StoredVersion:
    stored = await store.load_version(transaction, key)
    if stored is None or stored.removing:
        if await store.load_model(transaction, key.project, key.model) is None:
            raise NoSuchModel(key.project, key.model)
        raise NoSuchVersion(key.model, key.number)
    return stored


async def _load_ready(transaction: Transaction, key: Key) -> StoredVersion:
    stored = await _load(transaction, key)
    if stored.state != "ready":
        raise VersionNotReady(key.model, key.number, stored.state, stored.reason)
    return stored


def _model(found: store.StoredModel, aliases: list[Alias]) -> Model:
    return Model(
        project=found.project,
        name=found.name,
        created_at=found.created_at,
        versions=found.versions,
        latest=found.latest,
        aliases={alias.name: alias.version for alias in aliases if alias.model == found.name},
    )
