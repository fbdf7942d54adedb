"""Stories of launching and freeing attempts on an emulated cluster: what goes wrong, and who tries again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine

import pytest

from services.scheduler.cloud.kubernetes import freeing as module
from services.scheduler.cloud.kubernetes.driver import KubernetesTrainings
from services.scheduler.cloud.kubernetes.identity import task_of
from services.scheduler.cloud.port import Launch
from services.scheduler.errors import CannotLaunch, NoRoomLeft
from services.scheduler.model import MountPlan
from shared.contracts.datastore import ClaimVolume, LocalVolume
from shared.contracts.training import Role, Roles
from shared.errors import Unavailable
from shared.kube.names import INSTALLATION
from shared.kube.resources import JOBS, NAMESPACES, PODS, SERVICES
from shared.kube.settings import ProjectSettings
from tests.contract.training_clouds import Watch
from tests.support.kube import assert_valid
from tests.support.kube_trainings import (
    NAMESPACE,
    PROJECT,
    Crashing,
    TrainingCluster,
    connected,
    held,
    job_of,
    launch_of,
    service_of,
    training_cluster,
)
from tests.support.logs_in_memory import LogsInMemory, Outage

CLUSTER = Roles(chief=Role(cpu=0.5), worker=Role(cpu=0.5, replicas=2), ps=Role(cpu=0.5))
CODE = "sha256:" + "c" * 64
MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"
EVERYTHING = {"Service": 1, "Secret": 1, "Job": 3, "Pod": 4}


@pytest.fixture
async def it() -> AsyncIterator[TrainingCluster]:
    async with training_cluster(cpu="64", server=Crashing()) as cluster:
        cluster.code.archives[CODE] = b"\x1f\x8b the code"
        yield cluster


def gang(name: str = "t-1", attempt: int = 1, *, project: str = PROJECT, plans: tuple[MountPlan, ...] = ()) -> Launch:
    return launch_of(name, attempt, project=project, plans=plans, code=CODE, roles=CLUSTER)


async def until_running(driver: KubernetesTrainings, launch: Launch) -> None:
    async with Watch(driver) as watch:
        for task in launch.plan:
            found = await watch.until_task(task.name, "running", launch.name, launch.attempt)
            assert found.restarts == 0


@contextlib.asynccontextmanager
async def watching(driver: KubernetesTrainings, launch: Launch) -> AsyncIterator[Watch]:
    """With a watch that has told of everything: all tasks run."""
    async with Watch(driver) as watch:
        for task in launch.plan:
            await watch.until_task(task.name, "running", launch.name, launch.attempt)
        yield watch


def workers(it: TrainingCluster, launch: Launch) -> list[str]:
    """The pods that run its second worker."""
    return [
        pod["metadata"]["name"]
        for pod in it.kubelet.running(launch)
        if task_of(pod["metadata"]["labels"]) == ("worker", 1)
    ]


def crashing(it: TrainingCluster) -> Crashing:
    assert isinstance(it.server, Crashing)
    return it.server


async def dies(it: TrainingCluster, work: Coroutine[object, object, object], *, after: int) -> bool:
    """Whether somebody died in the middle of that work, after so many writes."""
    task = asyncio.create_task(work)
    crashing(it).after(after, task.cancel)
    await asyncio.wait({task}, timeout=10)
    crashing(it).after(0, task.cancel)
    assert task.done()
    if not task.cancelled():
        task.result()
    return task.cancelled()


# -- launching --------------------------------------------------------------------------------------------------------


async def test_no_pod_is_made_before_every_job_is_there(it: TrainingCluster) -> None:
    jobs: list[int] = []
    it.store.on_write.append(
        lambda kind, before, after: jobs.append(len(it.store.all(JOBS))) if kind == PODS and before is None else None
    )
    await it.driver(LogsInMemory()).launch(gang())
    assert jobs == [3, 3, 3, 3]
    assert it.left() == EVERYTHING
    for kind in (SERVICES, JOBS):
        assert_valid(*it.store.all(kind, NAMESPACE))
    (service,) = it.store.all(SERVICES, NAMESPACE)
    for kind in (JOBS,):
        for each in it.store.all(kind, NAMESPACE):
            assert [owner["uid"] for owner in each["metadata"]["ownerReferences"]] == [service["metadata"]["uid"]]


async def test_whoever_dies_anywhere_in_a_launch_is_followed_by_another_who_finishes_it(it: TrainingCluster) -> None:
    """In a namespace of its own each time, so that furnishing it is interrupted as well."""
    steps, died = 0, True
    while died:
        steps += 1
        launch = gang(project=f"p{steps}")
        died = await dies(it, it.driver(LogsInMemory(), background=False).launch(launch), after=steps)
        again = it.driver(LogsInMemory(), background=False)
        await again.launch(launch)
        assert it.left(f"elearn-p{steps}") == EVERYTHING
        await again.free(launch.project, launch.name, launch.attempt)
        assert it.left(f"elearn-p{steps}") == {}
    assert steps > 10


async def test_what_was_launched_whole_is_not_made_again_once_somebody_took_it_away(it: TrainingCluster) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    await driver.launch(launch)
    it.store.delete(JOBS, NAMESPACE, job_of(launch, "ps"))
    await it.driver(LogsInMemory()).launch(launch)
    assert it.left()["Job"] == 2


@pytest.mark.parametrize("path", ["services", "secrets", "jobs"])
async def test_a_create_whose_answer_was_lost_is_no_failure_and_nothing_is_made_twice(
    it: TrainingCluster, path: str
) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    it.server.fail(what="drop answer", method="POST", path=f"/{path}$")
    with pytest.raises(Unavailable):
        await driver.launch(launch)
    await driver.launch(launch)
    assert it.left() == EVERYTHING
    await until_running(driver, launch)


@pytest.mark.parametrize(
    ("code", "method", "path"),
    [
        (code, method, path)
        for code in (429, 500, 503)
        for method, path in (("POST", "/services$"), ("POST", "/jobs$"), ("PATCH", "/jobs/"), ("PATCH", "/services/"))
    ],
)
async def test_a_server_in_trouble_is_asked_again(it: TrainingCluster, code: int, method: str, path: str) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    it.server.fail(code, "", "etcd is busy", times=2, method=method, path=path, retry_after=0)
    for _ in range(3):
        try:
            await driver.launch(launch)
            break
        except Unavailable:
            continue
    assert it.left() == EVERYTHING
    await until_running(driver, launch)


async def test_a_conflict_while_jobs_are_let_go_is_tried_again(it: TrainingCluster) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    it.server.fail(409, "Conflict", MODIFIED, times=2, method="PATCH", path="/jobs/")
    await driver.launch(launch)
    await until_running(driver, launch)


async def test_quota_that_is_used_up_sends_the_attempt_back_and_leaves_nothing(it: TrainingCluster) -> None:
    driver = it.driver(LogsInMemory())
    words = 'jobs.batch "x" is forbidden: exceeded quota: small, requested: count/jobs.batch=1, used: 2, limited: 2'
    it.server.fail(403, "Forbidden", words, method="POST", path="/jobs$")
    with pytest.raises(NoRoomLeft, match="exceeded quota: small"):
        await driver.launch(gang())
    assert it.left() == {}
    await driver.launch(gang())
    assert it.left() == EVERYTHING


async def test_what_a_policy_forbids_is_refused_for_good_in_its_words(it: TrainingCluster) -> None:
    driver = it.driver(LogsInMemory())
    words = 'admission webhook "images.example.org" denied the request: only images of our own registry'
    it.server.fail(403, "Forbidden", words, method="POST", path="/jobs$")
    with pytest.raises(CannotLaunch, match="only images of our own registry"):
        await driver.launch(gang())
    assert it.left() == {}


async def test_volumes_of_elsewhere_are_refused(it: TrainingCluster) -> None:
    driver = it.driver(LogsInMemory())
    for volume, words in (
        (LocalVolume(path="/srv"), "'d' is no claim of this cluster"),
        (ClaimVolume(claim_name="c", namespace="elearn-other"), "lies in namespace elearn-other"),
    ):
        with pytest.raises(CannotLaunch, match=words):
            await driver.launch(gang(plans=(MountPlan(datastore="d", path="data", volume=volume),)))
        assert it.left() == {}


@pytest.mark.parametrize(("verb", "plural"), [("create", "services"), ("create", "jobs"), ("patch", "jobs")])
async def test_a_missing_right_is_named_and_waited_for(it: TrainingCluster, verb: str, plural: str) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    it.server.deny(verb, plural)
    with pytest.raises(Unavailable, match=f"with the verb {verb} on {plural}"):
        await driver.launch(launch)
    it.server.allow()
    await driver.launch(launch)
    assert it.left() == EVERYTHING


async def test_a_namespace_that_is_going_or_missing_is_waited_for(it: TrainingCluster) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    await driver.launch(launch)
    it.store.delete(NAMESPACES, "", NAMESPACE)
    with pytest.raises(Unavailable, match=r"being (terminated|deleted)"):
        await driver.launch(gang("t-2"))
    it.store.finish(NAMESPACES, NAMESPACE)
    assert await driver.free("p", "t-1", 1) == ()
    await driver.launch(gang("t-2"))
    assert it.left() == EVERYTHING
    strict = it.driver(LogsInMemory(), settings=ProjectSettings(kubernetes_create_namespaces=False))
    with pytest.raises(Unavailable, match="namespace elearn-nowhere does not exist"):
        await strict.launch(gang(project="nowhere"))


async def test_names_and_labels_that_are_too_long_or_not_legal() -> None:
    long = "a" * 38
    async with training_cluster(cpu="64", installation="Our company's elearn: production, " + "x" * 60) as it:
        driver = it.driver(LogsInMemory())
        launches = [
            launch_of(f"{long}{end}-1", attempt, project=f"{long}zz", roles=CLUSTER)
            for end in ("y", "z")
            for attempt in (1, 12)
        ]
        for launch in launches:
            await driver.launch(launch)
        namespace = f"elearn-{long}zz"
        assert it.left(namespace) == {"Service": 4, "Job": 12, "Pod": 16}
        hosts = [pod["spec"]["hostname"] for pod in it.store.all(PODS)]
        assert len(set(hosts)) == 16
        assert max(map(len, hosts)) <= 63
        async with Watch(driver) as watch:
            await watch.until(lambda found: len(found.tasks) == 4)
            for launch in launches:
                assert {task.name for task in launch.plan} == set(watch.tasks[launch.name, launch.attempt])
        for launch in launches:
            await driver.free(launch.project, launch.name, launch.attempt)
        assert it.left(namespace) == {}


async def test_two_installations_in_one_namespace_never_meet(it: TrainingCluster) -> None:
    async with connected(it.server, "second") as other:
        ours, theirs, launch = it.driver(LogsInMemory()), it.driver(LogsInMemory(), cluster=other), gang()
        async with Watch(ours) as we, Watch(theirs) as they:
            await ours.launch(launch)
            await we.until_task("chief-0", "running")
            assert not they.tasks
            await theirs.launch(launch)
            await they.until_task("chief-0", "running")
            assert len(it.store.all(SERVICES, NAMESPACE)) == 2
            await ours.free("p", "t-1", 1)
            await we.until(lambda found: not found.tasks)
            assert they.tasks["t-1", 1]["chief-0"].state == "running"
        assert {each["metadata"]["labels"][INSTALLATION] for each in it.store.all(PODS, NAMESPACE)} == {"second"}


# -- freeing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [True, False])
async def test_whoever_dies_anywhere_in_freeing_is_followed_by_another_who_finishes_it(
    it: TrainingCluster, watched: bool
) -> None:
    steps, died = 0, True
    while died:
        steps += 1
        driver, launch = it.driver(LogsInMemory(), background=False), gang(f"t-{steps}")
        await driver.launch(launch)
        await until_running(driver, launch)
        async with watching(driver, launch) if watched else contextlib.nullcontext():
            died = await dies(it, driver.free("p", launch.name, 1), after=steps)
        await it.driver(LogsInMemory(), background=False).free("p", launch.name, 1)
        assert it.left() == {}
        assert await driver.free("p", launch.name, 1) == ()
    assert steps > 5


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("code", [409, 429, 500])
async def test_a_server_in_trouble_is_told_again_to_delete(it: TrainingCluster, code: int, watched: bool) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    await driver.launch(launch)
    async with watching(driver, launch) if watched else contextlib.nullcontext():
        it.server.fail(code, "Conflict" if code == 409 else "", MODIFIED, times=3, method="DELETE", retry_after=0)
        for _ in range(5):
            try:
                await driver.free("p", "t-1", 1)
                break
            except Unavailable:
                continue
    assert it.left() == {}


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting waits for logs until they are read, as long as a busy machine takes."""
    monkeypatch.setattr(module, "_OPEN_SECONDS", 5.0)


