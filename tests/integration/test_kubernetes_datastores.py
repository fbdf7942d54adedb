"""Stories of datastores on an emulated cluster: what goes wrong there, and what is said of it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from services.datastore.cloud.kubernetes import agent
from services.datastore.cloud.port import Directory, Observation, Provided, Removed, Synced, Unprovided
from shared.contracts.datastore import S3, Claim, DatastoreSpec, Local, Nfs
from shared.errors import Unavailable
from shared.kube import Cluster
from shared.kube.resources import (
    CONFIG_MAPS,
    JOBS,
    NAMESPACES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    STORAGE_CLASSES,
)
from tests.support.kube_datastores import kubernetes_storage, storage_on
from tests.support.kube_server import KubeServer

NAMESPACE = "elearn-search"


def directory(spec: DatastoreSpec, uid: str = "u1") -> Directory:
    return Directory(uid=uid, project="search", name=spec.name, spec=spec)


def of_class(name: str = "fast") -> Directory:
    return directory(DatastoreSpec(name="digits", claim=Claim(storage_class=name, size="1Gi")))


def storage_class(server: KubeServer, name: str, mode: str = "Immediate") -> None:
    server.store.add(STORAGE_CLASSES, {"metadata": {"name": name}, "provisioner": "p", "volumeBindingMode": mode})


async def next_of(watch: AsyncGenerator[Observation, None]) -> Observation:
    async with asyncio.timeout(5):
        return await anext(watch)


async def test_a_claim_that_never_binds_fails_with_the_clusters_words_and_heals(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path, binding=False, kubernetes_claim_seconds=0.2) as (cloud, server, life, _):
        storage_class(server, "fast")
        await cloud.provision(of_class())
        (claim,) = server.store.all(PERSISTENT_VOLUME_CLAIMS, NAMESPACE)
        name = claim["metadata"]["name"]
        life.event(PERSISTENT_VOLUME_CLAIMS, name, "ProvisioningFailed", "no space on the array", namespace=NAMESPACE)
        async with contextlib.aclosing(cloud.watch()) as watch:
            first = await next_of(watch)
            if first == Synced():
                first = await next_of(watch)
            assert isinstance(first, Unprovided)
            assert "not bound within 0.2 s: ProvisioningFailed: no space on the array" in first.reason
            life.bind(name, namespace=NAMESPACE)
            while not isinstance(seen := await next_of(watch), Provided):
                assert seen == Synced()


async def test_a_claim_that_waits_for_its_first_pod_is_ready(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path, binding=False, kubernetes_claim_seconds=0.1) as (cloud, server, _, _):
        storage_class(server, "lazy", "WaitForFirstConsumer")
        await cloud.provision(of_class("lazy"))
        async with contextlib.aclosing(cloud.watch()) as watch:
            seen = await next_of(watch)
            assert isinstance(seen, Provided)
            assert "first mounted" in seen.note


async def test_letting_go_of_a_class_claim_keeps_its_volume(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        storage_class(server, "fast")
        await cloud.provision(of_class())
        (claim,) = server.store.all(PERSISTENT_VOLUME_CLAIMS, NAMESPACE)
        volume = claim["spec"]["volumeName"]
        server.store.add(
            PERSISTENT_VOLUMES, {"metadata": {"name": volume}, "spec": {"persistentVolumeReclaimPolicy": "Delete"}}
        )
        await cloud.release("u1")
        assert server.store.all(PERSISTENT_VOLUME_CLAIMS, NAMESPACE) == []
        kept = server.store.need(PERSISTENT_VOLUMES, volume)
        assert kept["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
        assert kept["metadata"]["labels"]["elearn.dev/datastore"] == "digits"


async def test_everything_of_a_datastore_goes_and_nothing_else(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path, kubernetes_s3_driver="rclone.csi.veloxpack.io") as (cloud, server, _, _):
        keys = S3(bucket="b", access_key="AKEY", secret_key="SKEY")
        await cloud.provision(directory(DatastoreSpec(name="one", s3=keys)))
        await cloud.provision(directory(DatastoreSpec(name="two", local=Local(path=f"{tmp_path}/two")), "u2"))
        kinds = (CONFIG_MAPS, PERSISTENT_VOLUMES, PERSISTENT_VOLUME_CLAIMS, SECRETS)
        assert [len(server.store.all(kind)) for kind in kinds] == [2, 2, 2, 1]
        assert all(secret["metadata"]["namespace"] == "default" for secret in server.store.all(SECRETS))
        assert "SKEY" not in repr([server.store.all(kind) for kind in kinds[:3]])
        async with contextlib.aclosing(cloud.watch()) as watch:
            assert [type(await next_of(watch)) for _ in range(3)] == [Provided, Provided, Synced]
            await cloud.release("u1")
            assert await next_of(watch) == Removed(uid="u1")
        assert [len(server.store.all(kind)) for kind in kinds] == [1, 1, 1, 0]


async def test_a_claim_that_is_theirs_is_left_alone(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        await cloud.provision(directory(DatastoreSpec(name="digits", claim=Claim(name="theirs"))))
        async with contextlib.aclosing(cloud.watch()) as watch:
            missing = await next_of(watch)
            assert isinstance(missing, Unprovided)
            assert "there is no claim theirs in namespace elearn-search" in missing.reason
            assert await next_of(watch) == Synced()
            claim = {"metadata": {"name": "theirs"}, "spec": {"resources": {}}, "status": {"phase": "Pending"}}
            server.store.add(PERSISTENT_VOLUME_CLAIMS, claim, NAMESPACE)
            assert isinstance(await next_of(watch), Provided)
            await cloud.release("u1")
            assert await next_of(watch) == Removed(uid="u1")
        assert [each["metadata"]["name"] for each in server.store.all(PERSISTENT_VOLUME_CLAIMS)] == ["theirs"]


async def test_what_the_cluster_refuses_is_said_and_leaves_only_what_goes_with_it(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        words = "exceeded quota: storage, requested: persistentvolumeclaims=1, used: 5, limited: 5"
        server.fail(403, "Forbidden", words, method="PATCH", path="persistentvolumeclaims")
        storage_class(server, "fast")
        await cloud.provision(of_class())
        async with contextlib.aclosing(cloud.watch()) as watch:
            seen = await next_of(watch)
            assert isinstance(seen, Unprovided)
            assert "exceeded quota: storage" in seen.reason
        await cloud.release("u1")
        assert server.store.all(CONFIG_MAPS) == []


async def test_a_missing_right_is_named_and_everything_goes_on_once_it_is_given(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        wanted = directory(DatastoreSpec(name="digits", nfs=Nfs(server="a", path="/x")))
        server.deny("patch", "persistentvolumes")
        with pytest.raises(Unavailable, match="ClusterRole with the verb patch on persistentvolumes"):
            await cloud.provision(wanted)
        server.allow()
        await cloud.provision(wanted)
        async with contextlib.aclosing(cloud.watch()) as watch:
            assert isinstance(await next_of(watch), Provided)


async def test_an_interrupted_provision_is_taken_up_and_an_interrupted_release_too(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        wanted = directory(DatastoreSpec(name="digits", nfs=Nfs(server="a", path="/x")))
        server.fail(500, times=99, method="PATCH", path="persistentvolumeclaims")
        with pytest.raises(Unavailable):
            await cloud.provision(wanted)
        async with contextlib.aclosing(cloud.watch()) as watch:
            assert await next_of(watch) == Synced()
            server._faults.clear()
            await cloud.provision(wanted)
            assert isinstance(await next_of(watch), Provided)
            server.fail(500, times=99, method="DELETE", path="persistentvolumes")
            with pytest.raises(Unavailable):
                await cloud.release("u1")
            server._faults.clear()
            await cloud.release("u1")
            assert await next_of(watch) == Removed(uid="u1")
        assert server.store.all(PERSISTENT_VOLUMES) == []


async def test_a_namespace_of_its_own_for_each_project_under_restricted_pod_security(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        await cloud.provision(directory(DatastoreSpec(name="digits", nfs=Nfs(server="a", path="/x"))))
        labels = server.store.need(NAMESPACES, NAMESPACE)["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


async def lose_namespace(server: KubeServer) -> None:
    """Somebody deletes the project's namespace, and with it everything that lies in it."""
    server.store.delete(NAMESPACES, "", NAMESPACE)
    server.store.finish(NAMESPACES, NAMESPACE)


