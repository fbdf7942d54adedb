"""How a training's pods and Jobs are read, as tables."""

from typing import Any

import pytest

from services.scheduler.cloud.kubernetes.attempts import listed_attempt
from services.scheduler.cloud.kubernetes.endings import ending_of
from services.scheduler.cloud.kubernetes.identity import Group
from services.scheduler.cloud.kubernetes.preparation import AWAY
from services.scheduler.cloud.kubernetes.seen import indexes
from shared.contracts.training import Task
from shared.kube.objects import Job, Pod
from tests.support.kube_attempts import (
    FAIL,
    IGNORE,
    KEY,
    LOW_ON_MEMORY,
    NO_FILE,
    NO_ROOM,
    REBOOTED,
    RESTART,
    TAKEN,
    TAKEN_LATE,
    at,
    ended,
    group,
    job,
    pod,
    prepared,
    running,
    service,
    stamp,
    tasks_of,
    waiting,
)

# -- how pods end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "deleted", "end", "exit_code", "signal", "words"),
    [
        (ended(0), None, "succeeded", 0, None, ""),
        (ended(1, message="Traceback\n  in x\nValueError: no\n\n"), None, "failed", 1, None, "ValueError: no"),
        (ended(3), None, "failed", 3, None, ""),
        (ended(137, reason="OOMKilled"), None, "failed", None, 9, "killed for want of memory"),
        (ended(1, reason="OOMKilled"), None, "failed", 1, None, "killed for want of memory"),
        (ended(137), None, "failed", None, 9, ""),
        (ended(139), None, "failed", None, 11, ""),
        (ended(255), None, "failed", 255, None, ""),
        (ended(137, **TAKEN), None, "disrupted", None, 9, "taken away (EvictionByEvictionAPI)"),
        (ended(0, **TAKEN), None, "disrupted", 0, None, "taken away"),
        (ended(0, **TAKEN_LATE), None, "succeeded", 0, None, ""),
        (ended(1, **TAKEN_LATE), None, "failed", 1, None, ""),
        ({"phase": "Failed", "reason": "Evicted", "message": LOW_ON_MEMORY}, None, "disrupted", None, None, "low on"),
        (
            {"phase": "Failed", "reason": "Evicted", "message": "Usage of EmptyDir volume exceeds the limit"},
            None,
            "failed",
            None,
            None,
            "exceeds the limit",
        ),
        ({"phase": "Failed", "reason": "OutOfcpu", "message": "no"}, None, "disrupted", None, None, "(OutOfcpu)"),
        ({"phase": "Failed", "reason": "SomethingNew"}, None, "disrupted", None, None, "(SomethingNew)"),
        ({"phase": "Failed"}, None, "disrupted", None, None, "nothing tells how"),
        ({"phase": "Succeeded"}, None, "succeeded", 0, None, ""),
        (running(reason="NodeLost") | {"phase": "Failed"}, None, "disrupted", None, None, "(NodeLost)"),
        (ended(143), 55, "deleted", None, 15, "was deleted"),
        (ended(0), 55, "deleted", 0, None, "was deleted"),
        (ended(1), 61, "failed", 1, None, ""),
        (ended(0), 61, "succeeded", 0, None, ""),
        (REBOOTED, None, "disrupted", None, None, "its node was restarted"),
        (
            ended(128, reason="StartError", message=NO_FILE, begin="1970-01-01T00:00:00Z"),
            None,
            "unstartable",
            None,
            None,
            "executable file not found",
        ),
        (ended(128, reason="StartError", message="no cgroup"), None, "disrupted", None, None, "could not start it"),
        (prepared(1, message="code sha256:1 is not what was asked for"), None, "unstartable", None, None, "code sha"),
        (prepared(AWAY, message="the code server is away"), None, "disrupted", None, None, "code server is away"),
        (prepared(2), None, "unstartable", None, None, "exit code 2"),
        (prepared(75, message="code can't be fetched"), None, "disrupted", None, None, "can't be fetched"),
        (prepared(137, reason="OOMKilled"), None, "unstartable", None, None, "want of memory"),
        (prepared(137), None, "disrupted", None, None, "while it was prepared"),
        (prepared(1, message="x"), 5, "deleted", None, None, "was deleted"),
        # A sidecar that somebody injected goes on: the task is over all the same.
        (ended(0) | {"phase": "Running"}, None, "succeeded", 0, None, ""),
    ],
)
def test_how_a_pod_ended(
    status: dict[str, Any], deleted: float | None, end: str, exit_code: int | None, signal: int | None, words: str
) -> None:
    ending = ending_of(pod(group(), deleted=deleted, **status), asked_at=None if deleted is None else at(deleted))
    assert ending is not None
    assert (ending.end, ending.exit_code, ending.signal) == (end, exit_code, signal)
    assert words in ending.words
    assert (ending.started_at is None) or ending.started_at.year == 2026
    assert bool(words) == bool(ending.words)


