"""Keeps the cloud as the rows say: watch, wake, decide, act.

Two loops run in the replica that leads. ``follow`` takes what the cloud shows into the rows; ``run`` looks at all
active rows whenever it is woken (by a commit, by itself, by time) and starts what is missing. Calls to the cloud run
beside the loops, one at a time for each training; what they bring about goes into the rows like everything else.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from services.scheduler.admission import admit
from services.scheduler.changes import Changes
from services.scheduler.cloud.port import AttemptGone, AttemptSeen, Launch, Observation, Synced, TrainingCloud
from services.scheduler.errors import CannotLaunch, NoRoomLeft, WrongState
from services.scheduler.metrics import note_active, note_failed_call
from services.scheduler.model import (
    Admit,
    DeadlinePassed,
    Decision,
    Freed,
    Hindered,
    Message,
    Refused,
    Seen,
    TrainingRecord,
    Vanished,
)
from services.scheduler.reconcile import Action, Key, Shown, reconcile
from services.scheduler.store import ActiveTraining, TrainingStore
from shared import context
from shared.clock import now
from shared.context import Cause
from shared.errors import ElearnError
from shared.postgres import Database
from shared.supervise import Wake

_log = structlog.get_logger(__name__)

_RESYNC: Final = 10.0
_PAUSES: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LAUNCH_AGAIN: Final = 30.0
_TAKEN_IN_AT_ONCE: Final = 4


class Controller:
    """The leader's work.

    Args:
        wake: rung by whoever changed what the controller works on.
        board_idle: seconds after which a TensorBoard that nobody looks at is closed.
    """

    def __init__(
        self,
        database: Database,
        store: TrainingStore,
        changes: Changes,
        cloud: TrainingCloud,
        wake: Wake,
        board_idle: float,
    ) -> None:
        self._database = database
        self._store = store
        self._changes = changes
        self._cloud = cloud
        self._wake = wake
        self._board_idle = timedelta(seconds=board_idle)
        self._shown: dict[Key, dict[int, AttemptSeen]] = {}
        self._synced = False
        self._settled = False
        self._news: dict[tuple[Key, int], AttemptSeen] = {}
        self._taking_in: set[Key] = set()
        self._new = Wake()
        self._busy: dict[Key, asyncio.Task[None]] = {}
        self._launched: dict[tuple[Key, int], float] = {}
        self._failing: dict[Key, tuple[int, float]] = {}
        self._group: asyncio.TaskGroup | None = None

    # -- what the cloud shows

    async def watch(self) -> None:
        """Take down what the cloud shows, as it comes; never ends."""
        self._see_nothing()
        async with contextlib.aclosing(self._cloud.watch()) as watch:
            async for observation in watch:
                self._take(observation)

    def _take(self, observation: Observation) -> None:
        match observation:
            case Synced():
                self._synced = True
                self._wake.ring()
            case AttemptSeen(project=project, name=name, attempt=attempt):
                self._shown.setdefault((project, name), {})[attempt] = observation
                self._news[(project, name), attempt] = observation
                self._new.ring()
            case AttemptGone(project=project, name=name, attempt=attempt):
                attempts = self._shown.get((project, name), {})
                attempts.pop(attempt, None)
                if not attempts:
                    self._shown.pop((project, name), None)
                self._wake.ring()

    def _see_nothing(self) -> None:
        self._shown.clear()
        self._news.clear()
        self._synced = self._settled = False

    async def follow(self) -> None:
        """Bring what was shown into the rows, for each training in its order; never ends."""
        async with asyncio.TaskGroup() as group:
            for number in range(_TAKEN_IN_AT_ONCE):
                group.create_task(self._follow(), name=f"trainings' news {number}")

    async def _follow(self) -> None:
        while True:
            seen = self._next_news()
            if seen is None:
                await self._new.wait()
                continue
            key = (seen.project, seen.name)
            self._taking_in.add(key)
            try:
                await self._take_in(key, seen)
            finally:
                self._taking_in.discard(key)

    def _next_news(self) -> AttemptSeen | None:
        """What was shown first of trainings of which nothing is being taken in."""
        for key, attempt in self._news:
            if key not in self._taking_in:
                return self._news.pop((key, attempt))
        return None

    async def _take_in(self, key: Key, seen: AttemptSeen) -> None:
        try:
            decision = await self._apply(key, Seen(attempt=seen.attempt, tasks=seen.tasks))
        except ElearnError as error:
            _log.info("observation waits", training=key, error=error.detail)
            self._news.setdefault((key, seen.attempt), seen)
            await asyncio.sleep(_PAUSES[1])
            return
        if decision is None or decision.record.attempt != seen.attempt:
            self._wake.ring()  # an attempt that nobody asked for, or not any more
        elif decision.record.holding and not decision.record.wanted:
            self._start(Action(what="free", project=key[0], name=key[1], attempt=seen.attempt))

    # -- what is to be done

    async def run(self) -> None:
        """Look at everything when woken, and at times unasked; never ends."""
        # What was seen in an earlier leadership is old: another may have led meanwhile.
        self._see_nothing()
        self._busy.clear()
        self._launched.clear()
        self._failing.clear()
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                while True:
                    again_at = await self._round_patiently()
                    await self._wake.wait(_until(again_at))
            finally:
                self._group = None
                for task in tuple(self._busy.values()):
                    task.cancel()

    async def _round_patiently(self) -> datetime | None:
        try:
            return await self._round()
        except ElearnError as error:
            _log.warning("round put off", error=error.detail)
            return now() + timedelta(seconds=_PAUSES[2])

    async def _round(self) -> datetime | None:
        shown, synced = self._look(), self._synced
        async with self._database.transaction() as t:
            active = await self._store.active(t)
            removals = await self._store.removals(t)
        note_active([_shown_state(row) for row in active])
        if synced and not self._settled:
            held = [row.desired for row in active if row.desired.holding]
            await self._cloud.settle(frozenset((row.project, row.name, row.attempt) for row in held))
            self._settled = True
        plan = reconcile(
            [row.desired for row in active],
            now(),
            shown_before=shown,
            shown_after=self._look(),
            synced=self._synced,
        )
        for action in plan.actions:
            await self._do(action)
        admission_at = await self._admit(active)
        for key in removals:
            await self._forget(key)
        times = [each for each in (plan.again_at, admission_at, *self._retries()) if each is not None]
        return min(times, default=None)

    def _look(self) -> dict[Key, list[Shown]]:
        return {
            key: [Shown(attempt=number, tasks=len(seen.tasks)) for number, seen in attempts.items()]
            for key, attempts in self._shown.items()
        }

    def _retries(self) -> list[datetime]:
        """When calls that failed are due again; what nobody wants any more is forgotten."""
        loop_time = asyncio.get_running_loop().time()
        for key, (_, until) in tuple(self._failing.items()):
            if until <= loop_time and key not in self._busy:
                del self._failing[key]
        return [_at(until) for _, until in self._failing.values() if until > loop_time]

    async def _do(self, action: Action) -> None:
        match action.what:
            case "vanished":
                await self._apply(action.key, Vanished(attempt=action.attempt))
                self._wake.ring()
            case "deadline":
                await self._apply(action.key, DeadlinePassed())
                self._wake.ring()
            case "launch" | "free":
                self._start(action)

    async def _admit(self, active: list[ActiveTraining]) -> datetime | None:
        """Let in who may start, and start them."""
        if not any(row.queued and not row.desired.holding for row in active):
            return None
        nodes = await self._cloud.capacity()
        admission = admit(
            [row.waiting() for row in active if row.queued],
            [row.holder() for row in active if row.desired.holding],
            nodes,
            now(),
        )
        for verdict in admission.verdicts:
            if not verdict.admitted:
                continue
            key = (verdict.waiting.project, verdict.waiting.name)
            if key in self._busy:
                continue
            decision = await self._apply(key, Admit(), only_if=_may_start)
            if decision is not None and decision.record.wanted:
                action = Action(what="launch", project=key[0], name=key[1], attempt=decision.record.attempt)
                self._start(action, decision.record)
        return admission.again_at

    # -- calls to the cloud

    def _start(self, action: Action, record: TrainingRecord | None = None) -> None:
        """Do it beside the loops, unless something is being done with this training already."""
        group, loop = self._group, asyncio.get_running_loop()
        if group is None or action.key in self._busy:
            return
        failing = self._failing.get(action.key)
        if failing is not None and failing[1] > loop.time():
            return
        if action.what == "launch":
            launched = self._launched.get((action.key, action.attempt))
            if launched is not None and loop.time() - launched < _LAUNCH_AGAIN:
                return
        task = group.create_task(self._perform(action, record), name=f"{action.what} {action.project}/{action.name}")
        self._busy[action.key] = task
        task.add_done_callback(lambda _: self._done(action.key))

    def _done(self, key: Key) -> None:
        self._busy.pop(key, None)
        self._wake.ring()

    async def _perform(self, action: Action, record: TrainingRecord | None) -> None:
        try:
            if action.what == "launch":
                await self._launch(action, record)
            else:
                await self._free(action)
        except ElearnError as error:
            await self._put_off(action, error.detail)
        except OSError as error:
            await self._put_off(action, str(error))
        else:
            self._failing.pop(action.key, None)

    async def _launch(self, action: Action, record: TrainingRecord | None) -> None:
        if record is None:
            async with self._database.transaction() as t:
                record = await self._store.find(t, action.key)
        if record is None or record.attempt != action.attempt or record.state != "starting":
            return
        launch = Launch(
            project=record.project,
            name=record.name,
            attempt=record.attempt,
            spec=record.spec,
            plan=record.plan,
            mounts=record.mounts,
        )
        try:
            await self._cloud.launch(launch)
        except NoRoomLeft as error:
            await self._apply(action.key, Refused(attempt=action.attempt, reason=error.detail, for_good=False))
        except CannotLaunch as error:
            await self._apply(action.key, Refused(attempt=action.attempt, reason=error.detail, for_good=True))
        else:
            self._launched[action.key, action.attempt] = asyncio.get_running_loop().time()

    async def _free(self, action: Action) -> None:
        tasks = await self._cloud.free(action.project, action.name, action.attempt)
        self._launched.pop((action.key, action.attempt), None)
        await self._apply(action.key, Freed(attempt=action.attempt, tasks=tasks))

    async def _put_off(self, action: Action, problem: str) -> None:
        count, _ = self._failing.get(action.key, (0, 0.0))
        pause = _PAUSES[min(count, len(_PAUSES) - 1)]
        self._failing[action.key] = (count + 1, asyncio.get_running_loop().time() + pause)
        note_failed_call(action.what)
        _log.warning("trying again", what=action.what, training=action.key, error=problem, pause=pause)
        with contextlib.suppress(ElearnError):
            await self._apply(action.key, Hindered(attempt=action.attempt, reason=f"{problem}; trying again"))

    # -- rows

    async def _apply(
        self, key: Key, message: Message, only_if: Callable[[TrainingRecord], bool] | None = None
    ) -> Decision | None:
        with context.caused_by(Cause(actor="scheduler")):
            async with self._database.transaction() as t:
                try:
                    decision = await self._changes.apply(t, key, message, now(), only_if)
                except WrongState:
                    return None
        if decision is not None and decision.events:
            _log.info(
                "training",
                training=f"{key[0]}/{key[1]}",
                attempt=decision.record.attempt,
                state=decision.record.state,
                reason=decision.record.reason,
                events=[event.event for event in decision.events],
            )
        return decision

    # -- what is left over

    async def _forget(self, key: Key) -> None:
        if key in self._busy:
            return
        await self._cloud.close_board(*key)
        await self._cloud.forget(*key)
        async with self._database.transaction() as t:
            await self._store.removed(t, key)

    async def close_boards(self) -> None:
        """Close TensorBoards that nobody looks at; never ends."""
        while True:
            try:
                async with self._database.transaction() as t:
                    boards = await self._store.boards(t)
                for key, used_at in boards.items():
                    if now() - used_at > self._board_idle:
                        await self._close_board(key, used_at)
            except ElearnError as error:
                _log.info("closing TensorBoards later", error=error.detail)
            await asyncio.sleep(min(30.0, max(0.5, self._board_idle.total_seconds() / 4)))

    async def _close_board(self, key: Key, used_at: datetime) -> None:
        # The row goes last: who dies in between finds the board again. One that was opened anew at this very moment is
        # closed too, and opens with the next look at it.
        await self._cloud.close_board(*key)
        async with self._database.transaction() as t:
            await self._store.drop_board(t, key, used_at)


def _shown_state(row: ActiveTraining) -> str:
    return "freeing" if row.desired.holding and row.desired.state not in ("starting", "running") else row.desired.state


def _may_start(record: TrainingRecord) -> bool:
    """Still so, now that the row is locked: it may have been stopped, or let in by another replica."""
    return record.state == "queued" and not record.holding


def _until(moment: datetime | None) -> float:
    """Seconds to sleep: until ``moment``, and never longer than until the next look at everything."""
    if moment is None:
        return _RESYNC
    return min(_RESYNC, max(0.0, (moment - now()).total_seconds()))


def _at(loop_time: float) -> datetime:
    return now() + timedelta(seconds=max(0.0, loop_time - asyncio.get_running_loop().time()))
