"""A training's life as a table: what each message makes of each state."""

from typing import Any

import msgspec
import pytest

from services.scheduler.decide import decide
from services.scheduler.errors import IllegalTransition, WrongState
from services.scheduler.history import KEPT_TASKS
from services.scheduler.model import (
    MOST_LOSSES,
    TRANSITIONS,
    Admit,
    DeadlinePassed,
    Decision,
    Freed,
    Hindered,
    Message,
    Refused,
    Retry,
    Seen,
    Stop,
    TrainingRecord,
    Vanished,
)
from shared.contracts.training import ENDED
from tests.support.trainings import at, cluster, record, seen, task


def tell(one: TrainingRecord, *messages: Message, now: float = 10) -> Decision:
    """The last decision, with the events of all of them."""
    events: tuple[Any, ...] = ()
    for message in messages:
        decision = decide(one, message, at(now))
        one, events = decision.record, (*events, *decision.events)
    return Decision(record=one, events=events)


def names(decision: Decision) -> list[str]:
    return [event.event if event.task is None else f"{event.task.name} {event.event}" for event in decision.events]


def admitted(**fields: Any) -> TrainingRecord:
    return tell(record(**fields), Admit(), now=0).record


def running(**fields: Any) -> TrainingRecord:
    one = admitted(**fields)
    return tell(one, seen(one), now=1).record


def test_the_straight_way() -> None:
    one = record(roles=cluster(workers=1, ps=1))
    decision = tell(one, Admit())
    assert (decision.record.state, decision.record.attempt, decision.record.holding) == ("starting", 1, True)
    assert names(decision) == ["starting"]
    decision = tell(decision.record, seen(decision.record, ps_0="starting"))
    assert decision.record.state == "starting"
    decision = tell(decision.record, seen(decision.record))
    assert (decision.record.state, decision.record.running_at) == ("running", at(10))
    assert names(decision) == ["ps-0 running", "running"]
    decision = tell(decision.record, seen(decision.record, chief_0="succeeded"), now=20)
    assert (decision.record.state, decision.record.reason) == ("succeeded", "chief-0 ended with exit code 0")
    assert (decision.record.holding, decision.record.freed_at) == (True, None)
    assert names(decision) == ["chief-0 succeeded", "succeeded"]
    last = seen(decision.record, chief_0="succeeded", others="stopped").tasks
    decision = tell(decision.record, Freed(attempt=1, tasks=last), now=21)
    assert (decision.record.holding, decision.record.freed_at) == (False, at(21))
    assert [each.state for each in decision.record.tasks] == ["succeeded", "stopped", "stopped"]
    assert decision.record.attempts[0].freed_at == at(21)
    assert names(decision) == ["freed"]


def test_a_task_that_ends_before_it_was_seen_running_still_tells_the_whole_story() -> None:
    one = admitted()
    decision = tell(one, seen(one, "succeeded"))
    assert names(decision) == ["chief-0 running", "chief-0 succeeded", "running", "succeeded"]


def test_why_an_attempt_is_not_freed_is_told_until_it_is() -> None:
    one = running(retries=1)
    hindered = Hindered(attempt=1, reason="node n1 does not answer")
    assert tell(one, hindered).record == one, "it is wanted: nobody frees it"
    ended = tell(one, Stop(reason="enough")).record
    ended = tell(ended, hindered).record
    assert tell(ended, hindered).record is ended, "what says nothing new is not stored again"
    assert (ended.reason, ended.unfreed) == ("enough", "node n1 does not answer")
    assert tell(ended, Hindered(attempt=0, reason="of another")).record == ended
    freed = tell(ended, Freed(attempt=1, tasks=ended.tasks)).record
    assert (freed.reason, freed.unfreed) == ("enough", "")
    assert tell(freed, hindered).record == freed
    lost = tell(one, seen(one, chief_0="lost")).record
    assert (lost.state, lost.unfreed) == ("queued", "")
    waits = tell(lost, hindered).record
    assert tell(waits, hindered).record is waits
    assert waits.reason == "waiting until attempt 1 is freed: node n1 does not answer"
    freed = tell(waits, Freed(attempt=1, tasks=waits.tasks)).record
    assert (freed.state, freed.reason, freed.unfreed) == ("queued", "", "")


