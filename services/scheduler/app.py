"""The scheduler's composition root."""

import asyncio
import os
from datetime import timedelta

from services.scheduler.changes import Changes
from services.scheduler.cloud.local import LocalCloud
from services.scheduler.cloud.port import TrainingCloud
from services.scheduler.code import CodeVerbs
from services.scheduler.code_store import CodeStore
from services.scheduler.controller import Controller
from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.handlers import Handlers
from services.scheduler.queries import Queries
from services.scheduler.settings import Settings
from services.scheduler.store import TrainingStore
from shared.contracts import training
from shared.errors import Unsupported
from shared.local.ledger import Ledger
from shared.local.machine import detect
from shared.service import Platform, Room
from shared.settings import load


async def compose(platform: Platform, settings: Settings) -> Room:
    """Build the room on the cloud that the settings name.

    Raises:
        Unsupported: it is none of ours.
    """
    code = CodeStore(platform.database)
    if settings.cloud == "kubernetes":
        return room_on(platform, settings, await _kubernetes(platform, settings, code), code)
    return room_on(platform, settings, await _local(settings, code), code)


def room_on(platform: Platform, settings: Settings, cloud: TrainingCloud, code: CodeStore) -> Room:
    """Build the room on a cloud."""
    database, store, framework = platform.database, TrainingStore(), TensorFlow()
    changes = Changes(store, platform.outbox)
    handlers = Handlers(database, store, code, changes, cloud, framework, platform.bus, platform.wake)
    queries = Queries(database, store, cloud)
    archives = CodeVerbs(database, code, settings.code_limit, timedelta(days=settings.code_retention_days))
    controller = Controller(database, store, changes, cloud, platform.wake, settings.board_idle)
    return Room(
        verbs={
            training.SUBMIT: handlers.submit,
            training.PLAN: handlers.plan,
            training.STOP: handlers.stop,
            training.FREE: handlers.free,
            training.RETRY: handlers.retry,
            training.DELETE: handlers.delete,
            training.GET: queries.get,
            training.LIST: queries.list,
            training.READ_LOG: queries.read_log,
            training.FIND_OUTPUT: queries.find_output,
            training.OPEN_BOARD: queries.open_board,
            training.QUEUE: queries.queue,
            training.USAGE: queries.usage,
            training.CLUSTER: queries.cluster,
            training.PUT_CODE: archives.put,
            training.STAT_CODE: archives.stat,
            training.READ_CODE: archives.read,
        },
        leading={
            "trainings": controller.run,
            "trainings' watch": controller.watch,
            "trainings' news": controller.follow,
            "boards": controller.close_boards,
            "code sweeper": archives.sweep,
            **cloud.leading(),
        },
        background=cloud.everywhere(),
        close=(cloud.close,),
    )


async def _local(settings: Settings, code: CodeStore) -> TrainingCloud:
    if settings.cloud != "local":
        raise Unsupported(f"ELEARN_CLOUD: {settings.cloud!r} is no cloud of the scheduler: local, kubernetes")
    machine = await asyncio.to_thread(detect, os.environ)
    ledger = await asyncio.to_thread(Ledger, settings.home / "ledger.json", machine)
    cloud = LocalCloud(
        settings.home,
        ledger,
        TensorFlow(),
        code.parts,
        grace=settings.stop_grace,
        restarts=settings.worker_restarts,
        log_limit=settings.log_limit,
    )
    await cloud.capabilities()  # found out once, before the first request waits for it
    return cloud


async def _kubernetes(platform: Platform, settings: Settings, code: CodeStore) -> TrainingCloud:
    # Imported here, so that the local cloud neither loads nor waits for what it does not use.
    from services.scheduler.cloud.kubernetes.boards import Boards
    from services.scheduler.cloud.kubernetes.code import CodeDelivery
    from services.scheduler.cloud.kubernetes.code_server import CodeServer
    from services.scheduler.cloud.kubernetes.code_tokens import CodeTokens
    from services.scheduler.cloud.kubernetes.driver import KubernetesTrainings
    from services.scheduler.cloud.kubernetes.furniture import Furniture
    from services.scheduler.cloud.kubernetes.logs import TaskLogs
    from services.scheduler.cloud.kubernetes.manifests import Setting
    from services.scheduler.cloud.kubernetes.nodes import Nodes
    from services.scheduler.cloud.kubernetes.options import TrainingOptions
    from services.scheduler.log_store import LogStore
    from shared.kube import Cluster, KubernetesSettings
    from shared.kube.projects import Projects
    from shared.kube.settings import ProjectSettings

    cluster = Cluster(load(KubernetesSettings, os.environ))
    options, in_projects = load(TrainingOptions, os.environ), load(ProjectSettings, os.environ)
    setting = Setting(
        installation=cluster.installation,
        projects=in_projects,
        options=options,
        restarts=settings.worker_restarts,
        grace=settings.stop_grace,
    )
    projects = Projects(cluster, in_projects)
    tokens = CodeTokens(code.signing_key)
    server = CodeServer(
        code, tokens, code.is_held, host=options.kubernetes_code_host, port=options.kubernetes_code_port
    )
    cloud = KubernetesTrainings(
        cluster,
        setting,
        TensorFlow(),
        projects=projects,
        furniture=Furniture(
            cluster, in_projects, projects, boards_for_all=options.kubernetes_board_access == "service"
        ),
        code=CodeDelivery(options, code, tokens.sign),
        code_server=server if options.kubernetes_code_port else None,
        logs=TaskLogs(cluster, projects, LogStore(platform.database), options, limit=settings.log_limit),
        nodes=Nodes(cluster, in_projects),
        boards=Boards(cluster, in_projects, options, projects),
    )
    await cluster.__aenter__()
    return cloud
