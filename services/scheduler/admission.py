"""Who starts next: gang admission in order, with reasons in words: pure.

- A training starts with all of its tasks or not at all.
- Order is priority, then arrival. Nobody behind a training that waits is let past if that could delay it: what
  the waiting one will need stays reserved, and of what it is short of nobody behind it gets any. So a CPU-only
  training passes one that waits for GPUs as long as enough CPU for that one is left.
- A training with storage that one machine alone can mount has all its tasks there, where others that share the storage
  are. While it waits for that machine, nobody behind it gets any of it; other machines are not held up.
- A training that the cloud can't hold any more (a machine went away) says so and holds up nobody.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from services.scheduler.model import Demand, NodeState
from services.scheduler.placement import SLACK, fits, minus, place, total
from shared.contracts.common import Instant, format_memory

_ORDINALS: Final = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
)  # fmt: skip
_MOST_HOLDERS: Final = 3


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A training in the queue.

    Attributes:
        claims: storage of it that one machine alone can mount.
        blocked: its previous attempt still holds compute, which is being freed.
        note: why it is back in the queue, in words; empty for one that has never left it.
    """

    project: str
    name: str
    priority: int
    sequence: int
    tasks: tuple[Demand, ...]
    queued_at: Instant
    claims: tuple[str, ...] = ()
    not_before: Instant | None = None
    blocked: bool = False
    note: str = ""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A training that holds compute; ``nodes`` names the machine of each task, where it is known."""

    project: str
    name: str
    tasks: tuple[Demand, ...]
    nodes: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a waiting training; ``position`` counts from 1 among those that stay."""

    waiting: Waiting
    admitted: bool
    position: int
    reason: str


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """Every waiting training's fate, in order.

    Attributes:
        again_at: when time alone changes something.
    """

    verdicts: tuple[Verdict, ...]
    again_at: Instant | None = None


def admit(queue: Sequence[Waiting], holders: Sequence[Holder], nodes: Sequence[NodeState], now: datetime) -> Admission:
    """Decide who of the queue starts now, and tell the others why they wait."""
    totals = {node.name: node.total for node in nodes}
    free = free_by_node(nodes, holders)
    reserved = Demand()
    short = frozenset[str]()
    head: tuple[Waiting, str] | None = None
    verdicts: list[Verdict] = []
    again_at: datetime | None = None
    position = 0

    for each in sorted(queue, key=lambda one: (-one.priority, one.sequence)):
        placed: tuple[str, ...] | None = None
        need = total(each.tasks)
        if each.blocked:
            reason = each.note or "waiting until its previous attempt is freed"
        elif each.not_before is not None and each.not_before > now:
            again_at = each.not_before if again_at is None else min(again_at, each.not_before)
            reason = each.note or "waiting a moment before the next attempt"
        elif place(each.tasks, totals, together=bool(each.claims)) is None:
            at_once = "on one machine" if each.claims else "at once"
            reason = f"needs {_amounts(need)} {at_once}, and no machines are left that could hold it"
        elif head is not None and not _may_pass(need, short, reserved, free):
            first, what = head
            reason = f"behind {_title(first)}, which waits for {what}"
            reserved += need
        elif shared := _sharing(each, holders, totals):
            at = sorted({node for holder in shared for node in holder.nodes})
            reason = "starts now"
            if len(at) == 1:
                placed = place(each.tasks, {node: free[node] for node in at if node in free}, together=True)
            if placed is None:
                reason = _not_beside(need, at, shared)
                if len(at) == 1:
                    free.pop(at[0], None)
        else:
            placed = place(each.tasks, free, together=bool(each.claims))
            left = _greatest(free) if each.claims else _positive(free)
            lacking = _lacking(need, left)
            if placed is None:
                waits_for = _waits_for(need, lacking) + (" on one machine" if each.claims else "")
                reason = f"waiting for {waits_for}: {_in_use(lacking, nodes, holders)}"
                short |= lacking
                reserved += need
                head = head or (each, waits_for)
            else:
                reason = "starts now"
        if placed is not None:
            for node, demand in zip(placed, each.tasks, strict=True):
                free[node] = minus(free[node], demand)
            started = Holder(project=each.project, name=each.name, tasks=each.tasks, nodes=placed, claims=each.claims)
            holders = (*holders, started)
            verdicts.append(Verdict(waiting=each, admitted=True, position=0, reason=reason))
            continue
        position += 1
        verdicts.append(
            Verdict(
                waiting=each,
                admitted=False,
                position=position,
                reason=f"{reason}; {ordinal(position)} in queue",
            )
        )
    return Admission(verdicts=tuple(verdicts), again_at=again_at)


