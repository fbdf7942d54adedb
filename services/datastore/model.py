"""A datastore's states and what moves it between them: pure.

provisioning ─► ready ⇄ failed
      │           │        │
      └───────────┴────────┴──► deleting ─► (gone)
"""

from datetime import datetime
from typing import Final, assert_never
from urllib.parse import urlsplit, urlunsplit

import msgspec

from services.datastore.errors import IllegalTransitionError
from shared.contracts.datastore import S3, Datastore, DatastoreSpec, DatastoreState, Volume

HIDDEN: Final = "***"


class StoredDatastore(msgspec.Struct, frozen=True, kw_only=True):
    """A datastore as the room keeps it, secrets included.

    Attributes:
        uid: tells this datastore from an earlier one of the same name.
        volume: what is mounted, once the cloud has provided it.
    """

    project: str
    name: str
    uid: str
    spec: DatastoreSpec
    state: DatastoreState
    created_at: datetime
    reason: str = ""
    created_by: str = ""
    traceparent: str = ""
    ready_at: datetime | None = None
    volume: Volume | None = None


class Available(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud provides the directory."""

    volume: Volume
    note: str = ""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud can't provide the directory, and says why."""

    reason: str


class DeleteAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants it gone; ``note`` says what becomes of the files."""

    note: str


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud holds nothing of it any more."""


Message = Available | Refused | DeleteAsked | Gone


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a datastore; ``events`` are told to the world, ``drop`` means that its row goes."""

    datastore: StoredDatastore
    events: tuple[str, ...] = ()
    drop: bool = False


TRANSITIONS: Final[dict[DatastoreState, frozenset[DatastoreState]]] = {
    "provisioning": frozenset({"ready", "failed", "deleting"}),
    "ready": frozenset({"failed", "deleting"}),
    "failed": frozenset({"ready", "deleting"}),
    "deleting": frozenset(),
}


def decide(stored: StoredDatastore, message: Message, now: datetime) -> Decision:
    """What a message does to a datastore; one that changes nothing yields no event."""
    match message:
        case Available():
            if stored.state == "deleting" or (stored.state == "ready" and stored.volume == message.volume):
                return Decision(datastore=stored)
            if stored.state == "ready":
                return Decision(datastore=msgspec.structs.replace(stored, volume=message.volume))
            ready = _move(stored, "ready", message.note)
            return _told(msgspec.structs.replace(ready, volume=message.volume, ready_at=stored.ready_at or now))
        case Refused():
            if stored.state in ("deleting", "failed"):
                return Decision(datastore=stored)
            return _told(_move(stored, "failed", message.reason))
        case DeleteAsked():
            if stored.state == "deleting":
                return Decision(datastore=stored)
            return _told(_move(stored, "deleting", message.note))
        case Gone():
            if stored.state != "deleting":
                return Decision(datastore=stored)
            return Decision(datastore=stored, events=("deleted",), drop=True)
        case _:
            assert_never(message)


def created(*, project: str, uid: str, spec: DatastoreSpec, actor: str, traceparent: str, now: datetime) -> Decision:
    """A new datastore, to be provisioned."""
    return _told(
        StoredDatastore(
            project=project,
            name=spec.name,
            uid=uid,
            spec=spec,
            state="provisioning",
            created_at=now,
            created_by=actor,
            traceparent=traceparent,
        )
    )


def view(stored: StoredDatastore, used_by: tuple[str, ...] = ()) -> Datastore:
    """A datastore as users see it: without its secrets."""
    return Datastore(
        project=stored.project,
        name=stored.name,
        backend=stored.spec.backend(),
        spec=redacted(stored.spec),
        state=stored.state,
        read_only=stored.spec.read_only,
        created_at=stored.created_at,
        reason=stored.reason,
        created_by=stored.created_by,
        ready_at=stored.ready_at,
        used_by=used_by,
    )


def redacted(spec: DatastoreSpec) -> DatastoreSpec:
    """The spec with every secret replaced by ``***``."""
    if spec.s3 is None:
        return spec
    s3 = msgspec.structs.replace(
        spec.s3,
        access_key=_hide(spec.s3.access_key),
        secret_key=_hide(spec.s3.secret_key),
        endpoint=_without_password(spec.s3),
    )
    return msgspec.structs.replace(spec, s3=s3)


def _hide(secret: str | None) -> str | None:
    return None if secret is None else HIDDEN


def _without_password(s3: S3) -> str | None:
    if s3.endpoint is None or "@" not in s3.endpoint:
        return s3.endpoint
    parts = urlsplit(s3.endpoint)
    return urlunsplit(parts._replace(netloc=f"{HIDDEN}@{parts.netloc.rpartition('@')[2]}"))


def _move(stored: StoredDatastore, state: DatastoreState, reason: str) -> StoredDatastore:
    if state not in TRANSITIONS[stored.state]:
        raise IllegalTransitionError(f"datastore {stored.name} can't go from {stored.state} to {state}: {reason}")
    return msgspec.structs.replace(stored, state=state, reason=reason)


def _told(stored: StoredDatastore) -> Decision:
    return Decision(datastore=stored, events=(stored.state,))
