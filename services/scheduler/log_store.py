"""All SQL of logs that the scheduler keeps: bytes per task, appended exactly once whoever fetches them, bounded."""

from typing import Final, NamedTuple

import asyncpg
import msgspec

from services.scheduler.cloud.port import LogPart
from shared.postgres import Database, Transaction

_PART: Final = 32 * 1024
"""Small appends are put together up to so many bytes."""


class LogKey(NamedTuple):
    """Whose log."""

    project: str
    name: str
    attempt: int
    task: str


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What writes a log at present; a task that is started again has one after another.

    Attributes:
        uid: never another's.
        rank: of two sources of a task, the later one's is greater.
    """

    uid: str
    rank: int

    @property
    def order(self) -> tuple[int, str]:
        return (self.rank, self.uid)


class LogHead(msgspec.Struct, frozen=True, kw_only=True):
    """How far a log was taken.

    Attributes:
        size: bytes that ever came, of all sources.
        start: the first that is still kept.
        taken: bytes that came of ``source``.
        mark: where they end there, in the words of who fetched them.
        epoch: changes whenever positions begin to mean something else.
        complete: everything of ``source`` came.
        closed: nothing will ever come any more.
    """

    size: int
    start: int
    source: Source
    taken: int
    mark: str
    epoch: int
    complete: bool
    closed: bool


class LogStore:
    """Logs in PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def head(self, log: LogKey) -> LogHead | None:
        """How far a log was taken; None: nothing is known of it."""
        async with self._database.transaction() as t:
            row = await _find(t, log, lock=False)
        return None if row is None else _head(row)

    async def heads(self, project: str, name: str, attempt: int) -> dict[str, LogHead]:
        """The same of every task of an attempt, by the task's name."""
        async with self._database.transaction() as t:
            rows = await t.fetch(
                "SELECT * FROM task_log WHERE project = $1 AND name = $2 AND attempt = $3", project, name, attempt
            )
        return {row["task"]: _head(row) for row in rows}

    async def append(
        self,
        log: LogKey,
        source: Source,
        data: bytes,
        *,
        position: int,
        mark: str,
        epoch: int,
        limit: int,
        gap: bool = False,
    ) -> int | None:
        """Add what follows; whatever of it came already, from us or from another replica, is left out.

        Args:
            position: how many bytes of this source come before ``data``.
            mark: kept unless somebody got further already.
            epoch: of the head that the fetch began with, or what the last append answered.
            limit: bytes of the log that are kept; the oldest half of them goes beyond.
            gap: the source has lost something, so that only who knows of it may go on from here.

        Returns:
            The epoch to go on with; None: begin again from the head, as somebody else went on in another way.
        """
        async with self._database.transaction() as t:
            row = await _take_up(t, log, source, epoch)
            if row is None or row["closed"] or (gap and row["taken"] != position) or row["taken"] < position:
                return None
            new = data[row["taken"] - position :]
            if not new:
                return int(row["epoch"])
            await _add(t, row, new)
            size, start = row["size"] + len(new), row["start"]
            if size - start > limit:
                start = await _drop(t, row["id"], size - limit // 2, size)
            after = row["epoch"] + (1 if gap else 0)
            await t.execute(
                "UPDATE task_log SET size = $2, start = $3, taken = taken + $4, mark = $5, epoch = $6 WHERE id = $1",
                *(row["id"], size, start, len(new), mark, after),
            )
            return int(after)

    async def complete(self, log: LogKey, source: Source, *, epoch: int) -> None:
        """Everything of a source came, be it nothing."""
        async with self._database.transaction() as t:
            row = await _take_up(t, log, source, epoch)
            if row is not None:
                await t.execute("UPDATE task_log SET complete = true WHERE id = $1", row["id"])

    async def close(self, project: str, name: str, attempt: int) -> None:
        """Nothing will come any more of the tasks of an attempt that everything came of."""
        async with self._database.transaction() as t:
            await t.execute(
                "UPDATE task_log SET closed = true"
                " WHERE project = $1 AND name = $2 AND attempt = $3 AND complete AND NOT closed",
                *(project, name, attempt),
            )

    async def read(self, log: LogKey, *, offset: int, length: int) -> tuple[LogPart, LogHead | None]:
        """At most ``length`` bytes from ``offset``, a negative one counting from the end; and the log's head."""
        async with self._database.transaction() as t:
            row = await _find(t, log, lock=False, share=True)  # what is read below must not be dropped meanwhile
            if row is None:
                return LogPart(data=b"", offset=max(offset, 0), size=0), None
            size = int(row["size"])
            begin = max(size + offset, 0) if offset < 0 else offset
            data = b""
            if begin < size:
                begin = max(begin, row["start"])
                data = await _bytes(t, row["id"], begin, min(begin + length, size))
        return LogPart(data=data, offset=begin, size=size), _head(row)

    async def forget(self, project: str, name: str) -> None:
        """Remove the logs of all attempts of a training."""
        async with self._database.transaction() as t:
            await t.execute("DELETE FROM task_log WHERE project = $1 AND name = $2", project, name)


async def _find(t: Transaction, log: LogKey, *, lock: bool, share: bool = False) -> asyncpg.Record | None:
    how = " FOR UPDATE" if lock else " FOR SHARE" if share else ""
    return await t.fetchrow(
        f"SELECT * FROM task_log WHERE project = $1 AND name = $2 AND attempt = $3 AND task = $4{how}",
        *log,
    )


async def _take_up(t: Transaction, log: LogKey, source: Source, epoch: int) -> asyncpg.Record | None:
    """The locked row, turned to this source where it follows the one before; None where that is not so any more."""
    row = await _find(t, log, lock=True)
    if row is None:
        if epoch:
            return None
        await t.execute(
            "INSERT INTO task_log (project, name, attempt, task, source, rank) VALUES ($1, $2, $3, $4, $5, $6)"
            " ON CONFLICT DO NOTHING",
            *(*log, source.uid, source.rank),
        )
        row = await _find(t, log, lock=True)
    if row is None or row["epoch"] != epoch:
        return None
    before = _head(row).source
    if before == source:
        return row
    if row["closed"] or before.order > source.order:
        return None
    return await t.fetchrow(
        "UPDATE task_log SET source = $2, rank = $3, taken = 0, mark = '', epoch = epoch + 1, complete = false"
        " WHERE id = $1 RETURNING *",
        *(row["id"], source.uid, source.rank),
    )


async def _add(t: Transaction, row: asyncpg.Record, data: bytes) -> None:
    """Into the last part while it is small, else as a new one."""
    joined = await t.execute(
        "UPDATE task_log_part SET data = data || $2 WHERE log = $1 AND length(data) + $3 <= $4"
        " AND start = (SELECT max(start) FROM task_log_part WHERE log = $1)",
        *(row["id"], data, len(data), _PART),
    )
    if joined == "UPDATE 0":
        await t.execute(
            "INSERT INTO task_log_part (log, start, data) VALUES ($1, $2, $3)", row["id"], row["size"], data
        )


async def _drop(t: Transaction, log: int, before: int, size: int) -> int:
    """Drop the parts that lie before an offset; where the rest begins."""
    await t.execute("DELETE FROM task_log_part WHERE log = $1 AND start + length(data) <= $2", log, before)
    start = await t.fetchval("SELECT min(start) FROM task_log_part WHERE log = $1", log)
    return size if start is None else int(start)


async def _bytes(t: Transaction, log: int, begin: int, end: int) -> bytes:
    rows = await t.fetch(
        "SELECT start, data FROM task_log_part WHERE log = $1 AND start < $3 AND start >="
        " (SELECT max(start) FROM task_log_part WHERE log = $1 AND start <= $2) ORDER BY start",
        *(log, begin, end),
    )
    if not rows:
        return b""
    data = b"".join(bytes(row["data"]) for row in rows)
    first = int(rows[0]["start"])
    return data[begin - first : end - first]


def _head(row: asyncpg.Record) -> LogHead:
    return LogHead(
        size=row["size"],
        start=row["start"],
        source=Source(uid=row["source"], rank=row["rank"]),
        taken=row["taken"],
        mark=row["mark"],
        epoch=row["epoch"],
        complete=row["complete"],
        closed=row["closed"],
    )