def free_by_node(nodes: Sequence[NodeState], holders: Sequence[Holder]) -> dict[str, Demand]:
    """What is left of every machine; tasks whose machine is not known are placed as they fit best."""
    free = {node.name: minus(node.total, total(node.others.values())) for node in nodes}
    for holder in holders:
        places: Sequence[str] = holder.nodes
        if len(places) != len(holder.tasks) or any(name not in free for name in places):
            places = place(holder.tasks, free, together=bool(holder.claims)) or ()
        if places:
            for name, demand in zip(places, holder.tasks, strict=True):
                free[name] = minus(free[name], demand)
        elif free:
            roomiest = max(free, key=lambda name: (free[name].gpu, free[name].cpu))
            free[roomiest] = minus(free[roomiest], total(holder.tasks))
    return free


def _may_pass(need: Demand, short: frozenset[str], reserved: Demand, free: Mapping[str, Demand]) -> bool:
    uses = {"gpu": need.gpu > 0, "cpu": need.cpu > 0, "memory": need.memory > 0}
    if any(uses[each] for each in short):
        return False
    left = minus(minus(_positive(free), reserved), need)
    return all((each in short or not uses[each]) or getattr(left, each) >= -SLACK for each in ("cpu", "memory", "gpu"))


def _positive(free: Mapping[str, Demand]) -> Demand:
    return total(
        Demand(cpu=max(0.0, each.cpu), memory=max(0, each.memory), gpu=max(0, each.gpu)) for each in free.values()
    )


def _greatest(free: Mapping[str, Demand]) -> Demand:
    """The most that any one machine has left, of each."""
    rooms = [*free.values(), Demand()]
    return Demand(
        cpu=max(each.cpu for each in rooms),
        memory=max(each.memory for each in rooms),
        gpu=max(each.gpu for each in rooms),
    )


def _sharing(one: Waiting, holders: Sequence[Holder], totals: Mapping[str, Demand]) -> list[Holder]:
    """Who has storage mounted that it needs, where that is known; on machines that are gone it is not any more."""
    return [
        holder
        for holder in holders
        if not set(one.claims).isdisjoint(holder.claims) and holder.nodes and totals.keys() >= set(holder.nodes)
    ]


def _not_beside(need: Demand, at: Sequence[str], shared: Sequence[Holder]) -> str:
    who = ", ".join(_title(holder) for holder in shared[:_MOST_HOLDERS])
    if len(at) > 1:
        return f"waiting until one machine can mount its storage, which is mounted on {' and '.join(at)} for {who}"
    return f"waiting for {_amounts(need)} on {at[0]}, where its storage is mounted for {who}"


def _lacking(need: Demand, left: Demand) -> frozenset[str]:
    """The resources that there is too little of; all that it uses where they are only in too small pieces."""
    lacking = {
        name
        for name in ("cpu", "memory", "gpu")
        if getattr(need, name) > getattr(left, name) + (SLACK if name == "cpu" else 0)
    }
    return frozenset(lacking or {name for name in ("cpu", "memory", "gpu") if getattr(need, name)})


def _waits_for(need: Demand, lacking: frozenset[str]) -> str:
    return _amounts(
        Demand(
            cpu=need.cpu if "cpu" in lacking else 0.0,
            memory=need.memory if "memory" in lacking else 0,
            gpu=need.gpu if "gpu" in lacking else 0,
        )
    )


def _in_use(lacking: frozenset[str], nodes: Sequence[NodeState], holders: Sequence[Holder]) -> str:
    """``8 of 8 in use by search/ctr-41`` for the scarcest of what is lacking."""
    scarce = next(name for name in ("gpu", "memory", "cpu") if name in lacking)
    if lacking == {"cpu"}:
        scarce = "cpu"
    users = [(_title(each), getattr(total(each.tasks), scarce)) for each in holders]
    others: dict[str, float] = {}
    for node in nodes:
        for holder, demand in node.others.items():
            others[holder] = others.get(holder, 0) + getattr(demand, scarce)
    users = [(name, amount) for name, amount in (*users, *others.items()) if amount]
    users.sort(key=lambda pair: (-pair[1], pair[0]))
    used = sum(amount for _, amount in users)
    whole = getattr(total(node.total for node in nodes), scarce)
    if not users:
        return f"{_amount(scarce, whole)} in all, in pieces too small"
    names = [name for name, _ in users[:_MOST_HOLDERS]]
    if len(users) > _MOST_HOLDERS:
        names.append(f"{len(users) - _MOST_HOLDERS} more")
    by = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
    return f"{_bare(scarce, used)} of {_bare(scarce, whole)} in use by {by}"


