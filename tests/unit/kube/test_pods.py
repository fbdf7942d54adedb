"""Into pods: ports that are forwarded, and commands that are run."""

import asyncio

import pytest

from shared.errors import NotFound, TooLarge, Unsupported
from shared.kube import Cluster
from shared.kube.errors import PolicyRefused, Unreachable
from shared.kube.pods import execute, forwarded
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


async def test_a_port_is_forwarded_for_many_connections(server: KubeServer, cluster: Cluster) -> None:
    ended = asyncio.Semaphore(0)

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        ended.release()

    target = await asyncio.start_server(shout, "127.0.0.1", 0)
    server.ports["default", "a", 8500] = target.sockets[0].getsockname()

    async def talk(word: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(host, port)
        heard = b""
        for _ in range(3):
            writer.write(word * 50_000)
            await writer.drain()
            heard += await reader.readexactly(50_000 * len(word))
        writer.close()
        await writer.wait_closed()
        return heard

    async with asyncio.timeout(20), target, forwarded(cluster, "a", 8500) as (host, port):
        assert host == "127.0.0.1"
        heard = await asyncio.gather(*(talk(bytes([letter])) for letter in b"abcd"))
        assert heard == [bytes([letter]) * 150_000 for letter in b"ABCD"]
        for _ in range(4):
            await ended.acquire()  # a connection that is closed here is closed there


async def test_a_port_that_nobody_listens_on_closes_the_connection(server: KubeServer, cluster: Cluster) -> None:
    async with asyncio.timeout(10), forwarded(cluster, "a", 1) as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
