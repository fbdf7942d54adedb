"""Watch the cloud, wake, apply the plan. Runs in the replica that leads."""

import contextlib
from datetime import timedelta
from typing import Final

import structlog

from services.datastore import store
from services.datastore.cloud.port import (
    Directory,
    Observation,
    Provided,
    Removed,
    StorageCloud,
    Synced,
    Unprovided,
)
from services.datastore.handlers import Handlers
from services.datastore.model import Available, Gone, Refused, StoredDatastore
from services.datastore.reconcile import reconcile
from shared.clock import now
from shared.errors import ElearnError
from shared.postgres import Database
from shared.supervise import Wake, retrying

_log = structlog.get_logger(__name__)

_RESYNC: Final = 30.0
_SWEEP_EVERY: Final = 600.0
_USES_KEPT: Final = timedelta(days=14)


class Controller:
    """Keeps the cloud to what the rows say, and the rows to what the cloud shows."""

    def __init__(
        self,
        *,
        database: Database,
        handlers: Handlers,
        cloud: StorageCloud,
        wake: Wake,
        upload_abandoned: float,
    ) -> None:
        self._database = database
        self._handlers = handlers
        self._cloud = cloud
        self._wake = wake
        self._upload_abandoned = upload_abandoned
        self._observed: set[str] = set()
        self._synced = False
        self._idle = Wake()

    async def watch(self) -> None:
        """Take in what the cloud shows, for ever; begins anew, and with all of it, after an error."""
        await retrying("watch of the storage cloud", self._watch_once, on=(ElearnError,))

    async def run(self) -> None:
        """Make the plan and apply it whenever something changed, for ever."""
        await retrying("controller of datastores", self._round, on=(ElearnError,))

    async def sweep(self) -> None:
        """Remove abandoned uploads now and then, for ever."""
        await retrying("sweeper of uploads", self._sweep_once, on=(ElearnError,))

    async def _watch_once(self) -> None:
        self._observed.clear()
        self._synced = False
        async with contextlib.aclosing(self._cloud.watch()) as watch:
            async for observation in watch:
                await self._take(observation)
                self._wake.ring()

    async def _take(self, observation: Observation) -> None:
        match observation:
            case Synced():
                self._synced = True
            case Provided(uid=uid):
                self._observed.add(uid)
                available = Available(volume=observation.volume, note=observation.note)
                await self._handlers.observed(uid, available)
            case Unprovided(uid=uid):
                self._observed.add(uid)
                await self._handlers.observed(uid, Refused(reason=observation.reason))
            case Removed(uid=uid):
                self._observed.discard(uid)

    async def _round(self) -> None:
        await self._wake.wait(_RESYNC)
        if not self._synced:
            return
        try:
            observed = frozenset(self._observed)  # before the rows: a row is there before its directory is
            async with self._database.transaction() as transaction:
                rows = await store.load_all(transaction)
            plan = reconcile(rows, observed)
            for row in plan.provision:
                await self._cloud.provision(_directory(row))
            for uid in plan.release:
                await self._cloud.release(uid)
            for row in plan.gone:
                await self._cloud.release(row.uid)  # of what was interrupted, the watch need not have told
                await self._handlers.observed(row.uid, Gone())
        except ElearnError:
            self._wake.ring()  # whatever is left of the plan is made again after the pause
            raise

    async def _sweep_once(self) -> None:
        await self._idle.wait(_SWEEP_EVERY)
        async with self._database.transaction() as transaction:
            await store.forget_uses(transaction, now() - _USES_KEPT)
            rows = await store.load_all(transaction)
        for row in rows:
            if row.volume is None or row.state != "ready":
                continue
            try:
                removed = await self._cloud.sweep(row.volume, older_than=self._upload_abandoned)
            except ElearnError as error:
                _log.warning("uploads not swept", datastore=row.name, project=row.project, error=error.detail)
            else:
                if removed:
                    _log.info("abandoned uploads removed", datastore=row.name, count=removed)


def _directory(row: StoredDatastore) -> Directory:
    return Directory(uid=row.uid, project=row.project, name=row.name, spec=row.spec)
