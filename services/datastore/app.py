"""The composition root: the only place where this room's objects are built."""

import asyncio
import dataclasses
import os

from services.datastore.cloud.local import LocalStorage
from services.datastore.cloud.port import StorageCloud
from services.datastore.controller import Controller
from services.datastore.files import Files
from services.datastore.handlers import Handlers
from services.datastore.queries import Queries
from services.datastore.settings import Settings
from shared.bus import Consumer
from shared.contracts import datastore as contract
from shared.errors import Unsupported
from shared.service import Platform, Room
from shared.settings import load


async def compose(platform: Platform, settings: Settings) -> Room:
    """The datastore room.

    Raises:
        Unsupported: the cloud named in the settings is not one of ours.
    """
    if settings.cloud == "kubernetes":
        return await _on_kubernetes(platform, settings)
    cloud = _cloud(settings)
    room = assemble(platform, settings, cloud)
    return dataclasses.replace(room, close=(lambda: asyncio.to_thread(cloud.close),))


def assemble(platform: Platform, settings: Settings, cloud: StorageCloud) -> Room:
    """The room on a cloud that is given."""
    handlers = Handlers(platform.database, platform.outbox, cloud)
    queries = Queries(platform.database)
    files = Files(platform.database, cloud)
    controller = Controller(
        database=platform.database,
        handlers=handlers,
        cloud=cloud,
        wake=platform.wake,
        upload_abandoned=settings.upload_abandoned_seconds,
    )
    return Room(
        verbs={
            contract.CREATE: handlers.create,
            contract.DELETE: handlers.delete,
            contract.ARRIVED: handlers.arrived,
            contract.GET: queries.get,
            contract.LIST: queries.list,
            contract.MOUNT: queries.mount,
            contract.PROBE: files.probe,
            contract.STAT_FILE: files.stat,
            contract.LIST_FILES: files.list,
            contract.READ_FILE: files.read,
            contract.WRITE_FILE: files.write,
            contract.DELETE_FILE: files.delete,
        },
        consumers=(
            Consumer(
                durable="datastore-trainings",
                subjects=("elearn.v1.training.>",),
                handle=handlers.training_told,
            ),
        ),
        leading={
            "storage watch": controller.watch,
            "datastore controller": controller.run,
            "upload sweeper": controller.sweep,
        },
    )


async def _on_kubernetes(platform: Platform, settings: Settings) -> Room:
    # Imported here, so that the local cloud neither loads nor waits for what it does not use.
    from services.datastore.cloud.kubernetes import KubernetesStorage, StorageOptions
    from shared.kube import Cluster, KubernetesSettings
    from shared.kube.rights import tell_missing
    from shared.kube.settings import ProjectSettings

    cluster = Cluster(load(KubernetesSettings, os.environ))
    cloud = KubernetesStorage(cluster, load(ProjectSettings, os.environ), load(StorageOptions, os.environ))
    await cluster.__aenter__()
    room = assemble(platform, settings, cloud)
    asking = {"rights in Kubernetes": lambda: tell_missing(cluster, cloud.rights())}
    return dataclasses.replace(room, close=(cluster.close,), leading={**room.leading, **asking})


def _cloud(settings: Settings) -> LocalStorage:
    if settings.cloud != "local":
        raise Unsupported(f"ELEARN_CLOUD: {settings.cloud!r} is no cloud of the datastore service: local, kubernetes")
    return LocalStorage(
        home=settings.home,
        roots=settings.roots(),
        private=settings.local_private,
        check_every=settings.storage_check_seconds,
    )
