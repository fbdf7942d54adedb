"""One attempt as the watches tell of it: its Service, Jobs and pods, and what is remembered of its tasks. Pure."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

import msgspec

from services.scheduler.cloud.kubernetes.identity import AttemptKey, Group, Roster
from services.scheduler.cloud.kubernetes.observing import FINAL, NOT_STARTED, Place, observe
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.refusals import is_for_good
from services.scheduler.cloud.kubernetes.seen import JobSeen, PodSeen, Seen, ServiceSeen
from services.scheduler.model import Demand
from shared.contracts.training import ROLES, RoleName, Task
from shared.kube.resources import JOBS, PODS, Resource

Indexed = tuple[RoleName, int]
"""A task by its role and index; a group by its role and the index of its first task."""

_NO_POD: Final = timedelta(seconds=3)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster says of an object, a Job or a pod, might tell why a task does not start."""

    key: AttemptKey
    about: Indexed
    resource: Resource
    namespace: str
    name: str
    uid: str = ""


class _Task:
    """One task: its pods in the order in which they were seen first, and what is remembered of it."""

    __slots__ = ("gone", "group", "hindered", "index", "last", "pods", "said", "said_of", "sure_at", "task")

    def __init__(self, group: Group, index: int) -> None:
        self.group = group
        self.index = index
        self.pods: tuple[PodSeen, ...] = ()
        self.task: Task | None = None
        self.last: PodSeen | None = None
        self.gone = 0
        self.said = ""
        self.said_of = ""
        self.hindered: datetime | None = None
        self.sure_at: datetime | None = None

    @property
    def in_group(self) -> Indexed:
        return (self.group.role, self.group.first)


