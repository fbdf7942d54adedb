"""Watch the save jobs, wake, apply the plan. Runs in the replica that leads."""

import contextlib
from datetime import timedelta
from typing import Final

import msgspec
import structlog

from services.registry import changes, store
from services.registry.cloud import port
from services.registry.handlers import Handlers
from services.registry.model import (
    FilesGone,
    Launched,
    Lost,
    Refused,
    Saved,
    SourceFound,
    StoredVersion,
)
from services.registry.reconcile import Job, Plan, reconcile
from shared.bus import Bus
from shared.clock import now
from shared.contracts import datastore, training
from shared.contracts.datastore import Volume
from shared.errors import Conflict, ElearnError, Forbidden, Invalid, NotFound, StorageFull
from shared.postgres import Database
from shared.supervise import Wake, retrying

_log = structlog.get_logger(__name__)

_RESYNC: Final = 30.0
_SHORTLY: Final = 1.0
_FORGET_EVERY: Final = 3600.0
_USES_KEPT: Final = timedelta(days=14)
_NEVER: Final = (NotFound, Invalid, Conflict, Forbidden)
"""Answers of other rooms after which asking again would not help."""


class Controller:
    """Carries out saves and removals."""

    def __init__(
        self,
        *,
        database: Database,
        handlers: Handlers,
        cloud: port.JobCloud,
        bus: Bus,
        wake: Wake,
        most_at_once: int,
        timeout: timedelta,
    ) -> None:
        self._database = database
        self._handlers = handlers
        self._cloud = cloud
        self._bus = bus
        self._wake = wake
        self._most_at_once = most_at_once
        self._timeout = timeout
        self._jobs: dict[Job, bool] = {}
        self._synced = False
        self._next_look = _RESYNC
        self._idle = Wake()

    async def watch(self) -> None:
        """Take in what becomes of jobs, for ever; begins anew, and with all of it, after an error."""
        await retrying("watch of save jobs", self._watch_once, on=(ElearnError,))

    async def run(self) -> None:
        """Make the plan and apply it whenever something changed, for ever."""
        await retrying("controller of versions", self._round, on=(ElearnError,))

    async def forget(self) -> None:
        """Drop what is remembered of servings that are long gone, for ever."""
        await retrying("sweeper of servings' uses", self._forget_once, on=(ElearnError,))

    async def _watch_once(self) -> None:
        self._jobs.clear()
        self._synced = False
        async with contextlib.aclosing(self._cloud.watch()) as watch:
            async for observation in watch:
                await self._take(observation)
                self._wake.ring()

    async def _take(self, observation: port.Observation) -> None:
        match observation:
            case port.Synced():
                self._synced = True
            case port.Running(job=job):
                self._jobs[job] = True
            case port.Gone(job=job):
                self._jobs.pop(job, None)
            case port.Succeeded(job=job, facts=facts):
                self._jobs[job] = False
                await self._handlers.observed(job.key, Saved(facts=facts))
            case port.Refused(job=job, reason=reason):
                self._jobs[job] = False
                await self._handlers.observed(job.key, Refused(reason=reason))
            case port.Lost(job=job, reason=reason):
                self._jobs[job] = False
                _log.warning("save job lost", version=str(job.key), attempt=job.attempt, reason=reason)
                await self._handlers.observed(job.key, Lost(attempt=job.attempt, reason=reason))

    async def _round(self) -> None:
        await self._wake.wait(self._next_look)
        self._next_look = _RESYNC
        if not self._synced:
            return
        try:
            jobs = dict(self._jobs)  # before the rows: a row is there before its job is
            async with self._database.transaction() as transaction:
                versions = await store.load_at_work(transaction, {job.key for job in jobs})
            at = now()
            plan = reconcile(versions, jobs, most_at_once=self._most_at_once, timeout=self._timeout, now=at)
            if plan.next_deadline is not None:
                self._next_look = min(_RESYNC, max(_SHORTLY, (plan.next_deadline - at).total_seconds()))
            await self._apply(plan)
        except ElearnError:
            self._wake.ring()  # whatever is left of the plan is made again after the pause
            raise

    async def _apply(self, plan: Plan) -> None:
        for job in plan.finish:
            await self._cloud.finish(job)
            self._jobs.pop(job, None)
        for key in plan.clear:
            await self._cloud.remove(key)
            for job in [each for each in self._jobs if each.key == key]:
                del self._jobs[job]
        for version in plan.remove:
            await self._cloud.remove(version.key)
            await self._handlers.observed(version.key, FilesGone())
        for version in plan.overdue:
            seconds = self._timeout.total_seconds()
            await self._handlers.observed(version.key, Refused(reason=f"the save did not end within {seconds:g} s"))
            self._wake.ring()
        troubles: list[ElearnError] = []
        for version in plan.find + plan.launch:
            try:
                with changes.caused_by(version):
                    await (self._find if version in plan.find else self._launch)(version)
            except ElearnError as error:
                troubles.append(error)  # the others' turn comes all the same
        if troubles:
            raise troubles[0]

    async def _find(self, version: StoredVersion) -> None:
        """Ask the scheduler where the training's path lies."""
        source = version.source
        request = training.FindOutput(project=version.project, name=source.training or "", path=source.training_path)
        try:
            output = await self._bus.call(training.FIND_OUTPUT, request)
        except _NEVER as error:
            await self._handlers.observed(version.key, Refused(reason=error.detail))
            return
        lineage = msgspec.structs.replace(output.lineage, attempt=version.lineage.attempt or output.lineage.attempt)
        found = SourceFound(datastore=output.datastore, path=output.path, lineage=lineage)
        await self._handlers.observed(version.key, found)
        self._wake.ring()

    async def _launch(self, version: StoredVersion) -> None:
        """Start the job of the current attempt."""
        volume = await self._volume(version)
        if volume is None:
            return
        current = await self._handlers.observed(version.key, Launched())
        if current is None or current.state != "saving" or current.removing:
            return
        job = Job(version.key, version.attempt)
        where = f"{version.source.path} in datastore {version.source.datastore}"
        try:
            await self._cloud.save(port.SaveJob(job=job, volume=volume, path=version.source.path, shown=where))
        except StorageFull as error:
            await self._cloud.remove(version.key)
            await self._handlers.observed(version.key, Refused(reason=error.detail))
            return
        self._jobs.setdefault(job, True)

    async def _volume(self, version: StoredVersion) -> Volume | None:
        """Where the source is mounted from; None where it can't be (yet)."""
        name = version.source.datastore or ""
        reply = await self._bus.call(datastore.MOUNT, datastore.MountRequest(project=version.project, names=(name,)))
        if reply.missing:
            await self._handlers.observed(version.key, Refused(reason=f"datastore {name} was deleted"))
            return None
        if reply.not_ready:
            state = reply.not_ready[name]
            if state.startswith("provisioning"):
                self._next_look = _SHORTLY
            else:
                reason = f"datastore {name} is not ready: {state}"
                await self._handlers.observed(version.key, Refused(reason=reason))
            return None
        return reply.datastores[0].volume

    async def _forget_once(self) -> None:
        await self._idle.wait(_FORGET_EVERY)
        async with self._database.transaction() as transaction:
            await store.forget_uses(transaction, now() - _USES_KEPT)
