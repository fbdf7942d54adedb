"""All SQL of trainings; that of code archives is in :mod:`services.scheduler.code_store`."""

from datetime import datetime
from typing import Any, Final

import msgspec

from services.scheduler.admission import Holder, Waiting
from services.scheduler.errors import NoSuchTraining
from services.scheduler.model import Demand, TrainingRecord
from services.scheduler.reconcile import Desired, Key
from shared.codec import decode_document, encode_document
from shared.contracts.common import Labels, ListRequest, Page
from shared.contracts.training import ENDED
from shared.errors import Invalid
from shared.paging import decode_cursor, encode_cursor
from shared.postgres import Transaction

_MOST_BYTES: Final = 700_000
"""Of one page: a message of the bus takes a million."""


class ActiveTraining(msgspec.Struct, frozen=True, kw_only=True):
    """The few columns of an active row that the controller decides by."""

    desired: Desired
    priority: int
    sequence: int
    queued_at: datetime
    not_before: datetime | None
    reason: str
    tasks: tuple[Demand, ...]
    nodes: tuple[str, ...]
    claims: tuple[str, ...]
    labels: Labels

    @property
    def queued(self) -> bool:
        return self.desired.state == "queued"

    def waiting(self) -> Waiting:
        """The row as one of the queue."""
        return Waiting(
            project=self.desired.project,
            name=self.desired.name,
            priority=self.priority,
            sequence=self.sequence,
            tasks=self.tasks,
            claims=self.claims,
            queued_at=self.queued_at,
            not_before=self.not_before,
            blocked=self.desired.holding,
            note=self.reason,
        )

    def holder(self) -> Holder:
        """The row as one that holds compute."""
        return Holder(
            project=self.desired.project,
            name=self.desired.name,
            tasks=self.tasks,
            nodes=self.nodes,
            claims=self.claims,
        )


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What freed attempts of a project held, and what its active trainings are."""

    cpu_seconds: float
    gpu_seconds: float
    records: tuple[TrainingRecord, ...]


class _Group(msgspec.Struct, frozen=True, array_like=True):
    """Tasks with one demand, as the ``demand`` column holds them."""

    count: int
    cpu: float
    memory: int
    gpu: int


class TrainingStore:
    """Trainings in PostgreSQL. Every method works in the caller's transaction."""

    async def allot(self, t: Transaction, project: str, base: str) -> tuple[str, int]:
        """The next name of a base (``digits-3``) and the next place in the queue."""
        row = await t.fetchrow(
            "INSERT INTO training_counter AS counter (project, base, last) VALUES ($1, $2, 1)"
            " ON CONFLICT (project, base) DO UPDATE SET last = counter.last + 1"
            " RETURNING last, nextval('training_sequence') AS sequence",
            project,
            base,
        )
        if row is None:
            raise RuntimeError("an upsert returned nothing")
        return f"{base}-{row['last']}", int(row["sequence"])

    async def next_name(self, t: Transaction, project: str, base: str) -> str:
        """The name that the next submit would give."""
        last = await t.fetchval("SELECT last FROM training_counter WHERE project = $1 AND base = $2", project, base)
        return f"{base}-{(last or 0) + 1}"

    async def next_sequence(self, t: Transaction) -> int:
        """The end of the queue."""
        return int(await t.fetchval("SELECT nextval('training_sequence')"))

    async def insert(self, t: Transaction, record: TrainingRecord) -> None:
        """Add a training."""
        await t.execute(
            "INSERT INTO training (project, name, sequence, state, priority, created_at, queued_at, labels,"
            " attempt, holding, active, not_before, deadline_at, reason, demand, nodes, claims, code, document)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)",
            record.project,
            record.name,
            record.sequence,
            record.state,
            record.spec.priority,
            record.created_at,
            record.queued_at,
            encode_document(record.spec.labels),
            record.attempt,
            record.holding,
            record.active,
            record.not_before,
            record.deadline_at,
            record.reason,
            encode_document(_groups(record)),
            encode_document(_nodes(record)),
            encode_document(record.claims),
            record.spec.code,
            encode_document(record),
        )

    async def save(self, t: Transaction, record: TrainingRecord) -> None:
        """Write a training back; the row is locked."""
        await t.execute(
            "UPDATE training SET sequence = $3, state = $4, queued_at = $5, attempt = $6, holding = $7,"
            " active = $8, not_before = $9, deadline_at = $10, reason = $11, nodes = $12, document = $13"
            " WHERE project = $1 AND name = $2",
            record.project,
            record.name,
            record.sequence,
            record.state,
            record.queued_at,
            record.attempt,
            record.holding,
            record.active,
            record.not_before,
            record.deadline_at,
            record.reason,
            encode_document(_nodes(record)),
            encode_document(record),
        )

    async def find(self, t: Transaction, key: Key, *, lock: bool = False) -> TrainingRecord | None:
        """A training, or None; locked until the transaction ends if asked for."""
        text = await t.fetchval(
            "SELECT document FROM training WHERE project = $1 AND name = $2" + (" FOR UPDATE" if lock else ""),
            *key,
        )
        return None if text is None else decode_document(TrainingRecord, text)

    async def get(self, t: Transaction, key: Key, *, lock: bool = False) -> TrainingRecord:
        """A training.

        Raises:
            NoSuchTraining: there is none of this name.
        """
        record = await self.find(t, key, lock=lock)
        if record is None:
            raise NoSuchTraining(*key)
        return record

    async def delete(self, t: Transaction, key: Key) -> None:
        """Delete a training's row, and note that its logs have to go."""
        await t.execute("DELETE FROM training WHERE project = $1 AND name = $2", *key)
        await t.execute("INSERT INTO training_removal (project, name) VALUES ($1, $2) ON CONFLICT DO NOTHING", *key)

    async def removals(self, t: Transaction) -> list[Key]:
        """Deleted trainings whose logs are still kept."""
        rows = await t.fetch("SELECT project, name FROM training_removal ORDER BY deleted_at")
        return [(row["project"], row["name"]) for row in rows]

    async def removed(self, t: Transaction, key: Key) -> None:
        """A deleted training's logs are gone."""
        await t.execute("DELETE FROM training_removal WHERE project = $1 AND name = $2", *key)

    async def page(self, t: Transaction, request: ListRequest) -> Page[TrainingRecord]:
        """Trainings of a project, the newest first."""
        after = decode_cursor(request.cursor, str, str)
        conditions, args = ["project = $1", "labels @> $2"], [request.project, encode_document(request.labels)]
        if request.state is not None:
            args.append(request.state)
            conditions.append(f"state = ${len(args)}")
        values: list[Any] = list(args)
        if after is not None:
            values += [_instant(str(after[0])), after[1]]
            conditions.append(f"(created_at, name) < (${len(values) - 1}, ${len(values)})")
        rows = await t.fetch(
            "SELECT document FROM training WHERE "
            + " AND ".join(conditions)
            + f" ORDER BY created_at DESC, name DESC LIMIT {request.limit + 1}",
            *values,
        )
        rows_of_page = _fitting(rows[: request.limit])
        items = [decode_document(TrainingRecord, row["document"]) for row in rows_of_page]
        more = len(rows) > len(items)
        last = encode_cursor(items[-1].created_at.isoformat(), items[-1].name) if more else None
        return Page(items=tuple(items), next=last)

    async def active(self, t: Transaction) -> list[ActiveTraining]:
        """Every row that the controller has to do with, in order of arrival."""
        rows = await t.fetch(
            "SELECT project, name, sequence, state, priority, queued_at, attempt, holding, not_before,"
            " deadline_at, reason, demand, nodes, claims, labels FROM training WHERE active ORDER BY sequence"
        )
        return [_active(row) for row in rows]

    async def usage(self, t: Transaction, project: str) -> UsageRow:
        """What a project has used, and its active trainings."""
        total = await t.fetchrow("SELECT cpu_seconds, gpu_seconds FROM usage_total WHERE project = $1", project)
        rows = await t.fetch("SELECT document FROM training WHERE active AND project = $1", project)
        return UsageRow(
            cpu_seconds=total["cpu_seconds"] if total else 0.0,
            gpu_seconds=total["gpu_seconds"] if total else 0.0,
            records=tuple(decode_document(TrainingRecord, row["document"]) for row in rows),
        )

    async def add_usage(self, t: Transaction, project: str, cpu_seconds: float, gpu_seconds: float) -> None:
        """Add what a freed attempt held."""
        await t.execute(
            "INSERT INTO usage_total AS total (project, cpu_seconds, gpu_seconds) VALUES ($1, $2, $3)"
            " ON CONFLICT (project) DO UPDATE SET cpu_seconds = total.cpu_seconds + $2,"
            " gpu_seconds = total.gpu_seconds + $3",
            project,
            cpu_seconds,
            gpu_seconds,
        )

    # -- boards

    async def touch_board(self, t: Transaction, key: Key, now: datetime) -> None:
        """Somebody looks at a training's TensorBoard."""
        await t.execute(
            "INSERT INTO board (project, name, used_at) VALUES ($1, $2, $3)"
            " ON CONFLICT (project, name) DO UPDATE SET used_at = $3",
            *key,
            now,
        )

    async def boards(self, t: Transaction) -> dict[Key, datetime]:
        """When each TensorBoard was last looked at."""
        rows = await t.fetch("SELECT project, name, used_at FROM board")
        return {(row["project"], row["name"]): row["used_at"] for row in rows}

    async def drop_board(self, t: Transaction, key: Key, used_before: datetime) -> bool:
        """Forget a TensorBoard unless somebody has looked at it since."""
        status = await t.execute(
            "DELETE FROM board WHERE project = $1 AND name = $2 AND used_at <= $3", *key, used_before
        )
        return status == "DELETE 1"


