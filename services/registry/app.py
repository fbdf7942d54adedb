"""The composition root: the only place where this room's objects are built."""

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


async def compose(platform: Platform, settings: Settings) -> Room:
    """The registry.

    Raises:
        Unsupported: the cloud named in the settings is not one of ours.
    """
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


def _cloud(settings: Settings) -> JobCloud:
    if settings.cloud != "local":
        raise Unsupported(f"ELEARN_CLOUD: {settings.cloud!r} is not a cloud of the registry: local")
    return LocalJobs(home=settings.home, store=settings.store())
