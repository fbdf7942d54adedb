"""Watch the cloud, wake, apply the plan. Runs in the replica that leads."""

import asyncio
import contextlib
from typing import Final

import structlog

from services.serving import store
from services.serving.cloud.port import Deployment, Gone, Observation, Seen, ServingCloud, Synced
from services.serving.handlers import Handlers
from services.serving.model import Located, Observed, StoredServing, Unservable
from services.serving.reconcile import reconcile
from services.serving.registry import Registry
from shared.errors import Conflict, ElearnError, Invalid, NotFound, Unsupported
from shared.postgres import Database
from shared.supervise import Wake, retrying

log = structlog.get_logger(__name__)

_RESYNC: Final = 30.0


class Controller:
    """Keeps the cloud to what the rows say, and the rows to what the cloud shows."""

    def __init__(
        self,
        *,
        database: Database,
        handlers: Handlers,
        cloud: ServingCloud,
        registry: Registry,
        wake: Wake,
    ) -> None:
        self._database = database
        self._handlers = handlers
        self._cloud = cloud
        self._registry = registry
        self._wake = wake
        self._seen: dict[str, Observed] = {}
        self._applied: dict[str, Deployment] = {}
        self._synced = False
        self._telling = asyncio.Lock()

    async def watch(self) -> None:
        """Take in what the cloud shows, for ever; begins anew, and with all of it, after an error."""
        await retrying("watch of the serving cloud", self._watch_once, on=(ElearnError,))

    async def run(self) -> None:
        """Make the plan and apply it whenever something changed, for ever."""
        # Whoever led meanwhile may have applied something else.
        self._applied.clear()
        await retrying("controller of servings", self._round, on=(ElearnError,))

    async def _watch_once(self) -> None:
        self._seen.clear()
        self._synced = False
        async with contextlib.aclosing(self._cloud.watch()) as watch:
            async for observation in watch:
                await self._take(observation)
                self._wake.ring()

    async def _take(self, observation: Observation) -> None:
        match observation:
            case Synced():
                self._synced = True
            case Seen(uid=uid, observed=observed):
                self._seen[uid] = observed
                await self._tell(uid)
            case Gone(uid=uid):
                self._seen.pop(uid, None)

    async def _round(self) -> None:
        await self._wake.wait(_RESYNC)
        if not self._synced:
            return
        try:
            seen = frozenset(self._seen)  # before the rows: a row is there before its replicas are
            async with self._database.transaction() as transaction:
                rows = await store.load_all(transaction)
            plan = reconcile(rows, self._applied, seen)
            for row in plan.locate:
                await self._locate(row)
            for deployment in plan.apply:
                await self._cloud.apply(deployment)
                self._applied[deployment.uid] = deployment
            for uid in plan.remove:
                await self._cloud.remove(uid)
                self._applied.pop(uid, None)
            for row in rows:
                # What the cloud shows may be what is wanted already, and then tells no change.
                if row.state != "ready":
                    await self._tell(row.uid)
        except ElearnError:
            self._wake.ring()  # whatever is left of the plan is made again after the pause
            raise

    async def _tell(self, uid: str) -> None:
        """Let a serving know what the cloud shows of it now; what was told later is never overtaken by older news."""
        async with self._telling:
            observed = self._seen.get(uid)
            if observed is not None:
                await self._handlers.observed(uid, observed)

    async def _locate(self, row: StoredServing) -> None:
        """Ask where a revision's versions lie; a registry that is away is asked again later."""
        target = row.target
        if target is None:
            return
        try:
            sources = await self._registry.locate(row.project, row.spec.model, target.traffic)
        except (NotFound, Conflict, Invalid, Unsupported) as error:
            await self._handlers.observed(row.uid, Unservable(revision=target.number, reason=error.detail))
        else:
            await self._handlers.observed(row.uid, Located(revision=target.number, sources=sources))
