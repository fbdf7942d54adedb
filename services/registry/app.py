"""The composition root: the only place where this room's objects are built."""

import dataclasses
import os
from datetime import timedelta

from services.registry.aliases import Aliases
from services.registry.cloud.local import LocalJobs
from services.registry.cloud.port import JobCloud
from services.registry.controller import Controller
from services.registry.handlers import Handlers
from services.registry.queries import Queries
from services.registry.saves import Saves
from services.registry.settings import Settings
from shared.bus import Consumer
from shared.contracts import model as contract
from shared.errors import Unsupported
from shared.service import Platform, Room
from shared.settings import load


async def compose(platform: Platform, settings: Settings) -> Room:
    """The registry.

    Raises:
        Unsupported: the cloud named in the settings is not one of ours.
    """
    if settings.cloud == "kubernetes":
        return await _on_kubernetes(platform, settings)
    return assemble(platform, settings, _cloud(settings))


def assemble(platform: Platform, settings: Settings, cloud: JobCloud) -> Room:
    """The room on a cloud that is given."""
    handlers = Handlers(platform.database, platform.outbox)
    saves = Saves(platform.database, platform.outbox, platform.bus)
    aliases = Aliases(platform.database, platform.outbox)
    queries = Queries(platform.database, cloud)
    controller = Controller(
        database=platform.database,
        handlers=handlers,
        cloud=cloud,
        bus=platform.bus,
        wake=platform.wake,
        most_at_once=settings.saves_at_once,
        timeout=timedelta(seconds=settings.save_timeout_seconds),
    )
    return Room(
        verbs={
            contract.SAVE: saves.save,
            contract.LIST_MODELS: queries.list_models,
            contract.GET_MODEL: queries.get_model,
            contract.DELETE_MODEL: handlers.delete_model,
            contract.LIST_VERSIONS: queries.list_versions,
            contract.GET_VERSION: queries.get_version,
            contract.DELETE_VERSION: handlers.delete_version,
            contract.READ_ARCHIVE: queries.read_archive,
            contract.RESOLVE: queries.resolve,
            contract.SET_ALIAS: aliases.set,
            contract.GET_ALIAS: aliases.get,
            contract.DELETE_ALIAS: aliases.delete,
            contract.LIST_ALIASES: aliases.list,
            contract.ALIAS_HISTORY: aliases.history,
        },
        consumers=(
            Consumer(
                durable="registry-trainings",
                subjects=("elearn.v1.training.succeeded.>",),
                handle=saves.training_succeeded,
            ),
            Consumer(
                durable="registry-servings",
                subjects=("elearn.v1.serving.>",),
                handle=handlers.serving_told,
            ),
        ),
        leading={
            "save job watch": controller.watch,
            "version controller": controller.run,
            "use sweeper": controller.forget,
        },
    )


async def _on_kubernetes(platform: Platform, settings: Settings) -> Room:
    # Imported here, so that the local cloud neither loads nor waits for what it does not use.
    from services.registry.cloud.kubernetes import JobOptions, KubernetesJobs
    from shared.kube import Cluster, KubernetesSettings
    from shared.kube.rights import tell_missing
    from shared.kube.settings import ProjectSettings

    cluster = Cluster(load(KubernetesSettings, os.environ))
    cloud = KubernetesJobs(cluster, load(ProjectSettings, os.environ), load(JobOptions, os.environ))
    await cluster.__aenter__()
    room = assemble(platform, settings, cloud)
    asking = {"rights in Kubernetes": lambda: tell_missing(cluster, cloud.rights())}
    return dataclasses.replace(room, close=(cluster.close,), leading={**room.leading, **asking})


def _cloud(settings: Settings) -> JobCloud:
    if settings.cloud != "local":
        raise Unsupported(f"ELEARN_CLOUD: {settings.cloud!r} is no cloud of the registry: local, kubernetes")
    return LocalJobs(home=settings.home, store=settings.store())
