"""Many processes at one ledger, and a log that grows over its limit."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from shared.local import logs
from shared.local.book import Book
from shared.local.ledger import Grant, Ledger, Request
from shared.local.machine import detect
from shared.local.ports import Ports
from tests.support.local_processes import Home, home

__all__ = ["home"]

WORKER = """
import pathlib, sys
from shared.local.book import Book
from shared.local.ledger import Grant, Ledger, Request
from shared.local.machine import detect
from shared.local.ports import Ports
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
ledger = Ledger(folder / "ledger.json", detect({"ELEARN_FAKE_GPUS": "4", "ELEARN_CPUS": "4"}), Book(folder / "book"))
ports = Ports(ledger)
for turn in range(25):
    owner = f"{name}/{turn}"
    got = ledger.acquire(owner, [Request(task="chief-0", cpu=1, memory=1, gpus=1)])
    if isinstance(got, Grant):
        for index in got.parts[0].gpus:
            (folder / f"gpu-{index}").mkdir()  # raises where somebody else has it
        for port in ports.reserve(owner, 2):
            (folder / f"port-{port}").mkdir()
        for port in ports.reserve(owner, 2):
            (folder / f"port-{port}").rmdir()
        for index in got.parts[0].gpus:
            (folder / f"gpu-{index}").rmdir()
        ledger.release(owner)
"""


def test_no_two_processes_ever_hold_the_same(tmp_path: Path) -> None:
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(n)], stderr=subprocess.PIPE, text=True)
        for n in range(6)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors
    ledger = Ledger(
        tmp_path / "ledger.json", detect({"ELEARN_FAKE_GPUS": "4", "ELEARN_CPUS": "4"}), Book(tmp_path / "book")
    )
    now = ledger.snapshot()
    assert (now.grants, now.ports, now.free_cpu, now.free_gpus) == ((), {}, 4.0, (0, 1, 2, 3))


async def test_a_task_keeps_its_home_s_claims_alive_without_its_services(home: Home, tmp_path: Path) -> None:
    machine = detect({"ELEARN_FAKE_GPUS": "1"})
    one = Ledger(home.home / "ledger.json", machine, Book(tmp_path / "book"))
    port = Ports(one).reserve("a", 1)[0]
    await home.processes.start("a", home.shell("exec sleep 60", hold=(str(one.alive_path),)))
    one.close()  # its services are gone
    other = tmp_path / "two" / "ledger.json"
    two = Ledger(other, machine, Book(tmp_path / "book"))
    with two.book.open(two.alive_path) as book:
        assert book.taken_by_others() == {f"port:{port}": "a"}
    await home.processes.stop("a")
    with two.book.open(two.alive_path) as book:
        assert book.taken_by_others() == {}


async def test_a_log_is_bounded_and_its_offsets_stay(home: Home) -> None:
    limit = 1 << 20
    script = (
        "import os, sys\n"
        "for n in range(40000):\n"
        "    os.write(1, b'%07d %s\\n' % (n, b'x' * 91))\n"
        "open('written', 'w').write('1')\n"
        "sys.stdin.close()\n"
        "import time; time.sleep(60)\n"
    )
    await home.processes.start("a", home.python(script, log_limit=limit))
    async with asyncio.timeout(20):
        while not (home.work / "written").exists() or home.log.stat().st_blocks * 512 > limit:
            await asyncio.sleep(0.05)
    await home.processes.stop("a")
    assert home.log.stat().st_size == 40000 * 100
    first = logs.read(home.log, 0)
    number, _, rest = first.text.partition(" ")
    assert first.offset == int(number) * 100
    assert first.offset > 2 * limit
    assert rest.startswith("x")
    assert logs.tail(home.log, 1).text.startswith("0039999 ")


async def test_follows_a_task_until_it_has_finished(home: Home) -> None:
    await home.processes.start("a", home.shell("for n in 1 2 3; do echo $n; sleep 0.05; done; printf end"))

    async def finished() -> bool:
        status = await home.processes.status("a")
        return status is None or status.finished

    async with asyncio.timeout(20):
        text = "".join([chunk.text async for chunk in logs.follow(home.log, finished)])
    assert text == "1\n2\n3\nend"


@pytest.mark.parametrize("count", [8])
async def test_many_at_once(home: Home, count: int) -> None:
    """A gang is started and ended together; nothing of it stays."""
    machine = detect({"ELEARN_CPUS": str(count), "ELEARN_FAKE_GPUS": "1"})
    ledger = Ledger(home.home / "ledger.json", machine, Book(home.home / "book"))
    grant = await asyncio.to_thread(ledger.acquire, "gang", [Request(task=f"worker-{n}", cpu=1) for n in range(count)])
    assert isinstance(grant, Grant)
    names = [part.task for part in grant.parts]
    await asyncio.gather(*(home.processes.start(name, home.shell("exec sleep 60")) for name in names))
    assert {status.state for status in await home.processes.list("worker-")} == {"running"}
    ends = await asyncio.gather(*(home.processes.stop(name) for name in names))
    assert {end.state for end in ends if end} == {"exited"}
