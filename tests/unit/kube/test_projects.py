"""Namespaces of projects: who makes them, and which pod security they enforce."""

import pytest

from shared.kube import Cluster
from shared.kube.projects import POD_SECURITY, Projects
from shared.kube.resources import NAMESPACES
from shared.kube.settings import ProjectSettings
from tests.support.kube_server import KubeServer

ROOT = ProjectSettings(kubernetes_root_projects=("vision",))


@pytest.mark.parametrize(
    ("settings", "project", "root", "standard"),
    [
        (ProjectSettings(), "vision", False, "restricted"),
        (ROOT, "vision", True, "baseline"),
        (ROOT, "search", False, "restricted"),
        (ProjectSettings(kubernetes_root_projects=("*",)), "search", True, "baseline"),
        (ProjectSettings(kubernetes_project_namespace="all"), "search", False, "restricted"),
        (ProjectSettings(kubernetes_project_namespace="all", kubernetes_root_projects=("a",)), "b", False, "baseline"),
    ],
)
async def test_who_may_be_root_and_what_the_namespace_enforces(
    settings: ProjectSettings, project: str, root: bool, standard: str, server: KubeServer, cluster: Cluster
) -> None:
    assert settings.may_be_root(project) is root
    namespace = await Projects(cluster, settings).ensure(project)
    assert server.store.need(NAMESPACES, namespace)["metadata"]["labels"][POD_SECURITY] == standard


async def test_a_project_that_is_allowed_root_later_gets_a_namespace_that_lets_it(
    server: KubeServer, cluster: Cluster
) -> None:
    namespace = await Projects(cluster, ProjectSettings()).ensure("vision")
    await Projects(cluster, ROOT).ensure("vision")
    assert server.store.need(NAMESPACES, namespace)["metadata"]["labels"][POD_SECURITY] == "baseline"
    await Projects(cluster, ProjectSettings()).ensure("vision")  # a room that was not told does not undo it
    assert server.store.need(NAMESPACES, namespace)["metadata"]["labels"][POD_SECURITY] == "baseline"


@pytest.mark.parametrize("labels", [{}, {POD_SECURITY: "restricted"}, {POD_SECURITY: "privileged"}])
async def test_a_namespace_of_somebody_else_is_taken_as_it_is(
    labels: dict[str, str], server: KubeServer, cluster: Cluster
) -> None:
    server.store.add(NAMESPACES, {"metadata": {"name": "elearn-vision", "labels": labels}})
    await Projects(cluster, ROOT).ensure("vision")
    assert server.store.need(NAMESPACES, "elearn-vision")["metadata"]["labels"] == labels
    assert server.asked("PATCH", "namespaces") == 0


async def test_what_somebody_else_has_said_of_our_namespace_stays(server: KubeServer, cluster: Cluster) -> None:
    namespace = await Projects(cluster, ProjectSettings()).ensure("vision")
    server.store.patch(
        NAMESPACES, "", namespace, {"metadata": {"labels": {POD_SECURITY: "privileged"}}}, "merge", "kubectl"
    )
    server.store.patch(
        NAMESPACES, "", namespace, {"metadata": {"labels": {POD_SECURITY: "restricted"}}}, "merge", "kubectl"
    )
    await Projects(cluster, ROOT).ensure("vision")
    assert server.store.need(NAMESPACES, namespace)["metadata"]["labels"][POD_SECURITY] == "restricted"
