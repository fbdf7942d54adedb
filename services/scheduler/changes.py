"""The one way a training changes: locked, decided, saved, and told to the world, in one transaction."""

from collections.abc import Callable
from datetime import datetime

import msgspec

from services.scheduler.decide import decide
from services.scheduler.metrics import note_change
from services.scheduler.model import Decision, Happened, Message, TrainingRecord, view
from services.scheduler.reconcile import Key
from services.scheduler.retry import pause_before_attempt
from services.scheduler.store import TrainingStore
from shared.contracts.training import TaskEvent, TrainingEvent
from shared.outbox import Outbox
from shared.postgres import Transaction


class Changes:
    """Applies messages to trainings."""

    def __init__(self, store: TrainingStore, outbox: Outbox) -> None:
        self._store = store
        self._outbox = outbox

    async def apply(
        self,
        t: Transaction,
        key: Key,
        message: Message,
        now: datetime,
        only_if: Callable[[TrainingRecord], bool] | None = None,
    ) -> Decision | None:
        """What a message makes of a training, stored; None where there is no such training (any more).

        Args:
            only_if: asked of the locked row; where it says no, nothing happens either.

        Raises:
            WrongState: its state forbids what was asked.
        """
        record = await self._store.find(t, key, lock=True)
        if record is None or (only_if is not None and not only_if(record)):
            return None
        decision = decide(record, message, now, pause_before_attempt)
        if decision.record is record:
            return decision
        note_change(record, decision, now)
        await self._store.save(t, decision.record)
        await self.publish(t, decision)
        if record.holding and not decision.record.holding:
            await self._charge(t, record, now)
        return decision

    async def publish(self, t: Transaction, decision: Decision) -> None:
        """Write a decision's events into the outbox."""
        for happened in decision.events:
            await self._outbox.append(
                t,
                happened.noun,
                happened.event,
                decision.record.project,
                decision.record.name,
                _body(decision.record, happened),
            )

    async def _charge(self, t: Transaction, record: TrainingRecord, now: datetime) -> None:
        """Add what an attempt held to its project's usage."""
        seconds = held_seconds(record, now)
        demand = record.demand
        if seconds > 0:
            await self._store.add_usage(t, record.project, demand.cpu * seconds, demand.gpu * seconds)


def held_seconds(record: TrainingRecord, now: datetime) -> float:
    """How long the current attempt has held its compute."""
    if not record.holding:
        return 0.0
    started = record.started_at
    if started is None and record.attempts:
        started = record.attempts[-1].started_at
    return max(0.0, (now - started).total_seconds()) if started is not None else 0.0


def _body(record: TrainingRecord, happened: Happened) -> msgspec.Struct:
    if happened.task is not None:
        return TaskEvent(training=record.name, attempt=record.attempt, task=happened.task)
    # An event must fit into one message of the bus: tasks of past attempts are told when somebody asks.
    snapshot = view(record)
    past = tuple(msgspec.structs.replace(attempt, tasks=()) for attempt in snapshot.attempts)
    return TrainingEvent(training=msgspec.structs.replace(snapshot, attempts=past))