@pytest.mark.parametrize(
    "status", [{}, running(), running(**TAKEN), NO_ROOM, waiting("ImagePullBackOff"), {"phase": "Unknown"}]
)
def test_what_has_not_ended(status: dict[str, Any]) -> None:
    assert ending_of(pod(group(), **status), asked_at=at(1)) is None


def test_indexes() -> None:
    assert indexes("") == ()
    assert indexes("1,3-5") == (range(1, 2), range(3, 6))
    assert indexes("x,2-y,7") == (range(7, 8),)


# -- one look at one task ---------------------------------------------------------------------------------------------


def look(of: Group, *pods: Pod, told: Job | None = None, now: float = 100, released: bool = True) -> Task:
    jobs = [] if told is None else [told]
    found = tasks_of(service(of, released=released), jobs, pods, at(now))
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("of", "pods", "told", "state", "reason"),
    [
        (FAIL, [], job(FAIL), "pending", ""),
        (FAIL, [], job(FAIL, suspend=True), "pending", "its Job is suspended"),
        (FAIL, [], job(FAIL, completedIndexes="0"), "succeeded", ""),
        (FAIL, [], job(FAIL, failedIndexes="0"), "lost", "its pod was deleted"),
        (FAIL, [], job(FAIL, failedIndexes="0", failed="Job has failed indexes"), "lost", "its pod was deleted"),
        (FAIL, [], job(FAIL, failed="Job was active longer"), "lost", "its Job has failed: Job was active longer"),
        (FAIL, [pod(FAIL)], job(FAIL), "starting", "node n1 has not started it yet"),
        (FAIL, [pod(FAIL, phase="Unknown")], job(FAIL), "starting", "node n1 has not started it yet"),
        (FAIL, [pod(FAIL, node="", **NO_ROOM)], job(FAIL), "starting", "no node takes it: 0/3 nodes"),
        (
            FAIL,
            [pod(FAIL, **waiting("ErrImagePull", "no such"))],
            job(FAIL),
            "starting",
            "user/image:1 can't be pulled",
        ),
        (
            FAIL,
            [pod(FAIL, **waiting("CreateContainerConfigError", 'secret "x" not found'))],
            None,
            "starting",
            "secret",
        ),
        (FAIL, [pod(FAIL, **running())], job(FAIL), "running", ""),
        (FAIL, [pod(FAIL, **running(**TAKEN))], job(FAIL), "running", ""),
        (FAIL, [pod(FAIL, deleted=50, **running())], job(FAIL), "running", ""),
        (FAIL, [pod(FAIL, **ended(0))], job(FAIL), "succeeded", ""),
        (FAIL, [pod(FAIL, **ended(1, message="no"))], job(FAIL, failedIndexes="0"), "failed", "no"),
        (FAIL, [pod(FAIL, **ended(137, **TAKEN))], job(FAIL), "lost", "taken away"),
        (FAIL, [pod(FAIL, deleted=55, **ended(143))], job(FAIL), "lost", "its pod was deleted"),
        (FAIL, [pod(FAIL, deleted=55, **ended(143))], job(FAIL, suspend=True), "stopped", "told to stop"),
        (FAIL, [pod(FAIL, **ended(1))], job(FAIL, suspend=True), "failed", ""),
        (
            FAIL,
            [pod(FAIL, deleted=55, **ended(143))],
            job(FAIL, failed="was active too long"),
            "lost",
            "active too long",
        ),
        (IGNORE, [pod(IGNORE, **ended(1))], job(IGNORE), "failed", ""),
        (IGNORE, [pod(IGNORE, **ended(137, **TAKEN))], job(IGNORE), "lost", "taken away"),
        (
            RESTART,
            [pod(RESTART, **ended(1, message="x"))],
            job(RESTART),
            "starting",
            "exit code 1 (x); starting it again",
        ),
        (RESTART, [pod(RESTART, **ended(139))], job(RESTART), "starting", "signal 11; starting it again"),
        (RESTART, [pod(RESTART, **ended(1))], job(RESTART, failedIndexes="0-3"), "failed", ""),
        (RESTART, [pod(RESTART, **ended(1))], job(RESTART, failed="all"), "failed", ""),
        (RESTART, [pod(RESTART, **ended(137, **TAKEN))], job(RESTART), "starting", "starting it again"),
        (RESTART, [pod(RESTART, **ended(137, **TAKEN))], job(RESTART, failedIndexes="0"), "lost", "taken away"),
        (
            RESTART,
            [pod(RESTART, **ended(128, reason="StartError", message=NO_FILE))],
            job(RESTART),
            "failed",
            "not found",
        ),
    ],
)
def test_one_look(of: Group, pods: list[Pod], told: Job | None, state: str, reason: str) -> None:
    task = look(of, *pods, told=told)
    assert task.state == state
    assert reason in task.reason
    assert bool(reason) == bool(task.reason)
    assert (task.finished_at is not None) == (state in ("succeeded", "failed", "lost", "stopped"))
    assert task.name == f"{of.role}-0"
    assert task.address.startswith("vision-digits-1-")
    assert task.address.endswith(".elearn-vision.svc:2222")
    assert task.exit_code is None or task.signal is None