def _bare(kind: str, amount: float) -> str:
    return format_memory(int(amount)) if kind == "memory" else f"{round(amount, 3):g}"


def _amount(kind: str, amount: float) -> str:
    if kind == "memory":
        return f"{format_memory(int(amount))} of memory"
    word = "GPU" if kind == "gpu" else "CPU"
    return f"{round(amount, 3):g} {word}" + ("" if amount == 1 else "s")


def _amounts(need: Demand) -> str:
    parts = [_amount(kind, getattr(need, kind)) for kind in ("gpu", "cpu", "memory") if getattr(need, kind)]
    if not parts:
        return "nothing"
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def _title(one: Waiting | Holder) -> str:
    return f"{one.project}/{one.name}"


def ordinal(position: int) -> str:
    """``third``; ``11th``; ``22nd``."""
    if position <= len(_ORDINALS):
        return _ORDINALS[position - 1]
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(position % 10, "th") if position % 100 not in (11, 12, 13) else "th"
    return f"{position}{suffix}"


def size_errors(
    tasks: Sequence[tuple[str, Demand]], nodes: Sequence[NodeState], *, shared: str = ""
) -> list[tuple[str, str]]:
    """What of a training this cloud could never hold: (field, message with the largest that would fit).

    Args:
        tasks: role and demand of each task.
        shared: the datastore that all of them mount and one machine alone can mount, or "".
    """
    if not nodes:
        return []  # nothing is known of the cloud yet: the training waits and says so
    errors: list[tuple[str, str]] = []
    totals = {node.name: node.total for node in nodes}
    seen: set[tuple[str, Demand]] = set()
    for role, demand in tasks:
        if (role, demand) in seen or any(fits(demand, room) for room in totals.values()):
            continue
        seen.add((role, demand))
        for kind in ("gpu", "cpu", "memory"):
            most = max(getattr(room, kind) for room in totals.values())
            if getattr(demand, kind) > most + (SLACK if kind == "cpu" else 0):
                errors.append(
                    (
                        f"roles.{role}.{kind}",
                        f"a task asks for {_amount(kind, getattr(demand, kind))}; "
                        f"the largest that would fit is {_amount(kind, most)}",
                    )
                )
        if not any(field.startswith(f"roles.{role}.") for field, _ in errors):
            errors.append((f"roles.{role}", f"no one machine has {_amounts(demand)} together"))
    if errors or place([demand for _, demand in tasks], totals, together=bool(shared)) is not None:
        return errors
    if shared:
        return [_together_error(total(demand for _, demand in tasks), len(tasks), totals, shared)]
    return [_gang_error(tasks, totals, nodes)]


def _together_error(need: Demand, count: int, totals: Mapping[str, Demand], shared: str) -> tuple[str, str]:
    most = _greatest(totals)
    lacking = [kind for kind in ("gpu", "cpu", "memory") if getattr(need, kind) > getattr(most, kind)]
    there = " and ".join(_amount(kind, getattr(most, kind)) for kind in lacking)
    fit = f"the most that one has is {there}" if there else "no one has that much of everything"
    return (
        "roles",
        f"all {count} tasks must find room on one machine, as datastore {shared!r} is on a claim that one machine "
        f"alone can mount: they need {_amounts(need)} and {fit}",
    )


def _gang_error(
    tasks: Sequence[tuple[str, Demand]], totals: Mapping[str, Demand], nodes: Sequence[NodeState]
) -> tuple[str, str]:
    need, have = total(demand for _, demand in tasks), total(node.total for node in nodes)
    counts: dict[str, int] = {}
    for role, _ in tasks:
        counts[role] = counts.get(role, 0) + 1
    role = max(counts, key=lambda name: (counts[name], name == "worker"))
    others = [demand for name, demand in tasks if name != role]
    own = [demand for name, demand in tasks if name == role]
    low, high = 0, len(own)
    while high - low > 1:
        middle = (low + high) // 2
        if place([*others, *own[:middle]], totals) is None:
            high = middle
        else:
            low = middle
    lacking = [kind for kind in ("gpu", "cpu", "memory") if getattr(need, kind) > getattr(have, kind)]
    what = " and ".join(_amount(kind, getattr(need, kind)) for kind in lacking) or _amounts(need)
    there = " and ".join(_bare(kind, getattr(have, kind)) for kind in lacking) or _amounts(have)
    if low and counts[role] > 1:
        fit = f"the largest that would fit has {role} at {low} in place of {counts[role]}"
    else:
        fit = "ask for less per task"
    return (
        f"roles.{role}.replicas",
        f"all {len(tasks)} tasks need {what} at once and there are {there}; {fit}",
    )
