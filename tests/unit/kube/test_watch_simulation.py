"""Seeded schedules of writes and faults: whatever happens, a watch ends up with what is there, and never lied."""

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from typing import Literal

import pytest

from shared.kube import Added, Cluster, Deleted, Mirror, Modified, Pace, Synced, watch
from shared.kube.known import older
from shared.kube.objects import Partial
from shared.kube.resources import CONFIG_MAPS
from tests.support.kube_server import KubeServer
from tests.unit.kube.conftest import client

QUICK = Pace(first=0.001, longest=0.005, idle=2.0, brief=0.02, page=3)
NAMES = "abcdefgh"
STEPS = 120


class Judge:
    """Hears what a watch tells, and objects to a lie."""

    def __init__(self) -> None:
        self.mirror: Mirror[Partial] = Mirror()
        self._ended: set[str] = set()

    def hear(self, told: Added[Partial] | Modified[Partial] | Deleted[Partial] | Synced) -> None:
        if isinstance(told, Synced):
            assert not self.mirror.synced, "synced twice"
        else:
            uid = told.identity.uid
            before = self.mirror.get(uid)
            assert uid not in self._ended, "a uid came back"
            match told:
                case Added():
                    assert before is None, "added twice"
                    assert self.mirror.named(told.identity.name, told.identity.namespace) is None, "two of one name"
                case Modified(_, now):
                    assert before is not None, "modified before it was added"
                    assert older(before.metadata.resource_version, now.metadata.resource_version), "went back"
                case Deleted():
                    assert before is not None, "deleted before it was added"
                    self._ended.add(uid)
        self.mirror.take(told)

    def sees(self, server: KubeServer) -> bool:
        there = {each["metadata"]["uid"]: each["metadata"]["resourceVersion"] for each in server.store.all(CONFIG_MAPS)}
        seen = {each.metadata.uid: each.metadata.resource_version for each in self.mirror}
        return self.mirror.synced and there == seen


def write(server: KubeServer, dice: random.Random) -> None:
    name = dice.choice(NAMES)
    found = server.store.find(CONFIG_MAPS, name, "default")
    if found is None:
        labels = {"elearn.dev/installation": "elearn"}
        server.store.add(CONFIG_MAPS, {"metadata": {"name": name, "labels": labels}}, "default")
    elif dice.random() < 0.3:
        server.store.finish(CONFIG_MAPS, name, "default")
    else:
        server.store.change(CONFIG_MAPS, name, "default", spec={"step": dice.random()})


async def fault(server: KubeServer, dice: random.Random) -> None:
    def fail(
        code: int = 0,
        reason: str = "",
        *,
        what: Literal["status", "drop", "page"] = "status",
        again: float | None = None,
    ) -> Callable[[], object]:
        return lambda: server.fail(code, reason, what=what, times=dice.randint(1, 3), retry_after=again)

    choice: str | Callable[[], object] = dice.choice(
        (
            server.end_streams,
            server.gone,
            server.upset,
            server.bookmark,
            server.store.compact,
            fail(code=500, reason="InternalError"),
            fail(code=429, reason="TooManyRequests", again=0),
            fail(code=410, reason="Expired"),
            fail(what="drop"),
            fail(what="page"),
            "cut",
            "cut line",
            "restart",
        )
    )
    match choice:
        case "cut":
            await server.cut()
        case "cut line":
            await server.cut(mid_line=True)
        case "restart":
            await server.stop()
            write(server, dice)
            await server.start()
        case _:
            assert callable(choice)
            choice()


@pytest.mark.parametrize("seed", range(25))
async def test_any_schedule_of_writes_and_faults(server: KubeServer, seed: int) -> None:
    dice = random.Random(seed)
    server.gone_in_stream = dice.random() < 0.5
    judge = Judge()

    async def listen(cluster: Cluster) -> None:
        async with aclosing(watch(cluster, CONFIG_MAPS, Partial, pace=QUICK)) as told:
            async for each in told:
                judge.hear(each)

    async def caught_up() -> None:
        while not judge.sees(server):
            assert not listening.done(), listening
            await asyncio.sleep(0.001)

    async with asyncio.timeout(20), client(server) as cluster:
        listening = asyncio.create_task(listen(cluster))
        try:
            for _ in range(STEPS):
                if dice.random() < 0.2:
                    await fault(server, dice)
                else:
                    write(server, dice)
                if dice.random() < 0.2:
                    await caught_up()
                for _ in range(dice.randint(0, 4)):
                    await asyncio.sleep(0)
            await caught_up()
        finally:
            listening.cancel()
            (ended,) = await asyncio.gather(listening, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError), ended