QUEUED: dict[str, Any] = {"queue": "team", "suspend": True}
TAKEN_BACK: dict[str, Any] = {**QUEUED, "generation": 3}


@pytest.mark.parametrize(
    ("of", "pods", "told", "state", "reason"),
    [
        (FAIL, [], QUEUED, "pending", "waits in Kueue's queue team"),
        (RESTART, [], QUEUED, "pending", "waits in Kueue's queue team"),
        (FAIL, [], {"queue": "team", "generation": 2}, "pending", ""),
        (FAIL, [running()], {"queue": "team", "generation": 2}, "running", ""),
        (FAIL, [], TAKEN_BACK, "lost", "Kueue took back its place in queue team"),
        (FAIL, [running()], TAKEN_BACK, "lost", "Kueue took back its place in queue team"),
        (RESTART, [running()], TAKEN_BACK, "lost", "Kueue took back its place in queue team"),
        (RESTART, [ended(1)], TAKEN_BACK, "lost", "Kueue took back its place in queue team"),
        (IGNORE, [running()], TAKEN_BACK, "lost", "Kueue took back its place in queue team"),
        (FAIL, [ended(143) | TAKEN], TAKEN_BACK, "lost", "Kueue took back its place in queue team"),
        (FAIL, [ended(0)], TAKEN_BACK, "succeeded", ""),
        (FAIL, [], {**TAKEN_BACK, "completedIndexes": "0"}, "succeeded", ""),
        (FAIL, [ended(1, message="no")], TAKEN_BACK, "failed", "no"),
        (FAIL, [running()], {**TAKEN_BACK, "failed": "x", "failedIndexes": "0"}, "lost", "Kueue took back its place"),
        (FAIL, [running()], {**TAKEN_BACK, "held_back": True}, "running", ""),
        (FAIL, [], {**QUEUED, "held_back": True}, "pending", ""),
        (FAIL, [], {**TAKEN_BACK, "held_back": True}, "pending", ""),
        # Kueue has let it go again while it is freed.
        (RESTART, [running()], {"queue": "team", "generation": 4, "held_back": True}, "running", ""),
    ],
)
def test_what_kueue_lets_go_and_takes_back(
    of: Group, pods: list[dict[str, Any]], told: dict[str, Any], state: str, reason: str
) -> None:
    """All of it as somebody sees it who has seen nothing of it before."""
    task = look(of, *(pod(of, **status) for status in pods), told=job(of, **told))
    assert (task.state, reason in task.reason, bool(task.reason)) == (state, True, bool(reason))


