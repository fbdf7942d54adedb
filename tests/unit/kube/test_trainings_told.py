"""What becomes of a training's tasks, told change by change."""

from typing import Any

import msgspec
import pytest

from services.scheduler.cloud.kubernetes.attempts import Attempts
from services.scheduler.cloud.kubernetes.identity import AttemptKey
from services.scheduler.cloud.kubernetes.seen import job_seen, pod_seen, service_seen
from services.scheduler.cloud.port import AttemptGone
from shared.kube.changes import Added, Deleted, Identity
from shared.kube.objects import Pod
from shared.kube.resources import JOBS, PODS
from tests.support.kube_attempts import (
    FAIL,
    KEY,
    NO_ROOM,
    NOON,
    OPTIONS,
    RESTART,
    TAKEN,
    Story,
    at,
    ended,
    group,
    job,
    pod,
    running,
    service,
    stamp,
    waiting,
)


def test_a_pod_that_vanished_is_missed() -> None:
    story = Story(FAIL)
    story.pod(FAIL, **running())
    assert story.one().state == "running"
    story.pod(FAIL, gone=True, **running())
    task = story.one(120)
    assert (task.state, task.reason, task.finished_at) == ("lost", "its pod was deleted", at(120))
    assert task.started_at == at(5)
    story.pod(FAIL, number=1, **running(130))
    assert story.one(140) == task


def test_a_pod_that_vanished_and_came_back_between_two_looks_is_missed_too() -> None:
    story = Story(FAIL)
    story.pod(FAIL, **running())
    story.pod(FAIL, gone=True, **running(**TAKEN))
    story.pod(FAIL, number=1, made=60)
    task = story.one()
    assert task.state == "lost"
    assert "taken away (EvictionByEvictionAPI)" in task.reason


def test_a_pod_that_never_ran_may_be_replaced() -> None:
    story = Story(FAIL)
    story.pod(FAIL)
    story.pod(FAIL, gone=True)
    assert story.one().state == "pending"
    story.pod(FAIL, number=1, **running())
    assert story.one().state == "running"


def test_where_tasks_are_started_again_a_vanished_pod_is_replaced() -> None:
    story = Story(RESTART)
    story.pod(RESTART, **running())
    story.one()
    story.pod(RESTART, gone=True, **running())
    task = story.one()
    assert (task.state, task.reason) == ("starting", "its pod was deleted; starting it again")
    assert task.started_at is not None  # it is news, and not a step back
    story.pod(RESTART, number=1, made=60)
    task = story.one()
    assert (task.state, task.restarts) == ("starting", 1)
    story.pod(RESTART, number=1, made=60, **running(70))
    task = story.one()
    assert (task.state, task.restarts, task.started_at, task.reason) == ("running", 1, at(70), "")
    story.job(RESTART, failedIndexes="0")
    story.pod(RESTART, number=1, made=60, **ended(1, message="no", begin=70))
    task = story.one()
    assert (task.state, task.restarts, task.exit_code, task.reason) == ("failed", 1, 1, "no")


def test_an_end_stays_when_its_pod_goes() -> None:
    story = Story(FAIL)
    story.pod(FAIL, **ended(0))
    task = story.one()
    assert task.state == "succeeded"
    story.job(FAIL, suspend=True)
    story.pod(FAIL, gone=True, deleted=100, grace=0, **ended(0))
    story.job(FAIL, gone=True)
    assert story.one() == task
    story.service(gone=True)
    assert isinstance(story.attempts.observe(KEY, at(1)), AttemptGone)
    assert len(story.attempts) == 0


def test_the_last_state_of_a_deleted_pod_counts() -> None:
    story = Story(FAIL)
    story.pod(FAIL, **running())
    story.pod(FAIL, gone=True, **ended(2))
    assert (story.one().state, story.one().exit_code) == ("failed", 2)


def test_what_we_end_is_stopped_and_not_lost() -> None:
    chief, workers = group("chief"), group(count=2)
    story = Story(chief, workers)
    for of, index in ((chief, 0), (workers, 0), (workers, 1)):
        story.pod(of, index=index, **running())
    story.pod(chief, **ended(0))
    assert [task.state for task in story.at(60)] == ["succeeded", "running", "running"]
    story.job(workers, suspend=True)
    story.pod(workers, index=0, deleted=60, **ended(143, end=61))
    story.pod(workers, index=1, deleted=60, **running())
    assert [task.state for task in story.at(61)] == ["succeeded", "stopped", "running"]
    story.pod(workers, index=1, gone=True, deleted=60, **running())
    tasks = story.at(70)
    assert [(task.state, task.reason) for task in tasks[1:]] == [("stopped", "told to stop")] * 2
    assert tasks[1].signal == 15