def test_what_is_the_matter_with_a_task_is_told_while_the_others_run() -> None:
    one = running(roles=cluster(workers=1, ps=1))
    assert one.reason == "3 tasks running"
    shown = seen(one)
    silent = [msgspec.structs.replace(each, reason="node n1 does not answer") for each in shown.tasks[1:]]
    one = tell(one, msgspec.structs.replace(shown, tasks=(shown.tasks[0], *silent))).record
    assert (one.state, one.reason) == ("running", f"3 tasks running: {silent[0].name}: node n1 does not answer")
    again = msgspec.structs.replace(silent[0], state="starting", reason="exit code 1; starting it again")
    one = tell(one, msgspec.structs.replace(shown, tasks=(shown.tasks[0], again, shown.tasks[2]))).record
    assert one.reason == f"2 of 3 tasks running: {again.name}: exit code 1; starting it again"
    assert tell(one, shown).record.reason == "3 tasks running"


@pytest.mark.parametrize(
    ("roles", "states", "state", "reason"),
    [
        (cluster(workers=2, ps=1), {"worker_1": "failed"}, "failed", "worker-1 ended with exit code 1"),
        (cluster(workers=2), {"worker_1": "failed"}, "failed", "worker-1 ended with exit code 1"),
        (cluster(workers=1, ps=1), {"ps_0": "failed"}, "failed", "ps-0 ended with exit code 1"),
        (cluster(workers=1, ps=1), {"ps_0": "succeeded"}, "running", "2 of 3 tasks running"),
        (cluster(workers=1), {"worker_0": "succeeded"}, "running", "1 of 2 tasks running"),
        (cluster(evaluator=1), {"evaluator_0": "failed"}, "running", "1 of 2 tasks running"),
        (cluster(evaluator=1), {"evaluator_0": "lost"}, "running", "1 of 2 tasks running"),
        (cluster(evaluator=1), {"evaluator_0": "succeeded"}, "running", "1 of 2 tasks running"),
        (
            cluster(workers=1),
            {"chief_0": "succeeded", "worker_0": "failed"},
            "succeeded",
            "chief-0 ended with exit code 0",
        ),
        (cluster(chief=0, workers=2), {"worker_0": "succeeded"}, "succeeded", "worker-0 ended with exit code 0"),
        (cluster(chief=0, workers=2, ps=1), {"worker_1": "succeeded"}, "running", "2 of 3 tasks running"),
    ],
)  # fmt: skip
def test_which_end_means_what(roles: Any, states: Any, state: str, reason: str) -> None:
    one = running(roles=roles)
    decision = tell(one, seen(one, **states))
    assert (decision.record.state, decision.record.reason) == (state, reason)


def test_an_evaluator_that_can_t_be_started_keeps_nobody_from_running() -> None:
    one = admitted(roles=cluster(evaluator=1))
    evaluator = task(one, "evaluator-0", "failed", started_at=None, exit_code=None)
    assert tell(one, seen(one, evaluator_0=evaluator)).record.state == "running"


def test_a_program_that_is_not_there_is_not_tried_again() -> None:
    one = admitted(retries=5)
    missing = task(one, "chief-0", "failed", started_at=None, exit_code=None, reason="command not found: x")
    decision = tell(one, seen(one, chief_0=missing))
    assert names(decision) == ["chief-0 failed", "failed"]
    assert decision.record.reason == "chief-0 could not be started: command not found: x"


def test_the_first_failure_is_the_reason() -> None:
    one = running(roles=cluster(workers=1, ps=1))
    chief = task(one, "chief-0", "failed", finished_at=at(5), reason="ConnectionError")
    ps = task(one, "ps-0", "failed", finished_at=at(4), exit_code=None, signal=9)
    decision = tell(one, seen(one, chief_0=chief, ps_0=ps))
    assert decision.record.reason == "ps-0 was ended by signal 9"


def test_a_failure_uses_up_a_retry_and_a_loss_does_not() -> None:
    one = running(retries=1)
    decision = tell(one, seen(one, chief_0="lost"))
    assert (decision.record.state, decision.record.failures, decision.record.losses) == ("queued", 0, 1)
    assert names(decision) == ["chief-0 failed", "retrying"]
    two = tell(decision.record, Freed(attempt=1), Admit()).record
    assert two.attempt == 2
    three = tell(tell(two, seen(two, "failed")).record, Freed(attempt=2), Admit()).record
    assert three.attempt == 3
    end = tell(three, seen(three, "failed")).record
    assert (end.state, end.reason) == ("failed", "chief-0 ended with exit code 1 (attempt 3)")
    assert [each.number for each in end.attempts] == [1, 2, 3]


