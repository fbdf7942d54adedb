"""A serving's states, its revisions, and what moves them: pure.

deploying ─► ready ⇄ degraded      a replica is down, or a new revision failed and the old one answers
    ▲  │        │        │
    │  ▼        │        │
    │ failed ───┼────────┤         the only revision failed: nothing answers
    └───────────┴────────┘         changed by a user or by an alias
"""

from datetime import datetime
from typing import Final, Literal, assert_never

import msgspec
from msgspec.structs import replace

from services.serving.errors import IllegalTransitionError, NoSuchRevision, NothingToRollBackTo
from shared.contracts.datastore import Volume
from shared.contracts.serving import Endpoint, ServingSpec, ServingState

KEPT: Final = 20
"""Revisions that a serving remembers."""

RevisionState = Literal["deploying", "ready", "failed", "superseded"]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version's SavedModel lies."""

    number: int
    volume: Volume
    path: str


class StoredRevision(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of versions.

    Attributes:
        traffic: version to per cent; more than one where requests are split.
        sources: where the versions lie; empty until the registry has been asked.
        alias: the alias that chose the version.
        gone: its versions that were deleted from the registry since.
    """

    number: int
    version: int
    traffic: dict[int, int]
    created_at: datetime
    state: RevisionState = "deploying"
    reason: str = ""
    cause: str = ""
    alias: str | None = None
    ready_at: datetime | None = None
    sources: tuple[Source, ...] = ()
    gone: tuple[int, ...] = ()


class StoredServing(msgspec.Struct, frozen=True, kw_only=True):
    """A serving as the room keeps it.

    Attributes:
        uid: tells this serving from an earlier one of the same name.
        revisions: newest first.
        wanted: number of the revision that was asked for last.
        live: number of the last revision that was ready, 0 before there is one.
        scaled_to: how many replicas the cloud wants now, where it decides.
        alias_moved_at: when the followed alias was last moved, as far as is known here.
    """

    project: str
    name: str
    uid: str
    spec: ServingSpec
    state: ServingState
    created_at: datetime
    revisions: tuple[StoredRevision, ...]
    reason: str = ""
    created_by: str = ""
    traceparent: str = ""
    wanted: int = 1
    live: int = 0
    ready_replicas: int = 0
    ready_at: datetime | None = None
    endpoint: Endpoint | None = None
    alias_moved_at: datetime | None = None
    scaled_to: int | None = None

    def revision(self, number: int) -> StoredRevision | None:
        """A revision by number, while it is remembered."""
        return next((each for each in self.revisions if each.number == number), None)

    @property
    def failed(self) -> StoredRevision | None:
        """The revision that was asked for last, where it failed."""
        wanted = self.revision(self.wanted)
        return wanted if wanted is not None and wanted.state == "failed" else None

    @property
    def target(self) -> StoredRevision | None:
        """The revision that shall run: the wanted one, or, where that failed, the last one that was ready."""
        return self.revision(self.live if self.failed else self.wanted)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Versions to serve from now on.

    Attributes:
        alias, moved_at: the alias that is followed from now on, and when it was moved here.
        sources: empty where the registry has still to be asked.
    """

    traffic: dict[int, int]
    cause: str
    alias: str | None = None
    moved_at: datetime | None = None
    sources: tuple[Source, ...] = ()


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A user changes what is served, or by how many replicas."""

    choice: Choice | None = None
    replicas: int | None = None
    max_replicas: int | None = None


class AliasMoved(msgspec.Struct, frozen=True, kw_only=True):
    """The alias that is followed points elsewhere."""

    alias: str
    version: int
    moved_at: datetime


class RollBack(msgspec.Struct, frozen=True, kw_only=True):
    """Back to a revision; None: to the last good one before the current."""

    revision: int | None = None


class VersionDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """A version's files are gone."""

    version: int


class Located(msgspec.Struct, frozen=True, kw_only=True):
    """The registry says where a revision's versions lie."""

    revision: int
    sources: tuple[Source, ...]


class Unservable(msgspec.Struct, frozen=True, kw_only=True):
    """A revision can never run, and why."""

    revision: int
    reason: str


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One model server as the cloud shows it; one that is being ended is not shown.

    Attributes:
        state: `failing`: it does not come up, and `reason` says why.
    """

    revision: int
    state: Literal["starting", "ready", "failing"]
    reason: str = ""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud shows of a serving.

    Attributes:
        waiting: what a replica that could not be started yet waits for, in words.
        wanted: how many replicas there shall be, where the cloud decides it.
    """

    replicas: tuple[Replica, ...]
    endpoint: Endpoint | None = None
    waiting: str = ""
    wanted: int | None = None


Message = Change | AliasMoved | RollBack | VersionDeleted | Located | Unservable | Observed


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a serving; ``events`` are told to the world."""

    serving: StoredServing
    events: tuple[str, ...] = ()


TRANSITIONS: Final[dict[ServingState, frozenset[ServingState]]] = {
    "deploying": frozenset({"ready", "degraded", "failed"}),
    "ready": frozenset({"deploying", "degraded", "failed"}),
    "degraded": frozenset({"deploying", "ready", "failed"}),
    "failed": frozenset({"deploying"}),
}


def decide(stored: StoredServing, message: Message, now: datetime) -> Decision:
    """What a message does to a serving; one that changes no state yields no event."""
    match message:
        case Change():
            after = stored
            spec = stored.spec
            if message.replicas is not None:
                spec = replace(spec, replicas=message.replicas)
            if message.max_replicas is not None:
                spec = replace(spec, max_replicas=message.max_replicas)
            if spec != stored.spec:
                after = replace(after, spec=spec)
                if after.target is not None:
                    after = _move(after, "deploying", "changing the number of replicas")
            if message.choice is not None:
                after = _choose(after, message.choice, now)
            return _told(stored, after)
        case AliasMoved():
            known = stored.alias_moved_at
            if stored.spec.alias != message.alias or (known is not None and message.moved_at <= known):
                return Decision(serving=stored)
            choice = Choice(
                traffic={message.version: 100},
                cause=f"alias {message.alias} moved to version {message.version}",
                alias=message.alias,
                moved_at=message.moved_at,
            )
            return _told(stored, _choose(stored, choice, now))
        case RollBack():
            return _told(stored, _choose(stored, _earlier(stored, message.revision), now))
        case VersionDeleted():
            return _told(stored, _version_gone(stored, message.version))
        case Located():
            return Decision(serving=_revised(stored, message.revision, sources=message.sources))
        case Unservable():
            found = stored.revision(message.revision)
            if found is None or found.state != "deploying":
                return Decision(serving=stored)
            return _told(stored, _failed(stored, found, message.reason))
        case Observed():
            return _told(stored, _seen(stored, message, now))
        case _:
            assert_never(message)


def created(
    *,
    project: str,
    uid: str,
    spec: ServingSpec,
    choice: Choice,
    actor: str,
    traceparent: str,
    now: datetime,
) -> Decision:
    """A new serving, to be deployed."""
    serving = StoredServing(
        project=project,
        name=spec.name,
        uid=uid,
        spec=spec,
        state="deploying",
        created_at=now,
        revisions=(_revision(1, choice, now),),
        created_by=actor,
        traceparent=traceparent,
        alias_moved_at=choice.moved_at,
    )
    return Decision(serving=serving, events=("deploying",))


def _choose(stored: StoredServing, choice: Choice, now: datetime) -> StoredServing:
    """The next revision, unless what is chosen runs already or is on its way."""
    pinned = None if choice.alias else _main(choice.traffic)
    after = replace(
        stored,
        spec=replace(stored.spec, alias=choice.alias, version=pinned),
        alias_moved_at=choice.moved_at,
    )
    target = stored.target
    if target is not None and target.traffic == choice.traffic:
        if target.number == stored.wanted:
            return after
        # A newer revision failed and this one answers still: nothing has to be started.
        return _move(replace(after, wanted=target.number), "deploying", choice.cause)
    revision = _revision(stored.revisions[0].number + 1, choice, now)
    revisions = _trimmed((revision, *_superseded(stored)), stored.live)
    return _move(replace(after, revisions=revisions, wanted=revision.number), "deploying", choice.cause)


def _superseded(stored: StoredServing) -> tuple[StoredRevision, ...]:
    """The history once a newer revision is wanted; the live one stays as it is until that is ready."""
    return tuple(replace(each, state="superseded") if each.state == "deploying" else each for each in stored.revisions)


def _trimmed(revisions: tuple[StoredRevision, ...], live: int) -> tuple[StoredRevision, ...]:
    return tuple(each for at, each in enumerate(revisions) if at < KEPT or each.number == live)


def _revision(number: int, choice: Choice, now: datetime) -> StoredRevision:
    return StoredRevision(
        number=number,
        version=_main(choice.traffic),
        traffic=choice.traffic,
        created_at=now,
        cause=choice.cause,
        alias=choice.alias,
        sources=choice.sources,
    )


def _main(traffic: dict[int, int]) -> int:
    """The version with the largest share; of several the newest."""
    return max(traffic, key=lambda number: (traffic[number], number))


def _earlier(stored: StoredServing, number: int | None) -> Choice:
    if number is not None:
        found = stored.revision(number)
        if found is None:
            raise NoSuchRevision(stored.name, number)
    else:
        wanted = stored.revision(stored.wanted)
        found = next(
            (
                each
                for each in stored.revisions
                if each.ready_at is not None and (wanted is None or each.traffic != wanted.traffic)
            ),
            None,
        )
        if found is None:
            raise NothingToRollBackTo(stored.name)
    return Choice(traffic=found.traffic, cause=f"rolled back to revision {found.number}", sources=found.sources)


def _seen(stored: StoredServing, seen: Observed, now: datetime) -> StoredServing:
    target = stored.target
    wanted = stored.spec.replicas if seen.wanted is None else seen.wanted
    ready = sum(replica.state == "ready" for replica in seen.replicas)
    endpoint = seen.endpoint or stored.endpoint
    stored = replace(stored, ready_replicas=ready, endpoint=endpoint, scaled_to=seen.wanted)
    if target is None or not target.sources:
        return stored
    own = [replica for replica in seen.replicas if replica.revision == target.number]
    own_ready = sum(replica.state == "ready" for replica in own)
    failing = next((replica.reason for replica in own if replica.state == "failing"), "")
    if seen.wanted is None:
        enough = own_ready == len(own) == wanted
    else:  # more may be on their way, as the load wants it
        enough = own_ready >= min(stored.spec.replicas, wanted) and not failing
    if target.state == "deploying":
        if failing:
            return _failed(stored, target, failing)
        if not enough or len(own) < len(seen.replicas) or stored.endpoint is None:
            return _move(stored, "deploying", seen.waiting or f"{own_ready} of {wanted} replicas are ready")
        done = replace(target, state="ready", ready_at=now, reason="")
        others = [
            replace(each, state="superseded") if each.state == "ready" else each
            for each in stored.revisions
            if each.number != target.number
        ]
        revisions = tuple(sorted([done, *others], key=lambda each: -each.number))
        live = replace(stored, revisions=revisions, live=done.number, ready_at=now)
        return _move(live, "ready", "")
    if enough:
        if stored.failed is not None:
            return _move(stored, "degraded", _still(stored.failed, target))
        if target.gone:
            return _move(stored, "degraded", _gone(target))
        return _move(stored, "ready", "")
    words = failing or seen.waiting
    reason = f"{own_ready} of {wanted} replicas answer" + (f": {words}" if words else "")
    return _move(stored, "deploying" if stored.state == "deploying" else "degraded", reason)


def _failed(stored: StoredServing, revision: StoredRevision, reason: str) -> StoredServing:
    after = _revised(stored, revision.number, state="failed", reason=reason)
    live = after.revision(after.live)
    if live is None:
        return _move(after, "failed", reason)
    return _move(after, "degraded", _still(replace(revision, reason=reason), live))


def _still(failed: StoredRevision, live: StoredRevision) -> str:
    return (
        f"revision {failed.number} (version {failed.version}) failed: {failed.reason}; "
        f"revision {live.number} (version {live.version}) goes on"
    )


def _version_gone(stored: StoredServing, version: int) -> StoredServing:
    target = stored.target
    if target is None or version not in target.traffic or version in target.gone:
        return stored
    target = replace(target, gone=(*target.gone, version))
    after = _revised(stored, target.number, gone=target.gone)
    return _move(after, "degraded", _gone(target)) if stored.state == "ready" else after


def _gone(revision: StoredRevision) -> str:
    numbers = ", ".join(map(str, revision.gone))
    return f"version {numbers} was deleted: replicas that run go on, but none can be started again"


def _revised(stored: StoredServing, number: int, **changes: object) -> StoredServing:
    revisions = tuple(replace(each, **changes) if each.number == number else each for each in stored.revisions)
    return replace(stored, revisions=revisions)


def _move(stored: StoredServing, state: ServingState, reason: str) -> StoredServing:
    if state != stored.state and state not in TRANSITIONS[stored.state]:
        raise IllegalTransitionError(f"serving {stored.name} can't go from {stored.state} to {state}: {reason}")
    return replace(stored, state=state, reason=reason)


def _told(before: StoredServing, after: StoredServing) -> Decision:
    """An event where the state or the wanted revision changed."""
    changed = (after.state, after.wanted) != (before.state, before.wanted)
    return Decision(serving=after, events=(after.state,) if changed else ())
