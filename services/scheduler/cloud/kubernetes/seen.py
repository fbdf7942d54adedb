"""What matters of a training's Services, Jobs and pods, and no more: it is kept for each of them. Pure."""

from datetime import datetime, timedelta
from sys import intern
from typing import Final, Literal

import msgspec

from services.scheduler.cloud.kubernetes.endings import End, ending_of, taken_away
from services.scheduler.cloud.kubernetes.identity import (
    CONTAINER,
    FIRST,
    HELD_BACK,
    QUEUE,
    ROLE,
    ROSTER,
    AttemptKey,
    Roster,
    attempt_of,
    task_of,
)
from shared.contracts.training import ROLES, RoleName
from shared.kube.objects import Condition, Job, Metadata, Pod, View, condition, is_true
from shared.kube.states import image_trouble, is_unheard_of, no_room, stuck

Trouble = Literal["", "image", "start", "room"]
Stage = Literal["waiting", "preparing", "running", "ended"]

_FAILURES: Final = "batch.kubernetes.io/job-index-failure-count"
_IGNORED: Final = "batch.kubernetes.io/job-index-ignored-failure-count"


class SeenService(View, frozen=True, kw_only=True):
    """A Service, as a list or a watch reads it."""

    metadata: Metadata

    @property
    def roster(self) -> Roster | None:
        """Which tasks the attempt has; None where it does not say."""
        try:
            return msgspec.json.decode(self.metadata.annotations.get(ROSTER, ""), type=Roster)
        except msgspec.MsgspecError:
            return None


class ServiceSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of an attempt's Service; ``going``: it is being deleted."""

    key: AttemptKey
    namespace: str
    roster: Roster | None
    going: bool


class JobSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of the Job of a group.

    Attributes:
        first: index of the group's first task within the role.
        started_at: since when it may have pods.
        failed: why it has failed, or is about to, in words; "" while it has not.
        completed, given_up: the indexes that have succeeded, and those that are not started again.
        queue: of Kueue's, by which it is let go; "": by us.
        held_back: by us, as its attempt ends.
        let_go: it is, or was before somebody suspended it.
    """

    key: AttemptKey
    namespace: str
    name: str
    uid: str
    role: RoleName
    first: int
    suspended: bool
    going: bool
    started_at: datetime | None
    failed: str
    completed: tuple[range, ...]
    given_up: tuple[range, ...]
    queue: str = ""
    held_back: bool = False
    let_go: bool = False

    @property
    def taken_back(self) -> bool:
        """Kueue has suspended it after it was let go."""
        return bool(self.queue) and self.suspended and self.let_go and not self.held_back

    @property
    def group(self) -> tuple[RoleName, int]:
        return (self.role, self.first)


class PodSeen(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What matters of a task's pod.

    Attributes:
        earlier: how many pods of this task ended before it, as far as Kubernetes tells.
        placed_at: when a node was found for it.
        words: of its trouble, or of its end.
        going_at: by then its processes should have been ended, as somebody deleted it.
        unheard_of: it ran when its node was last heard of, and that is long ago.
        end: how it came to its end.
    """

    key: AttemptKey
    role: RoleName
    index: int
    namespace: str
    name: str
    uid: str
    node: str
    earlier: int
    stage: Stage
    trouble: Trouble = ""
    words: str = ""
    created_at: datetime | None = None
    placed_at: datetime | None = None
    going_at: datetime | None = None
    unheard_of: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    end: End | None = None
    exit_code: int | None = None
    signal: int | None = None

    @property
    def task(self) -> tuple[RoleName, int]:
        return (self.role, self.index)


Seen = ServiceSeen | JobSeen | PodSeen


def service_seen(service: SeenService) -> ServiceSeen | None:
    """What matters of a Service; None where it is no training's."""
    about = service.metadata
    key = _key(about)
    if key is None:
        return None
    return ServiceSeen(
        key=key, namespace=intern(about.namespace), roster=service.roster, going=about.deletion_timestamp is not None
    )


