"""What users ask to know: trainings, the queue with its reasons, usage, machines, logs, outputs, TensorBoards."""

import asyncio
from collections.abc import Sequence
from typing import Final, get_args

import msgspec

from services.scheduler.admission import Admission, admit, free_by_node
from services.scheduler.changes import held_seconds
from services.scheduler.cloud.port import BoardPlan, TrainingCloud
from services.scheduler.errors import NoSuchTask
from services.scheduler.model import TrainingRecord, view
from services.scheduler.placement import minus, total
from services.scheduler.reconcile import Key
from services.scheduler.spec import find_output
from services.scheduler.store import ActiveTraining, TrainingStore
from shared.clock import now
from shared.contracts.common import CHUNK_BYTES, Chunk, ListRequest, Named, Page
from shared.contracts.training import (
    ENDED,
    AllProjects,
    Board,
    Cluster,
    FindOutput,
    Lineage,
    Mount,
    Node,
    OpenBoard,
    Output,
    ProjectRequest,
    QueueEntry,
    ReadLog,
    Training,
    TrainingState,
    Usage,
)
from shared.errors import Invalid, NotFound, Unavailable
from shared.paging import decode_cursor, encode_cursor
from shared.postgres import Database

LONGEST_WAIT: Final = 30.0
STATES: Final = get_args(TrainingState)
_QUICK, _SLOW = 0.02, 0.25
_BOARD_TOUCH: Final = 1.0
_OVER: Final = frozenset({"succeeded", "failed", "stopped", "lost"})


class Queries:
    """Answers the verbs that change nothing."""

    def __init__(self, database: Database, store: TrainingStore, cloud: TrainingCloud) -> None:
        self._database = database
        self._store = store
        self._cloud = cloud

    async def get(self, request: Named) -> Training:
        """A training; while it waits, its reason says for what."""
        async with self._database.transaction() as t:
            record = await self._store.get(t, (request.project, request.name))
            active = await self._store.active(t) if record.state == "queued" else []
        if record.state != "queued":
            return view(record)
        return _explained(record, await self._admission(active))

    async def list(self, request: ListRequest) -> Page[Training]:
        """Trainings of a project, the newest first.

        Raises:
            Invalid: there is no such state.
        """
        if request.state is not None and request.state not in STATES:
            raise Invalid.field("state", f"{request.state!r} is no state; there are {', '.join(STATES)}")
        async with self._database.transaction() as t:
            page = await self._store.page(t, request)
            waiting = any(record.state == "queued" for record in page.items)
            active = await self._store.active(t) if waiting else []
        if not waiting:
            return Page(items=tuple(view(record) for record in page.items), next=page.next)
        admission = await self._admission(active)
        return Page(items=tuple(_explained(record, admission) for record in page.items), next=page.next)

    async def _admission(self, active: Sequence[ActiveTraining]) -> Admission | None:
        """What the next round will decide; None where the cloud can't be seen."""
        try:
            nodes = await self._cloud.capacity()
        except Unavailable:
            return None
        return admit(
            [row.waiting() for row in active if row.queued],
            [row.holder() for row in active if row.desired.holding],
            nodes,
            now(),
        )

    async def queue(self, request: ListRequest) -> Page[QueueEntry]:
        """A project's part of the queue, with places in the whole of it.

        Raises:
            Invalid: another state than ``queued`` is asked for.
        """
        if request.state not in (None, "queued"):
            raise Invalid.field("state", "whatever stands in the queue is queued")
        after = decode_cursor(request.cursor, int)
        async with self._database.transaction() as t:
            active = await self._store.active(t)
        admission = await self._admission(active)
        if admission is None:
            raise Unavailable("the cloud can't be reached, so what the queue waits for is not known")
        labelled = {row.desired.key for row in active if request.labels.items() <= row.labels.items()}
        entries = []
        for verdict in admission.verdicts:
            one = verdict.waiting
            if one.project != request.project or verdict.admitted or (one.project, one.name) not in labelled:
                continue
            if after is not None and verdict.position <= int(after[0]):
                continue
            need = total(one.tasks)
            entries.append(
                QueueEntry(
                    position=verdict.position,
                    project=one.project,
                    name=one.name,
                    priority=one.priority,
                    queued_at=one.queued_at,
                    reason=verdict.reason,
                    cpu=need.cpu,
                    memory=need.memory,
                    gpu=need.gpu,
                )
            )
        items = tuple(entries[: request.limit])
        return Page(items=items, next=encode_cursor(items[-1].position) if len(entries) > request.limit else None)

    async def usage(self, request: ProjectRequest) -> Usage:
        """What a project holds now, and has held."""
        async with self._database.transaction() as t:
            row = await self._store.usage(t, request.project)
        holding = [record for record in row.records if record.holding]
        held, moment = total(record.demand for record in holding), now()
        return Usage(
            project=request.project,
            running=len(holding),
            queued=sum(record.state == "queued" for record in row.records),
            cpu=held.cpu,
            memory=held.memory,
            gpu=held.gpu,
            cpu_seconds=row.cpu_seconds + sum(record.demand.cpu * held_seconds(record, moment) for record in holding),
            gpu_seconds=row.gpu_seconds + sum(record.demand.gpu * held_seconds(record, moment) for record in holding),
        )

    async def cluster(self, request: AllProjects) -> Cluster:
        """The cloud's machines, and what is handed out of each."""
        async with self._database.transaction() as t:
            active = await self._store.active(t)
        states = await self._cloud.capacity()
        free = free_by_node(states, [row.holder() for row in active if row.desired.holding])
        nodes = []
        for state in states:
            used = minus(state.total, free[state.name])
            nodes.append(
                Node(
                    name=state.name,
                    cpu=state.total.cpu,
                    memory=state.total.memory,
                    gpu=state.total.gpu,
                    cpu_used=round(used.cpu, 6),
                    memory_used=used.memory,
                    gpu_used=used.gpu,
                    gpu_type=state.gpu_type,
                )
            )
        return Cluster(cloud=self._cloud.name, nodes=tuple(nodes))

    # -- logs and outputs

    async def read_log(self, request: ReadLog) -> Chunk:
        """A part of a task's log; waits for more, where asked to, as long as more may come."""
        if request.length < 1:
            raise Invalid.field("length", "must be at least 1")
        loop = asyncio.get_running_loop()
        until = loop.time() + min(max(request.wait, 0.0), LONGEST_WAIT)
        length, offset, pause = min(request.length, CHUNK_BYTES), request.offset, _QUICK
        while True:
            record = await self._record((request.project, request.name))
            attempt, over = _log_of(record, request)
            if attempt == 0:
                if over or loop.time() >= until:
                    return Chunk(data=b"", offset=max(offset, 0), total=0, end=over)
            else:
                # Whether it is over was asked first: what was written until then is read below.
                part = await self._cloud.logs(
                    request.project, request.name, attempt, request.task, offset=offset, length=length
                )
                done = over and part.offset + len(part.data) >= part.size
                if part.data or done or loop.time() >= until:
                    return Chunk(data=part.data, offset=part.offset, total=part.size, end=done)
                offset = part.offset
            await asyncio.sleep(min(pause, max(0.0, until - loop.time())))
            pause = min(_SLOW, pause * 1.5)

    async def find_output(self, request: FindOutput) -> Output:
        """Where a path of a training lies: the datastore, the path in it, and where it comes from."""
        record = await self._record((request.project, request.name))
        if not request.path or ".." in request.path.split("/"):
            raise Invalid.field("path", f"{request.path!r} must be a path below a mount, without '..'")
        found = find_output(record.mounts, request.path)
        if found is None:
            mounts = ", ".join(mount.path for mount in record.mounts)
            raise Invalid.field(
                "path",
                f"{request.path!r} lies below no mount of {record.name} ({mounts or 'it has none'}); "
                f"only what is in a datastore stays",
            )
        mount, path = found
        return Output(datastore=mount.datastore, path=path, lineage=_lineage(record, mount.datastore, path))

    async def open_board(self, request: OpenBoard) -> Board:
        """A training's TensorBoard, started unless it runs; being asked for keeps it open."""
        key = (request.project, request.name)
        record = await self._record(key)
        if record.spec.tensorboard is None:
            raise NotFound(f"training {record.name!r} names no folder of event files; submit it with tensorboard: PATH")
        found = find_output(record.mounts, record.spec.tensorboard)
        if found is None:
            raise NotFound(f"the mount of {record.spec.tensorboard!r} is not known any more")
        mount, path = found
        plan = BoardPlan(
            project=record.project, name=record.name, mount=mount, path=path, path_prefix=request.path_prefix
        )
        await self._touch_board(key)
        opening = asyncio.create_task(self._cloud.open_board(plan), name=f"board of {key}")
        try:
            while not opening.done():
                await asyncio.wait({opening}, timeout=_BOARD_TOUCH)
                await self._touch_board(key)
            return Board(url=opening.result())
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)

    async def _touch_board(self, key: Key) -> None:
        async with self._database.transaction() as t:
            await self._store.touch_board(t, key, now())

    async def _record(self, key: Key) -> TrainingRecord:
        async with self._database.transaction() as t:
            return await self._store.get(t, key)


