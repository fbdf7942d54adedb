"""What users ask to change: submit, stop, free, retry, delete."""

import asyncio
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from services.scheduler.admission import Waiting, admit, size_errors
from services.scheduler.changes import Changes
from services.scheduler.cloud.port import TrainingCloud
from services.scheduler.code_store import CodeStore
from services.scheduler.errors import NoSuchTraining, WrongState
from services.scheduler.frameworks.port import Framework
from services.scheduler.model import (
    Capabilities,
    Decision,
    Happened,
    MountPlan,
    NodeState,
    Retry,
    Stop,
    TaskPlan,
    TrainingRecord,
    claims_of,
    view,
)
from services.scheduler.placement import total
from services.scheduler.reconcile import Key
from services.scheduler.spec import plan_mounts, plan_tasks, single_node_datastore, spec_errors
from services.scheduler.store import TrainingStore
from shared import context
from shared.bus import Bus
from shared.clock import now
from shared.contracts import datastore
from shared.contracts.common import Done, Named, parse_duration
from shared.contracts.datastore import MountableDatastore, MountRequest
from shared.contracts.problem import FieldError
from shared.contracts.training import (
    ENDED,
    Plan,
    PlannedTask,
    StopTraining,
    SubmitTraining,
    Training,
    TrainingSpec,
)
from shared.errors import Invalid, Unavailable
from shared.idempotency import once
from shared.postgres import Database, Transaction
from shared.supervise import Wake

LONGEST_REASON: Final = 500
_NODES_SECONDS: Final = 5.0
"""How old the machines' sizes may be by which a spec is judged; what is free of them is asked for each time."""