def test_what_was_ended_from_outside_is_a_loss() -> None:
    one = running()
    decision = tell(one, seen(one, chief_0=task(one, "chief-0", "stopped", reason="told to stop")))
    assert (decision.record.state, decision.record.losses) == ("queued", 1)
    assert "ended from outside" in decision.record.reason


def test_losses_have_an_end() -> None:
    one = record()
    for _ in range(MOST_LOSSES):
        one = tell(one, Admit()).record
        one = tell(one, Vanished(attempt=one.attempt)).record
        one = tell(one, Freed(attempt=one.attempt)).record
    assert (one.state, one.losses) == ("failed", MOST_LOSSES)
    assert one.freed_at is not None


def test_no_attempt_starts_before_the_last_is_freed() -> None:
    one = running(retries=1)
    queued = tell(one, seen(one, "failed")).record
    assert (queued.state, queued.holding) == ("queued", True)
    with pytest.raises(IllegalTransition):
        tell(queued, Admit())


def test_the_pause_grows_with_failures() -> None:
    one = running(retries=5)
    decision = decide(one, seen(one, "failed"), at(10), lambda failures: failures * 7.0)
    assert decision.record.not_before == at(17)


def test_a_refused_launch_goes_back_to_the_queue_and_keeps_its_number() -> None:
    one = admitted()
    decision = tell(one, Refused(attempt=1, reason="waiting for 1 CPU", for_good=False))
    assert (decision.record.state, decision.record.attempt, decision.record.holding) == ("queued", 0, False)
    assert tell(decision.record, Admit()).record.attempt == 1
    decision = tell(one, Refused(attempt=1, reason="no such folder", for_good=True))
    assert (decision.record.state, decision.record.holding) == ("failed", True)


def test_a_hindered_launch_says_so() -> None:
    one = admitted()
    assert tell(one, Hindered(attempt=1, reason="disk full")).record.reason == "disk full"
    assert tell(running(), Hindered(attempt=1, reason="late")).record.reason == "1 task running"


@pytest.mark.parametrize("state", ["queued", "starting", "running"])
def test_stop(state: str) -> None:
    one = {"queued": record, "starting": admitted, "running": running}[state]()
    decision = tell(one, Stop(reason="enough"))
    assert (decision.record.state, decision.record.reason) == ("stopped", "enough")
    assert names(decision)[0] == "stopped"
    assert (decision.record.freed_at is not None) == (state == "queued")
    again = tell(decision.record, Stop(reason="once more"))
    assert again.record is decision.record


def test_stop_between_attempts_waits_for_the_last_one_to_be_freed() -> None:
    one = running(retries=1)
    queued = tell(one, seen(one, "failed")).record
    stopped = tell(queued, Stop(reason="enough")).record
    assert (stopped.state, stopped.freed_at) == ("stopped", None)
    assert tell(stopped, Freed(attempt=1)).record.freed_at is not None


def test_what_has_ended_can_t_be_stopped_and_what_runs_not_retried() -> None:
    one = running()
    done = tell(one, seen(one, "succeeded")).record
    with pytest.raises(WrongState, match="nothing to stop"):
        tell(done, Stop(reason="x"))
    with pytest.raises(WrongState, match="stop it first"):
        tell(one, Retry(sequence=9))


def test_retry_by_hand_begins_anew() -> None:
    one = running(deadline=60)
    done = tell(one, seen(one, "failed"), Freed(attempt=1)).record
    again = tell(done, Retry(sequence=9), now=100)
    assert (again.record.state, again.record.sequence, again.record.freed_at) == ("queued", 9, None)
    assert (again.record.failures, again.record.deadline_from) == (0, None)
    assert names(again) == ["retrying", "queued"]
    second = tell(again.record, Admit(), now=200).record
    assert (second.attempt, second.deadline_at) == (2, at(260))


def test_the_deadline_counts_from_the_first_start_over_all_attempts() -> None:
    one = running(deadline="1m", retries=3)
    assert one.deadline_at == at(60)
    assert tell(one, DeadlinePassed(), now=59).record is one
    queued = tell(one, seen(one, "failed"), Freed(attempt=1), now=30).record
    assert queued.deadline_at == at(60)
    late = tell(queued, DeadlinePassed(), now=60)
    assert (late.record.state, late.record.reason) == ("failed", "its deadline of 1 min has passed")
    assert names(late) == ["failed", "freed"]
    assert record(deadline="1m").deadline_at is None