def test_a_job_that_a_stranger_deletes() -> None:
    story = Story(FAIL)
    story.pod(FAIL, **running())
    story.one()
    story.job(FAIL, gone=True)
    assert story.one().state == "running"  # as long as its pod does
    story.pod(FAIL, gone=True, **running())
    assert (story.one().state, story.one().reason) == ("lost", "its Job was deleted")


def test_a_job_that_was_never_seen_is_looked_up_before_it_is_missed() -> None:
    story = Story(released=False)
    story.groups = (FAIL,)
    story.service(released=True)
    assert story.one().state == "pending"
    assert story.attempts.due(at(100)) == [KEY]
    assert story.sure(101, jobs=[job(FAIL)]).state == "pending"  # it is there: its watch is late
    assert story.attempts.due(at(102)) == []
    assert story.attempts.due(at(112)) == [KEY]
    assert (story.sure(112, jobs=[]).state, story.one().reason) == ("lost", "its Job was deleted")


@pytest.mark.parametrize(
    ("status", "limit", "state", "words"),
    [
        ({**waiting("ErrImagePull", "gone")}, 300, "failed", "can't be pulled: gone (for 5 min)"),
        ({**waiting("CreateContainerError", "odd")}, 300, "failed", "can't be started: odd (for 5 min)"),
        ({"node": "", **NO_ROOM}, 600, "lost", "no node takes it"),
    ],
)
def test_time_is_up(status: dict[str, Any], limit: float, state: str, words: str) -> None:
    story = Story(FAIL)
    story.pod(FAIL, **status)
    assert story.one(1).state == "starting"
    assert story.attempts.next_look() == at(limit)
    assert story.attempts.due(at(limit - 1)) == []
    assert story.sure(limit - 1, pod(FAIL, **status)).state == "starting"
    assert story.one(limit + 60).state == "starting"  # it may be better, and nobody told
    assert story.sure(limit + 60, pod(FAIL, **running())).state == "starting"  # it is: the watch is late
    assert story.attempts.due(at(limit + 71)) == [KEY]
    task = story.sure(limit, pod(FAIL, **status))
    assert (task.state, task.started_at, task.finished_at) == (state, None, at(limit))
    assert words in task.reason
    assert story.attempts.next_look() is None


def test_one_failed_pull_after_a_long_time_ends_nothing() -> None:
    story = Story(FAIL)
    story.pod(FAIL, **waiting("ContainerCreating"))
    assert story.sure(400, pod(FAIL, **waiting("ContainerCreating"))).state == "starting"
    story.pod(FAIL, **waiting("ErrImagePull", "connection reset"))
    assert story.one(401).state == "starting"
    assert story.attempts.next_look() == at(461)
    assert story.sure(461, pod(FAIL, **waiting("ErrImagePull", "connection reset"))).state == "failed"


def test_an_image_that_could_be_had_before_is_the_clusters_trouble() -> None:
    story = Story(RESTART)
    story.pod(RESTART, **ended(1))
    story.one()
    again = pod(RESTART, number=1, made=60, **waiting("ErrImagePull", "registry is away"))
    story.pod(RESTART, number=1, made=60, **waiting("ErrImagePull", "registry is away"))
    assert story.one(80).state == "starting"
    task = story.sure(400, pod(RESTART, **ended(1)), again)
    assert (task.state, task.restarts) == ("lost", 1)


