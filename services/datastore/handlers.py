"""What changes a datastore: one short function per message."""

import secrets

from services.datastore import store
from services.datastore.cloud.port import StorageCloud
from services.datastore.errors import InUse, NameTaken, NoSuchDatastore, NotOffered
from services.datastore.model import Decision, DeleteAsked, Message, StoredDatastore, created, decide, view
from services.datastore.uses import held_by
from shared import context
from shared.bus.message import Message as Delivery
from shared.clock import now
from shared.contracts.common import Done, Named, relative_path_problem
from shared.contracts.datastore import (
    ArrivalEvent,
    Arrived,
    CreateDatastore,
    Datastore,
    DatastoreEvent,
    datastore_errors,
)
from shared.contracts.training import TrainingEvent
from shared.errors import Conflict, Invalid
from shared.idempotency import once
from shared.outbox import Outbox
from shared.postgres import Database, Transaction


class Handlers:
    """Messages in, one transaction each."""

    def __init__(self, database: Database, outbox: Outbox, cloud: StorageCloud) -> None:
        self._database = database
        self._outbox = outbox
        self._cloud = cloud

    async def create(self, request: CreateDatastore) -> Datastore:
        """Admit a datastore; the controller provisions it.

        Raises:
            Invalid: its spec can't be had here.
            NameTaken: there is one of that name.
        """
        spec = request.spec
        if errors := datastore_errors(spec):
            raise Invalid.of(errors)
        offered = self._cloud.capabilities
        if spec.backend() not in offered.backends:
            raise NotOffered(offered.cloud, spec.backend(), offered.backends, offered.hints.get(spec.backend(), ""))
        if errors := await self._cloud.admit(spec):
            raise Invalid.of(errors)
        cause = context.current()

        async with self._database.transaction() as transaction:

            async def make() -> Datastore:
                decision = created(
                    project=request.project,
                    uid=secrets.token_hex(8),
                    spec=spec,
                    actor=cause.actor,
                    traceparent=cause.traceparent,
                    now=now(),
                )
                if not await store.insert(transaction, decision.datastore):
                    there = await store.load(transaction, request.project, spec.name)
                    raise NameTaken(spec.name, there.state if there else "just deleted")
                await self._tell(transaction, decision)
                await transaction.notify("wake")
                return view(decision.datastore)

            return await once(transaction, "create", request.project, request, Datastore, make)

    async def delete(self, request: Named) -> Done:
        """Begin to delete a datastore; the user's files stay where they are.

        Raises:
            NoSuchDatastore: there is none.
            InUse: a training that is not freed mounts it.
        """
        async with self._database.transaction() as transaction:
            stored = await store.load(transaction, request.project, request.name, lock=True)
            if stored is None:
                raise NoSuchDatastore(request.project, request.name)
            users = (await store.users_of(transaction, request.project, [request.name]))[request.name]
            if users and stored.state != "deleting":
                raise InUse(request.name, users)
            note = f"deleted: {self._cloud.capabilities.keeps_files}"
            await self._apply(transaction, stored, decide(stored, DeleteAsked(note=note), now()))
            await transaction.notify("wake")
        return Done()

    async def arrived(self, request: Arrived) -> Done:
        """Tell the world that data has arrived in a datastore."""
        arrival = request.arrival
        if arrival.path and (problem := relative_path_problem(arrival.path)):
            raise Invalid.field("path", problem)
        async with self._database.transaction() as transaction:

            async def make() -> Done:
                stored = await store.load(transaction, request.project, request.name, lock=True)
                if stored is None:
                    raise NoSuchDatastore(request.project, request.name)
                if stored.state == "deleting":
                    raise Conflict(f"datastore {request.name} is being deleted")
                body = ArrivalEvent(path=arrival.path, version=arrival.version)
                await self._outbox.append(transaction, "data", "arrived", request.project, request.name, body)
                return Done()

            return await once(transaction, "arrived", request.project, request, Done, make)

    async def training_told(self, transaction: Transaction, delivery: Delivery) -> None:
        """Note which datastores a training holds, from any of its lifecycle events."""
        training = delivery.data(TrainingEvent).training
        await store.put_use(
            transaction,
            delivery.project,
            delivery.name,
            held_by(delivery.event, training),
            delivery.time,
        )

    async def observed(self, uid: str, message: Message) -> None:
        """Take in what the cloud shows of a datastore; of one that has no row it is nothing."""
        async with self._database.transaction() as transaction:
            stored = await store.load_by_uid(transaction, uid)
            if stored is None:
                return
            with context.caused_by(context.Cause(actor=stored.created_by, traceparent=stored.traceparent)):
                await self._apply(transaction, stored, decide(stored, message, now()))

    async def _apply(self, transaction: Transaction, before: StoredDatastore, decision: Decision) -> None:
        if decision.drop:
            await store.delete(transaction, before.uid)
        elif decision.datastore != before:
            await store.save(transaction, decision.datastore)
        await self._tell(transaction, decision)

    async def _tell(self, transaction: Transaction, decision: Decision) -> None:
        told = DatastoreEvent(datastore=view(decision.datastore))
        for event in decision.events:
            await self._outbox.append(
                transaction, "datastore", event, decision.datastore.project, decision.datastore.name, told
            )