def job_seen(job: Job) -> JobSeen | None:
    """What matters of a Job; None where it is no training's."""
    about, status = job.metadata, job.status
    key, role = _key(about), about.labels.get(ROLE, "")
    first = about.labels.get(FIRST, "")
    if key is None or role not in ROLES or not first.isdigit():
        return None
    return JobSeen(
        key=key,
        namespace=intern(about.namespace),
        name=about.name,
        uid=about.uid,
        role=role,
        first=int(first),
        suspended=job.spec.suspend,
        going=about.deletion_timestamp is not None,
        started_at=status.start_time,
        failed=_failed(status.conditions),
        completed=indexes(status.completed_indexes),
        given_up=indexes(status.failed_indexes),
        queue=about.labels.get(QUEUE, ""),
        held_back=HELD_BACK in about.annotations,
        # It is made suspended, and nothing of it changes but that: each change of what is asked for is counted.
        let_go=not job.spec.suspend or about.generation > 1,
    )


def pod_seen(pod: Pod) -> PodSeen | None:
    """What matters of a pod; None where it is no task of a training."""
    about = pod.metadata
    key, task = _key(about), task_of(about.labels)
    if key is None or task is None:
        return None
    placed = condition(pod.status.conditions, "PodScheduled")
    seen = PodSeen(
        key=key,
        role=task[0],
        index=task[1],
        namespace=intern(about.namespace),
        name=about.name,
        uid=about.uid,
        node=intern(pod.spec.node_name),
        earlier=_count(about, _FAILURES) + _count(about, _IGNORED),
        stage="waiting",
        created_at=about.creation_timestamp,
        placed_at=_placed_at(pod, placed),
        going_at=about.deletion_timestamp,
    )
    ending = ending_of(pod, asked_at=_asked_at(about))
    if ending is not None:
        return msgspec.structs.replace(
            seen,
            stage="ended",
            words=ending.words,
            end=ending.end,
            exit_code=ending.exit_code,
            signal=ending.signal,
            started_at=ending.started_at,
            finished_at=ending.finished_at,
        )
    box = next((each for each in pod.status.container_statuses if each.name == CONTAINER), None)
    if box is not None and box.state.running is not None:
        started = box.state.running.started_at or pod.status.start_time or about.creation_timestamp
        return msgspec.structs.replace(
            seen, stage="running", started_at=started, words=taken_away(pod), unheard_of=is_unheard_of(pod)
        )
    if any(each.state.running is not None for each in pod.status.init_container_statuses):
        return msgspec.structs.replace(seen, stage="preparing")
    trouble, words = _trouble(pod)
    return msgspec.structs.replace(seen, trouble=trouble, words=words)


def indexes(text: str) -> tuple[range, ...]:
    """Indexes as a Job's status writes them: ``1,3-5``. What can't be read is left out."""
    found = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        if low.isdigit() and (high or low).isdigit():
            found.append(range(int(low), int(high or low) + 1))
    return tuple(found)


def _key(about: Metadata) -> AttemptKey | None:
    key = attempt_of(about.labels)
    return None if key is None else AttemptKey(intern(key.project), intern(key.name), key.attempt)


def _count(about: Metadata, annotation: str) -> int:
    text = about.annotations.get(annotation, "")
    return int(text) if text.isdigit() else 0


def _asked_at(about: Metadata) -> datetime | None:
    """When somebody deleted it: the timestamp is when its grace is over."""
    if about.deletion_timestamp is None:
        return None
    return about.deletion_timestamp - timedelta(seconds=about.deletion_grace_period_seconds or 0)


def _placed_at(pod: Pod, placed: Condition | None) -> datetime | None:
    if not pod.spec.node_name:
        return None
    if placed is not None and placed.status == "True" and placed.last_transition_time is not None:
        return placed.last_transition_time
    return pod.status.start_time or pod.metadata.creation_timestamp


def _trouble(pod: Pod) -> tuple[Trouble, str]:
    if words := image_trouble(pod):
        return "image", words
    if words := stuck(pod):
        return "start", words
    if not pod.spec.node_name and (words := no_room(pod)):
        return "room", words
    return "", ""


def _failed(conditions: tuple[Condition, ...]) -> str:
    """A Job that is about to fail says so before its pods are gone."""
    for kind in ("Failed", "FailureTarget"):
        found = condition(conditions, kind)
        if found is not None and is_true(conditions, kind):
            return found.message or found.reason or kind
    return ""
