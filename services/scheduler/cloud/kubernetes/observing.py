"""From the pods of one task, one after the other, and its Job to the task as it stands. Pure.

    pods                          state       where the cluster starts tasks again (restart)
    ----------------------------  ----------  ----------------------------------------------
    none yet                      pending
    waiting for anything          starting
    its container runs            running
    ended by exit code 0          succeeded
    ended otherwise by itself     failed      starting, until its Job gives up; then failed
    taken away, deleted           lost        starting, until its Job gives up; then lost
    there before, and gone        lost        starting, until its Job gives up; then lost
    its Job taken back by Kueue   lost        lost
    deleted by us                 stopped     stopped

Time alone makes verdicts too: on an image that can't be pulled, a pod that is refused, or that no node takes. They are
made only of what was looked at anew when the time was up (``Place.sure_at``), for a watch may be blind without knowing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from services.scheduler.cloud.kubernetes.endings import shortened
from services.scheduler.cloud.kubernetes.identity import AttemptKey, Group, address_of
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.refusals import is_for_good
from services.scheduler.cloud.kubernetes.seen import JobSeen, PodSeen
from shared.contracts.training import Task, TaskState

FINAL: Final = frozenset({"succeeded", "failed", "stopped", "lost"})
NOT_STARTED: Final = timedelta(seconds=15)
"""A pod that waits for so long on its node is asked after."""
_OVERDUE: Final = timedelta(seconds=60)
"""A pod that is still there so long after its processes should have been ended is on a node that does not answer."""
_TRIES: Final = 60.0
"""Seconds within which a node tries more than once."""
_VOLUME: Final = ("FailedMount", "FailedAttachVolume")


class Place(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """All that is known of a task besides its pods.

    Attributes:
        job: the Job of its group, while it is there.
        job_deleted: it was there, and was deleted by somebody else.
        released: all Jobs of the attempt were made and let go.
        stopping: we ourselves are ending the attempt.
        before: the task as it stood last; once it is over, it stays so.
        last: the newest of its pods that are gone.
        gone: how many pods of it had started and are gone.
        said: what the cluster says of the pod that waits, or of the Job that has none.
        hindered: since when the pod has been seen in trouble, or refused for good.
        sure_at: when it was last looked at anew.
    """

    key: AttemptKey
    group: Group
    index: int
    namespace: str
    installation: str
    job: JobSeen | None = None
    job_deleted: bool = False
    released: bool = False
    stopping: bool = False
    before: Task | None = None
    last: PodSeen | None = None
    gone: int = 0
    said: str = ""
    hindered: datetime | None = None
    sure_at: datetime | None = None

    @property
    def restarts(self) -> bool:
        """The cluster will start it again."""
        job = self.job
        return (
            self.group.on_failure == "restart"
            and not self.stopping
            and not self.job_deleted
            and not (job is not None and (job.failed or _in(job.given_up, self.in_job)))
        )

    @property
    def in_job(self) -> int:
        """Its index within its Job."""
        return self.index - self.group.first

    @property
    def ran(self) -> bool:
        """Some pod of it had started."""
        started = self.before is not None and self.before.started_at is not None
        return started or (self.last is not None and self.last.started_at is not None)

    def over(self, deadline: datetime | None) -> bool:
        """Whether that moment has passed, for sure."""
        return deadline is not None and self.sure_at is not None and deadline <= self.sure_at


class Look(NamedTuple):
    """A task as it stands, and when time alone makes another verdict."""

    task: Task
    again_at: datetime | None = None


def observe(place: Place, pods: Sequence[PodSeen], now: datetime, options: TrainingOptions) -> Look:
    """How a task stands.

    Args:
        pods: those of it that are there, in the order in which they were seen first.
    """
    before = place.before
    if before is not None and before.state in FINAL:
        return Look(before)
    pod = _telling(place, pods)
    task = _task(place, pod, pods)
    job = place.job
    if job is not None and job.taken_back and not place.stopping and not _was_over(place, pod):
        return Look(_over(task, "lost", f"Kueue took back its place in queue {job.queue}", now))
    if pod is None:
        return _absent(place, task, now, options)
    if pod.stage == "ended":
        return Look(_ended(place, pod, task, now))
    going = pod.going_at + _OVERDUE if pod.going_at is not None and not place.stopping else None
    if place.over(going):
        return Look(_over(task, "lost", f"{pod.words or 'its pod was deleted'}; its node does not answer", now))
    if pod.stage == "running":
        reason = f"node {pod.node} does not answer" if pod.unheard_of else ""
        return Look(msgspec.structs.replace(task, state="running", started_at=pod.started_at, reason=reason), going)
    look = _waiting(place, pod, pods, task, now, options)
    return look if going is None else Look(look.task, going)


def _was_over(place: Place, pod: PodSeen | None) -> bool:
    """It had come to its end before its Job was suspended."""
    if pod is None or pod.stage != "ended":
        return place.job is not None and _in(place.job.completed, place.in_job)
    return pod.end == "succeeded" or (pod.end in ("failed", "unstartable") and not place.restarts)


def _telling(place: Place, pods: Sequence[PodSeen]) -> PodSeen | None:
    """The pod that says how the task stands: the newest; where tasks are not started again, the first to end."""
    once, last = place.group.on_failure != "restart", place.last
    if not pods or (once and last is not None and last.started_at is not None):
        return last if last is not None and last.stage == "ended" else None
    in_order = sorted(pods, key=lambda pod: (_instant(pod.created_at), pod.earlier, pod.stage != "ended"))
    if once:
        return next((pod for pod in in_order if pod.stage == "ended"), in_order[-1])
    return in_order[-1]


def _task(place: Place, pod: PodSeen | None, pods: Sequence[PodSeen]) -> Task:
    """What holds for the task in any state."""
    before, group = place.before, place.group
    ended = sum(each.stage == "ended" and each is not pod for each in pods)
    told = before.restarts if before is not None else 0
    gone = place.gone - (pod is not None and pod is place.last and pod.started_at is not None)
    return Task(
        name=f"{group.role}-{place.index}",
        role=group.role,
        index=place.index,
        state="pending",
        address=before.address
        if before is not None
        else address_of(place.key, group, place.index, installation=place.installation, namespace=place.namespace),
        node=(pod.node if pod is not None else "") or (before.node if before is not None else ""),
        restarts=max(told, ended + max(0, gone), pod.earlier if pod is not None else 0),
        started_at=before.started_at if before is not None else None,
    )


def _absent(place: Place, task: Task, now: datetime, options: TrainingOptions) -> Look:
    """No pod, and none that is known to have ended."""
    job, last = place.job, place.last
    there = last is not None or (place.before is not None and place.before.state != "pending")
    if place.stopping:
        return Look(_stopped(task, now) if there else task)
    if place.job_deleted:
        return Look(_over(task, "lost", "its Job was deleted", now))
    if job is None:
        # Released, it has one. Whether somebody deleted that, or it was not told of yet, has to be looked up.
        return Look(task, now if place.released else None)
    if _in(job.completed, place.in_job):
        started = task.started_at or job.started_at
        return Look(_over(msgspec.structs.replace(task, exit_code=0, started_at=started), "succeeded", "", now))
    gone = (last.words if last is not None else "") or "its pod was deleted"
    if _in(job.given_up, place.in_job):
        return Look(_over(task, "lost", gone, now))
    if job.failed:
        return Look(_over(task, "lost", f"its Job has failed: {job.failed}", now))
    if place.restarts and there:
        return Look(msgspec.structs.replace(task, state="starting", reason=f"{gone}; starting it again"))
    if place.ran:
        return Look(_over(task, "lost", gone, now))
    if job.suspended:
        why = f"waits in Kueue's queue {job.queue}" if job.queue else "its Job is suspended"
        return Look(msgspec.structs.replace(task, reason=why) if place.released else task)
    if not place.said:
        return Look(task)
    reason = shortened(f"its pod can't be made: {place.said}")
    own = is_for_good(place.said)
    if own:
        deadline = _borne_until(place, job.started_at, options)
    else:
        deadline = _after(job.started_at, options.kubernetes_schedule_seconds)
    if place.over(deadline):
        return Look(_over(task, "failed" if own else "lost", _for(reason, job.started_at, now), now))
    return Look(msgspec.structs.replace(task, reason=reason), deadline)


def _waiting(
    place: Place, pod: PodSeen, pods: Sequence[PodSeen], task: Task, now: datetime, options: TrainingOptions
) -> Look:
    """Its pod is there, and its container does not run yet."""
    reason, since, deadline = _hindrance(place, pod, now, options)
    if not reason:
        before = next((each for each in reversed(pods) if each is not pod and each.stage == "ended"), place.last)
        if before is not None and place.restarts:
            reason = f"{_end_words(before)}; starting it again"
        return Look(msgspec.structs.replace(task, state="starting", reason=reason))
    if place.stopping:
        deadline = None
    if place.over(deadline):
        # What had run once is hindered by the cluster, not by what it is.
        own = pod.trouble in ("image", "start") and not place.ran
        return Look(_over(task, "failed" if own else "lost", _for(reason, since, now), now))
    return Look(msgspec.structs.replace(task, state="starting", reason=reason), deadline)


def _hindrance(
    place: Place, pod: PodSeen, now: datetime, options: TrainingOptions
) -> tuple[str, datetime | None, datetime | None]:
    """What is in the way in words, since when, and until when that is borne."""
    schedule = options.kubernetes_schedule_seconds
    if pod.trouble in ("image", "start"):
        since = pod.placed_at or pod.created_at
        return pod.words, since, _borne_until(place, since, options)
    if not pod.node:
        return pod.words, pod.created_at, _after(pod.created_at, schedule)
    if place.said.startswith(_VOLUME):
        reason = shortened(f"its volumes can't be mounted: {place.said}")
        return reason, pod.placed_at, _after(pod.placed_at, schedule)
    reason = place.said or (f"node {pod.node} has not started it yet" if _is_late(pod, now) else "")
    return reason, pod.placed_at, None


def _is_late(pod: PodSeen, now: datetime) -> bool:
    """The cluster has been asked by now what keeps it."""
    return pod.stage == "waiting" and pod.placed_at is not None and pod.placed_at + NOT_STARTED <= now


def _borne_until(place: Place, since: datetime | None, options: TrainingOptions) -> datetime | None:
    """Until when trouble is borne that is the task's own; what took long and fails a single time ends nothing."""
    start = options.kubernetes_start_seconds
    deadlines = (_after(since, start), _after(place.hindered, min(start, _TRIES)))
    return max((each for each in deadlines if each is not None), default=None)


