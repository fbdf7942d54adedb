"""Local ports that lead to whichever pods are ready."""

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable, Sequence

import pytest

from shared.errors import Unavailable
from shared.kube import Cluster
from shared.kube.forwarding import ReadyPods, forwarded
from shared.kube.objects import Condition, Metadata, Pod, PodStatus
from shared.kube.resources import PODS
from tests.support.kube_server import KubeServer

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def pod(name: str, *, ready: bool = True) -> Pod:
    conditions = (Condition(type="Ready", status="True" if ready else "False"),)
    return Pod(metadata=Metadata(name=name), status=PodStatus(phase="Running", conditions=conditions))


def ready(server: KubeServer, *names: str) -> ReadyPods:
    """These pods are there and ready."""
    pods = ReadyPods("serving digits", patience=0.2)
    pods.show([pod(name) for name in names])
    for name in names:
        if server.store.find(PODS, name, "default") is None:
            server.store.add(PODS, {"metadata": {"name": name}}, "default")
    return pods


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data.upper())
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def listens(server: KubeServer, name: str, serve: Serve = echo) -> asyncio.Server:
    """Somebody listens in a pod."""
    target = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.ports["default", name, 8500] = target.sockets[0].getsockname()
    return target


async def said(address: tuple[str, int], words: bytes) -> bytes:
    """What comes back before the connection is closed."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(words)
    try:
        return await reader.readexactly(len(words))
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("shown", "besides", "taken"),
    [
        (["a", "b", "c"], (), "abcabc"),
        (["b", "a"], (), "abab"),
        (["a", "b", "c"], ("b",), "acac"),
        (["a"], (), "aaa"),
    ],
)
async def test_ready_pods_are_taken_in_turn(shown: Sequence[str], besides: Sequence[str], taken: str) -> None:
    pods = ReadyPods("x", patience=0.1)
    pods.show([*map(pod, shown), pod("starting", ready=False)])
    assert "".join([await pods.next(besides) for _ in taken]) == taken


async def test_a_new_pod_is_taken_first_and_one_that_left_never() -> None:
    pods = ReadyPods("x", patience=0.1)
    pods.show([pod("a"), pod("b")])
    assert [await pods.next() for _ in range(2)] == ["a", "b"]
    pods.show([pod("b"), pod("c")])
    assert [await pods.next() for _ in range(3)] == ["c", "b", "c"]


async def test_a_pod_is_waited_for_but_not_for_ever() -> None:
    pods = ReadyPods("serving digits", patience=5)
    waiting = [asyncio.create_task(pods.next()) for _ in range(2)]
    await asyncio.sleep(0)
    pods.show([pod("a", ready=False)])
    await asyncio.sleep(0)
    pods.show([pod("a")])
    assert await asyncio.gather(*waiting) == ["a", "a"]
    nobody = ReadyPods("serving digits", patience=0.01)
    with pytest.raises(Unavailable, match="no pod of serving digits is ready"):
        await nobody.next()


async def test_a_port_is_forwarded_for_many_connections(server: KubeServer, cluster: Cluster) -> None:
    ended = asyncio.Semaphore(0)

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await echo(reader, writer)
        ended.release()

    async def talk(address: tuple[str, int], word: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        heard = b""
        for _ in range(3):
            writer.write(word * 50_000)
            await writer.drain()
            heard += await reader.readexactly(50_000 * len(word))
        writer.close()
        await writer.wait_closed()
        return heard

    pods = ready(server, "a")
    async with asyncio.timeout(20), await listens(server, "a", shout), forwarded(cluster, pods, 8500) as address:
        assert address[0] == "127.0.0.1"
        heard = await asyncio.gather(*(talk(address, bytes([letter])) for letter in b"abcd"))
        assert heard == [bytes([letter]) * 150_000 for letter in b"ABCD"]
        for _ in range(4):
            await ended.acquire()  # a connection that is closed here is closed there


async def test_a_port_that_nobody_listens_on_closes_the_connection(server: KubeServer, cluster: Cluster) -> None:
    async with asyncio.timeout(10), forwarded(cluster, ready(server, "a"), 8500) as address:
        assert await said(address, b"hello") == b""


@pytest.mark.parametrize("gone", [False, True])
async def test_a_connection_that_a_pod_does_not_take_goes_to_another_whole(
    server: KubeServer, cluster: Cluster, gone: bool
) -> None:
    """The watch is always a little late: a pod may have gone, or its server may have ended."""
    pods = ready(server, "a", "b")
    if gone:
        server.store.delete(PODS, "default", "a")
    async with asyncio.timeout(10), await listens(server, "b"), forwarded(cluster, pods, 8500) as address:
        for _ in range(3):
            assert await said(address, b"x" * 200_000) == b"X" * 200_000


async def test_the_only_pod_that_is_going_is_followed_by_the_next_that_is_ready(
    server: KubeServer, cluster: Cluster
) -> None:
    pods = ready(server, "a")
    async with asyncio.timeout(10), await listens(server, "b"), forwarded(cluster, pods, 8500) as address:
        asking = asyncio.create_task(said(address, b"hello"))
        while not any(path.endswith("/a/portforward") for _, path, _ in server.requests):
            await asyncio.sleep(0)
        ready(server, "b")
        pods.show([pod("b")])
        assert await asking == b"HELLO"


async def test_what_was_heard_is_never_said_again(server: KubeServer, cluster: Cluster) -> None:
    heard: list[bytes] = []

    async def break_down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(100))
        writer.close()

    pods = ready(server, "a", "b")
    async with (
        asyncio.timeout(10),
        await listens(server, "a", break_down),
        await listens(server, "b", break_down),
        forwarded(cluster, pods, 8500) as address,
    ):
        assert await said(address, b"pay 5") == b""
        assert heard == [b"pay 5"]


async def test_connections_that_have_not_begun_are_closed_too(server: KubeServer, cluster: Cluster) -> None:
    """Whoever leaves one open is told of by a ResourceWarning, which is an error here."""
    for _ in range(5):
        async with await listens(server, "a"), forwarded(cluster, ready(server, "a"), 8500) as address:
            with socket.socket() as client:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, address)
                await asyncio.sleep(0)
    gc.collect()


async def test_a_local_port_is_taken_again_unless_somebody_else_has_it(server: KubeServer, cluster: Cluster) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        pods = ready(server, "a")
        async with forwarded(cluster, pods, 8500, prefer=[taken]) as (_, first):
            assert first != taken
        for _ in range(2):
            async with forwarded(cluster, pods, 8500, prefer=[taken, first]) as (_, second):
                assert second == first
