"""The datastore room's pure rules, as tables."""

from datetime import UTC, datetime
from pathlib import PurePosixPath

import msgspec
import pytest

from services.datastore.model import (
    TRANSITIONS,
    Available,
    DeleteAsked,
    Gone,
    Message,
    Refused,
    StoredDatastore,
    created,
    decide,
    redacted,
    view,
)
from services.datastore.reconcile import Plan, reconcile
from services.datastore.roots import root_problem
from services.datastore.uses import held_by
from shared.contracts.datastore import S3, DatastoreSpec, DatastoreState, Local, LocalVolume
from shared.contracts.training import Mount, Training, TrainingSpec, TrainingState

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LATER = datetime(2026, 1, 3, tzinfo=UTC)
VOLUME = LocalVolume(path="/srv/digits")


def stored(state: DatastoreState, *, uid: str = "u1") -> StoredDatastore:
    return StoredDatastore(
        project="default",
        name="digits",
        uid=uid,
        spec=DatastoreSpec(name="digits", local=Local(path="/srv/digits")),
        state=state,
        created_at=NOW,
        volume=VOLUME if state in ("ready", "failed") else None,
    )


TABLE: list[tuple[DatastoreState, Message, str, tuple[str, ...]]] = [
    ("provisioning", Available(volume=VOLUME), "ready", ("ready",)),
    ("provisioning", Refused(reason="no"), "failed", ("failed",)),
    ("provisioning", DeleteAsked(note="kept"), "deleting", ("deleting",)),
    ("provisioning", Gone(), "provisioning", ()),
    ("ready", Available(volume=VOLUME), "ready", ()),
    ("ready", Refused(reason="the folder is gone"), "failed", ("failed",)),
    ("ready", DeleteAsked(note="kept"), "deleting", ("deleting",)),
    ("ready", Gone(), "ready", ()),
    ("failed", Available(volume=VOLUME), "ready", ("ready",)),
    ("failed", Refused(reason="still"), "failed", ()),
    ("failed", DeleteAsked(note="kept"), "deleting", ("deleting",)),
    ("deleting", Available(volume=VOLUME), "deleting", ()),
    ("deleting", Refused(reason="no"), "deleting", ()),
    ("deleting", DeleteAsked(note="kept"), "deleting", ()),
    ("deleting", Gone(), "dropped", ("deleted",)),
]


@pytest.mark.parametrize(("state", "message", "expected", "events"), TABLE)
def test_decisions(state: DatastoreState, message: Message, expected: str, events: tuple[str, ...]) -> None:
    before = stored(state)
    decision = decide(before, message, LATER)
    assert decision.events == events
    assert ("dropped" if decision.drop else decision.datastore.state) == expected
    if not events:
        assert decision.datastore == before
    elif not decision.drop:
        assert expected in TRANSITIONS[state]
        assert decide(decision.datastore, message, LATER).events == ()  # a message twice is a message once


def test_ready_for_the_first_time_stays_known() -> None:
    ready = decide(stored("provisioning"), Available(volume=VOLUME), NOW).datastore
    again = decide(decide(ready, Refused(reason="gone"), NOW).datastore, Available(volume=VOLUME), LATER).datastore
    assert again.ready_at == NOW


def test_created_is_told() -> None:
    spec = DatastoreSpec(name="digits", local=Local(path="/srv"))
    decision = created(project="p", uid="u", spec=spec, actor="me", traceparent="", now=NOW)
    assert decision.events == ("provisioning",)
    assert view(decision.datastore, ("digits-1",)).used_by == ("digits-1",)


def test_no_view_shows_a_secret() -> None:
    spec = DatastoreSpec(
        name="bucket",
        s3=S3(bucket="b", endpoint="https://user:hunter2@host:9000/x", access_key="AKIA1", secret_key="hunter3"),
    )
    shown = msgspec.json.encode(
        view(created(project="p", uid="u", spec=spec, actor="", traceparent="", now=NOW).datastore)
    ).decode()
    assert "hunter" not in shown
    assert "AKIA1" not in shown
    assert redacted(spec).s3 == S3(bucket="b", endpoint="https://***@host:9000/x", access_key="***", secret_key="***")


def test_reconcile() -> None:
    one, two = stored("ready", uid="one"), stored("provisioning", uid="two")
    leaving, left = stored("deleting", uid="leaving"), stored("deleting", uid="left")
    assert reconcile([one, two, leaving, left], {"one", "leaving", "stranger"}) == Plan(
        provision=(two,), release=("leaving", "stranger"), gone=(left,)
    )
    assert reconcile([one], {"one"}) == Plan()


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/home/me/data", True),
        ("/srv/data", True),
        ("/srv", True),
        ("/srv-other", False),
        ("/etc", False),
        ("/home/me", False),  # holds ELEARN_HOME
        ("/home/me/.elearn", False),
        ("/home/me/.elearn/data/digits", True),
        ("/home/me/.elearn/postgres", False),
        ("/home/me/.elearn/postgres/base", False),
    ],
)
def test_roots(path: str, allowed: bool) -> None:
    roots = [PurePosixPath("/home/me"), PurePosixPath("/srv")]
    problem = root_problem(PurePosixPath(path), roots, PurePosixPath("/home/me/.elearn"), ["postgres"])
    assert (problem is None) == allowed


@pytest.mark.parametrize(
    ("event", "state", "freed", "held"),
    [
        ("queued", "queued", None, ("digits", "runs")),
        ("queued", "queued", NOW, ("digits", "runs")),  # a retry of one that had been freed
        ("running", "running", None, ("digits", "runs")),
        ("succeeded", "succeeded", None, ("digits", "runs")),
        ("succeeded", "succeeded", NOW, ()),
        ("stopped", "stopped", NOW, ()),
        ("freed", "failed", NOW, ()),
        ("deleted", "stopped", None, ()),
    ],
)
def test_uses(event: str, state: TrainingState, freed: datetime | None, held: tuple[str, ...]) -> None:
    training = Training(
        project="default",
        name="digits-1",
        spec=TrainingSpec(
            name="digits",
            command=("true",),
            mounts=(
                Mount(datastore="runs", path="out"),
                Mount(datastore="digits", path="in"),
                Mount(datastore="runs", path="log"),
            ),
        ),
        state=state,
        created_at=NOW,
        freed_at=freed,
    )
    assert held_by(event, training) == held
