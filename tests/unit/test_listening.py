"""Servers listen at every address of a machine where they are told to, whichever families it has."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from services.api.listener import listen
from services.scheduler.cloud.kubernetes.code_server import CodeServer
from services.scheduler.cloud.kubernetes.code_tokens import CodeTokens
from shared import listening
from shared.health import HealthServer

HAS_IPV6 = "::" in listening.addresses("*")


async def _key() -> bytes:
    return b"key"


@contextlib.asynccontextmanager
async def _health(host: str, port: int) -> AsyncIterator[None]:
    server = HealthServer(host, port, {})
    await server.start()
    yield
    await server.stop()


@contextlib.asynccontextmanager
async def _gateway(host: str, port: int) -> AsyncIterator[None]:
    stop = await listen(web.Application(), host, port)
    yield
    await stop()


@contextlib.asynccontextmanager
async def _code(host: str, port: int) -> AsyncIterator[None]:
    nothing: Any = None
    server = CodeServer(nothing, CodeTokens(_key), nothing, host=host, port=port)
    running = asyncio.create_task(server.run())
    yield
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


SERVERS = {"health": _health, "gateway": _gateway, "code": _code}
Serve = Callable[[str, int], contextlib.AbstractAsyncContextManager[None]]


async def answers(address: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


async def until_answers(address: str, port: int) -> None:
    async with asyncio.timeout(5):
        while not await answers(address, port):
            await asyncio.sleep(0.01)


class _WithoutIPv6(socket.socket):
    """What a kernel without IPv6 makes."""

    def __init__(self, family: int = -1, *args: Any, **more: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        super().__init__(family, *args, **more)


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
async def test_a_star_is_every_address_of_each_family(serve: Serve, unused_tcp_port: int) -> None:
    async with serve("*", unused_tcp_port):
        await until_answers("127.0.0.1", unused_tcp_port)
        if HAS_IPV6:
            await until_answers("::1", unused_tcp_port)


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
async def test_a_kernel_without_ipv6_does(serve: Serve, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", _WithoutIPv6)
    assert listening.addresses("*") == ("0.0.0.0",)  # noqa: S104 - for the time of the test
    async with serve("*", unused_tcp_port):
        await until_answers("127.0.0.1", unused_tcp_port)


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
async def test_one_address_is_that_alone(serve: Serve, unused_tcp_port: int) -> None:
    async with serve("127.0.0.1", unused_tcp_port):
        await until_answers("127.0.0.1", unused_tcp_port)
        assert not await answers("127.0.0.2", unused_tcp_port)
        assert not await answers("::1", unused_tcp_port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "", "localhost"])  # noqa: S104 - nothing listens
def test_whatever_else_is_named_is_taken_as_it_is(host: str) -> None:
    assert listening.addresses(host) == (host,)
