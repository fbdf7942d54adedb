"""Logs of tasks, kept as the scheduler's store keeps them, in memory: for suites that need no PostgreSQL."""

import asyncio
from typing import Any

from msgspec.structs import replace

from services.scheduler.cloud.kubernetes.log_fetch import Store
from services.scheduler.cloud.port import LogPart
from services.scheduler.log_store import LogHead, LogKey, Source
from shared.errors import Unavailable


class LogsInMemory:
    """The same promises as :class:`services.scheduler.log_store.LogStore`."""

    def __init__(self) -> None:
        self.heads_of: dict[LogKey, LogHead] = {}
        self.bytes_of: dict[LogKey, bytes] = {}

    async def head(self, log: LogKey) -> LogHead | None:
        return self.heads_of.get(log)

    async def heads(self, project: str, name: str, attempt: int) -> dict[str, LogHead]:
        return {log.task: head for log, head in self.heads_of.items() if log[:3] == (project, name, attempt)}

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
        head = self._take_up(log, source, epoch)
        if head is None or head.closed or (gap and head.taken != position) or head.taken < position:
            return None
        new = data[head.taken - position :]
        if not new:
            return head.epoch
        kept = self.bytes_of[log] + new
        if len(kept) > limit:
            kept = kept[-(limit // 2) :]
        size, epoch = head.size + len(new), head.epoch + gap
        self.bytes_of[log] = kept
        taken = head.taken + len(new)
        self.heads_of[log] = replace(head, size=size, start=size - len(kept), taken=taken, mark=mark, epoch=epoch)
        return epoch

    async def complete(self, log: LogKey, source: Source, *, epoch: int) -> None:
        if (head := self._take_up(log, source, epoch)) is not None:
            self.heads_of[log] = replace(head, complete=True)

    async def close(self, project: str, name: str, attempt: int) -> None:
        for log, head in self.heads_of.items():
            if log[:3] == (project, name, attempt) and head.complete:
                self.heads_of[log] = replace(head, closed=True)

    async def read(self, log: LogKey, *, offset: int, length: int) -> tuple[LogPart, LogHead | None]:
        head = self.heads_of.get(log)
        if head is None:
            return LogPart(data=b"", offset=max(offset, 0), size=0), None
        begin = max(head.size + offset, 0) if offset < 0 else offset
        if begin >= head.size:
            return LogPart(data=b"", offset=begin, size=head.size), head
        begin = max(begin, head.start)
        data = self.bytes_of[log][begin - head.start :][:length]
        return LogPart(data=data, offset=begin, size=head.size), head

    async def forget(self, project: str, name: str) -> None:
        for log in [log for log in self.heads_of if log[:2] == (project, name)]:
            del self.heads_of[log], self.bytes_of[log]

    def _take_up(self, log: LogKey, source: Source, epoch: int) -> LogHead | None:
        head = self.heads_of.get(log)
        if head is None:
            if epoch:
                return None
            head = LogHead(size=0, start=0, source=source, taken=0, mark="", epoch=0, complete=False, closed=False)
            self.bytes_of[log] = b""
        if head.epoch != epoch:
            return None
        if head.source != source:
            if head.closed or head.source.order > source.order:
                return None
            head = replace(head, source=source, taken=0, mark="", epoch=head.epoch + 1, complete=False)
        self.heads_of[log] = head
        return head


class Outage:
    """A store whose database can be away.

    Attributes:
        hangs: it is not refused, there is just no answer.
        asked: somebody asked while it was.
    """

    def __init__(self, store: Store, *, hangs: bool = False) -> None:
        self._store = store
        self.away = False
        self.hangs = hangs
        self.asked = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        async def answer(*args: object, **options: object) -> object:
            if self.away:
                self.asked.set()
                while self.hangs and self.away:
                    await asyncio.sleep(0.02)
                raise Unavailable("the database is away; try again")
            return await call(*args, **options)

        return answer
