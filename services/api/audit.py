"""The audit log: written behind the answers, so that none waits for it, and kept for as long as is set."""

import asyncio
from collections import deque
from datetime import timedelta
from typing import Final

import structlog
from prometheus_client import Counter

from services.api import store
from services.api.model import AuditEntry
from shared.clock import now
from shared.errors import ElearnError
from shared.postgres import Database
from shared.supervise import Wake

_log = structlog.get_logger(__name__)

_MOST_WAITING: Final = 50_000
_BATCH: Final = 500
_PURGE_EVERY: Final = 3600.0
_PURGE_BATCH: Final = 5000
_RETRY: Final = 1.0

_lost = Counter("elearn_api_audit_lost", "Audit entries that could not be kept in the database, only in the log")


class AuditLog:
    """Takes entries at once and writes them in batches.

    An entry may be lost when the process is killed within the moments before it is written; the
    request's log line has the same words.
    """

    def __init__(self, database: Database, days: float) -> None:
        self._database = database
        self._days = days
        self._waiting: deque[AuditEntry] = deque()
        self._wake = Wake()

    def record(self, entry: AuditEntry) -> None:
        """Keep an entry; the database being away for long, the oldest that wait are given up."""
        if len(self._waiting) >= _MOST_WAITING:
            given_up = self._waiting.popleft()
            _lost.inc()
            _log.error("audit entry lost", actor=given_up.actor, method=given_up.method, path=given_up.path)
        self._waiting.append(entry)
        self._wake.ring()

    async def run(self) -> None:
        """Write for ever; a database that is away is waited for."""
        purge_at = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait(_PURGE_EVERY)
            try:
                await self.flush()
                if loop.time() >= purge_at:
                    await self._purge()
                    purge_at = loop.time() + _PURGE_EVERY
            except ElearnError as error:
                _log.info("audit log waits", error=error.detail, waiting=len(self._waiting))
                await asyncio.sleep(_RETRY)
                self._wake.ring()

    async def flush(self) -> None:
        """Write all that waits.

        Raises:
            Unavailable, StorageFull: the database can't take it; it waits on.
        """
        while self._waiting:
            batch = [self._waiting[place] for place in range(min(_BATCH, len(self._waiting)))]
            async with self._database.transaction() as t:
                await store.insert_audit(t, batch)
            written = set(map(id, batch))
            while self._waiting and id(self._waiting[0]) in written:
                self._waiting.popleft()

    async def close(self) -> None:
        """Write what waits, if the database is there."""
        try:
            async with asyncio.timeout(3):
                await self.flush()
        except (ElearnError, TimeoutError) as error:
            _log.error("audit entries lost", entries=len(self._waiting), error=str(error))

    async def _purge(self) -> None:
        before = now() - timedelta(days=self._days)
        gone = _PURGE_BATCH
        while gone == _PURGE_BATCH:
            async with self._database.transaction() as t:
                gone = await store.purge_audit(t, before, _PURGE_BATCH)
