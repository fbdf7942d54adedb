"""What Kueue does with the Jobs of an emulated cluster, as far as those see it; a test says whom it admits.

kueue = Kueue(server.store)
kueue.admit(job_of(launch))         its pods may be made; what is suspended of it is let go, for as long as that holds
kueue.take_back(job_of(launch))     preempted, or evicted for another reason: it is suspended, and waits again
"""

import asyncio

from services.scheduler.cloud.kubernetes.identity import QUEUE
from shared.kube.resources import JOBS, Resource
from tests.support.kube_fields import Document
from tests.support.kube_store import KubeStore


class Kueue:
    """Suspends Jobs with a queue that it has not admitted, and lets go those that it has, whoever did otherwise."""

    def __init__(self, store: KubeStore) -> None:
        self._store = store
        self._admitted: set[str] = set()
        store.on_write.append(self._written)

    def admit(self, *names: str) -> None:
        """These Jobs may run; none named: all that there are."""
        for job in self._store.all(JOBS):
            if not names or job["metadata"]["name"] in names:
                self._admitted.add(job["metadata"]["uid"])
                self._follow(job["metadata"]["uid"])

    def take_back(self, name: str) -> None:
        """This Job may not run any more."""
        (job,) = (each for each in self._store.all(JOBS) if each["metadata"]["name"] == name)
        self._admitted.remove(job["metadata"]["uid"])
        self._follow(job["metadata"]["uid"])

    def _written(self, resource: Resource, before: Document | None, after: Document | None) -> None:
        if resource == JOBS and after is not None:
            asyncio.get_running_loop().call_soon(self._follow, after["metadata"]["uid"])

    def _follow(self, uid: str) -> None:
        job = next((each for each in self._store.all(JOBS) if each["metadata"]["uid"] == uid), None)
        if job is None or "deletionTimestamp" in job["metadata"] or QUEUE not in job["metadata"].get("labels", {}):
            return
        conditions = job.get("status", {}).get("conditions", ())
        if any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions):
            return
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        if uid in self._admitted and job["spec"]["suspend"]:
            self._store.patch(JOBS, namespace, name, {"spec": {"suspend": False}}, "merge", "kueue")
        elif uid not in self._admitted and not job["spec"]["suspend"]:
            self._store.patch(JOBS, namespace, name, {"spec": {"suspend": True}}, "merge", "kueue")
            self._store.change(JOBS, name, namespace, status={"startTime": None})