class Attempt:
    """One attempt.

    Attributes:
        due_at: when time alone makes something of it; None: never.
        asked_at: when the cluster was last asked about it.
    """

    def __init__(self, key: AttemptKey, namespace: str) -> None:
        self.key = key
        self.namespace = namespace
        self.asked_at: datetime | None = None
        self._service: ServiceSeen | None = None
        self._roster: Roster | None = None
        self._jobs: dict[Indexed, JobSeen] = {}
        self._tasks: dict[Indexed, _Task] = {}
        self._dirty: dict[Indexed, None] = {}
        self._timed: dict[Indexed, datetime] = {}
        self._not_before: datetime | None = None
        self._released = False
        self._service_gone = False
        self._ending = False
        self._ran: set[Indexed] = set()
        self._ended: set[Indexed] = set()
        self._deleted: set[Indexed] = set()
        self._said: dict[Indexed, str] = {}

    @property
    def there(self) -> bool:
        """Something of it is left in the cluster."""
        return self._service is not None or bool(self._jobs) or any(task.pods for task in self._tasks.values())

    @property
    def waits(self) -> bool:
        """Some task has not started yet, or again."""
        return any(task.task is None or task.task.state in ("pending", "starting") for task in self._tasks.values())

    @property
    def due_at(self) -> datetime | None:
        at = min(self._timed.values(), default=None)
        return at if at is None or self._not_before is None else max(at, self._not_before)

    @property
    def pods(self) -> tuple[PodSeen, ...]:
        """The pods of its tasks, as the watch told of them."""
        return tuple(pod for task in self._tasks.values() for pod in task.pods)

    @property
    def unfinished(self) -> tuple[JobSeen, ...]:
        """Its Jobs that run tasks or would start some again; not those whose tasks have all succeeded.

        A Job that is held back deletes its pods, those too that are about to be over and have logs to be read.
        """
        tasks = self._tasks.values()
        running = {task.in_group for task in tasks if not (task.pods and task.pods[-1].end == "succeeded")}
        known = {task.in_group for task in tasks}
        return tuple(job for group, job in self._jobs.items() if group in running or group not in known)

    def end(self) -> None:
        """We are ending it: whatever is told of it from now on is our own doing, in whichever order it is told."""
        self._ending = True
        self._touch()

    # -- what watches tell

    def take(self, seen: Seen) -> None:
        """One of its objects is there in this state."""
        match seen:
            case ServiceSeen():
                if self._service_gone:
                    self._ending = False  # it was refused room, and is launched again
                self._service, self._service_gone = seen, False
                if seen.roster is not None and seen.roster != self._roster:
                    self._take_roster(seen.roster)
                self._touch()
            case JobSeen(group=group):
                self._jobs[group] = seen
                self._deleted.discard(group)
                self._ended.discard(group)
                if not seen.suspended or seen.taken_back or seen.failed or seen.completed or seen.given_up:
                    self._ran.add(group)  # one that was never let go has no results
                self._touch(None if self._let_go() else group)
            case PodSeen(task=key):
                task = self._tasks.get(key) or (self._stranger(seen) if self._roster is None else None)
                if task is None:
                    return
                others = task.pods
                at = next((n for n, pod in enumerate(others) if pod.uid == seen.uid), len(others))
                task.pods = (*others[:at], seen, *others[at + 1 :])
                task.sure_at = None
                self._ran.add(task.in_group)  # a Job that was never let go has no pods
                self._dirty[key] = None
                if self._let_go():
                    self._touch()

    def forget(self, uid: str, gone: Seen) -> None:
        """One of its objects was deleted; ``gone`` is its last state."""
        match gone:
            case ServiceSeen():
                self._service, self._service_gone = None, True
                self._touch()
            case JobSeen(group=group):
                by_us = self._stopping(group) or (gone.suspended and not gone.queue) or gone.held_back or gone.going
                (self._ended if by_us else self._deleted).add(group)
                self._jobs.pop(group, None)
                self._touch(group)
            case PodSeen(task=key):
                if (task := self._tasks.get(key)) is not None:
                    task.pods = tuple(pod for pod in task.pods if pod.uid != uid)
                    task.last = gone
                    task.gone += gone.started_at is not None
                    task.sure_at = None
                    self._dirty[key] = None

    def _take_roster(self, roster: Roster) -> None:
        known, self._tasks = self._tasks, {}
        for group in roster.groups:
            for index in range(group.first, group.first + group.count):
                task = known.get((group.role, index)) or _Task(group, index)
                if task.group != group:
                    task.group, task.task = group, None  # what was told of it was told without knowing
                self._tasks[group.role, index] = task
        self._roster = roster
        self._dirty.clear()
        self._let_go()

    def _stranger(self, pod: PodSeen) -> _Task:
        """A task that no roster names: its Service is not there, or says nothing."""
        group = Group(role=pod.role, first=0, count=pod.index + 1, demand=Demand(), on_failure="fail")
        tasks = {**self._tasks, pod.task: _Task(group, pod.index)}
        self._tasks = dict(sorted(tasks.items(), key=lambda each: (ROLES.index(each[0][0]), each[0][1])))
        return self._tasks[pod.task]

    def _let_go(self) -> bool:
        """Whether this is news: all its Jobs were let go; who did that may have died before the roster said so."""
        roster = self._roster
        if roster is None or self._released:
            return False
        self._released = roster.released or all((each.role, each.first) in self._ran for each in roster.groups)
        return self._released

    def _stopping(self, group: Indexed) -> bool:
        """We are ending it: its Job is held back after it was let go, or everything is going."""
        if (
            self._ending
            or self._service_gone
            or (self._service is not None and self._service.going)
            or group in self._ended
        ):
            return True
        job = self._jobs.get(group)
        if job is None:
            return False
        return job.going or job.held_back or (job.suspended and not job.queue and group in self._ran)

    def _touch(self, group: Indexed | None = None) -> None:
        """All tasks of a group, or of all groups, may stand otherwise now."""
        for key, task in self._tasks.items():
            if group is None or task.in_group == group:
                task.sure_at = None
                self._dirty[key] = None

    # -- how it stands

    def look(self, now: datetime, options: TrainingOptions, installation: str) -> tuple[Task, ...]:
        """Its tasks. One that no Job runs yet is not among them: whoever launches has to know."""
        while self._dirty:
            self._look(self._dirty.popitem()[0], now, options, installation)
        return tuple(
            task.task
            for task in self._tasks.values()
            if task.task is not None and (self._released or task.pods or task.task.state != "pending")
        )

    def _look(self, key: Indexed, now: datetime, options: TrainingOptions, installation: str) -> None:
        task = self._tasks[key]
        group = task.in_group
        said = self._said.get(group, "")
        if task.pods:
            said = task.said if task.pods[-1].uid == task.said_of else ""
        if not (task.pods[-1].trouble if task.pods else is_for_good(said)):
            task.hindered = None
        elif task.hindered is None:
            task.hindered = now
        place = Place(
            key=self.key,
            group=task.group,
            index=task.index,
            namespace=self.namespace,
            installation=installation,
            job=self._jobs.get(group),
            job_deleted=group in self._deleted,
            released=self._released,
            stopping=self._stopping(group),
            before=task.task,
            last=task.last,
            gone=task.gone,
            said=said,
            hindered=task.hindered,
            sure_at=task.sure_at,
        )
        look = observe(place, task.pods, now, options)
        if look.task != task.task:
            task.task = look.task
        if look.again_at is None:
            self._timed.pop(key, None)
        else:
            self._timed[key] = look.again_at

    # -- what only time or a question brings out

    def confirm(self, jobs: Iterable[JobSeen], pods: Iterable[PodSeen], at: datetime, again_at: datetime) -> None:
        """Its Jobs and pods were looked up at a moment: what is still as it was told has been so until then.

        What differs will be told by the watch; ``again_at``: not to be looked up before.
        """
        found = {job.group: job for job in jobs}
        living: dict[Indexed, set[PodSeen]] = {}
        for pod in pods:
            living.setdefault(pod.task, set()).add(pod)
        for key, task in self._tasks.items():
            group = task.in_group
            if self._released and group not in self._jobs and group not in found and group not in self._ended:
                self._deleted.add(group)
            if set(task.pods) == living.get(key, set()) and self._jobs.get(group) == found.get(group):
                task.sure_at = at
            self._dirty[key] = None
        self._not_before = again_at

    def put_off(self, until: datetime) -> None:
        """It could not be looked up: not before then again."""
        self._not_before = until

    def question(self, now: datetime) -> Question | None:
        """What to ask the cluster about a task that does not start; None: nothing."""
        for key, task in self._tasks.items():
            if task.task is None or task.task.state in FINAL:
                continue
            if task.pods:
                pod = task.pods[-1]
                late = pod.placed_at is not None and pod.placed_at + NOT_STARTED <= now
                if late and pod.stage == "waiting" and not pod.trouble:
                    return Question(
                        key=self.key, about=key, resource=PODS, namespace=pod.namespace, name=pod.name, uid=pod.uid
                    )
                continue
            job = self._jobs.get(task.in_group)
            if job is None or job.suspended or job.started_at is None or job.started_at + _NO_POD > now:
                continue
            return Question(key=self.key, about=task.in_group, resource=JOBS, namespace=job.namespace, name=job.name)
        return None

    def answer(self, question: Question, words: str) -> None:
        """What the cluster says."""
        if question.resource == JOBS:
            self._said[question.about] = words
            self._dirty |= {key: None for key, task in self._tasks.items() if task.in_group == question.about}
        elif (task := self._tasks.get(question.about)) is not None:
            # An earlier lack of room is no news of a pod that has its node.
            task.said = words if words.startswith("Failed") and not words.startswith("FailedScheduling") else ""
            task.said_of = question.uid
            self._dirty[question.about] = None
