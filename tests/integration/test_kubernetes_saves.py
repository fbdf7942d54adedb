"""Stories of saves on an emulated cluster."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from services.registry.cloud.kubernetes import work
from services.registry.cloud.port import Gone, JobCloud, Lost, Observation, Refused, Running, SaveJob, Succeeded, Synced
from services.registry.model import Key
from services.registry.reconcile import Job
from services.registry.save_job import job as files
from shared.errors import Unavailable
from shared.kube.resources import JOBS, NAMESPACES, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS
from tests.contract.job_cloud_models import write_saved_model
from tests.support.kube_registry import NAMESPACE, SOURCE, jobs_on, kubernetes_jobs

KEY = Key("default", "digits", 1)
JOB = Job(KEY, 1)
ASKED = SaveJob(job=JOB, volume=SOURCE, path="export", shown="export in datastore runs")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_saved_model(tmp_path / "data" / "export")
    return tmp_path / "data"


async def outcome(cloud: JobCloud, job: Job = JOB) -> Observation:
    async with asyncio.timeout(10), contextlib.aclosing(cloud.watch()) as watch:
        async for seen in watch:
            if not isinstance(seen, Running | Gone | Synced) and seen.job == job:
                return seen
    raise AssertionError("the watch ended")


async def test_a_pod_that_is_evicted_is_replaced_and_the_save_succeeds(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, life, kubelet):
        kubelet.holding = True
        await cloud.save(ASKED)
        (job,) = server.store.all(JOBS)
        kubelet.holding = False
        life.evict(job["metadata"]["name"], namespace=NAMESPACE)
        assert isinstance(await outcome(cloud), Succeeded)


async def test_a_pod_that_is_killed_makes_the_save_lost(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, life, kubelet):
        kubelet.holding = True
        await cloud.save(ASKED)
        (job,) = server.store.all(JOBS)
        life.out_of_memory(job["metadata"]["name"], namespace=NAMESPACE)
        seen = await outcome(cloud)
        assert isinstance(seen, Lost)
        assert "want of memory" in seen.reason


async def test_an_image_that_is_missing_fails_the_save_in_words(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data, kubernetes_save_start_seconds=0.0) as (cloud, server, life, kubelet):
        kubelet.holding = True
        await cloud.save(ASKED)
        (job,) = server.store.all(JOBS)
        life.image_missing(job["metadata"]["name"], namespace=NAMESPACE)
        seen = await outcome(cloud)
        assert isinstance(seen, Refused)
        assert "image elearn:dev can't be pulled" in seen.reason


async def test_a_mount_that_fails_is_told_in_the_clusters_words(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data, kubernetes_save_start_seconds=0.0) as (cloud, server, life, kubelet):
        kubelet.holding = True
        await cloud.save(ASKED)
        (pod,) = server.store.all(PODS)
        words = "MountVolume.SetUp failed: access denied by server"
        life.event(PODS, pod["metadata"]["name"], "FailedMount", words, namespace=NAMESPACE)
        seen = await outcome(cloud)
        assert isinstance(seen, Refused)
        assert f"could not start: FailedMount: {words}" in seen.reason


async def test_a_store_that_may_not_be_written_is_said(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(work, "perform", refuse)
    async with kubernetes_jobs(tmp_path, data) as (cloud, _, _, _):
        await cloud.save(ASKED)
        seen = await outcome(cloud)
        assert isinstance(seen, Refused)
        assert "has no right to write to the model store" in seen.reason


async def test_a_result_too_long_for_a_message_is_read_from_the_log(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, life, kubelet):
        kubelet.holding = True
        await cloud.save(ASKED)
        (pod,) = server.store.all(PODS)
        facts = work.perform(
            work.Save(
                job=files.Job(
                    project="default",
                    model="digits",
                    number=1,
                    attempt=1,
                    volume=str(data),
                    path="export",
                    shown="x",
                    store=str(tmp_path / "models"),
                )
            )
        )
        assert facts.facts is not None
        await server.log(pod["metadata"]["name"], "noise\n" + work.pack(facts), namespace=NAMESPACE, end=True)
        life.ended(pod, message=work.IN_LOG)
        assert await outcome(cloud) == Succeeded(job=JOB, facts=facts.facts)


async def test_a_result_whose_pod_was_deleted_is_found_by_the_next_attempt(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, _, _):
        await cloud.save(ASKED)
        assert isinstance(first := await outcome(cloud), Succeeded)
        for pod in server.store.all(PODS, NAMESPACE):
            server.store.finish(PODS, pod["metadata"]["name"], NAMESPACE)
        again = jobs_on(cloud._cluster, tmp_path / "models")
        assert isinstance(await outcome(again), Lost)
        next_job = Job(KEY, 2)
        (data / "export" / "saved_model.pb").unlink()
        await again.save(SaveJob(job=next_job, volume=SOURCE, path="export", shown="x"))
        assert await outcome(again, next_job) == Succeeded(job=next_job, facts=first.facts)


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_store_is_bound_again_in_a_namespace_that_was_made_anew(
    tmp_path: Path, data: Path, restarted: bool
) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, _, kubelet):
        kubelet.holding = True
        await cloud.save(ASKED)
        server.store.delete(NAMESPACES, "", NAMESPACE)
        server.store.finish(NAMESPACES, NAMESPACE)
        phases = {each["metadata"]["name"]: each.get("status") for each in server.store.all(PERSISTENT_VOLUMES)}
        assert {"phase": "Released"} in phases.values()
        # By another room, so that nothing tells this one.
        server.store.add(NAMESPACES, {"metadata": {"name": NAMESPACE}, "status": {"phase": "Active"}})
        again = jobs_on(cloud._cluster, tmp_path / "models") if restarted else cloud
        await again.save(SaveJob(job=Job(KEY, 2), volume=SOURCE, path="export", shown="x"))
        (claim,) = server.store.all(PERSISTENT_VOLUME_CLAIMS, NAMESPACE)
        assert claim["status"]["phase"] == "Bound"
        volume = server.store.need(PERSISTENT_VOLUMES, claim["spec"]["volumeName"])
        assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]


async def test_a_job_that_a_stranger_deletes_is_gone(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, _, kubelet):
        kubelet.holding = True
        async with asyncio.timeout(10), contextlib.aclosing(cloud.watch()) as watch:
            assert await anext(watch) == Synced()
            await cloud.save(ASKED)
            assert await anext(watch) == Running(job=JOB)
            (job,) = server.store.all(JOBS)
            server.store.finish(JOBS, job["metadata"]["name"], NAMESPACE)
            assert await anext(watch) == Gone(job=JOB)


async def test_what_the_cluster_refuses_for_good_is_told_and_a_missing_right_is_waited_for(
    tmp_path: Path, data: Path
) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, _, _):
        server.deny("create", "jobs")
        with pytest.raises(Unavailable, match="with the verb create on jobs"):
            await cloud.save(ASKED)
        server.allow()
        server.fail(403, "Forbidden", "pods are not allowed here", method="POST", path="jobs")
        await cloud.save(ASKED)
        seen = await outcome(cloud)
        assert isinstance(seen, Refused)
        assert "pods are not allowed here" in seen.reason
        await cloud.finish(JOB)
        await cloud.save(ASKED)
        assert isinstance(await outcome(cloud), Succeeded)


@pytest.mark.parametrize("code", [429, 500])
async def test_a_busy_server_is_asked_again(tmp_path: Path, data: Path, code: int) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, _, _):
        server.fail(code, times=2, method="PATCH", path="persistentvolume", retry_after=0)
        await cloud.save(ASKED)
        assert isinstance(await outcome(cloud), Succeeded)


async def test_the_watch_bears_with_cuts_and_forgotten_history(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, _, kubelet):
        kubelet.holding = True
        async with asyncio.timeout(20), contextlib.aclosing(cloud.watch()) as watch:
            assert await anext(watch) == Synced()
            await server.watched(2)
            server.gone()
            await cloud.save(ASKED)
            assert await anext(watch) == Running(job=JOB)
            await server.watched(2)
            await server.cut(mid_line=True)
            (pod,) = server.store.all(PODS)
            kubelet.start(pod)
            assert isinstance(await anext(watch), Succeeded)


async def test_a_store_in_each_namespace_that_is_the_same_folder(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, _, _):
        await cloud.save(ASKED)
        assert isinstance(await outcome(cloud), Succeeded)
        store = await cloud.volume("default")
        claim = server.store.need(PERSISTENT_VOLUME_CLAIMS, store.claim_name, NAMESPACE)
        volume = server.store.need(PERSISTENT_VOLUMES, claim["spec"]["volumeName"])
        assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
        assert (tmp_path / "models" / cloud.path(KEY) / "saved_model.pb").exists()
        await cloud.remove(KEY)
        assert not (tmp_path / "models" / "default").exists()
        assert server.store.all(JOBS) == []


async def test_removing_waits_for_what_still_writes(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, life, kubelet):
        kubelet.holding = True
        await cloud.save(ASKED)
        (pod,) = server.store.all(PODS)
        life.running(pod)
        server.store.graceful = True
        cloud._patience = 0.3
        with pytest.raises(Unavailable, match="could not be removed yet"):
            await cloud.remove(KEY)
        kubelet.holding = False
        server.store.graceful = False
        for each in server.store.all(PODS, NAMESPACE):
            server.store.finish(PODS, each["metadata"]["name"], NAMESPACE)
        cloud._patience = 5.0
        await cloud.remove(KEY)


async def test_a_project_that_never_saved_has_nothing_to_remove(tmp_path: Path, data: Path) -> None:
    async with kubernetes_jobs(tmp_path, data) as (cloud, server, _, _):
        await cloud.remove(Key("nobody", "x", 1))
        assert server.asked("POST", "jobs") == 0
