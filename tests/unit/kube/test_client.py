"""The client against an emulated API: what is sent, what is repeated, and what each refusal is called."""

import asyncio
from typing import Any

import pytest

from shared.errors import ElearnError, Forbidden, Invalid, NotFound, TooLarge, Unavailable, Unsupported
from shared.kube import Cluster, Right, missing_rights, server_version
from shared.kube.errors import (
    AlreadyExists,
    Busy,
    CredentialsRefused,
    FieldConflict,
    Foreign,
    KindMissing,
    MissingRight,
    NamespaceMissing,
    PolicyRefused,
    QuotaExceeded,
    Terminating,
    Unreachable,
)
from shared.kube.names import INSTALLATION
from shared.kube.objects import Job, Partial, Pod, Secret, Service, owner_reference
from shared.kube.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    NAMESPACES,
    NODES,
    PODS,
    SECRETS,
    SERVICES,
    Resource,
)
from tests.support.kube_server import KubeServer
from tests.unit.kube.conftest import client


def config_map(name: str = "settings", **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def job(name: str = "train", command: str = "true", **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "busybox", "command": [command]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {**spec, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }


# -- writing ----------------------------------------------------------------------------------------------------------


async def test_apply_creates_changes_and_removes_fields_and_marks_the_object(
    server: KubeServer, cluster: Cluster
) -> None:
    first = await cluster.apply(config_map(a="1", b="2"))
    assert first.uid
    again = await cluster.apply(config_map(a="1", b="2"))
    assert again.resource_version == first.resource_version  # nothing changed
    await cluster.apply(config_map(a="3"))
    live = server.store.need(CONFIG_MAPS, "settings", "default")
    assert live["data"] == {"a": "3"}
    assert live["metadata"]["labels"] == {INSTALLATION: "elearn", "app.kubernetes.io/managed-by": "elearn"}
    assert {query["fieldManager"] for method, _, query in server.requests if method == "PATCH"} == {"elearn"}


async def test_pods_of_a_job_carry_the_installation_too(server: KubeServer, cluster: Cluster) -> None:
    await cluster.apply(job(suspend=True))
    template = server.store.need(JOBS, "train", "default")["spec"]["template"]
    assert template["metadata"]["labels"][INSTALLATION] == "elearn"
    found = await cluster.get(JOBS, "train", Job)
    assert found is not None
    assert found.spec.suspend
    await cluster.patch(JOBS, "train", {"spec": {"suspend": False}})
    assert (await cluster.list(JOBS, Job))[0].spec.suspend is False


async def test_a_field_of_somebody_else_is_not_taken_unless_forced(server: KubeServer, cluster: Cluster) -> None:
    await cluster.apply(config_map(a="1", b="2"))
    server.store.patch(CONFIG_MAPS, "default", "settings", {"data": {"a": "theirs"}}, "merge", "kubectl-edit")
    with pytest.raises(FieldConflict, match=r"data.a \(kubectl-edit\)") as caught:
        await cluster.apply(config_map(a="ours", b="2"))
    assert caught.value.owners == {"data.a": "kubectl-edit"}
    assert caught.value.errors[0].field == "data.a"
    await cluster.apply(config_map(b="3"))  # what we leave out is left alone
    assert server.store.need(CONFIG_MAPS, "settings", "default")["data"] == {"a": "theirs", "b": "3"}
    await cluster.apply(config_map(a="ours", b="3"), force=True)
    assert server.store.need(CONFIG_MAPS, "settings", "default")["data"] == {"a": "ours", "b": "3"}


async def test_a_field_that_we_wrote_in_another_way_is_ours(server: KubeServer, cluster: Cluster) -> None:
    await cluster.create(config_map(a="1"))
    await cluster.apply(config_map(a="2"))
    assert server.store.need(CONFIG_MAPS, "settings", "default")["data"] == {"a": "2"}


async def test_two_installations_leave_each_others_objects_alone(server: KubeServer, cluster: Cluster) -> None:
    await cluster.apply(config_map(a="1"))
    async with client(server, kubernetes_installation="staging") as staging:
        assert await staging.list(CONFIG_MAPS, Partial) == []
        for force in (False, True):
            with pytest.raises(Foreign, match="another installation"):
                await staging.apply(config_map(a="1"), force=force)
        with pytest.raises(Foreign, match="left alone"):
            await staging.delete(CONFIG_MAPS, "settings")
    assert server.store.find(CONFIG_MAPS, "settings", "default") is not None


async def test_a_strangers_object_is_not_deleted(server: KubeServer, cluster: Cluster) -> None:
    server.store.add(CONFIG_MAPS, {"metadata": {"name": "theirs"}}, "default")
    with pytest.raises(Foreign):
        await cluster.delete(CONFIG_MAPS, "theirs")


async def test_what_is_owned_goes_with_its_owner(server: KubeServer, cluster: Cluster) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "train"},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "ports": [{"port": 2222}]},
    }
    owner = await cluster.apply(service)
    owned = job()
    owned["metadata"]["ownerReferences"] = [owner_reference("v1", "Service", owner)]
    await cluster.apply(owned)
    assert await cluster.delete(SERVICES, "train") is True
    assert server.store.find(JOBS, "train", "default") is None
    assert await cluster.delete(SERVICES, "train") is False
    assert await cluster.get(SERVICES, "train", Service) is None