class _Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A spec that will be admitted, with all that was found out about it."""

    plan: tuple[TaskPlan, ...]
    datastores: dict[str, MountableDatastore]
    notes: tuple[str, ...]


class Handlers:
    """Answers the verbs that change trainings."""

    def __init__(
        self,
        database: Database,
        store: TrainingStore,
        code: CodeStore,
        changes: Changes,
        cloud: TrainingCloud,
        framework: Framework,
        bus: Bus,
        wake: Wake,
    ) -> None:
        self._database = database
        self._store = store
        self._code = code
        self._changes = changes
        self._cloud = cloud
        self._framework = framework
        self._bus = bus
        self._wake = wake
        self._known_nodes: tuple[NodeState, ...] = ()
        self._nodes_at = -math.inf

    async def submit(self, request: SubmitTraining) -> Training:
        """Check a spec, name it, and put it into the queue."""
        checked = await self._check(request)

        async def make() -> Training:
            return view(await self._enqueue(t, request, checked))

        async with self._database.transaction() as t:
            training = await once(t, "submit", request.project, request, Training, make)
        self._wake.ring()
        return training

    async def plan(self, request: SubmitTraining) -> Plan:
        """What a submit would do now, doing nothing."""
        checked = await self._check(request)
        spec = request.spec
        async with self._database.transaction() as t:
            name = await self._store.next_name(t, request.project, spec.name)
            active = await self._store.active(t)
        mounts, _, notes = self._mounts(spec, name, checked, await self._cloud.capabilities())
        demands = tuple(task.demand for task in checked.plan)
        this = Waiting(
            project=request.project,
            name=name,
            priority=spec.priority,
            sequence=2**62,
            tasks=demands,
            claims=claims_of(mounts),
            queued_at=now(),
        )
        admission = admit(
            [*(row.waiting() for row in active if row.queued), this],
            [row.holder() for row in active if row.desired.holding],
            await self._cloud.capacity(),
            now(),
        )
        verdict = next(each for each in admission.verdicts if each.waiting is this)
        addresses = {
            role: [f"{name}-{task.name}" for task in checked.plan if task.role == role]
            for role in {task.role for task in checked.plan}
        }
        need = total(demands)
        return Plan(
            project=request.project,
            name=name,
            spec=spec,
            tasks=tuple(
                PlannedTask(
                    name=task.name,
                    role=task.role,
                    index=task.index,
                    cpu=task.demand.cpu,
                    memory=task.demand.memory,
                    gpu=task.demand.gpu,
                    command=self._framework.command(spec.command, addresses, task.role, task.index),
                )
                for task in checked.plan
            ),
            cpu=need.cpu,
            memory=need.memory,
            gpu=need.gpu,
            fits_now=verdict.admitted,
            reason="" if verdict.admitted else verdict.reason,
            notes=(*checked.notes, *notes),
        )

    async def _check(self, request: SubmitTraining) -> _Checked:
        """Everything that can be wrong with a spec, gathered before anything is refused.

        Raises:
            Invalid: with every offending field.
        """
        spec = request.spec
        capabilities = await self._cloud.capabilities()
        errors = spec_errors(spec, self._framework, capabilities)
        examination = await self._cloud.examine(request.project, spec)
        errors += examination.errors
        nodes = await self._nodes()
        datastores, found = await self._datastores(request)
        plan: tuple[TaskPlan, ...] = ()
        if not any(error.field.startswith("roles") for error in errors):
            plan = plan_tasks(spec, self._framework)
            tasks = [(task.role, task.demand) for task in plan]
            too_large = size_errors(tasks, nodes, shared=single_node_datastore(datastores))
            errors += [FieldError(field=f, message=message) for f, message in too_large]
        if spec.code is not None and not any(error.field == "code" for error in errors):
            errors += await self._code_errors(request.project, spec.code)
        errors += found
        checked = _Checked(plan=plan, datastores=datastores, notes=examination.notes)
        if not any(error.field.startswith("mounts") for error in errors):
            errors += self._mounts(spec, spec.name, checked, capabilities)[1]
        if errors:
            raise Invalid.of(errors)
        return checked

    async def _nodes(self) -> tuple[NodeState, ...]:
        """The machines, as they were a moment ago; none where the cloud is away, which the queue waits for."""
        moment = asyncio.get_running_loop().time()
        if moment - self._nodes_at > _NODES_SECONDS:
            try:
                self._known_nodes = await self._cloud.capacity()
            except Unavailable:
                return ()
            self._nodes_at = moment
        return self._known_nodes

    def _mounts(
        self, spec: TrainingSpec, name: str, checked: _Checked, capabilities: Capabilities
    ) -> tuple[tuple[MountPlan, ...], list[FieldError], list[str]]:
        return plan_mounts(spec, name, checked.datastores, capabilities)

    async def _code_errors(self, project: str, digest: str) -> list[FieldError]:
        async with self._database.transaction() as t:
            if await self._code.exists(t, project, digest):
                return []
        message = f"no such archive was uploaded; send it first: PUT /v1/projects/{project}/code/{digest}"
        return [FieldError(field="code", message=message)]

    async def _datastores(self, request: SubmitTraining) -> tuple[dict[str, MountableDatastore], Sequence[FieldError]]:
        mounts = request.spec.mounts
        if not mounts:
            return {}, ()
        names = tuple(dict.fromkeys(mount.datastore for mount in mounts))
        reply = await self._bus.call(datastore.MOUNT, MountRequest(project=request.project, names=names))
        errors = []
        for position, mount in enumerate(mounts):
            field = f"mounts.{position}.datastore"
            if mount.datastore in reply.missing:
                message = f"there is no datastore {mount.datastore!r} in project {request.project!r}"
                errors.append(FieldError(field=field, message=message))
            elif mount.datastore in reply.not_ready:
                state = reply.not_ready[mount.datastore]
                errors.append(FieldError(field=field, message=f"datastore {mount.datastore!r} is not ready: {state}"))
        return {each.name: each for each in reply.datastores}, errors

    async def _enqueue(self, t: Transaction, request: SubmitTraining, checked: _Checked) -> TrainingRecord:
        spec, moment, cause = request.spec, now(), context.current()
        name, sequence = await self._store.allot(t, request.project, spec.name)
        if len(name) > 40:
            raise Invalid.field("name", f"{name!r} would be longer than 40 characters: choose a shorter name")
        if spec.code is not None and not await self._code.use(t, request.project, spec.code, moment):
            raise Invalid.field("code", "the archive was deleted at this very moment; upload it again")
        mounts, errors, notes = self._mounts(spec, name, checked, await self._cloud.capabilities())
        if errors:
            raise Invalid.of(errors)
        record = TrainingRecord(
            project=request.project,
            name=name,
            spec=spec,
            plan=checked.plan,
            mounts=mounts,
            sequence=sequence,
            created_at=moment,
            queued_at=moment,
            deadline=None if spec.deadline is None else parse_duration(spec.deadline),
            created_by=cause.actor,
            cause=cause.causation,
            traceparent=cause.traceparent,
            notes=(*checked.notes, *notes),
        )
        await self._store.insert(t, record)
        decision = Decision(record=record, events=(Happened(noun="training", event="queued"),))
        await self._changes.publish(t, decision)
        await t.notify("wake")
        return record

    # -- those that exist

    async def stop(self, request: StopTraining) -> Training:
        """End a training; its compute is freed in a moment."""
        who = context.current().actor
        reason = " ".join(request.reason.replace("\0", " ").split())[:LONGEST_REASON]
        reason = reason or (f"stopped by {who}" if who else "stopped")
        return await self._tell(request.project, request.name, Stop(reason=reason))

    async def free(self, request: Named) -> Training:
        """Give back a training's compute: what has ended is freed by itself, what runs is stopped."""
        key = (request.project, request.name)
        async with self._database.transaction() as t:
            record = await self._store.get(t, key)
        await self._cloud.close_board(*key)
        if record.state in ENDED:
            self._wake.ring()
            return view(record)
        who = context.current().actor
        reason = f"freed by {who}" if who else "freed"
        return await self._tell(request.project, request.name, Stop(reason=reason))

    async def retry(self, request: Named) -> Training:
        """Put a training that has ended into the queue again."""

        async def make() -> Training:
            return await self._tell_within(t, (request.project, request.name), Retry(sequence=sequence))

        async with self._database.transaction() as t:
            sequence = await self._store.next_sequence(t)
            training = await once(t, "retry", request.project, request, Training, make)
        self._wake.ring()
        return training

    async def _tell(self, project: str, name: str, message: Stop) -> Training:
        async with self._database.transaction() as t:
            training = await self._tell_within(t, (project, name), message)
        self._wake.ring()
        return training

    async def _tell_within(self, t: Transaction, key: Key, message: Stop | Retry) -> Training:
        decision = await self._changes.apply(t, key, message, now())
        if decision is None:
            raise NoSuchTraining(*key)
        await t.notify("wake")
        return view(decision.record)

    async def delete(self, request: Named) -> Done:
        """Delete a training that has ended and is freed, with its logs; what it wrote to datastores stays."""
        key = (request.project, request.name)
        async with self._database.transaction() as t:
            record = await self._store.get(t, key, lock=True)
            if record.state not in ENDED:
                raise WrongState(f"training {record.name!r} is {record.state}; stop it before deleting it")
            if record.holding:
                raise WrongState(f"training {record.name!r} is still being freed; try again in a moment")
            await self._store.delete(t, key)
            gone = Decision(record=record, events=(Happened(noun="training", event="deleted"),))
            await self._changes.publish(t, gone)
            await t.notify("wake")
        self._wake.ring()
        return Done()
