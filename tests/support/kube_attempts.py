"""Services, Jobs and pods of one training as the API tells of them, and stories made of them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from services.scheduler.cloud.kubernetes.attempts import Attempts, SeenService, listed_attempt
from services.scheduler.cloud.kubernetes.identity import (
    HELD_BACK,
    INDEX,
    QUEUE,
    ROSTER,
    AttemptKey,
    Group,
    Roster,
    attempt_labels,
    group_labels,
)
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.seen import Seen, job_seen, pod_seen, service_seen
from services.scheduler.cloud.port import AttemptSeen
from services.scheduler.model import Demand, OnFailure
from shared.contracts.training import RoleName, Task
from shared.kube.changes import Deleted, Identity, Modified
from shared.kube.objects import Job, Pod

KEY = AttemptKey("vision", "digits", 1)
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
OPTIONS = TrainingOptions(kubernetes_start_seconds=300.0, kubernetes_schedule_seconds=600.0)
LOW_ON_MEMORY = "The node was low on resource: memory."
NO_FILE = 'runc create failed: exec: "trian.py": executable file not found in $PATH: unknown'


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def stamp(seconds: float) -> str:
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def group(role: RoleName = "worker", count: int = 1, on_failure: OnFailure = "fail", first: int = 0) -> Group:
    return Group(role=role, first=first, count=count, demand=Demand(cpu=1), on_failure=on_failure)


def service(*groups: Group, released: bool = True, restarts: int = 3, **metadata: Any) -> SeenService:
    roster = msgspec.json.encode(Roster(groups=groups, restarts=restarts, released=released)).decode()
    about = {
        "name": "s",
        "namespace": "elearn-vision",
        "labels": attempt_labels(KEY),
        "annotations": {ROSTER: roster},
        **metadata,
    }
    return msgspec.convert({"metadata": about}, SeenService)


def job(
    of: Group,
    *,
    suspend: bool = False,
    failed: str = "",
    queue: str = "",
    held_back: bool = False,
    generation: int = 1,
    **status: Any,
) -> Job:
    if failed:
        status["conditions"] = [{"type": "Failed", "status": "True", "reason": "X", "message": failed}]
    about = {
        "name": f"s-{of.suffix}",
        "namespace": "elearn-vision",
        "labels": {**group_labels(KEY, of), **({QUEUE: queue} if queue else {})},
        "annotations": {HELD_BACK: "true"} if held_back else {},
        "generation": generation,
    }
    document = {"metadata": about, "spec": {"suspend": suspend}, "status": {"startTime": stamp(0), **status}}
    return msgspec.convert(document, Job)


def pod(
    of: Group,
    index: int = 0,
    *,
    number: int = 0,
    made: float = 0,
    deleted: float | None = None,
    grace: int = 10,
    node: str = "n1",
    annotations: dict[str, str] | None = None,
    **status: Any,
) -> Pod:
    about: dict[str, Any] = {
        "name": f"s-{of.suffix}-{index}-{number}",
        "namespace": "elearn-vision",
        "uid": f"{of.suffix}-{index}-{number}",
        "labels": {**group_labels(KEY, of), INDEX: str(index - of.first)},
        "annotations": annotations or {},
        "creationTimestamp": stamp(made),
    }
    if deleted is not None:
        about |= {"deletionTimestamp": stamp(deleted + grace), "deletionGracePeriodSeconds": grace}
    spec = {"nodeName": node, "containers": [{"name": "task", "image": "user/image:1"}]}
    document = {"metadata": about, "spec": spec, "status": {"phase": "Pending", **status}}
    return msgspec.convert(document, Pod)


def running(since: float = 5, **more: Any) -> dict[str, Any]:
    box = {"name": "task", "state": {"running": {"startedAt": stamp(since)}}}
    return {"phase": "Running", "containerStatuses": [box], **more}


def ended(
    code: int, *, reason: str = "", message: str = "", begin: Any = 5, end: float = 60, **more: Any
) -> dict[str, Any]:
    over = {
        "exitCode": code,
        "reason": reason or ("Error" if code else "Completed"),
        "message": message,
        "startedAt": stamp(begin) if isinstance(begin, int | float) else begin,
        "finishedAt": stamp(end),
    }
    box = {"name": "task", "state": {"terminated": over}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [box], **more}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"containerStatuses": [{"name": "task", "state": {"waiting": {"reason": reason, "message": message}}}]}


def prepared(code: int, *, reason: str = "Error", message: str = "") -> dict[str, Any]:
    over = {"exitCode": code, "reason": reason, "message": message, "finishedAt": stamp(9)}
    return {"phase": "Failed", "initContainerStatuses": [{"name": "prepare", "state": {"terminated": over}}]}


def condition(kind: str, status: str = "True", reason: str = "", message: str = "", since: float = 0) -> dict[str, Any]:
    told = {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": stamp(since)}
    return {"conditions": [told]}


TAKEN = condition("DisruptionTarget", reason="EvictionByEvictionAPI", message="Eviction API: evicting", since=50)
TAKEN_LATE = condition("DisruptionTarget", reason="EvictionByEvictionAPI", message="Eviction API: evicting", since=90)
NO_ROOM = condition("PodScheduled", "False", "Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")
REBOOTED = ended(137, reason="ContainerStatusUnknown", message="The container could not be located", begin=None)
FAIL, RESTART, IGNORE = group(), group(on_failure="restart"), group("evaluator", on_failure="ignore")


def tasks_of(of: SeenService | None, jobs: Sequence[Job], pods: Sequence[Pod], now: datetime) -> tuple[Task, ...]:
    """The tasks of an attempt as lists tell of it."""
    attempt = listed_attempt(KEY, of, jobs, pods)
    return () if attempt is None else attempt.look(now, OPTIONS, "elearn")


class Story:
    """An attempt, told change by change."""

    def __init__(self, *groups: Group, released: bool = True) -> None:
        self.attempts = Attempts(OPTIONS, installation="elearn")
        self.groups = groups
        self.service(released=released)
        for each in groups:
            self.job(each, suspend=not released)

    def tell(self, uid: str, seen: Seen | None, *, gone: bool = False) -> None:
        identity = Identity("elearn-vision", uid, uid)
        self.attempts.take(Deleted(identity, seen) if gone else Modified(identity, seen))

    def service(self, *, gone: bool = False, **more: Any) -> None:
        self.tell("service", None if gone else service_seen(service(*self.groups, **more)), gone=gone)

    def job(self, of: Group, *, gone: bool = False, **more: Any) -> None:
        self.tell(f"job {of.suffix}", None if gone else job_seen(job(of, **more)), gone=gone)

    def pod(self, of: Group, *, gone: bool = False, **more: Any) -> None:
        told = pod(of, **more)
        self.tell(told.metadata.uid, pod_seen(told), gone=gone)

    def at(self, seconds: float) -> tuple[Task, ...]:
        seen = self.attempts.observe(KEY, at(seconds))
        assert isinstance(seen, AttemptSeen)
        return seen.tasks

    def one(self, seconds: float = 100) -> Task:
        (task,) = self.at(seconds)
        return task

    def sure(self, seconds: float, *pods: Pod, jobs: list[Job] | None = None) -> Task:
        """Everything is looked up, and is as it was told."""
        told = jobs if jobs is not None else [job(each) for each in self.groups]
        found = [seen for each in told if (seen := job_seen(each)) is not None]
        living = [there for each in pods if (there := pod_seen(each)) is not None]
        self.attempts.confirm(KEY, found, living, at(seconds))
        return self.one(seconds)