async def test_deleting_by_uid_spares_a_successor_of_the_same_name(server: KubeServer, cluster: Cluster) -> None:
    old = await cluster.apply(config_map(a="1"))
    server.store.finish(CONFIG_MAPS, "settings", "default")
    await cluster.apply(config_map(a="2"))
    assert await cluster.delete(CONFIG_MAPS, "settings", uid=old.uid) is False
    assert server.store.find(CONFIG_MAPS, "settings", "default") is not None


async def test_a_dry_run_leaves_nothing(server: KubeServer, cluster: Cluster) -> None:
    await cluster.apply(config_map(a="1"), dry_run=True)
    await cluster.create(config_map(a="1"), dry_run=True)
    assert server.store.all(CONFIG_MAPS) == []


async def test_secrets_come_back_as_bytes(server: KubeServer, cluster: Cluster) -> None:
    await cluster.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {}, "data": {"k": "AAH/"}}
    )
    found = await cluster.get(SECRETS, "keys", Secret)
    assert found is not None
    assert found.data == {"k": b"\x00\x01\xff"}


async def test_lists_come_in_pages(server: KubeServer, cluster: Cluster) -> None:
    for number in range(1203):
        server.store.add(NODES, {"metadata": {"name": f"n{number:04}"}})
    nodes = await cluster.list(NODES, Partial, ours=False)
    assert [node.metadata.name for node in nodes] == [f"n{number:04}" for number in range(1203)]
    assert server.asked("GET", "/nodes") == 3


# -- repeating --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"code": 429, "reason": "TooManyRequests", "retry_after": "0"},
        {"code": 500, "reason": "InternalError"},
        {"code": 503, "reason": "ServiceUnavailable"},
        {"what": "page"},
        {"what": "drop"},
        {"what": "drop answer"},
        {"code": 409, "reason": "Conflict", "message": "please apply your changes to the latest version and try again"},
    ],
    ids=str,
)
async def test_what_is_idempotent_is_repeated(server: KubeServer, cluster: Cluster, fault: dict[str, Any]) -> None:
    server.fail(**fault, times=3)
    await cluster.apply(config_map(a="1"))
    assert server.asked("PATCH", "/configmaps/settings") == 4
    if fault.get("code") != 409:
        server.fail(**fault, times=2)
        assert await cluster.delete(CONFIG_MAPS, "settings") is (fault.get("what") != "drop answer" or True)
        assert server.store.find(CONFIG_MAPS, "settings", "default") is None


async def test_a_create_whose_answer_was_lost_is_not_repeated(server: KubeServer, cluster: Cluster) -> None:
    server.fail(what="drop answer")
    with pytest.raises(Unreachable):
        await cluster.create(config_map(a="1"))
    with pytest.raises(AlreadyExists):
        await cluster.create(config_map(a="1"))
    server.fail(503, "ServiceUnavailable")
    with pytest.raises(Unavailable):
        await cluster.create(config_map("other"))
    server.fail(429, "TooManyRequests", retry_after="0")
    await cluster.create(config_map("other"))


async def test_patience_ends(server: KubeServer) -> None:
    async with client(server, kubernetes_patience=0.05) as cluster:
        server.fail(503, "ServiceUnavailable", "etcd is away", times=1000, path="/pods")
        with pytest.raises(Unavailable, match="etcd is away"):
            await cluster.list(PODS, Pod)
        server.fail(429, "TooManyRequests", retry_after="3600", times=1000, path="/nodes")
        with pytest.raises(Busy) as caught:
            await cluster.list(NODES, Partial)
        assert caught.value.retry_after == 3600


async def test_a_server_that_does_not_answer_is_given_up(server: KubeServer) -> None:
    async with client(server, kubernetes_timeout=0.5, kubernetes_patience=0.6) as cluster:
        server.fail(what="hang", times=100)
        with pytest.raises(Unreachable, match="no answer in time"):
            await cluster.get(PODS, "a", Pod)


async def test_a_server_that_is_not_there(server: KubeServer) -> None:
    async with client(server, kubernetes_patience=0.05) as cluster:
        await server.stop()
        with pytest.raises(Unreachable, match=rf"127.0.0.1:{server.port} can't be reached to get pods/a") as caught:
            await cluster.get(PODS, "a", Pod)
        assert caught.value.unsent
        assert caught.value.status == 503


async def test_an_expired_token_is_read_again_once(server: KubeServer) -> None:
    server.tokens = {"old"}
    async with client(server) as cluster:
        await cluster.apply(config_map(a="1"))
        server.tokens = {"new"}
        results = await asyncio.gather(*(cluster.apply(config_map(f"c{n}")) for n in range(8)))
        assert len(results) == 8
        server.tokens = set()
        server.requests.clear()
        with pytest.raises(CredentialsRefused, match="renew"):
            await cluster.list(PODS, Pod)
        assert len(server.requests) <= 2