def _instant(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Invalid.field("cursor", "is not a cursor of this list") from None


def _fitting(rows: list[Any]) -> list[Any]:
    """As many rows as fit into one answer on the bus, and one at least."""
    size = 0
    for count, row in enumerate(rows):
        size += len(row["document"])
        if size > _MOST_BYTES and count:
            return rows[:count]
    return rows


def _groups(record: TrainingRecord) -> list[_Group]:
    """Runs of equal tasks, in order."""
    groups: list[_Group] = []
    for task in record.plan:
        demand = task.demand
        if groups and (groups[-1].cpu, groups[-1].memory, groups[-1].gpu) == (
            demand.cpu,
            demand.memory,
            demand.gpu,
        ):
            groups[-1] = msgspec.structs.replace(groups[-1], count=groups[-1].count + 1)
        else:
            groups.append(_Group(1, demand.cpu, demand.memory, demand.gpu))
    return groups


def _nodes(record: TrainingRecord) -> list[str]:
    """The machine of each task, once all are known."""
    nodes = [task.node for task in record.tasks] if record.holding else []
    return nodes if all(nodes) else []


def _active(row: Any) -> ActiveTraining:
    groups = decode_document(list[_Group], row["demand"])
    tasks = tuple(
        Demand(cpu=group.cpu, memory=group.memory, gpu=group.gpu) for group in groups for _ in range(group.count)
    )
    return ActiveTraining(
        desired=Desired(
            project=row["project"],
            name=row["name"],
            state=row["state"],
            attempt=row["attempt"],
            holding=row["holding"],
            tasks=len(tasks),
            deadline_at=row["deadline_at"] if row["state"] not in ENDED else None,
        ),
        priority=row["priority"],
        sequence=row["sequence"],
        queued_at=row["queued_at"],
        not_before=row["not_before"],
        reason=row["reason"],
        tasks=tasks,
        nodes=tuple(decode_document(list[str], row["nodes"])),
        claims=tuple(decode_document(list[str], row["claims"])),
        labels=decode_document(Labels, row["labels"]),
    )
