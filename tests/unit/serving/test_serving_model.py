"""A serving's life, as a table of messages."""

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from msgspec.structs import replace

from services.serving.errors import NoSuchRevision, NothingToRollBackTo
from services.serving.handlers import patch_errors
from services.serving.model import (
    KEPT,
    AliasMoved,
    Change,
    Choice,
    Located,
    Message,
    Observed,
    Replica,
    RollBack,
    Source,
    StoredServing,
    Unservable,
    VersionDeleted,
    created,
    decide,
)
from services.serving.reconcile import deployment_of, reconcile
from services.serving.views import view
from shared.contracts.datastore import LocalVolume
from shared.contracts.serving import Endpoint, ServingPatch, ServingSpec

START = datetime(2026, 1, 1, tzinfo=UTC)
ENDPOINT = Endpoint(grpc="127.0.0.1:1", rest="http://127.0.0.1:2/v1/models/m")


def source(version: int) -> Source:
    return Source(number=version, volume=LocalVolume(path="/models"), path=f"m/{version}")


def choice(*versions: int, alias: str | None = None, at: int = 0) -> Choice:
    share = 100 // len(versions)
    return Choice(
        traffic=dict.fromkeys(versions, share),
        cause="asked",
        alias=alias,
        moved_at=START + timedelta(seconds=at) if alias else None,
        sources=tuple(source(version) for version in versions),
    )


class Life:
    """A serving, and the events it has told."""

    def __init__(self, *, replicas: int = 2, alias: str | None = None) -> None:
        spec = ServingSpec(name="s", model="m", version=None if alias else 1, alias=alias, replicas=replicas)
        decision = created(
            project="default",
            uid="u",
            spec=spec,
            choice=choice(1, alias=alias),
            actor="me",
            traceparent="",
            now=START,
        )
        self.serving: StoredServing = decision.serving
        self.events = list(decision.events)

    def tell(self, message: Message) -> "Life":
        decision = decide(self.serving, message, START)
        self.serving = decision.serving
        self.events.extend(decision.events)
        return self

    def see(self, text: str, *, waiting: str = "") -> "Life":
        """``1:rr 2:f``: two replicas of revision 1 answer, one of revision 2 fails."""
        states: dict[str, Literal["starting", "ready", "failing"]] = {"s": "starting", "r": "ready", "f": "failing"}
        seen = []
        for part in text.split():
            revision, letters = part.split(":")
            for letter in letters:
                reason = "no SavedModel" if letter == "f" else ""
                seen.append(Replica(revision=int(revision), state=states[letter], reason=reason))
        return self.tell(Observed(replicas=tuple(seen), endpoint=ENDPOINT, waiting=waiting))

    @property
    def now(self) -> tuple[str, str]:
        return self.serving.state, self.serving.reason


def test_comes_up() -> None:
    life = Life().see("", waiting="waiting for 1 CPU")
    assert life.now == ("deploying", "waiting for 1 CPU")
    assert view(life.serving).endpoint is None
    life.see("1:rs")
    assert life.now == ("deploying", "1 of 2 replicas are ready")
    life.see("1:rr").see("1:rr")
    seen = view(life.serving)
    assert (seen.state, seen.version, seen.revision, seen.ready_replicas) == ("ready", 1, 1, 2)
    assert seen.endpoint == ENDPOINT
    assert life.events == ["deploying", "ready"]


def test_a_first_revision_that_fails_is_a_failed_serving_and_runs_nothing() -> None:
    life = Life().see("1:f")
    assert life.now == ("failed", "no SavedModel")
    assert life.serving.target is None
    assert reconcile([life.serving], {}, {"u"}).remove == ("u",)
    life.see("").tell(Change(choice=choice(2))).see("2:rr")
    assert life.now == ("ready", "")
    assert life.events == ["deploying", "failed", "deploying", "ready"]


