"""Attempts as three watches of an emulated cluster show them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from services.scheduler.cloud.kubernetes.identity import (
    ROSTER,
    TRAINING,
    AttemptKey,
    Group,
    Roster,
    attempt_labels,
    group_labels,
    job_name,
    service_name,
)
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.watching import watch_attempts
from services.scheduler.cloud.port import AttemptGone, AttemptSeen, Observation, Synced
from shared.kube import Cluster
from shared.kube.names import labels_of
from shared.kube.resources import JOBS, PODS, SERVICES
from shared.kube.settings import ProjectSettings
from tests.support.kube_attempts import FAIL, RESTART, group
from tests.support.kube_life import ClusterLife
from tests.support.kube_server import KubeServer

KEY = AttemptKey("a", "digits", 1)
NAMESPACE = "elearn-a"


class Bench:
    """An emulated cluster with one node, and what is seen in it."""

    def __init__(self, server: KubeServer, cluster: Cluster) -> None:
        self.server, self.cluster = server, cluster
        self.life = ClusterLife(server.store)
        self.life.node("n1")
        self.told: list[Observation] = []
        self._news = asyncio.Condition()

    def service(self, *groups: Group, key: AttemptKey = KEY, released: bool = True) -> None:
        roster = msgspec.json.encode(Roster(groups=groups, released=released)).decode()
        about = {
            "name": service_name(key, "elearn"),
            "labels": labels_of("elearn", attempt_labels(key)),
            "annotations": {ROSTER: roster},
        }
        self.server.store.add(SERVICES, {"metadata": about, "spec": {}}, NAMESPACE)

    def job(self, of: Group, *, key: AttemptKey = KEY, **status: Any) -> str:
        name, labels = job_name(key, of, "elearn"), labels_of("elearn", group_labels(key, of))
        container = {"name": "task", "image": "user/image:1"}
        spec = {
            "completionMode": "Indexed",
            "completions": of.count,
            "parallelism": of.count,
            "backoffLimitPerIndex": 1 if of.on_failure == "restart" else 0,
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        }
        document = {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}
        self.server.store.add(JOBS, document, NAMESPACE)
        return name

    def attempt(self, *groups: Group, key: AttemptKey = KEY) -> list[str]:
        self.service(*groups, key=key)
        return [self.job(of, key=key) for of in groups]

    @contextlib.asynccontextmanager
    async def watching(self, **options: float) -> AsyncIterator[None]:
        chosen = msgspec.structs.replace(TrainingOptions(), **options)
        watching = watch_attempts(self.cluster, ProjectSettings(), chosen, look_every=0.02)

        async def follow() -> None:
            async with contextlib.aclosing(watching) as seen:
                async for each in seen:
                    self.told.append(each)
                    async with self._news:
                        self._news.notify_all()

        following = asyncio.create_task(follow())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def until(self, good: Callable[[], bool]) -> None:
        async with asyncio.timeout(5), self._news:
            await self._news.wait_for(good)

    async def synced(self) -> None:
        await self.until(lambda: Synced() in self.told)

    def states(self, key: AttemptKey = KEY) -> list[str]:
        """The states of an attempt's tasks as they were told last."""
        last = next((each for each in reversed(self.told) if not isinstance(each, Synced) and _key(each) == key), None)
        return [task.state for task in last.tasks] if isinstance(last, AttemptSeen) else []

    def reason(self) -> str:
        seen = [each for each in self.told if isinstance(each, AttemptSeen)]
        return seen[-1].tasks[0].reason if seen else ""


def _key(seen: AttemptSeen | AttemptGone) -> AttemptKey:
    return AttemptKey(seen.project, seen.name, seen.attempt)


@pytest.fixture
def bench(server: KubeServer, cluster: Cluster) -> Bench:
    return Bench(server, cluster)


