"""Which save jobs should run, and what should be cleared away: pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from services.registry.model import Key, StoredVersion


class Job(NamedTuple):
    """One attempt at saving one version."""

    key: Key
    attempt: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do; every step is idempotent.

    Attributes:
        find: ask the scheduler where these lie.
        launch: start (or find again) the job of the current attempt.
        overdue: have been at it for too long.
        finish: jobs that nobody waits for any more: end them and clear away what they left.
        clear: versions that came to nothing: end their jobs and clear away whatever there is of them.
        remove: the same for versions that were deleted; their rows go with it.
        next_deadline: when one of those under way will be overdue.
    """

    find: tuple[StoredVersion, ...] = ()
    launch: tuple[StoredVersion, ...] = ()
    overdue: tuple[StoredVersion, ...] = ()
    finish: tuple[Job, ...] = ()
    clear: tuple[Key, ...] = ()
    remove: tuple[StoredVersion, ...] = ()
    next_deadline: datetime | None = None


def reconcile(
    versions: Iterable[StoredVersion],
    jobs: Mapping[Job, bool],
    *,
    most_at_once: int,
    timeout: timedelta,
    now: datetime,
) -> Plan:
    """Compare versions with the jobs that the cloud holds.

    Args:
        versions: those that are saving or being removed, and those of ``jobs``.
        jobs: every job that the cloud holds, and whether it still runs (call it after the watch has synced).
        most_at_once: jobs that may run at the same time.
    """
    rows = sorted(versions, key=lambda row: (row.created_at, row.key))
    removing = tuple(row for row in rows if row.removing)
    saving = [row for row in rows if row.state == "saving" and not row.removing]
    overdue = tuple(row for row in saving if row.launched_at is not None and row.launched_at + timeout <= now)
    saving = [row for row in saving if row not in overdue]
    wanted = {Job(row.key, row.attempt) for row in saving}
    kept = {row.key for row in rows if row.state != "failed" and not row.removing}
    removed = {row.key for row in removing}
    over = [job for job in jobs if job not in wanted and job.key not in removed]
    free = most_at_once - sum(runs for job, runs in jobs.items() if job in wanted)
    launch: list[StoredVersion] = []
    for row in saving:
        if row.source.datastore is not None and Job(row.key, row.attempt) not in jobs and free > 0:
            launch.append(row)
            free -= 1
    return Plan(
        find=tuple(row for row in saving if row.source.datastore is None),
        launch=tuple(launch),
        overdue=overdue,
        finish=tuple(sorted(job for job in over if job.key in kept)),
        clear=tuple(sorted({job.key for job in over if job.key not in kept})),
        remove=removing,
        next_deadline=min((row.launched_at + timeout for row in saving if row.launched_at is not None), default=None),
    )
