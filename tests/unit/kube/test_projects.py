"""Namespaces of projects: who makes them, and which pod security they enforce."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from services.datastore import app as datastore_app
from services.registry import app as registry_app
from services.scheduler import app as scheduler_app
from services.serving import app as serving_app
from shared.contracts.common import Name
from shared.errors import Unsupported
from shared.kube import Cluster
from shared.kube.names import LONGEST_PROJECT
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


# -- patterns of their names ------------------------------------------------------------------------------------------

KUBECONFIG = """
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: u, user: {}}]
"""
NO_ROOM = "company-machine-learning-{project}"


@pytest.mark.parametrize("pattern", ["elearn-{project}", "{project}", "all", "a" * 23 + "{project}", "a" * 63])
def test_patterns_that_have_room_for_every_project(pattern: str) -> None:
    settings = ProjectSettings(kubernetes_project_namespace=pattern)
    assert len(settings.namespace_of("p" * LONGEST_PROJECT)) <= 63


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (NO_ROOM, "makes names of up to 65 characters.*63 at the most: shorten it"),
        ("{project}-{project}", "up to 81 characters"),
        ("a" * 64, "up to 64 characters"),
        ("elearn-{name}", "'elearn-{name}' makes no legal name"),
        ("Elearn-{project}", "makes no legal name"),
        ("elearn-", "makes no legal name"),
    ],
)
def test_patterns_that_have_not_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(Unsupported, match=f"ELEARN_KUBERNETES_PROJECT_NAMESPACE: .*{words}"):
        ProjectSettings(kubernetes_project_namespace=pattern)


@pytest.mark.parametrize("name", ["Search", "a_b", "-a", "*", "p" * (LONGEST_PROJECT + 1)])
def test_projects_that_there_can_not_be_are_refused_by_name(name: str) -> None:
    with pytest.raises(Unsupported, match=f"ELEARN_KUBERNETES_PROJECTS: {re.escape(repr(name))} can't be a project"):
        ProjectSettings(kubernetes_projects=("search", name))
    if name != "*":
        with pytest.raises(Unsupported, match="ELEARN_KUBERNETES_ROOT_PROJECTS: "):
            ProjectSettings(kubernetes_root_projects=("*", name))


def test_the_longest_project_is_as_long_as_a_name_may_be() -> None:
    assert msgspec.convert("p" * LONGEST_PROJECT, Name)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert("p" * (LONGEST_PROJECT + 1), Name)


@pytest.mark.parametrize("room", [scheduler_app, datastore_app, registry_app, serving_app])
def test_every_room_refuses_to_start_with_one(room: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    monkeypatch.setenv("ELEARN_KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("ELEARN_KUBERNETES_PROJECT_NAMESPACE", NO_ROOM)
    compose: Callable[[Any, Any], Awaitable[object]] = room.compose
    settings = room.Settings(nats_url="", postgres_url="", home=tmp_path, cloud="kubernetes")
    with pytest.raises(Unsupported, match="shorten it"):
        asyncio.run(_composed(compose, settings))


async def _composed(compose: Callable[[Any, Any], Awaitable[object]], settings: Any) -> object:
    return await compose(SimpleNamespace(database=None, outbox=None, bus=None, wake=None), settings)