def _explained(record: TrainingRecord, admission: Admission | None) -> Training:
    training = view(record)
    if record.state != "queued":
        return training
    if admission is None:
        return msgspec.structs.replace(training, reason="the cloud can't be reached")
    for verdict in admission.verdicts:
        if (verdict.waiting.project, verdict.waiting.name) == (record.project, record.name):
            return msgspec.structs.replace(training, reason=verdict.reason)
    return training


def _log_of(record: TrainingRecord, request: ReadLog) -> tuple[int, bool]:
    """The attempt whose log is meant (0: there is none yet), and whether nothing more will be written.

    Raises:
        NoSuchTask, Invalid: there is no such task or attempt.
    """
    names = tuple(task.name for task in record.plan)
    if request.task not in names:
        raise NoSuchTask(record.name, request.task, names)
    number = record.attempt if request.attempt is None else request.attempt
    if request.attempt is not None and not 1 <= request.attempt <= max(record.attempt, 1):
        raise Invalid.field("attempt", f"{record.name} has had {record.attempt} attempts")
    if record.attempt == 0:
        return 0, record.state in ENDED
    if number < record.attempt or not record.holding:
        return number, True
    task = next(task for task in record.tasks if task.name == request.task)
    return number, task.state in _OVER


def _lineage(record: TrainingRecord, datastore: str, path: str) -> Lineage:
    inputs = tuple(
        Mount(datastore=mount.datastore, path=mount.path, sub_path=mount.folder, read_only=True)
        for mount in record.mounts
        if mount.read_only
    )
    return Lineage(
        training=record.name,
        attempt=record.attempt or None,
        image=record.spec.image,
        code=record.spec.code,
        command=record.spec.command,
        inputs=inputs,
        datastore=datastore,
        path=path,
        cause=record.cause,
        created_by=record.created_by,
    )