def test_a_replica_that_goes_and_comes_back() -> None:
    life = Life().see("1:rr").see("1:rs").see("1:rs").see("1:rr")
    assert life.events == ["deploying", "ready", "degraded", "ready"]
    assert life.see("1:rf").now == ("degraded", "1 of 2 replicas answer: no SavedModel")


def test_another_version_takes_over() -> None:
    life = Life().see("1:rr").tell(Change(choice=choice(2)))
    assert life.now == ("deploying", "asked")
    assert view(life.serving).version == 1
    life.see("1:rr").see("1:rr 2:r").see("1:r 2:rr")
    assert view(life.serving).version == 1
    life.see("2:rr")
    seen = view(life.serving)
    assert (seen.state, seen.version, seen.spec.version) == ("ready", 2, 2)
    assert [(each.number, each.state) for each in seen.revisions] == [(2, "ready"), (1, "superseded")]
    assert life.events == ["deploying", "ready", "deploying", "ready"]


def test_a_version_that_fails_leaves_the_old_one_degraded_until_somebody_acts() -> None:
    life = Life().see("1:rr").tell(Change(choice=choice(2))).see("1:rr 2:f")
    words = "revision 2 (version 2) failed: no SavedModel; revision 1 (version 1) goes on"
    assert life.now == ("degraded", words)
    assert deployment_of(life.serving).revision == 1
    assert life.see("1:rr 2:f").now == ("degraded", words)
    assert life.see("1:rr").now == ("degraded", words)
    life.tell(RollBack()).see("1:rr")
    assert life.now == ("ready", "")
    assert view(life.serving).spec.version == 1
    assert life.events == ["deploying", "ready", "deploying", "degraded", "deploying", "ready"]


def test_a_failed_version_may_be_tried_again() -> None:
    life = Life().see("1:rr").tell(Change(choice=choice(2))).see("1:rr 2:f").tell(Change(choice=choice(2)))
    assert life.serving.wanted == 3
    assert life.see("3:rr").now == ("ready", "")


def test_the_same_again_changes_nothing() -> None:
    life = Life().see("1:rr").tell(Change(choice=choice(1), replicas=2))
    assert life.events == ["deploying", "ready"]
    assert life.now == ("ready", "")


def test_scaling_is_no_revision() -> None:
    life = Life().see("1:rr").tell(Change(replicas=3))
    assert life.now == ("deploying", "changing the number of replicas")
    assert life.see("1:rrs").now == ("deploying", "2 of 3 replicas answer")
    life.see("1:rrr")
    assert (life.now, view(life.serving).revision) == (("ready", ""), 1)
    life.tell(Change(replicas=0)).see("1:rrr").see("")
    assert life.now == ("ready", "")


def test_rollback_makes_a_new_revision_of_the_last_good_one() -> None:
    life = Life().see("1:rr").tell(Change(choice=choice(2))).see("2:rr").tell(RollBack())
    assert view(life.serving).revisions[0].cause == "rolled back to revision 1"
    assert view(life.see("3:rr").serving).version == 1
    life.tell(RollBack(revision=2)).see("4:rr")
    assert view(life.serving).version == 2
    with pytest.raises(NoSuchRevision, match="no revision 9"):
        life.tell(RollBack(revision=9))


def test_nothing_to_roll_back_to() -> None:
    with pytest.raises(NothingToRollBackTo):
        Life().see("1:rr").tell(RollBack())


def test_an_alias_is_followed_and_old_news_is_none() -> None:
    life = Life(alias="champion").see("1:rr")
    moved = AliasMoved(alias="champion", version=2, moved_at=START + timedelta(seconds=5))
    life.tell(replace(moved, alias="other"))
    life.tell(replace(moved, moved_at=START))
    assert life.serving.wanted == 1
    life.tell(moved).tell(moved)
    assert life.serving.wanted == 2
    plan = reconcile([life.serving], {}, {"u"})
    assert (plan.locate, plan.apply) == ((life.serving,), ())
    life.tell(Located(revision=2, sources=(source(2),)))
    assert deployment_of(life.serving).labels == {"champion": 2}
    life.see("2:rr")
    assert (view(life.serving).version, view(life.serving).spec.alias) == (2, "champion")
    life.tell(Change(choice=choice(1)))
    assert (life.serving.spec.alias, life.serving.spec.version) == (None, 1)
    life.tell(replace(moved, moved_at=START + timedelta(seconds=9)))
    assert life.serving.wanted == 3