@pytest.mark.usefixtures("unhurried")
async def test_what_the_watch_told_is_deleted_before_anything_is_asked(it: TrainingCluster) -> None:
    driver, launch = it.driver(LogsInMemory(), background=False), gang()
    await driver.launch(launch)
    async with watching(driver, launch):
        it.server.requests.clear()
        tasks = await driver.free("p", "t-1", 1)
        asked = [
            "read a log" if path.endswith("/log") else f"{method} {path.split('/')[-2]}"
            for method, path, query in it.server.requests
            if "watch" not in query
        ]
    assert sorted(asked[:4]) == ["read a log"] * 4, "by then they are being read"
    assert sorted(asked[4:11]) == ["DELETE pods"] * 4 + ["PATCH jobs"] * 3
    assert {(task.name, task.state) for task in tasks} == {(task.name, "stopped") for task in launch.plan}
    assert all(task.started_at and task.finished_at and task.node == "n1" for task in tasks)


async def test_what_the_watch_did_not_tell_is_freed_all_the_same(it: TrainingCluster) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    await driver.launch(launch)
    async with watching(driver, launch):
        blind = it.server.fail(503, watch=True, times=1000)
        await it.server.cut()
        (worker,) = workers(it, launch)
        it.life.ended(
            it.store.need(PODS, worker, NAMESPACE), code=137
        )  # it is started again, as a pod that nothing is told of
        async with asyncio.timeout(10):
            while not workers(it, launch) or workers(it, launch) == [worker]:
                await asyncio.sleep(0.01)
        freeing = asyncio.create_task(driver.free("p", "t-1", 1))
        async with asyncio.timeout(10):
            while it.kubelet.running(launch):
                await asyncio.sleep(0.01)
        blind.times = 0
        assert {(task.name, task.state) for task in await freeing} == {(task.name, "stopped") for task in launch.plan}
    assert it.left() == {}


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("watched", [True, False])
async def test_no_log_is_lost_while_the_database_is_away(
    it: TrainingCluster, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    """What runs is ended all the same, what has ended stays, and who freed is no leader any more for a while."""
    monkeypatch.setattr(module, "_GONE_SECONDS", 1.0)
    store = Outage(LogsInMemory())
    driver, launch = it.driver(store, grace=0.1, background=False), gang()
    await driver.launch(launch)
    async with contextlib.AsyncExitStack() as stack:
        watch = await stack.enter_async_context(watching(driver, launch))
        it.kubelet.end(launch, "chief-0", 0)
        await watch.until_task("chief-0", "succeeded")
        if not watched:
            await stack.aclose()
        store.away = True
        with pytest.raises(Unavailable, match="wait to be stored: the database is away"):
            await driver.free("p", "t-1", 1)
        assert it.kubelet.running(launch) == []
        assert it.left()["Pod"] == 1, "the chief, whose log was not read"
        store.away = False
        monkeypatch.setattr(module, "_GONE_SECONDS", 20.0)
        await driver.free("p", "t-1", 1)
    assert it.left() == {}
    for task in launch.plan:
        part = await driver.logs("p", "t-1", 1, task.name, offset=0, length=100)
        assert part.data == b"hello\n"


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("watched", [True, False])
async def test_the_pod_of_a_task_that_has_just_ended_is_left_until_its_log_is_read(
    it: TrainingCluster, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    """Its node says a second later that the pod has ended too; a Job that is held back would delete it until then."""
    monkeypatch.setattr(module, "_GONE_SECONDS", 1.0)
    store = Outage(LogsInMemory())
    driver, launch = it.driver(store, grace=0.1, background=False), gang()
    await driver.launch(launch)
    async with contextlib.AsyncExitStack() as stack:
        watch = await stack.enter_async_context(watching(driver, launch))
        chief = next(pod for pod in it.kubelet.running(launch) if task_of(pod["metadata"]["labels"]) == ("chief", 0))
        it.life.ended(chief, phase="Running")
        await watch.until_task("chief-0", "succeeded")
        if not watched:
            await stack.aclose()
        store.away = True
        it.kubelet.obeys = False
        with pytest.raises(Unavailable):
            await driver.free("p", "t-1", 1)
        left = {task_of(pod["metadata"]["labels"]): pod["metadata"] for pod in it.store.all(PODS, NAMESPACE)}
        assert ["deletionTimestamp" in left[task] for task in (("chief", 0), ("ps", 0))] == [False, True]
        it.kubelet.obeys, store.away = True, False
        monkeypatch.setattr(module, "_GONE_SECONDS", 20.0)
        for name in [about["name"] for task, about in left.items() if task != ("chief", 0)]:
            it.store.finish(PODS, name, NAMESPACE)
        it.life.ended(it.store.need(PODS, chief["metadata"]["name"], NAMESPACE))
        await driver.free("p", "t-1", 1)
    assert it.left() == {}
    assert (await driver.logs("p", "t-1", 1, "chief-0", offset=0, length=100)).data == b"hello\n"


async def test_a_right_that_is_missing_for_freeing_is_named(it: TrainingCluster) -> None:
    driver, launch = it.driver(LogsInMemory()), gang()
    await driver.launch(launch)
    it.server.deny("delete", "pods")
    with pytest.raises(Exception, match="with the verb delete on pods"):
        await driver.free("p", "t-1", 1)
    it.server.allow()
    await driver.free("p", "t-1", 1)
    assert it.left() == {}


async def test_pods_that_do_not_end_are_not_taken_for_gone(
    it: TrainingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GONE_SECONDS", 1.0)
    driver, launch = it.driver(LogsInMemory(), grace=0.1), gang()
    await driver.launch(launch)
    await until_running(driver, launch)
    it.kubelet.obeys = False
    with pytest.raises(Unavailable, match="pods do not end: p-t-1-1-"):
        await driver.free("p", "t-1", 1)
    for pod in it.store.all(PODS, NAMESPACE):
        it.store.finish(PODS, pod["metadata"]["name"], NAMESPACE)
    await driver.free("p", "t-1", 1)
    assert it.left() == {}


async def test_pods_that_nobody_tells_of_are_not_taken_for_gone(
    it: TrainingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = it.driver(LogsInMemory(), grace=1.0)
    await driver.launch(gang())
    monkeypatch.setattr(module, "_GONE_SECONDS", -1.0)  # there is no time to tell
    with pytest.raises(Unavailable, match="does not tell which pods are left"):
        await driver.free("p", "t-1", 1)
    monkeypatch.setattr(module, "_GONE_SECONDS", 20.0)
    await driver.free("p", "t-1", 1)
    assert it.left() == {}


async def test_what_was_never_let_go_and_what_never_started_is_freed_too(it: TrainingCluster) -> None:
    driver = it.driver(LogsInMemory())
    it.kubelet.holding = held()
    await driver.launch(gang("t-1"))
    it.server.deny("patch", "jobs")
    with pytest.raises(Unavailable):
        await driver.launch(gang("t-2"))
    it.server.allow()
    tasks = [*await driver.free("p", "t-1", 1), *await driver.free("p", "t-2", 1)]
    assert {task.state for task in tasks} == {"stopped"}
    assert it.left() == {}


async def test_a_second_attempt_has_nothing_of_the_first(it: TrainingCluster) -> None:
    driver = it.driver(LogsInMemory())
    first, second = gang(attempt=1), gang(attempt=2)
    await driver.launch(first)
    await driver.launch(second)
    assert service_of(first) != service_of(second)
    await driver.free("p", "t-1", 1)
    assert it.left() == EVERYTHING
    async with Watch(driver) as watch:
        await watch.until_task("ps-0", "running", attempt=2)
        assert set(watch.tasks) == {("t-1", 2)}
