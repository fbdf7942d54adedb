"""The serving room with real model servers: versions change under load, and no request is lost."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from elearn.grpc import serving_pb2
from services.serving.app import compose
from services.serving.settings import Settings
from shared.bus import Bus
from shared.contracts import model as registry
from shared.contracts import serving as contract
from shared.contracts.common import Named
from shared.contracts.datastore import LocalVolume
from shared.contracts.model import ResolveVersion, ServableVersion
from shared.contracts.serving import CreateServing, Serving, ServingPatch, ServingSpec, UpdateServing
from shared.local.processes import end_all
from shared.tensor_proto import fill
from tests.support.rooms import answering, running_room, until
from tests.support.servers import FreshDatabase

pytestmark = [pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.timeout(240)]

PROJECT = "default"
TOY_MODEL = Path(__file__).parents[1] / "support" / "toy_model.py"


@pytest.fixture
async def bus(
    clean_nats: str, fresh_database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bus]:
    home, models = tmp_path / "home", tmp_path / "models"
    monkeypatch.setenv("ELEARN_CPUS", "4")
    models.mkdir()
    command = [sys.executable, str(TOY_MODEL), str(models), "1", "2"]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=120)

    async def resolve(request: ResolveVersion) -> ServableVersion:
        assert request.version is not None
        return ServableVersion(
            project=request.project,
            model=request.model,
            number=request.version,
            volume=LocalVolume(path=str(models)),
            path=str(request.version),
        )

    url = await fresh_database()
    async with (
        answering(clean_nats, "registry", {registry.RESOLVE: resolve}),
        running_room("serving", Settings, compose, clean_nats, url, {"ELEARN_HOME": str(home)}) as bus,
    ):
        yield bus
    await asyncio.to_thread(end_all, home, 2.0)


async def settled(bus: Bus, state: str, version: int) -> Serving:
    named = Named(project=PROJECT, name="toy")
    return await until(
        lambda: bus.call(contract.GET, named),
        lambda found: found.state == state and found.version == version,
        timeout=90,
    )


async def test_versions_change_under_load_and_no_request_is_lost(bus: Bus) -> None:
    spec = ServingSpec(name="toy", model="toy", version=1)
    await bus.call(contract.CREATE, CreateServing(project=PROJECT, spec=spec))
    serving = await settled(bus, "ready", 1)
    assert serving.endpoint is not None
    request = serving_pb2.PredictRequest()
    request.model_spec.name = "toy"
    fill(request.inputs["x"], np.array([[2, 4]], np.float32))
    answers: list[tuple[int, float]] = []
    stop = asyncio.Event()
    # A client without a retry policy, unlike ours. Its library alone sends again what no server had begun when a
    # connection grew old; "grpc.enable_retries" = 0 would turn that off too.
    async with grpc.aio.insecure_channel(serving.endpoint.grpc) as channel:
        predict = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=serving_pb2.PredictRequest.SerializeToString,
            response_deserializer=serving_pb2.PredictResponse.FromString,
        )

        async def ask() -> None:
            while not stop.is_set():
                found = await predict(request, timeout=30, wait_for_ready=True)
                answers.append((found.model_spec.version.value, found.outputs["y"].float_val[0]))

        asking = asyncio.gather(*(ask() for _ in range(8)))
        patch = ServingPatch(version=2)
        await bus.call(contract.UPDATE, UpdateServing(project=PROJECT, name="toy", patch=patch))
        changed = await settled(bus, "ready", 2)
        done = len(answers)
        # The old replica leaves once every connection has grown old; then the new one is all there is.
        await until(
            lambda: asyncio.sleep(0, (len(answers), {version for version, _ in answers[-8:]})),
            lambda seen: seen[0] > done + 100 and seen[1] == {2},
            timeout=30,
        )
        stop.set()
        await asking
    assert changed.endpoint == serving.endpoint
    assert {(1, 2.0), (2, 3.0)} == set(answers)
    assert set(answers[-8:]) == {(2, 3.0)}
