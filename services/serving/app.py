"""The composition root: the only place where this room's objects are built."""

import asyncio
import dataclasses
import os
import sys

from services.serving.cloud.local import LocalServings
from services.serving.cloud.local.replica import Options
from services.serving.cloud.local.resources import Resources
from services.serving.cloud.port import ServingCloud
from services.serving.controller import Controller
from services.serving.handlers import Handlers
from services.serving.queries import Queries
from services.serving.registry import Registry
from services.serving.settings import Settings
from shared.bus import Consumer
from shared.contracts import serving as contract
from shared.contracts.common import parse_memory
from shared.errors import Unsupported
from shared.local.ledger import Ledger
from shared.local.machine import detect
from shared.local.processes import LocalProcesses, processes_root
from shared.service import Platform, Room
from shared.settings import load

MODEL_SERVER = (sys.executable, "-P", "-m", "services.serving.server")


async def compose(platform: Platform, settings: Settings, model_server: tuple[str, ...] = MODEL_SERVER) -> Room:
    """The serving room.

    Args:
        model_server: the command that starts one; ``--config FILE`` is added.

    Raises:
        Unsupported: the cloud named in the settings is not one of ours.
    """
    if settings.cloud == "kubernetes":
        return await _on_kubernetes(platform, settings)
    if settings.cloud != "local":
        raise Unsupported(f"ELEARN_CLOUD: {settings.cloud!r} is no cloud of the serving service: local, kubernetes")
    home = settings.home.absolute()
    resources = Resources(
        Ledger(home / "ledger.json", await asyncio.to_thread(detect)),
        cpu=settings.serving_cpu,
        memory=parse_memory(settings.serving_memory),
    )
    cloud = LocalServings(
        root=home / "serving",
        processes=LocalProcesses(processes_root(home, "serving")),
        resources=resources,
        options=Options(
            command=model_server,
            host=settings.serving_host,
            start_seconds=settings.serving_start_seconds,
            grace_seconds=settings.serving_grace_seconds,
            max_batch=settings.serving_max_batch,
            batch_micros=settings.serving_batch_micros,
        ),
    )
    room = assemble(platform, cloud)
    return dataclasses.replace(room, close=(lambda: asyncio.to_thread(resources.close),))


def assemble(platform: Platform, cloud: ServingCloud) -> Room:
    """The room on a cloud that is given."""
    registry = Registry(platform.bus)
    handlers = Handlers(platform.database, platform.outbox, cloud, registry)
    queries = Queries(platform.database)
    controller = Controller(
        database=platform.database, handlers=handlers, cloud=cloud, registry=registry, wake=platform.wake
    )
    return Room(
        verbs={
            contract.CREATE: handlers.create,
            contract.UPDATE: handlers.update,
            contract.ROLLBACK: handlers.rollback,
            contract.DELETE: handlers.delete,
            contract.GET: queries.get,
            contract.LIST: queries.list,
        },
        consumers=(
            Consumer(
                durable="serving-models",
                subjects=("elearn.v1.alias.moved.>", "elearn.v1.version.deleted.>"),
                handle=handlers.models_told,
            ),
        ),
        leading={
            "serving watch": controller.watch,
            "serving controller": controller.run,
            **cloud.work(),
        },
    )


async def _on_kubernetes(platform: Platform, settings: Settings) -> Room:
    # Imported here, so that the local cloud neither loads nor waits for what it does not use.
    from services.serving.cloud.kubernetes import KubernetesServings, ServerOptions, ServingOptions
    from shared.kube import Cluster, KubernetesSettings
    from shared.kube.settings import ProjectSettings

    cluster = Cluster(load(KubernetesSettings, os.environ))
    server = ServerOptions(
        cpu=settings.serving_cpu,
        memory=parse_memory(settings.serving_memory),
        start_seconds=settings.serving_start_seconds,
        grace_seconds=settings.serving_grace_seconds,
        max_batch=settings.serving_max_batch,
        batch_micros=settings.serving_batch_micros,
    )
    projects, options = load(ProjectSettings, os.environ), load(ServingOptions, os.environ)
    cloud = KubernetesServings(cluster, projects, options, server)
    await cluster.__aenter__()
    return dataclasses.replace(assemble(platform, cloud), close=(cluster.close,))
