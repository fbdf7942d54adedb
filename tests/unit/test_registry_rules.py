"""The registry's pure rules, as tables."""

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from msgspec.structs import replace

from services.registry.model import (
    MOST_ATTEMPTS,
    DeleteAsked,
    Facts,
    FilesGone,
    Key,
    Launched,
    Lost,
    Message,
    Refused,
    Saved,
    Source,
    SourceFound,
    StoredVersion,
    decide,
)
from services.registry.reconcile import Job, Plan, reconcile
from services.registry.saves import save_errors
from services.registry.serving_uses import held_by
from shared.contracts.model import SaveRequest, VersionState
from shared.contracts.serving import Revision, Serving, ServingSpec
from shared.contracts.training import Lineage

NOW = datetime(2026, 1, 2, tzinfo=UTC)
FACTS = Facts(size=1, files=1, digest="sha256:0", archive_size=10240)
HOUR = timedelta(hours=1)


def version(
    state: VersionState = "saving",
    *,
    number: int = 1,
    attempt: int = 1,
    removing: bool = False,
    found: bool = True,
    launched_at: datetime | None = None,
) -> StoredVersion:
    return StoredVersion(
        project="default",
        model="digits",
        number=number,
        state=state,
        created_at=NOW + timedelta(seconds=number),
        source=Source(datastore="runs" if found else None, path="export", training="digits-1"),
        lineage=Lineage(),
        attempt=attempt,
        removing=removing,
        launched_at=launched_at,
        facts=FACTS if state == "ready" else None,
    )


ENDS: list[tuple[Message, VersionState, tuple[str, ...]]] = [
    (Saved(facts=FACTS), "ready", ("ready",)),
    (Refused(reason="the disk is full"), "failed", ("failed",)),
    (Lost(attempt=1, reason="killed"), "saving", ()),
    (SourceFound(datastore="runs", path="x", lineage=Lineage()), "saving", ()),
    (Launched(), "saving", ()),
]


@pytest.mark.parametrize(("message", "state", "events"), ENDS)
def test_a_saving_version(message: Message, state: VersionState, events: tuple[str, ...]) -> None:
    decision = decide(version(), message, NOW)
    assert (decision.version.state, decision.events, decision.drop) == (state, events, False)


@pytest.mark.parametrize("stored", [version("ready"), version("failed"), version(removing=True)])
@pytest.mark.parametrize(("message", "state", "events"), ENDS)
def test_what_comes_late_changes_nothing(
    stored: StoredVersion, message: Message, state: VersionState, events: tuple[str, ...]
) -> None:
    decision = decide(stored, message, NOW)
    assert (decision.version, decision.events) == (stored, ())


def test_a_lost_job_is_followed_by_the_next_until_it_is_enough() -> None:
    stored = version(launched_at=NOW)
    for attempt in range(1, MOST_ATTEMPTS):
        lost = Lost(attempt=attempt, reason="killed")
        stored = decide(stored, lost, NOW).version
        assert (stored.attempt, stored.launched_at) == (attempt + 1, None)
        assert decide(stored, lost, NOW).version == stored  # told twice, lost once
    last = decide(stored, Lost(attempt=MOST_ATTEMPTS, reason="killed"), NOW)
    assert last.events == ("failed",)
    assert "3 times" in last.version.reason


def test_removal() -> None:
    asked = decide(version("ready"), DeleteAsked(), NOW)
    assert (asked.version.removing, asked.events) == (True, ("deleted",))
    assert decide(asked.version, DeleteAsked(), NOW).events == ()
    assert decide(asked.version, FilesGone(), NOW).drop
    assert not decide(version("ready"), FilesGone(), NOW).drop


def plan(versions: list[StoredVersion], jobs: dict[Job, bool], **changes: object) -> Plan:
    at = changes.get("now", NOW)
    assert isinstance(at, datetime)
    return reconcile(versions, jobs, most_at_once=2, timeout=HOUR, now=at)


def job(number: int, attempt: int = 1) -> Job:
    return Job(Key("default", "digits", number), attempt)


def test_jobs_are_started_oldest_first_and_not_too_many() -> None:
    waiting = [version(number=number) for number in (3, 1, 2)]
    assert plan(waiting, {}).launch == (version(number=1), version(number=2))
    assert plan(waiting, {job(1): True}).launch == (version(number=2),)
    assert plan(waiting, {job(1): True, job(2): True}).launch == ()
    assert plan(waiting, {job(1): False, job(2): True}).launch == (version(number=3),)


def test_a_place_is_looked_up_first() -> None:
    unknown = version(found=False)
    assert plan([unknown], {}).find == (unknown,)
    assert plan([unknown], {}).launch == ()


def test_what_nobody_waits_for_is_cleared_away() -> None:
    made = plan(
        [
            version("ready", number=1),
            version(number=2, attempt=2),
            version("failed", number=3),
            version("ready", number=4, removing=True),
        ],
        {job(1): False, job(2, 1): False, job(3): False, job(4): True, job(9): True},
    )
    assert made.finish == (job(1), job(2, 1))
    assert made.clear == (Key("default", "digits", 3), Key("default", "digits", 9))
    assert [each.number for each in made.remove] == [4]
    assert [each.number for each in made.launch] == [2]


def test_deadlines() -> None:
    late = version(launched_at=NOW - HOUR)
    soon = version(number=2, launched_at=NOW - HOUR / 2)
    made = plan([late, soon], {job(1): True, job(2): True})
    assert made.overdue == (late,)
    assert made.next_deadline == NOW + HOUR / 2


def serving(**changes: object) -> Serving:
    by_alias = Serving(
        project="default",
        name="digits",
        spec=ServingSpec(name="digits", model="digits", alias="champion"),
        state="ready",
        created_at=NOW,
        replicas=1,
    )
    return replace(by_alias, **changes)


def revision(number: int, state: Literal["deploying", "ready", "failed", "superseded"]) -> Revision:
    return Revision(number=number, version=number, created_at=NOW, state=state)


@pytest.mark.parametrize(
    ("event", "changes", "held"),
    [
        ("deploying", {"spec": ServingSpec(name="digits", model="digits", version=3)}, (3,)),
        ("ready", {"version": 2}, (2,)),
        ("deploying", {"version": 2, "revisions": (revision(3, "deploying"), revision(2, "ready"))}, (2, 3)),
        ("ready", {"version": 3, "revisions": (revision(3, "ready"), revision(2, "superseded"))}, (3,)),
        ("failed", {"revisions": (revision(1, "failed"),)}, ()),
        ("deleted", {"version": 3}, ()),
    ],
)
def test_what_a_serving_holds(event: str, changes: dict[str, object], held: tuple[int, ...]) -> None:
    assert held_by(event, serving(**changes)) == held


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (SaveRequest(path="out/export", training="digits-1"), []),
        (SaveRequest(path="/abs/export", training="digits-1"), []),
        (SaveRequest(path="digits-1/export", datastore="runs"), []),
        (SaveRequest(path=".", datastore="runs"), []),
        (SaveRequest(path="x"), ["training"]),
        (SaveRequest(path="x", training="a", datastore="b"), ["datastore"]),
        (SaveRequest(path="../x", datastore="runs"), ["path"]),
        (SaveRequest(path="/x", datastore="runs"), ["path"]),
        (SaveRequest(path="", training="a"), ["path"]),
        (SaveRequest(path="x", training="a", labels={"bad key": "v"}), ["labels.bad key"]),
    ],
)
def test_save_requests(request_: SaveRequest, fields: list[str]) -> None:
    assert [error.field for error in save_errors(request_)] == fields