async def test_a_volume_serves_the_claim_that_is_made_anew_with_its_namespace(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        wanted = directory(DatastoreSpec(name="digits", nfs=Nfs(server="a", path="/x")))
        await cloud.provision(wanted)
        async with contextlib.aclosing(cloud.watch()) as watch:
            assert [type(await next_of(watch)) for _ in range(2)] == [Provided, Synced]
            await lose_namespace(server)
            assert await next_of(watch) == Removed(uid="u1")
            (volume,) = server.store.all(PERSISTENT_VOLUMES)
            assert volume["status"]["phase"] == "Released"
            with contextlib.suppress(Unavailable):  # the namespace was there a moment ago
                await cloud.provision(wanted)
            await cloud.provision(wanted)
            assert isinstance(await next_of(watch), Provided)
        (volume,) = server.store.all(PERSISTENT_VOLUMES)
        (claim,) = server.store.all(PERSISTENT_VOLUME_CLAIMS)
        assert (volume["status"]["phase"], claim["status"]["phase"]) == ("Bound", "Bound")
        assert volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]


async def test_what_lies_outside_a_namespace_that_is_gone_goes_too(tmp_path: Path) -> None:
    async with kubernetes_storage(
        tmp_path, kubernetes_s3_driver="rclone.csi.veloxpack.io", kubernetes_nfs_own=("files:/own",)
    ) as (cloud, server, _, _):
        keys = S3(bucket="b", access_key="AKEY", secret_key="SKEY")
        await cloud.provision(directory(DatastoreSpec(name="one", s3=keys), "u1"))
        await cloud.provision(directory(DatastoreSpec(name="two", nfs=Nfs(server="files", path="/own")), "u2"))
        await cloud.provision(directory(DatastoreSpec(name="three", s3=keys), "u3"))
        await lose_namespace(server)
        kinds = (PERSISTENT_VOLUMES, STORAGE_CLASSES, SECRETS)
        assert [len(server.store.all(kind)) for kind in kinds] == [2, 1, 2]
        await cloud.release("u1")
        await cloud.release("u2")
        assert [len(server.store.all(kind)) for kind in kinds] == [1, 0, 1]
        assert server.store.all(SECRETS)[0]["metadata"]["labels"]["elearn.dev/uid"] == "u3"


