"""Stories of TensorBoards and of furnished namespaces on an emulated cluster."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, NamedTuple

import aiohttp
import pytest
import structlog
from aiohttp import web
from msgspec.structs import replace

from services.scheduler.cloud.kubernetes.boards import Boards
from services.scheduler.cloud.kubernetes.furniture import Furniture
from services.scheduler.cloud.kubernetes.manifests import SERVICE_ACCOUNT
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.port import BoardPlan
from services.scheduler.model import MountPlan
from shared.contracts.datastore import ClaimVolume
from shared.errors import Unavailable, Unsupported
from shared.kube import Cluster
from shared.kube.access import Right
from shared.kube.names import PROJECT
from shared.kube.projects import Projects
from shared.kube.resources import (
    DEPLOYMENTS,
    NAMESPACES,
    NETWORK_POLICIES,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
)
from shared.kube.settings import KubernetesSettings, ProjectSettings
from tests.support.kube_fields import Document
from tests.support.kube_kubelet import PodServer, emulated
from tests.support.kube_life import ClusterLife
from tests.support.kube_rights import FORWARDING, ChartRights

NAMESPACE = "elearn-search"
MOUNT = MountPlan(datastore="runs", path="out", read_only=False, folder="", volume=ClaimVolume(claim_name="runs"))
BOARD = BoardPlan(project="search", name="ctr-7", mount=MOUNT, path="logs", path_prefix="/board")
SETTINGS = ProjectSettings()
FORWARD = TrainingOptions(kubernetes_board_access="forward")
SERVICE = TrainingOptions(kubernetes_board_access="service")


class Bench(NamedTuple):
    boards: Boards
    furniture: Furniture
    cluster: Cluster
    server: PodServer
    life: ClusterLife

    @property
    def pods(self) -> list[Document]:
        """Of boards, that are not on their way out."""
        found = self.server.store.all(PODS, NAMESPACE)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def answered_by(self, page: tuple[str, int]) -> None:
        """Whatever pod there is answers like that."""
        for pod in self.pods:
            self.server.ports[NAMESPACE, pod["metadata"]["name"], 6006] = page


@pytest.fixture
async def bench(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with emulated(tmp_path, deploying=getattr(request, "param", True)) as (server, life, _, cluster):
        server.rights = ChartRights("scheduler", beyond=[FORWARDING])
        projects = Projects(cluster, SETTINGS)
        furniture = Furniture(cluster, SETTINGS, projects)
        await furniture.ensure("search")
        boards = Boards(cluster, SETTINGS, FORWARD, projects, patience=2.0)
        try:
            yield Bench(boards, furniture, cluster, server, life)
        finally:
            await boards.aclose()


@pytest.fixture
async def page() -> AsyncIterator[tuple[str, int]]:
    """A web server that stands for the one in the pod."""
    app = web.Application()
    app.router.add_get("/board/", _hello)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][:2]
    await runner.cleanup()


async def _hello(_: web.Request) -> web.Response:
    return web.Response(text="hello")


async def get(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/board/") as answer:
        return await answer.text()


# -- TensorBoards ----------------------------------------------------------------------------------------------------


async def test_a_board_is_reached_through_a_port_of_this_machine(bench: Bench, page: tuple[str, int]) -> None:
    url = await bench.boards.open(BOARD)
    assert url.startswith("http://127.0.0.1:")
    bench.answered_by(page)
    assert await get(url) == "hello"
    assert await bench.boards.open(BOARD) == url  # as often as one likes
    assert [len(bench.server.store.all(kind, NAMESPACE)) for kind in (DEPLOYMENTS, SERVICES, PODS)] == [1, 1, 1]
    await bench.boards.close("search", "ctr-7")
    await bench.boards.close("search", "ctr-7")
    assert [len(bench.server.store.all(kind, NAMESPACE)) for kind in (DEPLOYMENTS, SERVICES, PODS)] == [0, 0, 0]
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(url)


async def test_the_port_leads_to_the_pod_that_follows_another(bench: Bench, page: tuple[str, int]) -> None:
    url = await bench.boards.open(BOARD)
    (before,) = bench.pods
    bench.server.store.finish(PODS, before["metadata"]["name"], NAMESPACE)
    (deployment,) = bench.server.store.all(DEPLOYMENTS, NAMESPACE)
    bench.life.deployed(deployment["metadata"]["name"], namespace=NAMESPACE)
    (after,) = bench.pods
    assert after["metadata"]["name"] != before["metadata"]["name"]
    bench.answered_by(page)
    assert await bench.boards.open(BOARD) == url
    assert await get(url) == "hello"


async def test_a_board_that_another_replica_closes_is_let_go_here_too(bench: Bench, page: tuple[str, int]) -> None:
    url = await bench.boards.open(BOARD)
    other = Boards(bench.cluster, SETTINGS, FORWARD, Projects(bench.cluster, SETTINGS))
    await other.close("search", "ctr-7")
    host, port = url.removeprefix("http://").split(":")
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                break
            writer.close()
            await asyncio.sleep(0.01)
    again = await bench.boards.open(BOARD)
    bench.answered_by(page)
    assert await get(again) == "hello"


async def test_whoever_waits_for_a_pod_is_let_go_when_the_board_is_closed(bench: Bench) -> None:
    url = await bench.boards.open(BOARD)
    (pod,) = bench.pods
    bench.server.store.change(
        PODS, pod["metadata"]["name"], NAMESPACE, status={"conditions": [{"type": "Ready", "status": "False"}]}
    )
    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(str(context)))
    await bench.server.settled()
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await bench.boards.close("search", "ctr-7")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert errors == []


async def test_another_folder_is_shown_by_another_pod(bench: Bench) -> None:
    await bench.boards.open(BOARD)
    (before,) = bench.pods
    await bench.boards.open(replace(BOARD, path="other"))
    (after,) = [pod for pod in bench.pods if pod["metadata"]["name"] != before["metadata"]["name"]]
    assert "--logdir=/elearn/events/other" in after["spec"]["containers"][0]["args"]


async def test_inside_the_cluster_a_board_is_reached_by_its_service(bench: Bench) -> None:
    reached: list[tuple[str, int]] = []

    async def reach(host: str, port: int) -> None:
        reached.append((host, port))
        if len(reached) < 3:
            raise ConnectionRefusedError("not yet")

    boards = Boards(bench.cluster, SETTINGS, SERVICE, Projects(bench.cluster, SETTINGS), reach=reach)
    url = await boards.open(BOARD)
    (service,) = bench.server.store.all(SERVICES, NAMESPACE)
    host = f"{service['metadata']['name']}.{NAMESPACE}.svc"
    assert url == f"http://{host}:6006"
    assert reached == [(host, 6006)] * 3


async def test_a_board_that_can_not_be_reached_from_here_says_how_it_could(bench: Bench) -> None:
    async def reach(host: str, port: int) -> None:
        raise OSError("Name or service not known")

    boards = Boards(bench.cluster, SETTINGS, SERVICE, Projects(bench.cluster, SETTINGS), patience=0.5, reach=reach)
    with pytest.raises(Unavailable, match=r"not known.*ELEARN_KUBERNETES_BOARD_ACCESS to forward"):
        await boards.open(BOARD)


@pytest.mark.parametrize(("access", "home", "forwards"), [("", "", True), ("", "a", False), ("forward", "a", True)])
def test_how_boards_are_reached(access: Literal["", "forward"], home: str, forwards: bool) -> None:
    class Where:
        def __init__(self) -> None:
            self.home = home

    options = TrainingOptions(kubernetes_board_access=access)
    boards = Boards(Where(), SETTINGS, options, None)  # type: ignore[arg-type]  # it looks at the home alone
    rights: list[Right] = boards.rights()
    assert any(right.subresource == "portforward" for right in rights) is forwards


def _status(state: Document, **more: object) -> Document:
    return {
        "phase": "Pending",
        "containerStatuses": [{"name": "tensorboard", "ready": False, "restartCount": 1, "state": state, **more}],
    }


WAITING = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
BROKEN = {"exitCode": 1, "message": "ValueError: no such flag"}
NO_PYTHON = {"exitCode": 128, "message": 'runc create failed: exec: "python3": executable file not found in $PATH'}
EMPTY = {"exitCode": 1, "message": "/usr/bin/python3: No module named tensorboard"}


@pytest.mark.parametrize("bench", [False], indirect=True)
@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        ({}, Unavailable, "it is starting"),
        (_status({"running": {}}), Unavailable, "it is starting"),
        (_status({"waiting": {"reason": "ErrImagePull", "message": "not found"}}), Unavailable, "can't be pulled"),
        (_status(WAITING, lastState={"terminated": BROKEN}), Unavailable, "no such flag"),
        (_status({"terminated": BROKEN}), Unavailable, "it ended: exit code 1 .ValueError: no such flag"),
        (_status(WAITING, lastState={"terminated": EMPTY}), Unsupported, "ELEARN_KUBERNETES_BOARD_IMAGE"),
        (_status({"terminated": EMPTY}), Unsupported, "holds no TensorBoard"),
        (_status({"terminated": NO_PYTHON}), Unsupported, "holds no TensorBoard"),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "unbound claims"}]},
            Unavailable,
            "no node takes it: unbound claims",
        ),
    ],
)
async def test_what_a_board_waits_for_is_said(
    bench: Bench, status: Document, error: type[Exception], words: str
) -> None:
    boards = Boards(bench.cluster, SETTINGS, FORWARD, Projects(bench.cluster, SETTINGS), patience=1.0)
    opening = asyncio.create_task(boards.open(BOARD))
    async with asyncio.timeout(5):
        while not bench.pods:
            await asyncio.sleep(0)
    name = bench.pods[0]["metadata"]["name"]
    bench.server.store.change(PODS, name, NAMESPACE, status=status)
    if "containerStatuses" in status:
        bench.life.event(PODS, name, "Unhealthy", "Readiness probe failed", namespace=NAMESPACE)
    with pytest.raises(error, match=words):
        await opening


async def test_a_missing_right_is_named(bench: Bench) -> None:
    bench.server.deny("patch", "deployments")
    with pytest.raises(Unavailable, match="the verb patch on deployments"):
        await bench.boards.open(BOARD)


# -- furniture -------------------------------------------------------------------------------------------------------


async def test_a_namespace_is_furnished_once(bench: Bench) -> None:
    account = bench.server.store.need(SERVICE_ACCOUNTS, SERVICE_ACCOUNT, NAMESPACE)
    assert account["automountServiceAccountToken"] is False
    assert len(bench.server.store.all(NETWORK_POLICIES, NAMESPACE)) == 2
    before = len(bench.server.requests)
    assert await bench.furniture.ensure("search") == NAMESPACE
    assert len(bench.server.requests) == before


@pytest.mark.parametrize("told", ["by a training", "by a board"])
async def test_a_namespace_that_went_is_made_and_furnished_again(bench: Bench, told: str) -> None:
    for kind in (SERVICE_ACCOUNTS, NETWORK_POLICIES):
        for each in bench.server.store.all(kind, NAMESPACE):
            bench.server.store.finish(kind, each["metadata"]["name"], NAMESPACE)
    bench.server.store.finish(NAMESPACES, NAMESPACE, "")
    if told == "by a training":
        bench.furniture.forget(NAMESPACE)
    else:
        with pytest.raises(Unavailable, match=NAMESPACE):
            await bench.boards.open(BOARD)
    await bench.furniture.ensure("search")
    bench.server.store.need(SERVICE_ACCOUNTS, SERVICE_ACCOUNT, NAMESPACE)
    assert len(bench.server.store.all(NETWORK_POLICIES, NAMESPACE)) == 2


async def test_no_right_to_policies_stops_no_training(bench: Bench) -> None:
    bench.server.deny("patch", "networkpolicies")
    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            bench.furniture.forget(NAMESPACE)
            assert await bench.furniture.ensure("search") == NAMESPACE
    assert len([log for log in logs if "NetworkPolicy" in log["event"]]) == 1


async def test_no_right_to_make_an_account_asks_for_one(bench: Bench) -> None:
    bench.server.deny("patch", "serviceaccounts")
    bench.furniture.forget(NAMESPACE)
    await bench.furniture.ensure("search")  # there is one
    bench.server.store.finish(SERVICE_ACCOUNTS, SERVICE_ACCOUNT, NAMESPACE)
    bench.furniture.forget(NAMESPACE)
    with pytest.raises(Unavailable, match=f"ServiceAccount {SERVICE_ACCOUNT} in namespace {NAMESPACE}"):
        await bench.furniture.ensure("search")


async def test_every_project_of_a_namespace_gets_its_own_policies(bench: Bench) -> None:
    shared = ProjectSettings(kubernetes_project_namespace="work")
    furniture = Furniture(bench.cluster, shared, Projects(bench.cluster, shared))
    for _ in range(2):
        for project in ("search", "ads"):
            assert await furniture.ensure(project) == "work"
    policies = bench.server.store.all(NETWORK_POLICIES, "work")
    selected = sorted(each["spec"]["podSelector"]["matchLabels"][PROJECT] for each in policies)
    assert selected == ["ads", "ads", "search", "search"]
    for each in policies:
        bench.server.store.finish(NETWORK_POLICIES, each["metadata"]["name"], "work")
    furniture.forget("work")
    for project in ("search", "ads"):
        await furniture.ensure(project)
    assert len(bench.server.store.all(NETWORK_POLICIES, "work")) == 4


async def test_two_installations_share_a_namespace(bench: Bench) -> None:
    settings = KubernetesSettings(kubernetes_installation="other")
    async with Cluster(settings, find=bench.server.access) as cluster:
        other = Furniture(cluster, SETTINGS, Projects(cluster, SETTINGS))
        assert await other.ensure("search") == NAMESPACE
    assert len(bench.server.store.all(SERVICE_ACCOUNTS, NAMESPACE)) == 1
    assert len(bench.server.store.all(NETWORK_POLICIES, NAMESPACE)) == 4
