"""What changes a serving: one short function per message."""

import secrets

from msgspec.structs import replace

from services.serving import store
from services.serving.cloud.port import ServingCloud
from services.serving.errors import NameTaken, NoAutoscaling, NoSuchServing, NoTrafficSplit
from services.serving.model import (
    AliasMoved,
    Change,
    Choice,
    Decision,
    Message,
    RollBack,
    StoredServing,
    VersionDeleted,
    created,
    decide,
)
from services.serving.registry import Registry
from services.serving.views import view
from shared import context
from shared.bus.message import Message as Delivery
from shared.clock import now
from shared.contracts.common import Done, Named
from shared.contracts.model import AliasEvent, VersionEvent
from shared.contracts.problem import FieldError
from shared.contracts.serving import (
    CreateServing,
    RollbackServing,
    Serving,
    ServingEvent,
    ServingPatch,
    ServingSpec,
    UpdateServing,
    scaling_errors,
    serving_errors,
)
from shared.errors import Invalid
from shared.idempotency import once
from shared.outbox import Outbox
from shared.postgres import Database, Transaction


class Handlers:
    """Messages in, one transaction each."""

    def __init__(self, database: Database, outbox: Outbox, cloud: ServingCloud, registry: Registry) -> None:
        self._database = database
        self._outbox = outbox
        self._cloud = cloud
        self._registry = registry

    async def create(self, request: CreateServing) -> Serving:
        """Admit a serving; the controller deploys it.

        Raises:
            Invalid: its spec can't be had here.
            NotFound, Conflict: the model, version or alias is not there, or not ready.
            NameTaken: there is one of that name.
            NoAutoscaling: this cloud can't.
        """
        spec = request.spec
        if errors := serving_errors(spec):
            raise Invalid.of(errors)
        self._check_scaling(spec.max_replicas)
        await self._admit(spec)
        choice = await self._choose(request.project, spec.model, spec.version, spec.alias, "created")
        cause = context.current()

        async with self._database.transaction() as transaction:

            async def make() -> Serving:
                decision = created(
                    project=request.project,
                    uid=secrets.token_hex(8),
                    spec=spec,
                    choice=choice,
                    actor=cause.actor,
                    traceparent=cause.traceparent,
                    now=now(),
                )
                if not await store.insert(transaction, decision.serving):
                    raise NameTaken(spec.name)
                await self._tell(transaction, decision)
                await transaction.notify("wake")
                return view(decision.serving)

            return await once(transaction, "create", request.project, request, Serving, make)

    async def update(self, request: UpdateServing) -> Serving:
        """Serve another version, follow another alias, split traffic, or change the number of replicas.

        Raises:
            Invalid: the patch contradicts itself, or this machine never has room for it.
            NoSuchServing: there is none.
            NotFound, Conflict: a version or alias is not there, or not ready.
            NoTrafficSplit, NoAutoscaling: this cloud can't.
        """
        patch = request.patch
        if errors := patch_errors(patch):
            raise Invalid.of(errors)
        if patch.traffic is not None and not self._cloud.capabilities.traffic_split:
            raise NoTrafficSplit(self._cloud.capabilities.cloud)
        async with self._database.transaction() as transaction:
            found = await store.load(transaction, request.project, request.name)
        if found is None:
            raise NoSuchServing(request.project, request.name)
        self._check_scaling(patch.max_replicas)
        if patch.replicas is not None or patch.max_replicas is not None:
            await self._admit(_scaled(found.spec, patch))
        choice = None
        if patch.traffic is not None:
            traffic = {int(number): share for number, share in patch.traffic.items() if share}
            sources = await self._registry.locate(request.project, found.spec.model, traffic)
            words = ", ".join(f"{share} % to version {number}" for number, share in sorted(traffic.items()))
            choice = Choice(traffic=traffic, cause=words, sources=sources)
        elif patch.version is not None or patch.alias is not None:
            choice = await self._choose(request.project, found.spec.model, patch.version, patch.alias, "changed")
        change = Change(choice=choice, replicas=patch.replicas, max_replicas=patch.max_replicas)
        return await self._change(request.project, request.name, change)

    async def rollback(self, request: RollbackServing) -> Serving:
        """Go back to an earlier revision.

        Raises:
            NoSuchServing, NoSuchRevision: there is none.
            NothingToRollBackTo: no earlier one was ever ready.
        """
        return await self._change(request.project, request.name, RollBack(revision=request.revision))

    async def delete(self, request: Named) -> Done:
        """Forget a serving; the controller ends what runs of it.

        Raises:
            NoSuchServing: there is none.
        """
        async with self._database.transaction() as transaction:
            stored = await store.load(transaction, request.project, request.name, lock=True)
            if stored is None:
                raise NoSuchServing(request.project, request.name)
            await store.delete(transaction, stored.uid)
            await self._tell(transaction, Decision(serving=stored, events=("deleted",)))
            await transaction.notify("wake")
        return Done()

    async def models_told(self, transaction: Transaction, delivery: Delivery) -> None:
        """An alias was moved, or a version deleted: whoever serves it has to know."""
        message: Message
        if delivery.noun == "alias":
            alias = delivery.data(AliasEvent).alias
            message = AliasMoved(alias=alias.name, version=alias.version, moved_at=alias.moved_at)
        else:
            message = VersionDeleted(version=delivery.data(VersionEvent).version.number)
        changed = False
        for stored in await store.load_of_model(transaction, delivery.project, delivery.name):
            changed |= await self._apply(transaction, stored, decide(stored, message, now()))
        if changed:
            await transaction.notify("wake")

    async def observed(self, uid: str, message: Message) -> None:
        """Take in what the cloud or the registry says of a serving; of one that has no row it is nothing."""
        async with self._database.transaction() as transaction:
            stored = await store.load_by_uid(transaction, uid)
            if stored is None:
                return
            with context.caused_by(context.Cause(actor=stored.created_by, traceparent=stored.traceparent)):
                if await self._apply(transaction, stored, decide(stored, message, now())):
                    await transaction.notify("wake")

    def _check_scaling(self, max_replicas: int | None) -> None:
        if max_replicas and not self._cloud.capabilities.autoscaling:
            raise NoAutoscaling(self._cloud.capabilities.cloud)

    async def _change(self, project: str, name: str, message: Message) -> Serving:
        async with self._database.transaction() as transaction:
            stored = await store.load(transaction, project, name, lock=True)
            if stored is None:
                raise NoSuchServing(project, name)
            decision = decide(stored, message, now())
            await self._apply(transaction, stored, decision)
            await transaction.notify("wake")
        return view(decision.serving)

    async def _apply(self, transaction: Transaction, before: StoredServing, decision: Decision) -> bool:
        """Write what was decided; False where it changes nothing."""
        if decision.serving == before:
            return False
        await store.save(transaction, decision.serving)
        await self._tell(transaction, decision)
        return True

    async def _tell(self, transaction: Transaction, decision: Decision) -> None:
        told = ServingEvent(serving=view(decision.serving))
        for event in decision.events:
            await self._outbox.append(
                transaction, "serving", event, decision.serving.project, decision.serving.name, told
            )

    async def _admit(self, spec: ServingSpec) -> None:
        if errors := await self._cloud.admit(spec):
            raise Invalid.of(errors)

    async def _choose(self, project: str, model: str, version: int | None, alias: str | None, cause: str) -> Choice:
        """Ask the registry now, so that a version that is not there is refused at once."""
        moved_at = None
        if alias is not None:
            meant = await self._registry.alias(project, model, alias)
            version, moved_at = meant.version, meant.moved_at
            cause = f"{cause}: alias {alias} is version {version}"
        if version is None:
            raise Invalid.field("version", "give either a version or an alias")
        sources = await self._registry.locate(project, model, [version])
        return Choice(traffic={version: 100}, cause=cause, alias=alias, moved_at=moved_at, sources=sources)