def test_a_pod_on_a_node_that_does_not_answer() -> None:
    story = Story(FAIL)
    story.pod(FAIL, **running())
    assert story.sure(4000, pod(FAIL, **running())).state == "running"  # for as long as Kubernetes says nothing
    ready, no_more = {"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "False"}
    story.pod(FAIL, **running(conditions=[no_more, ready]))
    assert (story.one(4001).state, story.one(4001).reason) == ("running", "node n1 does not answer")
    story.pod(FAIL, **running(conditions=[{**no_more, "reason": "ReadinessGatesNotReady"}, ready]))
    assert story.one(4002).reason == ""
    story.pod(FAIL, deleted=4020, **running(**TAKEN))
    assert story.one(4021).state == "running"
    assert story.attempts.next_look() == at(4090)
    task = story.sure(4090, pod(FAIL, deleted=4020, **running(**TAKEN)))
    assert task.state == "lost"
    assert "its node does not answer" in task.reason


def test_kueue_lets_a_job_wait_for_as_long_as_it_takes() -> None:
    story = Story(FAIL)
    story.job(FAIL, queue="team", suspend=True, startTime=None)
    assert story.one(5000).state == "pending"
    assert story.attempts.next_look() is None
    assert story.attempts.questions(at(5000), 10) == []
    story.job(FAIL, queue="team", generation=2, startTime=stamp(6000))
    assert (story.one(6001).state, story.one(6001).reason) == ("pending", "")
    (question,) = story.attempts.questions(at(6010), 10)
    story.attempts.answer(question, "FailedCreate: pods are forbidden: exceeded quota: compute")
    assert story.one(6010).state == "pending"
    assert story.attempts.next_look() == at(6600), "from when it was let go"


def test_what_kueue_takes_back_is_lost_and_what_we_hold_back_is_stopped() -> None:
    for held_back, state in ((False, "lost"), (True, "stopped")):
        story = Story(FAIL)
        story.job(FAIL, queue="team", generation=2)
        story.pod(FAIL, **running())
        assert story.one(20).state == "running"
        story.job(FAIL, queue="team", suspend=True, held_back=held_back, generation=3)
        story.pod(FAIL, deleted=30, **ended(143, end=31))
        assert story.one(32).state == state


def test_a_job_that_waits_in_kueue_and_that_a_stranger_deletes_is_missed() -> None:
    story = Story(FAIL)
    story.job(FAIL, queue="team", suspend=True)
    story.one(5)
    story.job(FAIL, gone=True, queue="team", suspend=True)
    assert (story.one(6).state, story.one(6).reason) == ("lost", "its Job was deleted")
    story = Story(FAIL)
    story.job(FAIL, queue="team", suspend=True, held_back=True)
    story.job(FAIL, gone=True)
    assert story.one(6).state == "pending"


def test_what_the_cluster_says_of_a_job_without_pods() -> None:
    story = Story(FAIL)
    story.one(0)
    assert story.attempts.questions(at(1), 10) == []
    (question,) = story.attempts.questions(at(4), 10)
    assert (question.resource, question.name) == (JOBS, "s-worker")
    assert story.attempts.questions(at(5), 10) == []
    story.attempts.answer(question, "FailedCreate: pods are forbidden: exceeded quota: compute")
    assert (story.one(5).state, "exceeded quota: compute" in story.one(5).reason) == ("pending", True)
    assert story.attempts.next_look() == at(600)
    task = story.sure(600)
    assert (task.state, "for 10 min" in task.reason) == ("lost", True)
    assert story.attempts.questions(at(700), 10) == []


def test_what_the_cluster_says_of_a_pod_that_does_not_start() -> None:
    story = Story(FAIL)
    story.pod(FAIL, **waiting("ContainerCreating"))
    story.one(1)
    assert story.attempts.questions(at(10), 10) == []
    (question,) = story.attempts.questions(at(20), 10)
    assert (question.resource, question.name) == (PODS, "s-worker-0-0")
    assert story.one(14).reason == ""
    story.attempts.answer(question, "FailedScheduling: 0/1 nodes")  # long ago
    assert story.one(20).reason == "node n1 has not started it yet"
    story.attempts.answer(question, "FailedMount: mount.nfs: connection timed out")
    assert "can't be mounted: FailedMount: mount.nfs" in story.one(20).reason
    assert story.sure(599, pod(FAIL, **waiting("ContainerCreating"))).state == "starting"
    assert story.sure(600, pod(FAIL, **waiting("ContainerCreating"))).state == "lost"


def test_every_attempt_gets_its_turn_to_be_asked_about() -> None:
    attempts = Attempts(OPTIONS, installation="elearn")
    keys = [AttemptKey("vision", f"t{n}", 1) for n in range(25)]
    for key in keys:
        seen_service, seen_job = service_seen(service(FAIL)), job_seen(job(FAIL))
        assert seen_service is not None
        assert seen_job is not None
        for kind, seen in (("s", seen_service), ("j", seen_job)):
            moved = msgspec.structs.replace(seen, key=key)
            attempts.take(Added(Identity("n", "", f"{kind} {key.name}"), moved))
        attempts.observe(key, at(0))
    asked = [question.key for second in (10, 11, 12) for question in attempts.questions(at(second), 10)]
    assert asked == keys
    assert [question.key for question in attempts.questions(at(21), 10)] == keys[:10]


def test_only_what_a_change_can_matter_to_is_looked_at_anew() -> None:
    workers = group(count=500)
    story = Story(workers)
    for index in range(500):
        story.pod(workers, index=index, **running())
    before = story.at(10)
    story.pod(workers, index=7, **ended(1))
    after = story.at(11)
    assert [n for n in range(500) if before[n] is not after[n]] == [7]
    story.job(workers, failedIndexes="7")
    assert all(one is other for one, other in zip(after, story.at(12), strict=True))


def test_what_is_none_of_ours_is_left_alone() -> None:
    attempts = Attempts(OPTIONS, installation="elearn")
    stray = msgspec.convert({"metadata": {"name": "x", "namespace": "n", "uid": "u"}}, Pod)
    assert pod_seen(stray) is None
    assert attempts.take(Added(Identity("n", "x", "u"), None)) is None
    assert attempts.take(Deleted(Identity("n", "x", "u"), None)) is None
    assert isinstance(attempts.observe(KEY, NOON), AttemptGone)