def test_an_init_container_that_runs_hinders_nothing() -> None:
    box = {"name": "prepare", "state": {"running": {"startedAt": stamp(1)}}}
    task = look(FAIL, pod(FAIL, initContainerStatuses=[box], **waiting("PodInitializing")), told=job(FAIL))
    assert (task.state, task.reason, task.node) == ("starting", "", "n1")


def test_a_task_that_never_started_says_so() -> None:
    """What fails without a start is given up for good; what failed is not."""
    missing = look(FAIL, pod(FAIL, **ended(128, reason="StartError", message=NO_FILE)), told=job(FAIL))
    assert (missing.state, missing.started_at, missing.exit_code) == ("failed", None, None)
    unprepared = look(FAIL, pod(FAIL, **prepared(1, message="no such folder")), told=job(FAIL))
    assert (unprepared.state, unprepared.started_at, unprepared.reason) == ("failed", None, "no such folder")
    failed = look(FAIL, pod(FAIL, **ended(1, begin=None)), told=job(FAIL))
    assert failed.started_at is not None


def test_restarts_are_counted_from_pods_and_from_what_the_job_says() -> None:
    first, second = pod(RESTART, **ended(1)), pod(RESTART, number=1, made=70, **running(75))
    assert look(RESTART, first, second, told=job(RESTART)).restarts == 1
    assert look(RESTART, first, told=job(RESTART)).restarts == 0
    counted = {"batch.kubernetes.io/job-index-failure-count": "2"}
    counted["batch.kubernetes.io/job-index-ignored-failure-count"] = "1"
    assert look(RESTART, pod(RESTART, annotations=counted, **running()), told=job(RESTART)).restarts == 3


def test_the_rest_of_a_role_has_its_own_job() -> None:
    workers, rest = group(count=2), group(first=2)
    pods = [pod(workers, 0, **running()), pod(workers, 1, **running()), pod(rest, 2, **running())]
    tasks = tasks_of(service(workers, rest), [job(workers), job(rest)], pods, at(9))
    assert [(task.name, task.state) for task in tasks] == [(f"worker-{n}", "running") for n in range(3)]
    assert "-worker-rest-0." in tasks[2].address


def test_what_is_not_launched_is_not_shown() -> None:
    """Whoever launches counts the tasks that there are."""
    assert tasks_of(service(FAIL, released=False), [], [], at(0)) == ()
    held = [job(FAIL, suspend=True)]
    assert tasks_of(service(FAIL, released=False), held, [], at(0)) == ()
    let_go = tasks_of(service(FAIL, released=False), [job(FAIL)], [], at(0))
    assert [task.state for task in let_go] == ["pending"]


def test_without_a_service_the_pods_speak() -> None:
    chief = group("chief")
    pods = [pod(FAIL, **running()), pod(chief, **ended(0))]
    tasks = tasks_of(None, [], pods, at(9))
    assert [(task.name, task.state) for task in tasks] == [("chief-0", "succeeded"), ("worker-0", "running")]
    assert tasks_of(None, [], [], at(9)) == ()


def test_a_job_that_was_held_back_by_an_earlier_leader_is_no_loss() -> None:
    """Kubernetes takes the pods that we deleted for failed, and the Job with them."""
    of = group(on_failure="fail")
    for failed in ("Job has failed indexes", ""):
        (task,) = tasks_of(service(of), [job(of, suspend=True, failed=failed, failedIndexes="0")], [], at(60))
        assert (task.state, task.finished_at) == ("pending", None)
    (task,) = tasks_of(service(of), [job(of, failedIndexes="0")], [], at(60))
    assert task.state == "lost"


@pytest.mark.parametrize(
    ("pods", "unfinished"),
    [
        ([], 1),
        ([running()], 1),
        ([ended(0)], 1),
        ([ended(0), ended(0)], 0),
        ([ended(0), running()], 1),
        ([ended(0), ended(1)], 1),
        ([ended(0), ended(0) | {"phase": "Running"}], 0),
        ([ended(0), ended(0, reason="Error") | TAKEN], 1),
    ],
)
def test_which_jobs_would_run_something_still(pods: list[dict[str, Any]], unfinished: int) -> None:
    of = group(count=2)
    attempt = listed_attempt(
        KEY, service(of), [job(of)], [pod(of, index, **status) for index, status in enumerate(pods)]
    )
    assert attempt is not None
    assert len(attempt.unfinished) == unfinished
