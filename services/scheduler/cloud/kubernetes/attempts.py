"""Which attempts there are and how they stand, kept as the watches tell of their Services, Jobs and pods. Pure.

Each change touches one attempt, and in it the tasks that it can matter to; only those are looked at anew. What was
seen of a task stays known while its attempt is there, so that a pod that vanishes is missed.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from services.scheduler.cloud.kubernetes.attempt import Attempt, Question
from services.scheduler.cloud.kubernetes.identity import AttemptKey
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.seen import JobSeen, PodSeen, Seen, job_seen, pod_seen, service_seen
from services.scheduler.cloud.kubernetes.seen import SeenService as SeenService
from services.scheduler.cloud.port import AttemptGone, AttemptSeen
from shared.kube.changes import Deleted, Synced, Told
from shared.kube.objects import Job, Pod

_AGAIN: Final = timedelta(seconds=10)
"""Nothing is asked about an attempt more often than so."""


class Attempts:
    """All attempts.

    Args:
        installation: whose; addresses are made of it.
    """

    def __init__(self, options: TrainingOptions, *, installation: str) -> None:
        self._options = options
        self._installation = installation
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._seen: dict[str, Seen] = {}
        self._waiting: dict[AttemptKey, None] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def take(self, told: Told[Seen | None]) -> AttemptKey | None:
        """Note a change of a Service, a Job or a pod.

        Returns:
            The attempt that may stand otherwise now.
        """
        if isinstance(told, Synced):
            return None
        uid, seen = told.identity.uid, told.object
        before = self._seen.get(uid)
        if isinstance(told, Deleted):
            self._seen.pop(uid, None)
            gone = seen if seen is not None else before
            if gone is None or gone.key not in self._attempts:
                return None
            self._attempts[gone.key].forget(uid, gone)
            return gone.key
        if seen is None or seen == before:
            return None
        self._seen[uid] = seen
        attempt = self._attempts.get(seen.key)
        if attempt is None:
            attempt = self._attempts[seen.key] = Attempt(seen.key, seen.namespace)
        attempt.take(seen)
        return seen.key

    def observe(self, key: AttemptKey, now: datetime) -> AttemptSeen | AttemptGone:
        """How an attempt stands; one of which nothing is left is forgotten."""
        attempt = self._attempts.get(key)
        if attempt is None or not attempt.there:
            self._attempts.pop(key, None)
            self._waiting.pop(key, None)
            return AttemptGone(project=key.project, name=key.name, attempt=key.attempt)
        tasks = attempt.look(now, self._options, self._installation)
        if attempt.waits:
            self._waiting[key] = None
        else:
            self._waiting.pop(key, None)
        return AttemptSeen(project=key.project, name=key.name, attempt=key.attempt, tasks=tasks)

    def get(self, key: AttemptKey) -> Attempt | None:
        """What is known of an attempt; None: nothing."""
        return self._attempts.get(key)

    # -- what only time or a question brings out

    def next_look(self) -> datetime | None:
        """When time alone makes something of an attempt; None: never."""
        return min((at for attempt in self._attempts.values() if (at := attempt.due_at) is not None), default=None)

    def due(self, now: datetime) -> list[AttemptKey]:
        """The attempts of which something may have been so for too long: :meth:`confirm` that it still is."""
        return [key for key, attempt in self._attempts.items() if (at := attempt.due_at) is not None and at <= now]

    def namespace(self, key: AttemptKey) -> str | None:
        """Where an attempt lies; None where it is gone."""
        attempt = self._attempts.get(key)
        return None if attempt is None else attempt.namespace

    def confirm(self, key: AttemptKey, jobs: Iterable[JobSeen], pods: Iterable[PodSeen], at: datetime) -> None:
        """An attempt's Jobs and pods were looked up: what is still as it was told has been so until ``at``."""
        if (attempt := self._attempts.get(key)) is not None:
            attempt.confirm(jobs, pods, at, at + _AGAIN)

    def put_off(self, key: AttemptKey, now: datetime) -> None:
        """An attempt could not be looked up."""
        if (attempt := self._attempts.get(key)) is not None:
            attempt.put_off(now + _AGAIN)

    def questions(self, now: datetime, most: int) -> list[Question]:
        """What to ask the cluster about tasks that do not start; every attempt gets its turn."""
        asked: list[Question] = []
        for key in tuple(self._waiting):
            attempt = self._attempts[key]
            if len(asked) >= most:
                break
            if attempt.asked_at is not None and now - attempt.asked_at < _AGAIN:
                continue
            question = attempt.question(now)
            if question is not None:
                attempt.asked_at = now
                asked.append(question)
                self._waiting[key] = self._waiting.pop(key)  # the others first, the next time
        return asked

    def answer(self, question: Question, words: str) -> None:
        """What the cluster says."""
        if (attempt := self._attempts.get(question.key)) is not None:
            attempt.answer(question, words)


def listed_attempt(
    key: AttemptKey, service: SeenService | None, jobs: Sequence[Job], pods: Sequence[Pod]
) -> Attempt | None:
    """An attempt as lists just told of it, with nothing known from before; None where nothing of it is there."""
    found = [
        *([] if service is None else [service_seen(service)]),
        *map(job_seen, jobs),
        *map(pod_seen, pods),
    ]
    ours = [seen for seen in found if seen is not None and seen.key == key]
    if not ours:
        return None
    attempt = Attempt(key, ours[0].namespace)
    for each in ours:
        attempt.take(each)
    return attempt