def _ended(place: Place, pod: PodSeen, task: Task, now: datetime) -> Task:
    started = pod.started_at or task.started_at
    task = msgspec.structs.replace(
        task, exit_code=pod.exit_code, signal=pod.signal, started_at=started, finished_at=pod.finished_at
    )
    match pod.end:
        case "succeeded":
            return _over(task, "succeeded", "", now)
        case "deleted" if place.stopping:
            return _stopped(task, now)
        case "unstartable" if not place.ran:
            task = msgspec.structs.replace(task, started_at=None, exit_code=None, signal=None)
            return _over(task, "failed", pod.words, now)
    if place.restarts:
        return msgspec.structs.replace(
            task,
            state="starting",
            reason=f"{_end_words(pod)}; starting it again",
            exit_code=None,
            signal=None,
            finished_at=None,
        )
    if pod.end in ("failed", "unstartable"):
        return _over(task, "failed", pod.words, now)
    job = place.job
    if job is not None and job.failed and pod.end == "deleted" and not _in(job.given_up, place.in_job):
        return _over(task, "lost", f"its Job has failed: {job.failed}", now)
    return _over(task, "lost", pod.words, now)


def _end_words(pod: PodSeen) -> str:
    if pod.end not in ("failed", "succeeded"):
        return pod.words or "its pod was deleted"
    how = f"signal {pod.signal}" if pod.signal is not None else f"exit code {pod.exit_code}"
    return f"{how} ({pod.words})" if pod.words else how


def _over(task: Task, state: TaskState, reason: str, now: datetime) -> Task:
    return msgspec.structs.replace(task, state=state, reason=reason, finished_at=task.finished_at or now)


def _stopped(task: Task, now: datetime) -> Task:
    finished = task.finished_at or (now if task.started_at is not None else None)
    return msgspec.structs.replace(task, state="stopped", reason="told to stop", finished_at=finished)


def _for(reason: str, since: datetime | None, now: datetime) -> str:
    """With how long it has been so."""
    if since is None:
        return reason
    seconds = round((now - since).total_seconds())
    return f"{reason} (for {seconds // 60} min)" if seconds >= 120 else f"{reason} (for {seconds} s)"


def _after(since: datetime | None, seconds: float) -> datetime | None:
    return None if since is None else since + timedelta(seconds=seconds)


def _in(ranges: tuple[range, ...], index: int) -> bool:
    return any(index in each for each in ranges)


def _instant(moment: datetime | None) -> float:
    return moment.timestamp() if moment is not None else 0.0