# -- refusals ---------------------------------------------------------------------------------------------------------


async def refusal(cluster: Cluster, manifest: dict[str, Any]) -> ElearnError:
    with pytest.raises(ElearnError) as caught:
        await cluster.apply(manifest)
    assert "\n" not in caught.value.detail
    return caught.value


async def test_rbac_that_forbids_names_the_verb_the_kind_and_the_namespace(
    server: KubeServer, cluster: Cluster
) -> None:
    server.deny("patch", "jobs", "default")
    error = await refusal(cluster, job())
    assert isinstance(error, MissingRight)
    assert (error.verb, error.plural, error.group, error.namespace) == ("patch", "jobs", "batch", "default")
    assert "patch jobs.batch in namespace default: give it a Role" in error.detail
    server.deny("list", "nodes")
    with pytest.raises(MissingRight, match="in the whole cluster: give it a ClusterRole with the verb list on nodes"):
        await cluster.list(NODES, Partial)


async def test_missing_rights_can_be_asked_for(server: KubeServer, cluster: Cluster) -> None:
    server.deny("create", "pods/exec", "default")
    server.deny("list", "nodes")
    rights = [
        Right(verb="list", resource=PODS, namespace="default"),
        Right(verb="create", resource=PODS, namespace="default", subresource="exec"),
        Right(verb="list", resource=NODES),
    ]
    missing = await missing_rights(cluster, rights)
    assert [str(right) for right in missing] == [
        "create pods/exec in namespace default",
        "list nodes in all namespaces",
    ]


async def test_quota_policy_and_webhooks(server: KubeServer, cluster: Cluster) -> None:
    server.fail(403, "Forbidden", 'jobs.batch "train" is forbidden: exceeded quota: team, requested: count/jobs=1')
    error = await refusal(cluster, job())
    assert isinstance(error, QuotaExceeded)
    assert "exceeded quota: team" in error.detail
    server.fail(403, "Forbidden", 'pods "a" is forbidden: violates PodSecurity "restricted:latest"')
    assert isinstance(await refusal(cluster, job()), PolicyRefused)
    assert issubclass(QuotaExceeded, Forbidden)


async def test_namespaces_that_are_not_there_or_are_going(server: KubeServer, cluster: Cluster) -> None:
    elsewhere = config_map()
    elsewhere["metadata"]["namespace"] = "nowhere"
    error = await refusal(cluster, elsewhere)
    assert isinstance(error, NamespaceMissing)
    assert "namespace nowhere does not exist" in error.detail
    server.store.delete(NAMESPACES, "", "default")
    assert isinstance(await refusal(cluster, config_map()), Terminating)


async def test_unknown_and_wrong_fields_are_named(server: KubeServer, cluster: Cluster) -> None:
    error = await refusal(cluster, job(retries=3))
    assert isinstance(error, Invalid)
    assert [each.field for each in error.errors] == ["retries"]
    await cluster.apply(job())
    error = await refusal(cluster, job(command="false"))
    assert [each.field for each in error.errors] == ["spec.template"]
    assert "immutable" in error.errors[0].message
    error = await refusal(cluster, config_map("x" * 300))
    assert [each.field for each in error.errors] == ["metadata.name"]


async def test_other_refusals(server: KubeServer, cluster: Cluster) -> None:
    server.fail(413, "RequestEntityTooLarge")
    assert isinstance(await refusal(cluster, config_map()), TooLarge)
    with pytest.raises(NotFound, match=r'deployments\.apps "none" not found'):
        await cluster.patch(DEPLOYMENTS, "none", {})
    with pytest.raises(KindMissing, match="does not serve things"):
        await cluster.list(Resource("nobody.dev", "v1", "Thing", "things"), Partial)


async def test_old_clusters_are_refused(server: KubeServer, cluster: Cluster) -> None:
    assert await server_version(cluster) == (1, 36)
    server.version = ("1", "28+")
    assert await server_version(cluster) == (1, 28)
    server.version = ("1", "27")
    with pytest.raises(Unsupported, match=r"1\.27\.0: elearn needs 1\.28"):
        await server_version(cluster)


# -- logs -------------------------------------------------------------------------------------------------------------


async def test_logs_are_read_and_followed(server: KubeServer, cluster: Cluster) -> None:
    server.store.add(PODS, {"metadata": {"name": "a"}}, "default")
    with pytest.raises(Invalid, match="waiting to start"):
        async with cluster.logs("a"):
            pass
    with pytest.raises(NotFound):
        async with cluster.logs("b"):
            pass
    await server.log("a", "one\ntwo\n")
    async with cluster.logs("a", tail=1) as chunks:
        assert b"".join([chunk async for chunk in chunks]) == b"two\n"
    async with cluster.logs("a", follow=True) as chunks:
        assert await anext(chunks) == b"one\ntwo\n"
        await server.log("a", "three\n", end=True)
        assert b"".join([chunk async for chunk in chunks]) == b"three\n"