def test_a_version_that_the_registry_does_not_have_is_a_failed_revision() -> None:
    life = Life(alias="champion").see("1:rr")
    life.tell(AliasMoved(alias="champion", version=2, moved_at=START + timedelta(seconds=5)))
    life.tell(Unservable(revision=2, reason="there is no version 2"))
    assert life.now[0] == "degraded"
    assert "there is no version 2" in life.now[1]
    before = life.serving
    assert life.tell(Unservable(revision=1, reason="late")).serving == before


def test_a_change_overtakes_one_that_is_on_its_way() -> None:
    life = Life().see("1:rr").tell(Change(choice=choice(2))).tell(Change(choice=choice(3)))
    life.see("1:rr 2:r 3:s").see("3:rr")
    assert [(each.number, each.state) for each in view(life.serving).revisions] == [
        (3, "ready"),
        (2, "superseded"),
        (1, "superseded"),
    ]


def test_traffic_is_shown_while_it_is_split() -> None:
    life = Life().see("1:rr").tell(Change(choice=choice(1, 2))).see("2:rr")
    seen = view(life.serving)
    assert (seen.traffic, seen.version) == ({"1": 50, "2": 50}, 2)
    assert deployment_of(life.serving).traffic == {1: 50, 2: 50}
    assert view(life.tell(Change(choice=choice(2))).see("3:rr").serving).traffic == {}


def test_a_deleted_version_goes_on_and_says_so() -> None:
    life = Life().see("1:rr").tell(VersionDeleted(version=7))
    assert life.now == ("ready", "")
    life.tell(VersionDeleted(version=1)).see("1:rr")
    assert life.now[0] == "degraded"
    assert "version 1 was deleted" in life.now[1]
    assert life.tell(Change(choice=choice(2))).see("2:rr").now == ("ready", "")


def test_history_is_short_but_keeps_what_answers() -> None:
    life = Life().see("1:rr")
    for version in range(2, KEPT + 10):
        life.tell(Change(choice=choice(version)))
    numbers = [each.number for each in life.serving.revisions]
    assert len(numbers) == KEPT + 1
    assert numbers[-1] == 1


def test_the_plan_applies_once_and_removes_strangers() -> None:
    serving = Life().serving
    plan = reconcile([serving], {}, {"stranger"})
    assert plan.remove == ("stranger",)
    (deployment,) = plan.apply
    again = reconcile([serving], {"u": deployment}, {"u"})
    assert (again.apply, again.remove, again.locate) == ((), (), ())
    assert reconcile([], {"u": deployment}, ()).remove == ("u",)


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        (ServingPatch(), "body"),
        (ServingPatch(version=1, alias="a"), "alias"),
        (ServingPatch(version=1, traffic={"1": 100}), "traffic"),
        (ServingPatch(traffic={"1": 60}), "traffic"),
        (ServingPatch(traffic={"x": 100}), "traffic.x"),
        (ServingPatch(traffic={"01": 100}), "traffic.01"),
        (ServingPatch(traffic={"0": 100}), "traffic.0"),
        (ServingPatch(traffic={"1": 101, "2": -1}), "traffic.1"),
    ],
)
def test_patches_that_contradict_themselves(patch: ServingPatch, field: str) -> None:
    assert patch_errors(patch)[0].field == field


def test_patches_that_do_not() -> None:
    for patch in (ServingPatch(version=1, replicas=2), ServingPatch(traffic={"1": 90, "2": 10})):
        assert patch_errors(patch) == []
