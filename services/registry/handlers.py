"""What changes models and versions once they are there: one short function per message."""

from services.registry import alias_store, changes, store
from services.registry.errors import HasAlias, IsServed, NoSuchModel, NoSuchVersion
from services.registry.model import DeleteAsked, Key, Message, StoredVersion, decide
from services.registry.serving_uses import held_by
from shared import context
from shared.bus import Message as Delivery
from shared.clock import now
from shared.contracts.common import Done, Named
from shared.contracts.model import AliasEvent, ModelEvent, VersionRequest
from shared.contracts.serving import ServingEvent
from shared.outbox import Outbox
from shared.postgres import Database, Transaction


class Handlers:
    """Messages in, one transaction each."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    async def delete_version(self, request: VersionRequest) -> Done:
        """Delete a version; its users no longer see it, and its files are removed soon.

        Raises:
            NoSuchVersion: there is none.
            HasAlias, IsServed: something still points at it.
        """
        key = Key(request.project, request.model, request.number)
        async with self._database.transaction() as transaction:
            if not await store.lock_model(transaction, request.project, request.model):
                raise NoSuchModel(request.project, request.model)
            stored = await store.load_version(transaction, key, lock=True)
            if stored is None or stored.removing:
                raise NoSuchVersion(request.model, request.number)
            aliases = await alias_store.load_of(transaction, request.project, [request.model])
            pointing = [alias.name for alias in aliases if alias.version == request.number]
            if pointing:
                raise HasAlias(request.model, request.number, pointing)
            servings = await store.servings_of(transaction, request.project, request.model, [request.number])
            if servings[request.number]:
                raise IsServed(f"version {request.number} of model {request.model}", servings[request.number])
            await self._remove(transaction, stored)
            await transaction.notify("wake")
        return Done()

    async def delete_model(self, request: Named) -> Done:
        """Delete a model with its versions and aliases; the numbers of its versions are not given again.

        Raises:
            NoSuchModel: there is none.
            IsServed: a serving serves one of its versions.
        """
        at = now()
        actor = context.current().actor
        async with self._database.transaction() as transaction:
            if not await store.lock_model(transaction, request.project, request.name):
                raise NoSuchModel(request.project, request.name)
            versions = await store.load_versions_of(transaction, request.project, request.name)
            servings = await store.servings_of(
                transaction, request.project, request.name, [each.number for each in versions]
            )
            if serving := sorted({name for names in servings.values() for name in names}):
                raise IsServed(f"model {request.name}", serving)
            for alias in await alias_store.load_of(transaction, request.project, [request.name]):
                await alias_store.delete(transaction, alias, at, actor)
                await self._outbox.append(
                    transaction,
                    "alias",
                    "deleted",
                    request.project,
                    request.name,
                    AliasEvent(alias=alias, previous=alias.version),
                )
            for version in versions:
                await self._remove(transaction, version)
            await store.mark_deleted(transaction, request.project, request.name)
            await self._outbox.append(
                transaction, "model", "deleted", request.project, request.name, ModelEvent(model=request.name)
            )
            await transaction.notify("wake")
        return Done()

    async def serving_told(self, transaction: Transaction, delivery: Delivery) -> None:
        """Note which versions a serving holds, from any of its lifecycle events."""
        serving = delivery.data(ServingEvent).serving
        await store.put_use(
            transaction,
            delivery.project,
            delivery.name,
            serving.spec.model,
            held_by(delivery.event, serving),
            delivery.time,
        )

    async def observed(self, key: Key, message: Message) -> StoredVersion | None:
        """Take in what became of a save or a removal; answers the version as it is then."""
        async with self._database.transaction() as transaction:
            stored = await store.load_version(transaction, key, lock=True)
            if stored is None:
                return None
            with changes.caused_by(stored):
                decision = decide(stored, message, now())
                await changes.apply(transaction, self._outbox, stored, decision)
            return decision.version

    async def _remove(self, transaction: Transaction, stored: StoredVersion) -> None:
        await changes.apply(transaction, self._outbox, stored, decide(stored, DeleteAsked(), now()))
