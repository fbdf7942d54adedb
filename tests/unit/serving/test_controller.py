"""The controller of servings: in which order it tells them what the cloud shows."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any
from unittest.mock import MagicMock

import pytest
from msgspec.structs import replace

from services.serving import store
from services.serving.cloud.port import Deployment, Observation, Seen, Synced
from services.serving.controller import Controller
from services.serving.model import Choice, Message, Observed, Replica, Source, StoredServing, created
from shared.contracts.datastore import LocalVolume
from shared.contracts.serving import ServingSpec
from shared.supervise import Wake

OLD = Observed(replicas=(Replica(revision=1, state="starting"),))
NEW = Observed(replicas=(Replica(revision=1, state="ready"),))


class Cloud:
    """Shows a replica that starts, and one that is ready while the controller applies its deployment."""

    def __init__(self) -> None:
        self.applying = asyncio.Event()
        self.shown = asyncio.Event()

    async def watch(self) -> AsyncGenerator[Observation, None]:
        yield Seen(uid="u", observed=OLD)
        yield Synced()
        await self.applying.wait()
        yield Seen(uid="u", observed=NEW)
        self.shown.set()
        await asyncio.Event().wait()

    async def apply(self, _: Deployment) -> None:
        self.applying.set()
        await self.shown.wait()


class Handlers:
    def __init__(self) -> None:
        self.told: list[Message] = []
        self.three = asyncio.Event()

    async def observed(self, _: str, message: Message) -> None:
        await asyncio.sleep(0)
        self.told.append(message)
        if len(self.told) == 3:
            self.three.set()


def serving() -> StoredServing:
    source = Source(number=1, volume=LocalVolume(path="/models"), path="m/1")
    choice = Choice(traffic={1: 100}, cause="asked", alias=None, moved_at=None, sources=(source,))
    spec = ServingSpec(name="s", model="m", version=1)
    made = created(
        project="default",
        uid="u",
        spec=spec,
        choice=choice,
        actor="me",
        traceparent="",
        now=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return replace(made.serving, state="deploying")


async def test_what_was_seen_later_is_never_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    async def load_all(_: Any) -> list[StoredServing]:
        return [serving()]

    monkeypatch.setattr(store, "load_all", load_all)
    database = MagicMock()
    database.transaction = lambda: contextlib.nullcontext()
    handlers, wake = Handlers(), Wake()
    controller = Controller(
        database=database,
        handlers=handlers,  # type: ignore[arg-type]
        cloud=Cloud(),  # type: ignore[arg-type]
        registry=MagicMock(),
        wake=wake,
    )
    work = [asyncio.create_task(each) for each in (controller.watch(), controller.run())]
    async with asyncio.timeout(10):
        await handlers.three.wait()
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    assert handlers.told[:3] == [OLD, NEW, NEW]