def _scaled(spec: ServingSpec, patch: ServingPatch) -> ServingSpec:
    """The spec with the bounds that a patch asks for."""
    replicas = spec.replicas if patch.replicas is None else patch.replicas
    most = spec.max_replicas if patch.max_replicas is None else patch.max_replicas
    scaled = replace(spec, replicas=replicas, max_replicas=most)
    if errors := scaling_errors(scaled):
        raise Invalid.of(errors)
    return scaled


def patch_errors(patch: ServingPatch) -> list[FieldError]:
    """What contradicts itself in a patch."""
    given = [name for name in ("version", "alias", "traffic") if getattr(patch, name) is not None]
    if not given and patch.replicas is None and patch.max_replicas is None:
        return [FieldError(field="body", message="give version, alias, replicas, max_replicas or traffic")]
    if len(given) > 1:
        return [FieldError(field=given[1], message=f"give either {' or '.join(given)}")]
    if patch.traffic is None:
        return []
    errors = []
    for number, share in patch.traffic.items():
        if not number.isdecimal() or not 0 < int(number) < 2**31 or number != str(int(number)):
            errors.append(FieldError(field=f"traffic.{number}", message="is not a version number"))
        if not 0 <= share <= 100:
            errors.append(FieldError(field=f"traffic.{number}", message="is a share from 0 to 100"))
    if not errors and sum(patch.traffic.values()) != 100:
        total = sum(patch.traffic.values())
        errors.append(FieldError(field="traffic", message=f"the shares add up to {total}, not to 100"))
    return errors
