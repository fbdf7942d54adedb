"""A version's states and what moves it between them: pure.

saving ─► ready            any of them ─► (removing, no longer seen by users) ─► (gone)
   └────► failed
"""

from datetime import datetime
from typing import Final, NamedTuple, assert_never

import msgspec

from shared.contracts.common import Labels
from shared.contracts.model import Signature, Version, VersionState
from shared.contracts.training import Lineage

MOST_ATTEMPTS: Final = 3


class Key(NamedTuple):
    """Names one version of one model; a number is never given twice, not even after a deletion."""

    project: str
    model: str
    number: int

    def __str__(self) -> str:
        return f"{self.project}/{self.model}/{self.number}"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a save job found out about the SavedModel that it saved.

    Attributes:
        size: bytes of all files.
        digest: ``sha256:…`` of the tar that a download gives; ``archive_size`` its bytes.
        note: what users should know of it.
    """

    size: int
    files: int
    digest: str
    archive_size: int
    framework: str = ""
    signatures: tuple[Signature, ...] = ()
    note: str = ""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where the SavedModel lies.

    Attributes:
        training, training_path: as asked for, to be looked up with the scheduler.
        datastore, path: where it is, once known.
    """

    path: str = ""
    datastore: str | None = None
    training: str | None = None
    training_path: str = ""


class StoredVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version as the room keeps it.

    Attributes:
        attempt: the save job's number, from 1; a job that was lost is followed by the next.
        launched_at: when the current attempt was first asked for.
        removing: deleted for its users; its files are being removed.
    """

    project: str
    model: str
    number: int
    state: VersionState
    created_at: datetime
    source: Source
    lineage: Lineage
    attempt: int = 1
    launched_at: datetime | None = None
    reason: str = ""
    ready_at: datetime | None = None
    facts: Facts | None = None
    labels: Labels = {}
    created_by: str = ""
    traceparent: str = ""
    causation: str = ""
    removing: bool = False

    @property
    def key(self) -> Key:
        """Its name."""
        return Key(self.project, self.model, self.number)


class SourceFound(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler says where a training's path lies."""

    datastore: str
    path: str
    lineage: Lineage


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """The current attempt's job is asked for."""


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The files lie in the model store, whole."""

    facts: Facts


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """It can't be saved, and trying again would not help."""

    reason: str


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """A job ended without a result."""

    attempt: int
    reason: str


class DeleteAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody wants it gone; that nothing uses it has been checked."""


class FilesGone(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing of it is left in the model store."""


Message = SourceFound | Launched | Saved | Refused | Lost | DeleteAsked | FilesGone


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a version; ``events`` are told to the world, ``drop`` means that its row goes."""

    version: StoredVersion
    events: tuple[str, ...] = ()
    drop: bool = False


def decide(stored: StoredVersion, message: Message, now: datetime) -> Decision:
    """What a message does to a version; what comes late or twice changes nothing."""
    match message:
        case DeleteAsked():
            if stored.removing:
                return Decision(version=stored)
            return Decision(version=msgspec.structs.replace(stored, removing=True), events=("deleted",))
        case FilesGone():
            return Decision(version=stored, drop=stored.removing)
    if stored.state != "saving" or stored.removing:
        return Decision(version=stored)
    match message:
        case SourceFound():
            source = msgspec.structs.replace(stored.source, datastore=message.datastore, path=message.path)
            return Decision(version=msgspec.structs.replace(stored, source=source, lineage=message.lineage))
        case Launched():
            return Decision(version=msgspec.structs.replace(stored, launched_at=stored.launched_at or now))
        case Saved():
            ready = msgspec.structs.replace(
                stored, state="ready", facts=message.facts, ready_at=now, reason=message.facts.note
            )
            return Decision(version=ready, events=("ready",))
        case Refused():
            return _failed(stored, message.reason)
        case Lost():
            if message.attempt != stored.attempt:
                return Decision(version=stored)
            if stored.attempt >= MOST_ATTEMPTS:
                return _failed(stored, f"the save job was lost {stored.attempt} times, the last time: {message.reason}")
            again = msgspec.structs.replace(
                stored,
                attempt=stored.attempt + 1,
                launched_at=None,
                reason=f"saving again: {message.reason}",
            )
            return Decision(version=again)
        case _:
            assert_never(message)


def _failed(stored: StoredVersion, reason: str) -> Decision:
    return Decision(version=msgspec.structs.replace(stored, state="failed", reason=reason), events=("failed",))


def view(stored: StoredVersion, aliases: tuple[str, ...] = (), served_by: tuple[str, ...] = ()) -> Version:
    """A version as users see it."""
    facts = stored.facts
    return Version(
        project=stored.project,
        model=stored.model,
        number=stored.number,
        state=stored.state,
        created_at=stored.created_at,
        lineage=stored.lineage,
        reason=stored.reason,
        ready_at=stored.ready_at,
        size=facts.size if facts else 0,
        files=facts.files if facts else 0,
        digest=facts.digest if facts else "",
        archive_size=facts.archive_size if facts else 0,
        framework=facts.framework if facts else "",
        signatures=facts.signatures if facts else (),
        labels=stored.labels,
        aliases=aliases,
        served_by=served_by,
    )
