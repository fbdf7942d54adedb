"""Aliases: set, move, delete, and look back."""

from services.registry import alias_store, store
from services.registry.errors import NoSuchAlias, NoSuchModel, NoSuchVersion, VersionNotReady
from services.registry.model import Key
from shared import context
from shared.clock import now
from shared.contracts.common import Done, Named, Page
from shared.contracts.model import Alias, AliasEvent, AliasMove, AliasRequest, SetAlias
from shared.errors import Invalid
from shared.outbox import Outbox
from shared.postgres import Database, Transaction

MOST_MOVES_SHOWN = 500


class Aliases:
    """One model at a time: its row is locked, so that moves stand in order."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    async def set(self, request: SetAlias) -> Alias:
        """Point an alias at a ready version; where it points there already, nothing happens.

        Raises:
            Invalid: a number can't be an alias.
            NoSuchModel, NoSuchVersion: there is none.
            VersionNotReady: it is being saved, or could not be.
        """
        if request.alias.isdigit():
            raise Invalid.field("alias", f"{request.alias!r} looks like a version's number; use a word")
        at = now()
        async with self._database.transaction() as transaction:
            await self._lock(transaction, request.project, request.model)
            version = await store.load_version(
                transaction, Key(request.project, request.model, request.version), lock=True
            )
            if version is None or version.removing:
                raise NoSuchVersion(request.model, request.version)
            if version.state != "ready":
                raise VersionNotReady(request.model, request.version, version.state, version.reason)
            known = await alias_store.load(transaction, request.project, request.model, request.alias)
            if known is not None and known.version == request.version:
                return known
            previous = known.version if known else None
            alias = Alias(
                project=request.project,
                model=request.model,
                name=request.alias,
                version=request.version,
                moved_at=at,
                moved_by=context.current().actor,
            )
            await alias_store.put(transaction, alias, previous)
            await self._tell(transaction, "moved", AliasEvent(alias=alias, previous=previous))
            return alias

    async def delete(self, request: AliasRequest) -> Done:
        """Delete an alias; its history stays.

        Raises:
            NoSuchModel, NoSuchAlias: there is none.
        """
        async with self._database.transaction() as transaction:
            await self._lock(transaction, request.project, request.model)
            alias = await alias_store.load(transaction, request.project, request.model, request.alias)
            if alias is None:
                raise NoSuchAlias(request.model, request.alias)
            await alias_store.delete(transaction, alias, now(), context.current().actor)
            await self._tell(transaction, "deleted", AliasEvent(alias=alias, previous=alias.version))
        return Done()

    async def get(self, request: AliasRequest) -> Alias:
        """One alias.

        Raises:
            NoSuchAlias: there is none.
        """
        async with self._database.transaction() as transaction:
            alias = await alias_store.load(transaction, request.project, request.model, request.alias)
        if alias is None:
            raise NoSuchAlias(request.model, request.alias)
        return alias

    async def list(self, request: Named) -> Page[Alias]:
        """All aliases of a model, by name.

        Raises:
            NoSuchModel: there is none.
        """
        async with self._database.transaction() as transaction:
            if await store.load_model(transaction, request.project, request.name) is None:
                raise NoSuchModel(request.project, request.name)
            return Page(items=tuple(await alias_store.load_of(transaction, request.project, [request.name])))

    async def history(self, request: AliasRequest) -> Page[AliasMove]:
        """The latest moves of an alias, newest first, also of one that was deleted.

        Raises:
            NoSuchAlias: there never was one.
        """
        async with self._database.transaction() as transaction:
            moves = await alias_store.history(
                transaction, request.project, request.model, request.alias, limit=MOST_MOVES_SHOWN
            )
        if not moves:
            raise NoSuchAlias(request.model, request.alias)
        return Page(items=tuple(moves))

    async def _lock(self, transaction: Transaction, project: str, model: str) -> None:
        if not await store.lock_model(transaction, project, model):
            raise NoSuchModel(project, model)

    async def _tell(self, transaction: Transaction, event: str, told: AliasEvent) -> None:
        await self._outbox.append(transaction, "alias", event, told.alias.project, told.alias.model, told)