def test_messages_of_other_attempts_and_news_twice_change_nothing() -> None:
    one = running(retries=1)
    two = tell(one, seen(one, "failed"), Freed(attempt=1), Admit()).record
    for stale in (
        Seen(attempt=1, tasks=seen(one, "succeeded").tasks),
        Freed(attempt=1),
        Vanished(attempt=1),
        Refused(attempt=1, reason="x", for_good=True),
    ):
        assert tell(two, stale).record is two
    assert tell(one, seen(one)).record is one
    assert tell(two, Freed(attempt=2)).record is two  # wanted: a confirmation that nobody asked for


def test_a_task_never_goes_back() -> None:
    one = running(roles=cluster(workers=1, ps=1))
    restarted = tell(one, seen(one, worker_0=task(one, "worker-0", "running", restarts=1, started_at=at(5))))
    assert names(restarted) == ["worker-0 restarted"]
    assert tell(restarted.record, seen(one)).record is restarted.record
    assert tell(one, seen(one, chief_0="starting")).record is one
    ended = tell(one, seen(one, worker_0="succeeded")).record
    assert tell(ended, seen(one, worker_0="running")).record is ended


def test_what_was_known_of_a_task_that_is_gone_stays_known() -> None:
    one = running(roles=cluster(workers=1))
    before = next(each for each in one.tasks if each.name == "worker-0")
    assert before.started_at is not None
    gone = msgspec.structs.replace(before, state="stopped", started_at=None, node="", finished_at=at(9))
    for message in (Seen(attempt=1, tasks=(gone,)), Freed(attempt=1, tasks=(gone,))):
        ended = tell(one, seen(one, chief_0="succeeded"), message).record
        task_now = next(each for each in ended.tasks if each.name == "worker-0")
        assert task_now == msgspec.structs.replace(before, state="stopped", finished_at=at(9))


def test_history_is_bounded() -> None:
    one = record(roles=cluster(workers=499), retries=50)
    for _ in range(8):
        one = tell(one, Admit()).record
        one = tell(one, seen(one, "failed"), Freed(attempt=one.attempt)).record
    assert [each.number for each in one.attempts] == list(range(1, 9))
    assert sum(len(each.tasks) for each in one.attempts) <= KEPT_TASKS
    assert one.attempts[-1].tasks
    assert not one.attempts[0].tasks


def test_an_illegal_change_tells_the_story() -> None:
    one = running()
    done = tell(one, seen(one, "failed"), Freed(attempt=1)).record
    with pytest.raises(IllegalTransition, match=r"p/t-1 is failed in attempt 1 .* can't admit; before: attempt 1"):
        tell(done, Admit())


def test_the_table_is_closed() -> None:
    assert {state for state, _ in TRANSITIONS} | set(TRANSITIONS.values()) == {
        "queued", "starting", "running", *ENDED,
    }  # fmt: skip
    assert all(why == "retry" for state, why in TRANSITIONS if state in ENDED)


def test_what_keeps_tasks_from_running_is_told_and_forgotten_again() -> None:
    one = admitted(roles=cluster(workers=2))
    missing = "image nowhere:1 can't be pulled: not found"
    stuck = {name: task(one, name, "starting", reason=missing) for name in ("worker-0", "worker-1")}
    decision = tell(one, seen(one, "starting", worker_0=stuck["worker-0"], worker_1=stuck["worker-1"]))
    assert decision.record.reason == f"starting 3 tasks: worker-0: {missing}"
    assert decision.record.state == "starting"
    decision = tell(decision.record, seen(one, "starting"))
    assert decision.record.reason == "starting 3 tasks"
    given_up = msgspec.structs.replace(stuck["worker-1"], state="failed", finished_at=at(9))
    decision = tell(decision.record, seen(one, "starting", worker_1=given_up))
    assert decision.record.state == "failed"
    assert missing in decision.record.reason


def test_an_attempt_that_found_no_place_is_lost_and_costs_no_retry() -> None:
    one = admitted()
    waiting = task(one, "chief-0", "lost", started_at=None, reason="no node takes it: for 10 min")
    decision = tell(one, seen(one, chief_0=waiting))
    assert (decision.record.state, decision.record.failures, decision.record.losses) == ("queued", 0, 1)
    assert "no node takes it" in decision.record.reason