async def test_what_is_there_then_synced_then_changes_and_its_end(bench: Bench) -> None:
    chief, workers = group("chief"), group(count=2)
    other = AttemptKey("a", "other", 3)
    jobs = bench.attempt(chief, workers)
    bench.attempt(FAIL, key=other)
    bench.life.run(jobs[0], namespace=NAMESPACE)
    async with bench.watching():
        await bench.synced()
        assert bench.told.index(Synced()) == 2
        assert bench.states() == ["running", "starting", "starting"]
        assert bench.states(other) == ["starting"]
        bench.life.run(jobs[1], namespace=NAMESPACE)
        await bench.until(lambda: bench.states() == ["running"] * 3)
        bench.life.exit(jobs[0], namespace=NAMESPACE)
        await bench.until(lambda: bench.states()[0] == "succeeded")
        bench.server.gone()  # everything is listed again, and nothing of it is news
        await bench.server.watched(0)
        await bench.server.watched(3)
        await bench.server.settled()
        for kind in (JOBS, PODS):
            for each in bench.server.store.all(kind, NAMESPACE):
                if each["metadata"]["labels"][TRAINING] == KEY.name:
                    bench.server.store.finish(kind, each["metadata"]["name"], NAMESPACE)
        bench.server.store.finish(SERVICES, service_name(KEY, "elearn"), NAMESPACE)
        await bench.until(lambda: AttemptGone(project="a", name="digits", attempt=1) in bench.told)
        assert [_key(each) for each in bench.told if not isinstance(each, Synced)].count(other) == 1


async def test_half_of_the_objects_make_no_attempt(bench: Bench) -> None:
    bench.attempt(FAIL)
    bench.server.deny("list", "jobs")
    async with bench.watching():
        await bench.server.watched(2)
        await bench.server.settled()
        assert bench.told == []
        bench.server.allow()
        await bench.synced()
        assert bench.states() == ["starting"]


async def test_a_job_without_pods_says_why(bench: Bench) -> None:
    """The controller that makes pods is refused: nothing but its events tells of that."""
    bench.service(FAIL)
    name = bench.job(FAIL, startTime="2026-01-01T00:00:00Z", conditions=[{"type": "Complete", "status": "True"}])
    words = 'Error creating: pods "x" is forbidden: exceeded quota: compute'
    bench.life.event(JOBS, name, "FailedCreate", words, namespace=NAMESPACE)
    async with bench.watching(kubernetes_schedule_seconds=1e9):
        await bench.until(lambda: "exceeded quota: compute" in bench.reason())
        assert bench.states() == ["pending"]
    bench.told.clear()
    async with bench.watching(kubernetes_schedule_seconds=1.0):
        await bench.until(lambda: bench.states() == ["lost"])
        assert "exceeded quota: compute" in bench.reason()


async def test_an_image_that_can_not_be_had_is_said_at_once_and_fails_in_time(bench: Bench) -> None:
    (name,) = bench.attempt(FAIL)
    async with bench.watching(kubernetes_start_seconds=0.0):
        await bench.synced()
        bench.server.deny("list", "pods")  # what can't be looked up again is not failed
        bench.life.image_missing(name, namespace=NAMESPACE)
        await bench.until(lambda: "image user/image:1 can't be pulled" in bench.reason())
        assert bench.states() == ["starting"]
        listed = bench.server.asked("GET", "/pods", watch=False)
        async with asyncio.timeout(5):
            while bench.server.asked("GET", "/pods", watch=False) == listed:
                await asyncio.sleep(0.01)
        assert bench.states() == ["starting"]
    bench.server.allow()
    async with bench.watching(kubernetes_start_seconds=0.0):
        await bench.until(lambda: bench.states() == ["failed"])


async def test_a_job_that_nobody_ever_saw_was_deleted(bench: Bench) -> None:
    bench.service(FAIL, msgspec.structs.replace(FAIL, role="ps"))
    bench.job(FAIL)
    async with bench.watching():
        await bench.until(lambda: bench.states() == ["starting", "lost"])


async def test_a_running_task_that_is_evicted_starts_again_where_that_is_wanted(bench: Bench) -> None:
    (name,) = bench.attempt(RESTART)
    async with bench.watching():
        await bench.synced()
        bench.life.run(name, namespace=NAMESPACE)
        await bench.until(lambda: bench.states() == ["running"])
        bench.life.evict(name, namespace=NAMESPACE)
        await bench.until(lambda: bench.states() == ["starting"])
        bench.life.run(name, namespace=NAMESPACE)
        await bench.until(lambda: bench.states() == ["running"])
        last = bench.told[-1]
        assert isinstance(last, AttemptSeen)
        assert last.tasks[0].restarts == 1
