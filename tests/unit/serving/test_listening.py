"""Where the model server listens, on kernels with IPv6 and without."""

import errno
import socket
from typing import Any

import pytest

from services.serving.server.listening import bound, usable, written


class WithoutIpv6(socket.socket):
    """A socket of a kernel that knows no IPv6."""

    def __init__(self, family: int = socket.AF_INET, *more: Any, **named: Any) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        super().__init__(family, *more, **named)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def reached(listener: socket.socket, host: str) -> bool:
    listener.listen()
    try:
        socket.create_connection((host, listener.getsockname()[1]), timeout=5).close()
    except OSError:
        return False
    return True


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "from_ipv4", "from_ipv6"),
    [("*", True, True), ("0.0.0.0", True, False), ("127.0.0.1", True, False), ("::1", False, True)],  # noqa: S104
)
def test_who_reaches_an_address(host: str, from_ipv4: bool, from_ipv6: bool) -> None:
    with bound(usable(host), 0, reuse_port=False) as listener:
        assert (reached(listener, "127.0.0.1"), reached(listener, "::1")) == (from_ipv4, from_ipv6)


@pytest.mark.parametrize(
    ("host", "instead"),
    [("*", "0.0.0.0"), ("0.0.0.0", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")],  # noqa: S104
)
def test_a_kernel_without_ipv6_gives_every_ipv4_address(
    host: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    assert usable(host) == instead


def test_without_ipv6_clients_come_over_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", WithoutIpv6)
    with bound(usable("*"), 0, reuse_port=False) as listener:
        assert reached(listener, "127.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::", marks=needs_ipv6)])
def test_servers_share_a_port_where_they_are_told_to(host: str) -> None:
    with bound(host, 0, reuse_port=True) as first:
        first.listen()
        port = first.getsockname()[1]
        bound(host, port, reuse_port=True).close()
        with pytest.raises(OSError, match="in use"):
            bound(host, port, reuse_port=False)


@pytest.mark.parametrize(
    ("host", "text"), [("::", "[::]:8500"), ("127.0.0.1", "127.0.0.1:8500"), ("localhost", "localhost:8500")]
)
def test_how_grpc_writes_an_address(host: str, text: str) -> None:
    assert written(host, 8500) == text
