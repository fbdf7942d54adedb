"""Commands that are run in pods."""

import pytest

from shared.errors import NotFound, TooLarge, Unsupported
from shared.kube import Cluster
from shared.kube.errors import PolicyRefused, Unreachable
from shared.kube.pods import execute
from shared.kube.resources import PODS
from tests.support.kube_server import KubeServer
from tests.unit.kube.conftest import client


@pytest.fixture(autouse=True)
def pod(server: KubeServer) -> None:
    server.store.add(PODS, {"metadata": {"name": "a"}}, "default")


async def test_a_command_is_run_with_input_and_output(server: KubeServer, cluster: Cluster) -> None:
    server.on_exec = lambda pod, command, stdin: (0, b"|".join([pod.encode(), *map(str.encode, command), stdin]), b"e")
    ended = await execute(cluster, "a", ["cat", "-n"], stdin=b"x" * 200_000)
    assert ended.code == 0
    assert ended.stdout == b"a|cat|-n|" + b"x" * 200_000
    assert ended.stderr == b"e"


async def test_a_command_that_fails_has_its_exit_code(server: KubeServer, cluster: Cluster) -> None:
    server.on_exec = lambda *_: (3, b"", b"no such file")
    ended = await execute(cluster, "a", ["ls"])
    assert (ended.code, ended.stderr) == (3, b"no such file")


async def test_output_and_time_have_limits(server: KubeServer, cluster: Cluster) -> None:
    server.on_exec = lambda *_: (0, b"x" * 1000, b"")
    with pytest.raises(TooLarge, match="more than 999 bytes"):
        await execute(cluster, "a", ["yes"], limit=999)
    server.fail(what="hang")
    with pytest.raises(Unreachable, match=r"did not end within 0\.05 s"):
        await execute(cluster, "a", ["sleep"], timeout=0.05)


async def test_refusals(server: KubeServer, cluster: Cluster) -> None:
    with pytest.raises(NotFound):
        server.fail(404, "NotFound")
        await execute(cluster, "b", ["true"])
    server.deny("get", "pods/exec", "default")
    with pytest.raises(PolicyRefused):
        await execute(cluster, "a", ["true"])
    server.allow()
    server.exec_protocol = "v4.channel.k8s.io"
    with pytest.raises(Unsupported, match=r"1\.29"):
        await execute(cluster, "a", ["cat"], stdin=b"x")


async def test_an_expired_token_is_read_again(server: KubeServer) -> None:
    server.tokens = {"old"}
    async with client(server) as cluster:
        await execute(cluster, "a", ["true"])
        server.tokens = {"new"}
        await execute(cluster, "a", ["true"])
