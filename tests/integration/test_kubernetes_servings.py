"""Stories of servings on an emulated cluster."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict
from urllib.parse import urlsplit

import pytest
import structlog
from msgspec.structs import replace

from services.serving.cloud.kubernetes import KubernetesServings
from services.serving.cloud.kubernetes.manifests import GRPC, REST, REVISION
from services.serving.cloud.port import Deployment
from services.serving.model import Source
from shared.contracts.serving import ServingSpec
from shared.errors import Unavailable, Unsupported
from shared.kube import Cluster
from shared.kube.resources import (
    AUTOSCALERS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NAMESPACES,
    NETWORK_POLICIES,
    NODES,
    PODS,
    SERVICES,
    Resource,
)
from tests.contract.test_serving_cloud import leading, settled
from tests.support.kube_fields import Document
from tests.support.kube_kubelet import PodServer, emulated
from tests.support.kube_life import ClusterLife
from tests.support.kube_rights import FORWARDING, ChartRights
from tests.support.kube_servings import MODELS, NAMESPACE, ModelServers, servings_on

KINDS = (SERVICES, DEPLOYMENTS, DISRUPTION_BUDGETS, AUTOSCALERS, PODS)
ONE = Deployment(
    uid="0123456789abcdef",
    project="default",
    name="digits",
    model="digits",
    revision=1,
    replicas=2,
    sources=(Source(number=1, volume=MODELS, path="default/digits/1"),),
    traffic={1: 100},
    labels={},
)


class Bench(NamedTuple):
    cloud: KubernetesServings
    cluster: Cluster
    server: PodServer
    life: ClusterLife


class Size(TypedDict, total=False):
    cpu: float
    memory: str
    gpu: int


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    (tmp_path / "1").mkdir()
    async with emulated(tmp_path, deploying=False) as (server, life, _, cluster):
        server.rights = ChartRights("serving", beyond=[FORWARDING])
        ModelServers(server, life, tmp_path)
        yield Bench(servings_on(cluster), cluster, server, life)


async def test_everything_of_a_serving_goes_and_nothing_else(bench: Bench) -> None:
    other = replace(ONE, uid="feedfeedfeedfeed", name="other")
    async with leading(bench.cloud) as watching:
        await bench.cloud.apply(replace(ONE, max_replicas=4))
        await bench.cloud.apply(other)
        await watching.until(settled(1, 2))
        await watching.until(settled(1, 2), other.uid)
        assert [len(bench.server.store.all(kind, NAMESPACE)) for kind in KINDS] == [2, 2, 2, 1, 4]
        await bench.cloud.remove(ONE.uid)
        await watching.gone()
        assert [len(bench.server.store.all(kind, NAMESPACE)) for kind in KINDS] == [1, 1, 1, 0, 2]


async def test_an_autoscaler_decides_between_the_bounds_until_there_are_none(bench: Bench) -> None:
    async with leading(bench.cloud) as watching:
        await bench.cloud.apply(replace(ONE, max_replicas=4))
        seen = await watching.until(settled(1, 2))
        assert seen.wanted == 2
        (deployment,) = bench.server.store.all(DEPLOYMENTS)
        bench.server.store.patch(
            DEPLOYMENTS,
            NAMESPACE,
            deployment["metadata"]["name"],
            {"spec": {"replicas": 3}},
            "merge",
            "kube-controller-manager",
        )
        seen = await watching.until(settled(1, 3))
        assert seen.wanted == 3
        await bench.cloud.apply(replace(ONE, max_replicas=4, revision=2))
        seen = await watching.until(settled(2, 3))  # what the autoscaler wants is not reset by a new revision
        again = servings_on(bench.cluster)
        async with leading(again) as other:
            assert (await other.until(settled(2, 3))).wanted == 3
        await bench.cloud.apply(replace(ONE, revision=2))
        assert (await watching.until(settled(2, 2))).wanted is None
        assert bench.server.store.all(AUTOSCALERS) == []


async def test_what_the_cluster_refuses_fails_the_revision_in_words_and_leaves_the_old_one(bench: Bench) -> None:
    async with leading(bench.cloud) as watching:
        await bench.cloud.apply(ONE)
        await watching.until(settled(1, 2))
        bench.server.fail(422, "Invalid", "spec.template: no privileged servers", method="PATCH", path="deployments")
        await bench.cloud.apply(replace(ONE, revision=2))
        seen = await watching.until(lambda seen: seen.replicas[-1].state == "failing")
        assert [each.state for each in seen.replicas] == ["ready", "ready", "failing"]
        assert "no privileged servers" in seen.replicas[-1].reason
        await bench.cloud.apply(ONE)
        await watching.until(settled(1, 2))


async def test_a_missing_right_is_named_and_waited_for(bench: Bench) -> None:
    bench.server.deny("patch", "deployments")
    with pytest.raises(Unavailable, match="with the verb patch on deployments"):
        await bench.cloud.apply(ONE)
    bench.server.allow()
    async with leading(bench.cloud) as watching:
        await bench.cloud.apply(ONE)
        await watching.until(settled(1, 2))


async def test_who_may_call_servings_is_narrowed_down_before_there_are_any(bench: Bench) -> None:
    bench.server.deny("patch", "deployments")
    with pytest.raises(Unavailable):
        await bench.cloud.apply(ONE)
    (policy,) = bench.server.store.all(NETWORK_POLICIES, NAMESPACE)
    assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {}}]
    opened = servings_on(bench.cluster, kubernetes_serving_service="NodePort", kubernetes_serving_host="nodes.example")
    bench.server.allow()
    await opened.apply(ONE)
    (policy,) = bench.server.store.all(NETWORK_POLICIES, NAMESPACE)
    assert "from" not in policy["spec"]["ingress"][0]


async def test_no_right_to_policies_stops_no_serving(bench: Bench) -> None:
    bench.server.deny("patch", "networkpolicies")
    async with leading(bench.cloud) as watching:
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                await bench.cloud.apply(ONE)
        await watching.until(settled(1, 2))
    assert len([log for log in logs if "NetworkPolicy" in log["event"]]) == 1


async def test_a_namespace_that_went_is_made_again_with_its_policy(bench: Bench) -> None:
    await bench.cloud.apply(ONE)
    for kind in (*KINDS, NETWORK_POLICIES):
        for each in bench.server.store.all(kind, NAMESPACE):
            bench.server.store.finish(kind, each["metadata"]["name"], NAMESPACE)
    bench.server.store.finish(NAMESPACES, NAMESPACE, "")
    with pytest.raises(Unavailable, match=NAMESPACE):
        await bench.cloud.apply(ONE)
    await bench.cloud.apply(ONE)
    assert len(bench.server.store.all(NETWORK_POLICIES, NAMESPACE)) == 1


@pytest.mark.parametrize("code", [409, 429, 500])
async def test_a_busy_server_is_asked_again(bench: Bench, code: int) -> None:
    words = "the object has been modified; please apply your changes to the latest version and try again"
    bench.server.fail(code, "Conflict" if code == 409 else "", words, times=2, method="PATCH", retry_after=0)
    async with leading(bench.cloud) as watching:
        await bench.cloud.apply(ONE)
        await watching.until(settled(1, 2))


async def test_the_watch_bears_with_cuts_and_forgotten_history(bench: Bench) -> None:
    async with leading(bench.cloud) as watching:
        await bench.server.watched(3)
        bench.server.gone()
        await bench.cloud.apply(ONE)
        await watching.until(settled(1, 2))
        await bench.server.watched(3)
        await bench.server.cut(mid_line=True)
        await bench.cloud.apply(replace(ONE, replicas=3))
        await watching.until(settled(1, 3))


async def test_a_lost_node_is_seen_and_its_replicas_are_made_anew(bench: Bench) -> None:
    async with leading(bench.cloud) as watching:
        await bench.cloud.apply(ONE)
        await watching.until(settled(1, 2))
        bench.life.lose_node("n1")
        await watching.until(lambda seen: not settled(1, 2)(seen))


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        ({"gpu": 1}, "gpu", "no node has 1 GPUs: the most is 0"),
        ({"cpu": 17}, "cpu", "the most is 16"),
        ({"memory": "65Gi"}, "memory", "no node has 65 GiB: the most is 64"),
        ({"memory": "much"}, "memory", "much"),
        ({"cpu": 16, "memory": "64Gi"}, "", ""),
    ],
)
async def test_what_no_node_is_large_enough_for(bench: Bench, spec: Size, field: str, words: str) -> None:
    cloud = servings_on(bench.cluster, kubernetes_serving_gpu_image="elearn:gpu")
    errors = await cloud.admit(ServingSpec(name="d", model="d", version=1, **spec))
    assert [error.field for error in errors] == ([field] if field else [])
    assert all(words in error.message for error in errors)


@pytest.mark.parametrize(
    ("keeps", "gpu", "words"),
    [
        ({}, 0, ""),
        ({}, 8, ""),
        ({"unschedulable": True}, 0, "no node has 32 CPUs: the most is 16"),
        ({"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}, 0, "no node has 32 CPUs: the most is 16"),
        ({"taints": [{"key": "dedicated", "effect": "NoExecute"}]}, 8, "no node has 8 GPUs: the most is 0"),
        ({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}, 0, "no node has 32 CPUs: the most is 16"),
        ({"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}, 8, ""),
    ],
)
async def test_a_node_that_takes_no_replicas_is_not_counted(
    bench: Bench, keeps: dict[str, Any], gpu: int, words: str
) -> None:
    bench.life.node("large", cpu="64", gpus=8)
    bench.server.store.change(NODES, "large", spec=keeps)
    cloud = servings_on(bench.cluster, kubernetes_serving_gpu_image="elearn:gpu")
    errors = await cloud.admit(ServingSpec(name="d", model="d", version=1, cpu=32, gpu=gpu))
    assert [error.message for error in errors] == ([words] if words else [])


async def test_gpus_without_a_server_that_uses_them_are_refused(bench: Bench) -> None:
    bench.life.node("large", gpus=8)
    spec = ServingSpec(name="d", model="d", version=1, gpu=1)
    (error,) = await bench.cloud.admit(spec)
    assert error.field == "gpu"
    assert "ELEARN_KUBERNETES_SERVING_GPU_IMAGE" in error.message
    assert await servings_on(bench.cluster, kubernetes_serving_server="tensorflow-serving").admit(spec) == []


async def test_traffic_is_split_by_our_own_server_alone(bench: Bench) -> None:
    assert bench.cloud.capabilities.traffic_split
    other = servings_on(bench.cluster, kubernetes_serving_server="tensorflow-serving")
    assert not other.capabilities.traffic_split


async def test_nodes_that_clients_reach_have_to_be_named(bench: Bench) -> None:
    with pytest.raises(Unsupported, match="ELEARN_KUBERNETES_SERVING_HOST"):
        servings_on(bench.cluster, kubernetes_serving_service="NodePort")


# -- reached from outside the cluster ---------------------------------------------------------------------------------


@pytest.fixture
async def answering(bench: Bench) -> AsyncIterator[None]:
    """Every pod tells the revision that it is of, to whoever connects."""
    async with contextlib.AsyncExitStack() as stack:

        def answers(words: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
            def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(words.encode())
                writer.close()

            return answer

        listening = {
            revision: await stack.enter_async_context(
                await asyncio.start_server(answers(f"revision {revision}"), "127.0.0.1", 0)
            )
            for revision in (1, 2)
        }

        def written(resource: Resource, _: object, pod: Document | None) -> None:
            if resource == PODS and pod is not None:
                about = pod["metadata"]
                server = listening[int(about["labels"][REVISION])]
                for port in (GRPC, REST):
                    bench.server.ports[about["namespace"], about["name"], port] = server.sockets[0].getsockname()

        bench.server.store.on_write.append(written)
        yield


async def heard(address: str) -> str:
    url = urlsplit(address if "//" in address else f"//{address}")
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        return (await reader.read()).decode()
    finally:
        writer.close()


@pytest.mark.usefixtures("answering")
async def test_outside_the_cluster_a_serving_answers_at_ports_of_this_machine_that_stay(bench: Bench) -> None:
    async with leading(bench.cloud) as watching, asyncio.timeout(20):
        await bench.cloud.apply(ONE)
        endpoint = (await watching.until(settled(1, 2))).endpoint
        assert endpoint is not None
        assert endpoint.rest.startswith("http://127.0.0.1:")
        assert endpoint.rest.endswith("/v1/models/digits")
        for address in (endpoint.grpc, endpoint.rest) * 2:
            assert await heard(address) == "revision 1"
        await bench.cloud.apply(replace(ONE, revision=2))
        assert (await watching.until(settled(2, 2))).endpoint == endpoint
        for address in (endpoint.grpc, endpoint.rest) * 2:
            assert await heard(address) == "revision 2"
    with pytest.raises(OSError, match="onnect"):
        await heard(endpoint.grpc)
    again = servings_on(bench.cluster)
    async with leading(again) as watching, asyncio.timeout(20):
        assert (await watching.until(settled(2, 2))).endpoint == endpoint
        assert await heard(endpoint.rest) == "revision 2"
        await again.remove(ONE.uid)
        await watching.gone()
        with pytest.raises(OSError, match="onnect"):
            await heard(endpoint.rest)


async def test_who_wants_the_address_of_the_service_gets_it(bench: Bench) -> None:
    cloud = servings_on(bench.cluster, kubernetes_serving_access="service")
    async with leading(cloud) as watching:
        await cloud.apply(ONE)
        endpoint = (await watching.until(settled(1, 2))).endpoint
        assert endpoint is not None
        assert f".{NAMESPACE}.svc.cluster.local:" in endpoint.grpc
