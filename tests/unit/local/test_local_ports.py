"""Ports: free, never the same twice, given back."""

import socket
from pathlib import Path

import pytest

from shared.errors import Unavailable
from shared.local import ports as ports_module
from shared.local.book import Book
from shared.local.ledger import Ledger
from shared.local.machine import Machine
from shared.local.ports import Ports, can_bind

MACHINE = Machine(cpu=1, memory=1)


def ports_of(tmp_path: Path, home: str = "one") -> tuple[Ledger, Ports]:
    ledger = Ledger(tmp_path / home / "ledger.json", MACHINE, Book(tmp_path / "book"))
    return ledger, Ports(ledger)


def test_can_be_bound_and_lie_outside_the_ephemeral_range(tmp_path: Path) -> None:
    low, high = (int(word) for word in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    _, ports = ports_of(tmp_path)
    for port in ports.reserve("a", 4):
        assert not low <= port <= high
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
            server.listen()


def test_the_same_again_for_the_same_owner_and_others_for_others(tmp_path: Path) -> None:
    ledger, ports = ports_of(tmp_path)
    first = ports.reserve("a", 3)
    assert ports.reserve("a", 3) == first
    assert ports.reserve("a", 2) == first[:2]
    more = ports.reserve("a", 5)
    assert more[:3] == first
    assert not set(more) & set(ports.reserve("b", 5))
    assert ledger.snapshot().ports["a"] == more


@pytest.mark.parametrize("how", ["ports", "ledger"])
def test_given_back(tmp_path: Path, how: str) -> None:
    ledger, ports = ports_of(tmp_path)
    ports.reserve("a", 3)
    if how == "ports":
        ports.release("a")
        ports.release("a")
    else:
        assert ledger.release("a")
    assert ledger.snapshot().ports == {}
    assert (tmp_path / "book" / "claims.json").read_text() == "{}"


def test_passes_over_what_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, one = ports_of(tmp_path)
    _, two = ports_of(tmp_path, "two")
    with socket.socket() as busy:
        busy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        assert not can_bind(taken)
        free = next(port for port in range(21000, 22000) if can_bind(port))
        monkeypatch.setattr(ports_module, "_candidates", lambda: [taken, free])
        assert one.reserve("a", 1) == (free,)
        with pytest.raises(Unavailable, match="only 0 of 1 ports are free"):
            two.reserve("b", 1)


def test_a_book_that_is_not_ours_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "book").mkdir(mode=0o777)
    (tmp_path / "book").chmod(0o777)
    _, ports = ports_of(tmp_path)
    with pytest.raises(Unavailable, match="not a folder of ours alone"):
        ports.reserve("a", 1)
    (tmp_path / "book").rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "book").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="can't be used"):
        ports.reserve("a", 1)
