"""What the rooms' drivers need is what the chart gives them, verb by verb."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

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
from tests.support.kube_server import KubeServer
from tests.support.kube_servings import SERVER

RIGHTS = Path(__file__).parents[3] / "deploy" / "kubernetes" / "chart" / "files" / "rights.yaml"
EVERYWHERE = ProjectSettings()
SOME = ProjectSettings(kubernetes_create_namespaces=False, kubernetes_projects=("a", "b"))
SHARED = ProjectSettings(kubernetes_create_namespaces=False, kubernetes_project_namespace="models")


def needed(room: str, cluster: Cluster, settings: ProjectSettings) -> Sequence[Right]:
    if room == "datastore":
        options = StorageOptions(kubernetes_nfs_own=("files:/own",), kubernetes_host_roots=("/srv",))
        return KubernetesStorage(cluster, settings, options).rights()
    if room == "registry":
        return KubernetesJobs(cluster, settings, JobOptions(kubernetes_model_store="host:/srv/models")).rights()
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


def gives(rules: Sequence[dict[str, Any]], right: Right) -> bool:
    plural = f"{right.resource.plural}/{right.subresource}" if right.subresource else right.resource.plural
    return any(
        right.resource.group in rule["apiGroups"] and plural in rule["resources"] and right.verb in rule["verbs"]
        for rule in rules
    )


@pytest.mark.parametrize("settings", [EVERYWHERE, SOME, SHARED])
@pytest.mark.parametrize("room", ["scheduler", "datastore", "registry", "serving"])
async def test_the_chart_gives_every_right(room: str, settings: ProjectSettings, cluster: Cluster) -> None:
    rights = yaml.safe_load(RIGHTS.read_text())
    own = rights[room]
    for right in needed(room, cluster, settings):
        if not right.resource.namespaced:
            places = [*own["cluster"], *(rights["namespaces"] if settings.kubernetes_create_namespaces else [])]
        elif right.namespace == cluster.namespace:
            places = own["system"]
        elif right.namespace is None and None not in settings.places:
            places = own["cluster"]  # what others' pods take of the nodes
        else:
            assert right.namespace in settings.places
            places = own["projects"]
        assert gives(places, right), str(right)


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
