"""What begins a save: a request, or a training that has succeeded and said so beforehand."""

from services.registry import changes, store
from services.registry.model import Decision, Source, StoredVersion, view
from shared import context
from shared.bus import Bus, Message
from shared.clock import now
from shared.contracts import datastore, training
from shared.contracts.common import label_errors, relative_path_problem
from shared.contracts.model import SaveRequest, SaveVersion, Version
from shared.contracts.problem import FieldError
from shared.contracts.training import Lineage, TrainingEvent
from shared.errors import Conflict, Invalid, NotFound
from shared.idempotency import once
from shared.outbox import Outbox
from shared.postgres import Database, Transaction


class Saves:
    """Begins saves; the controller carries them out."""

    def __init__(self, database: Database, outbox: Outbox, bus: Bus) -> None:
        self._database = database
        self._outbox = outbox
        self._bus = bus

    async def save(self, request: SaveVersion) -> Version:
        """Take a number and begin to save.

        Raises:
            Invalid: the request names no place, or one that can't be.
            NotFound: no such training or datastore.
            Conflict: the datastore is not ready.
        """
        if errors := save_errors(request.save):
            raise Invalid.of(errors)
        source, lineage = await self._find(request)
        async with self._database.transaction() as transaction:

            async def make() -> Version:
                return await self._begin(
                    transaction, request.project, request.model, source, lineage, request.save.labels
                )

            return await once(transaction, "save", request.project, request, Version, make)

    async def training_succeeded(self, transaction: Transaction, message: Message) -> None:
        """Begin the save that a training's ``save:`` asks for; once for each of its attempts."""
        ended = message.data(TrainingEvent).training
        wanted = ended.spec.save
        if wanted is None:
            return
        origin = f"{ended.name} {ended.created_at.isoformat()} {ended.attempt}"
        if not await store.claim_origin(transaction, ended.project, origin, wanted.model):
            return
        lineage = Lineage(
            training=ended.name,
            attempt=ended.attempt,
            image=ended.spec.image,
            code=ended.spec.code,
            command=ended.spec.command,
            inputs=tuple(mount for mount in ended.spec.mounts if mount.read_only),
            path=wanted.path,
            cause=ended.cause,
            created_by=ended.created_by,
        )
        source = Source(training=ended.name, training_path=wanted.path)
        with context.caused_by(message.cause(ended.created_by)):
            version = await self._begin(transaction, ended.project, wanted.model, source, lineage, ended.spec.labels)
        await store.note_origin(transaction, ended.project, origin, version.number)

    async def _find(self, request: SaveVersion) -> tuple[Source, Lineage]:
        save = request.save
        actor = context.current().actor
        if save.training is not None:
            output = await self._bus.call(
                training.FIND_OUTPUT,
                training.FindOutput(project=request.project, name=save.training, path=save.path),
            )
            source = Source(
                training=save.training,
                training_path=save.path,
                datastore=output.datastore,
                path=output.path,
            )
            lineage = output.lineage
        else:
            source = Source(datastore=save.datastore, path=save.path)
            lineage = Lineage(datastore=save.datastore, path=save.path, created_by=actor)
        name = source.datastore or ""
        reply = await self._bus.call(datastore.MOUNT, datastore.MountRequest(project=request.project, names=(name,)))
        if reply.missing:
            raise NotFound(f"there is no datastore {name} in project {request.project}")
        if reply.not_ready:
            raise Conflict(f"datastore {name} is not ready: {reply.not_ready[name]}")
        return source, lineage

    async def _begin(
        self,
        transaction: Transaction,
        project: str,
        model: str,
        source: Source,
        lineage: Lineage,
        labels: dict[str, str],
    ) -> Version:
        cause = context.current()
        at = now()
        version = StoredVersion(
            project=project,
            model=model,
            number=await store.next_number(transaction, project, model, at),
            state="saving",
            created_at=at,
            source=source,
            lineage=lineage,
            labels=labels,
            created_by=cause.actor,
            traceparent=cause.traceparent,
            causation=cause.causation,
        )
        await store.insert_version(transaction, version)
        await changes.tell(transaction, self._outbox, Decision(version=version, events=("saving",)))
        await transaction.notify("wake")
        return view(version)


def save_errors(save: SaveRequest) -> list[FieldError]:
    """What is wrong with a request to save, before anybody is asked."""
    errors = label_errors("labels", save.labels)
    if (save.training is None) == (save.datastore is None):
        field = "training" if save.training is None else "datastore"
        errors.append(FieldError(field=field, message="give either a training or a datastore"))
    if not save.path or "\0" in save.path:
        errors.append(FieldError(field="path", message="name the SavedModel's folder"))
    elif save.datastore is not None and (problem := relative_path_problem(save.path)):
        errors.append(FieldError(field="path", message=problem))
    return errors