async def test_a_volume_that_is_kept_for_its_files_stays_whatever_happens_to_the_namespace(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        storage_class(server, "fast")
        await cloud.provision(of_class())
        (claim,) = server.store.all(PERSISTENT_VOLUME_CLAIMS, NAMESPACE)
        made = {"name": claim["spec"]["volumeName"]}
        server.store.add(PERSISTENT_VOLUMES, {"metadata": made, "spec": {"persistentVolumeReclaimPolicy": "Delete"}})
        await cloud.release("u1")
        await cloud.release("u1")  # as the controller does, of what it no longer sees
        assert server.store.need(PERSISTENT_VOLUMES, made["name"])["metadata"]["labels"]["elearn.dev/uid"] == "u1"


async def test_files_go_through_one_pod_that_two_replicas_share(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, life, _):
        path = tmp_path / "files"
        await cloud.provision(directory(DatastoreSpec(name="digits", local=Local(path=str(path)))))
        async with contextlib.aclosing(cloud.watch()) as watch:
            seen = await next_of(watch)
        assert isinstance(seen, Provided)
        await cloud.write(seen.volume, "a/b", upload="x", offset=0, data=b"abc", end=True)
        assert (path / "a/b").read_bytes() == b"abc"
        other = storage_on(cloud._cluster, tmp_path)
        assert (await other.read(seen.volume, "a/b", offset=1, length=9)).data == b"bc"
        (pod,) = server.store.all(PODS)
        box = pod["spec"]["containers"][0]
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert box["securityContext"]["readOnlyRootFilesystem"] is True
        (job,) = server.store.all(JOBS)
        life.lose_node("n1")  # and what worked on it
        life.node("n2")
        with contextlib.suppress(Unavailable):
            await cloud.stat(seen.volume, "a/b")
        server.store.finish(JOBS, job["metadata"]["name"], NAMESPACE)
        assert (await cloud.stat(seen.volume, "a/b")).size == 3


async def test_no_pod_is_started_for_sweeping_alone(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, life, _):
        await cloud.provision(directory(DatastoreSpec(name="digits", local=Local(path=f"{tmp_path}/x"))))
        async with contextlib.aclosing(cloud.watch()) as watch:
            seen = await next_of(watch)
        assert isinstance(seen, Provided)
        assert await cloud.sweep(seen.volume, older_than=0) == 0
        assert server.store.all(JOBS) == []
        await cloud.write(seen.volume, "a", upload="x", offset=0, data=b"abc", end=False)
        agent.sweep(f"{tmp_path}/x")
        assert await cloud.sweep(seen.volume, older_than=0) == 1
        await cloud.write(seen.volume, "a", upload="x", offset=0, data=b"abc", end=False)
        (left,) = (tmp_path / "x" / ".elearn-uploads").iterdir()
        os.utime(left, (0, 0))
        agent.sweep(f"{tmp_path}/x")
        assert list((tmp_path / "x").iterdir()) == []
        (job,) = server.store.all(JOBS)
        life.ended(server.store.all(PODS)[0])  # nobody asked for so long
        server.store.finish(JOBS, job["metadata"]["name"], NAMESPACE)
        for _ in range(2):
            assert await cloud.sweep(seen.volume, older_than=0) == 0
        assert server.store.all(JOBS) == []


async def test_why_files_can_not_be_reached_yet(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, life, kubelet):
        kubelet.holding = True
        cloud._agents._patience = 0.4
        await cloud.provision(directory(DatastoreSpec(name="digits", local=Local(path=f"{tmp_path}/x"))))
        async with contextlib.aclosing(cloud.watch()) as watch:
            seen = await next_of(watch)
        assert isinstance(seen, Provided)
        with pytest.raises(Unavailable, match="it is starting; try again"):
            await cloud.probe(seen.volume, read_only=False)
        (pod,) = server.store.all(PODS)
        life.event(PODS, pod["metadata"]["name"], "FailedMount", "access denied by server", namespace=NAMESPACE)
        probe = await cloud.probe(seen.volume, read_only=False)
        assert (probe.ok, probe.message) == (False, "FailedMount: access denied by server")
        (job,) = server.store.all(JOBS)
        life.image_missing(job["metadata"]["name"], namespace=NAMESPACE)
        with pytest.raises(Unavailable, match="image elearn:dev can't be pulled"):
            await cloud.stat(seen.volume, "")


async def test_who_does_not_know_the_token_is_told_nothing(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, _, _, _):
        await cloud.provision(directory(DatastoreSpec(name="digits", local=Local(path=f"{tmp_path}/x"))))
        async with contextlib.aclosing(cloud.watch()) as watch:
            seen = await next_of(watch)
        assert isinstance(seen, Provided)
        await cloud.stat(seen.volume, "")
        stranger = storage_on(cloud._cluster, tmp_path)
        stranger._agents._secret = b"x" * 64
        with pytest.raises(Exception, match="does not know this token"):
            await stranger.stat(seen.volume, "")


async def test_other_installations_are_left_alone(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        wanted = directory(DatastoreSpec(name="digits", nfs=Nfs(server="a", path="/x")))
        await cloud.provision(wanted)
        async with Cluster(server.settings(kubernetes_installation="other"), find=server.access) as cluster:
            await storage_on(cluster, tmp_path).provision(wanted)
        assert len(server.store.all(PERSISTENT_VOLUMES)) == 2
        async with contextlib.aclosing(cloud.watch()) as watch:
            assert isinstance(await next_of(watch), Provided)
            assert await next_of(watch) == Synced()
        await cloud.release("u1")
        (left,) = server.store.all(PERSISTENT_VOLUMES)
        assert left["metadata"]["labels"]["elearn.dev/installation"] == "other"


@pytest.mark.parametrize(("code", "reason"), [(409, "Conflict"), (429, "TooManyRequests"), (500, "InternalError")])
async def test_a_busy_server_is_asked_again(tmp_path: Path, code: int, reason: str) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        words = "the object has been modified; please apply your changes to the latest version and try again"
        server.fail(code, reason, words, times=2, method="PATCH", path="persistentvolume", retry_after=0)
        await cloud.provision(directory(DatastoreSpec(name="digits", nfs=Nfs(server="a", path="/x"))))
        async with contextlib.aclosing(cloud.watch()) as watch:
            assert isinstance(await next_of(watch), Provided)


async def test_the_watch_bears_with_cuts_and_forgotten_history(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _), contextlib.aclosing(cloud.watch()) as watch:
        assert await next_of(watch) == Synced()
        await server.watched(2)
        server.gone()
        await cloud.provision(directory(DatastoreSpec(name="one", nfs=Nfs(server="a", path="/x"))))
        assert isinstance(await next_of(watch), Provided)
        await server.watched(2)
        await server.cut(mid_line=True)
        await cloud.release("u1")
        assert await next_of(watch) == Removed(uid="u1")


async def test_a_namespace_that_is_being_deleted_is_waited_for(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        going = {"name": NAMESPACE, "deletionTimestamp": "2026-01-01T00:00:00Z"}
        server.store.add(NAMESPACES, {"metadata": going, "status": {"phase": "Terminating"}})
        wanted = directory(DatastoreSpec(name="digits", nfs=Nfs(server="a", path="/x")))
        with pytest.raises(Unavailable, match="namespace elearn-search is being deleted"):
            await cloud.provision(wanted)


async def test_a_claim_that_a_stranger_deletes_is_said_and_not_made_anew(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, server, _, _):
        storage_class(server, "fast")
        await cloud.provision(of_class())
        async with contextlib.aclosing(cloud.watch()) as watch:
            assert isinstance(await next_of(watch), Provided)
            assert await next_of(watch) == Synced()
            (claim,) = server.store.all(PERSISTENT_VOLUME_CLAIMS)
            server.store.finish(PERSISTENT_VOLUME_CLAIMS, claim["metadata"]["name"], NAMESPACE)
            seen = await next_of(watch)
            assert isinstance(seen, Unprovided)
            assert "was deleted by somebody else" in seen.reason
            await cloud.provision(of_class())  # an empty one in its place would hide the loss
            assert server.store.all(PERSISTENT_VOLUME_CLAIMS) == []


async def test_a_storage_class_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    async with kubernetes_storage(tmp_path) as (cloud, _, _, _):
        (error,) = await cloud.admit(of_class("nowhere").spec)
        assert (error.field, error.message) == ("claim.storage_class", "this cluster has no storage class nowhere")
