"""What to do so that the cloud holds what the rows say: pure.

A plan is derived from stored state and from what the cloud shows, each time anew, so nothing is lost with a
process.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from shared.contracts.common import Instant
from shared.contracts.training import TrainingState

Key = tuple[str, str]
"""Project and name."""


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """What an active row asks for.

    Attributes:
        holding: its attempt may hold compute.
        tasks: how many tasks an attempt has.
    """

    project: str
    name: str
    state: TrainingState
    attempt: int
    holding: bool
    tasks: int
    deadline_at: Instant | None = None

    @property
    def key(self) -> Key:
        return (self.project, self.name)


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud shows of one attempt: how many of its tasks are there, running or ended."""

    attempt: int
    tasks: int


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do.

    Attributes:
        what: ``launch`` and ``free`` are calls to the cloud, ``vanished`` and ``deadline`` messages to the
            row.
    """

    what: Literal["launch", "free", "vanished", "deadline"]
    project: str
    name: str
    attempt: int

    @property
    def key(self) -> Key:
        return (self.project, self.name)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now, and when to look again if nothing else happens."""

    actions: tuple[Action, ...]
    again_at: Instant | None = None


def reconcile(
    desired: Sequence[Desired],
    now: datetime,
    *,
    shown_before: Mapping[Key, Collection[Shown]],
    shown_after: Mapping[Key, Collection[Shown]],
    synced: bool,
) -> Plan:
    """Compare rows and cloud.

    Args:
        desired: every active row.
        shown_before: what was shown before the rows were read: a row is there before anything of it is, so what has
            none is nobody's.
        shown_after: what was shown when they had been read: a row that says that it runs has been shown by then, so
            what is not there has gone.
        synced: the cloud has shown, by then, all there is. Before that, what is not shown may well be there.
    """
    actions: list[Action] = []
    again_at: datetime | None = None
    wanted: set[tuple[Key, int]] = set()

    for row in desired:
        there = {each.attempt: each for each in shown_after.get(row.key, ())}
        if row.holding:
            wanted.add((row.key, row.attempt))
        if row.deadline_at is not None:
            if row.deadline_at <= now:
                actions.append(_act("deadline", row, row.attempt))
                continue
            again_at = row.deadline_at if again_at is None else min(again_at, row.deadline_at)
        if row.state == "starting":
            if row.attempt not in there or there[row.attempt].tasks < row.tasks:
                actions.append(_act("launch", row, row.attempt))
        elif row.state == "running":
            if synced and row.attempt not in there:
                actions.append(_act("vanished", row, row.attempt))
        elif row.holding:
            actions.append(_act("free", row, row.attempt))

    # What nobody asks for: a row that is gone, an attempt that was given up while it was being launched.
    actions.extend(
        Action(what="free", project=key[0], name=key[1], attempt=each.attempt)
        for key, attempts in shown_before.items()
        for each in attempts
        if (key, each.attempt) not in wanted
    )
    return Plan(actions=tuple(actions), again_at=again_at)


def _act(what: Literal["launch", "free", "vanished", "deadline"], row: Desired, attempt: int) -> Action:
    return Action(what=what, project=row.project, name=row.name, attempt=attempt)
