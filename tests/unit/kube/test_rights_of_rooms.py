"""What the rooms' drivers need is what the chart gives them, verb by verb."""

from collections.abc import Sequence

import pytest

from services.datastore.cloud.kubernetes import KubernetesStorage, StorageOptions
from services.registry.cloud.kubernetes import JobOptions, KubernetesJobs
from services.scheduler.cloud.kubernetes.boards import Boards
from services.scheduler.cloud.kubernetes.code import CodeDelivery
from services.scheduler.cloud.kubernetes.code_tokens import CodeTokens
from services.scheduler.cloud.kubernetes.driver import KubernetesTrainings
from services.scheduler.cloud.kubernetes.furniture import Furniture
from services.scheduler.cloud.kubernetes.logs import TaskLogs
from services.scheduler.cloud.kubernetes.manifests import Setting
from services.scheduler.cloud.kubernetes.nodes import Nodes
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.code_store import CodeStore
from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.log_store import LogStore
from services.serving.cloud.kubernetes import KubernetesServings, ServingOptions
from shared.errors import Forbidden
from shared.kube import Cluster, Right
from shared.kube.projects import Projects
from shared.kube.settings import ProjectSettings
from shared.postgres import Database
from tests.support.kube_rights import rules_of, words, words_of
from tests.support.kube_server import KubeServer
from tests.support.kube_servings import SERVER

EVERYWHERE = ProjectSettings()
SOME = ProjectSettings(kubernetes_create_namespaces=False, kubernetes_projects=("a", "b"))
SHARED = ProjectSettings(kubernetes_create_namespaces=False, kubernetes_project_namespace="models")


def needed(
    room: str, cluster: Cluster, settings: ProjectSettings, store: str = "host:/srv/models", own: tuple[str, ...] = ()
) -> Sequence[Right]:
    """What a room asks for, with a model store and with shares that datastores get directories of their own on."""
    if room == "datastore":
        options = StorageOptions(kubernetes_nfs_own=own, kubernetes_host_roots=("/srv",))
        return KubernetesStorage(cluster, settings, options).rights()
    if room == "registry":
        return KubernetesJobs(cluster, settings, JobOptions(kubernetes_model_store=store)).rights()
    if room == "scheduler":
        return trainings(cluster, settings).rights()
    servings = ServingOptions(kubernetes_serving_access="service")
    return KubernetesServings(cluster, settings, servings, SERVER).rights()


def trainings(cluster: Cluster, settings: ProjectSettings) -> KubernetesTrainings:
    """The scheduler's driver, as it runs in the cluster."""
    options = TrainingOptions(kubernetes_board_access="service")
    projects = Projects(cluster, settings)
    database = Database("", name="scheduler")
    code = CodeStore(database)
    return KubernetesTrainings(
        cluster,
        Setting(installation="elearn", projects=settings, options=options, restarts=1, grace=1.0),
        TensorFlow(),
        projects=projects,
        furniture=Furniture(cluster, settings, projects),
        code=CodeDelivery(options, code, CodeTokens(code.signing_key).sign),
        logs=TaskLogs(cluster, projects, LogStore(database), options, limit=1),
        nodes=Nodes(cluster, settings),
        boards=Boards(cluster, settings, options, projects),
    )


Words = tuple[str, str, str]


def asked(
    room: str, cluster: Cluster, settings: ProjectSettings, store: str, own: tuple[str, ...]
) -> dict[str, set[Words]]:
    """What a room asks for, by where the chart has to give it."""
    found: dict[str, set[Words]] = {"projects": set(), "system": set(), "cluster": set()}
    for right in needed(room, cluster, settings, store, own):
        if right.resource.namespaced and right.namespace == cluster.namespace:
            found["system"].add(words(right))
        elif right.resource.namespaced and right.namespace in settings.places:
            found["projects"].add(words(right))
        else:
            assert right.namespace is None  # nodes, volumes; what others' pods take of the nodes
            found["cluster"].add(words(right))
    return found


@pytest.mark.parametrize(
    ("room", "store", "own", "conditions"),
    [
        ("scheduler", "", (), ()),
        ("datastore", "", (), ()),
        ("datastore", "", ("files:/own",), ("ownShares",)),
        ("registry", "claim:models", (), ()),
        ("registry", "class:fast:1Gi", (), ("storeClaims",)),
        ("registry", "nfs:files:/models", (), ("storeClaims", "storeVolumes")),
        ("registry", "host:/srv/models", (), ("storeClaims", "storeVolumes")),
        ("serving", "", (), ()),
    ],
)
@pytest.mark.parametrize("settings", [EVERYWHERE, SOME, SHARED])
async def test_the_chart_gives_every_right_and_no_other(
    room: str,
    store: str,
    own: tuple[str, ...],
    conditions: tuple[str, ...],
    settings: ProjectSettings,
    cluster: Cluster,
) -> None:
    wanted = asked(room, cluster, settings, store, own)
    rules = rules_of(room, everywhere=settings.kubernetes_create_namespaces, only=conditions)
    given = {place: words_of(rules[place]) for place in rules}
    if None in settings.places:  # one role holds what is asked for in all projects and in the cluster
        for both in (wanted, given):
            both["projects"] |= both.pop("cluster")
    assert given == wanted


async def test_who_keeps_to_some_projects_looks_nowhere_else(server: KubeServer, cluster: Cluster) -> None:
    for name in ("elearn-a", "elearn-b"):
        server.store.add(
            next(each for each in server.store.resources.values() if each.plural == "namespaces"),
            {"metadata": {"name": name}, "status": {"phase": "Active"}},
        )
    cloud = KubernetesStorage(cluster, SOME, StorageOptions())
    watch = cloud.watch()
    assert type(await anext(watch)).__name__ == "Synced"
    await watch.aclose()
    assert {path.split("/")[4] for _, path, _ in server.requests} == {"elearn-a", "elearn-b"}
    with pytest.raises(Forbidden, match="none of those that elearn keeps to in this cluster: a, b"):
        await Projects(cluster, SOME).ensure("c")


@pytest.mark.parametrize(
    ("settings", "places"),
    [(EVERYWHERE, (None,)), (SOME, ("elearn-a", "elearn-b")), (SHARED, ("models",))],
)
def test_where_objects_may_lie(settings: ProjectSettings, places: tuple[str | None, ...]) -> None:
    assert settings.places == places
