"""The namespaces of projects, made on demand."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Final, TypeVar

from shared.errors import Forbidden, Unavailable
from shared.kube.changes import Told
from shared.kube.client import Cluster
from shared.kube.errors import FieldConflict, NamespaceMissing
from shared.kube.merge import merged
from shared.kube.names import INSTALLATION, PROJECT, Selector, label_value, labels_of
from shared.kube.objects import HasMetadata, Partial
from shared.kube.resources import NAMESPACES, Resource
from shared.kube.settings import ProjectSettings
from shared.kube.watch import watch

S = TypeVar("S", bound=HasMetadata)
T = TypeVar("T")

POD_SECURITY: Final = "pod-security.kubernetes.io/enforce"


class Projects:
    """Knows each project's namespace, and makes sure that it is there.

    A namespace that is there already is taken as it is, whoever made it: an operator may prepare quotas and rights
    in it. One that we make enforces restricted pod security, or baseline where the settings allow the project root.
    """

    def __init__(self, cluster: Cluster, settings: ProjectSettings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._there: set[str] = set()
        self._making = asyncio.Lock()

    def namespace(self, project: str) -> str:
        """The namespace of a project."""
        return self._settings.namespace_of(project)

    async def ensure(self, project: str) -> str:
        """The namespace of a project, which is there afterwards.

        Raises:
            Forbidden: it is not there, and we may not make it.
        """
        name = self.namespace(project)
        places = self._settings.places
        if None not in places and name not in places:
            named = ", ".join(self._settings.kubernetes_projects)
            raise Forbidden(f"project {project} is none of those that elearn keeps to in this cluster: {named}")
        if name in self._there:
            return name
        if not self._settings.kubernetes_create_namespaces:
            self._there.add(name)
            return name
        async with self._making:
            found = await self._cluster.get(NAMESPACES, name, Partial)
            if found is None:
                await self._make(name, project)
            elif found.metadata.deletion_timestamp is not None:
                raise Unavailable(f"namespace {name} is being deleted: wait until it is gone", retry=5)
            elif self._is_too_strict(found, project):
                with contextlib.suppress(FieldConflict):  # somebody else has said what it enforces
                    await self._make(name, project)
            self._there.add(name)
        return name

    def knows(self, namespace: str) -> bool:
        """Whether it was ensured, and nothing has said since that it is not there."""
        return namespace in self._there

    async def ours(self, resource: Resource, read: type[S], labels: Selector) -> list[S]:
        """Our objects in the namespaces of all projects."""
        return await list_ours(self._cluster, self._settings, resource, read, labels)

    def forget(self, namespace: str) -> None:
        """Something said that a namespace is not there (any more): look again the next time."""
        self._there.discard(namespace)

    def _is_too_strict(self, found: Partial, project: str) -> bool:
        """Whether it is a namespace of ours from before the project was allowed root."""
        labels = found.metadata.labels
        ours = labels.get(INSTALLATION) == label_value(self._cluster.installation)
        return ours and labels.get(POD_SECURITY) == "restricted" and self._settings.pod_security(project) == "baseline"

    async def _make(self, name: str, project: str) -> None:
        labels = {PROJECT: project} if self._settings.one_namespace is None else {}
        security = self._settings.pod_security(project)
        try:
            await self._cluster.apply(namespace_manifest(name, self._cluster.installation, labels, security))
        except Forbidden as error:
            raise Forbidden(
                f"namespace {name} is not there and elearn may not make it: create it ({error.detail})"
            ) from error


async def list_ours(
    cluster: Cluster, settings: ProjectSettings, resource: Resource, read: type[S], labels: Selector
) -> list[S]:
    """Our objects in the namespaces of all projects."""
    found: list[S] = []
    for place in settings.places:
        try:
            found += await cluster.list(resource, read, namespace=place, everywhere=place is None, labels=labels)
        except NamespaceMissing:
            continue
    return found


def watch_all(
    cluster: Cluster,
    settings: ProjectSettings,
    resource: Resource,
    read: type[S],
    *,
    project: Callable[[S], T],
    labels: Selector | None = None,
    ours: bool = True,
) -> AsyncGenerator[Told[T], None]:
    """One watch over the namespaces of all projects."""
    watches = [
        watch(
            cluster,
            resource,
            read,
            project=project,
            namespace=place,
            everywhere=place is None,
            labels=labels,
            ours=ours,
        )
        for place in settings.places
    ]
    return watches[0] if len(watches) == 1 else merged(watches)


def as_it_is(object: T) -> T:
    """For :func:`watch_all`: keep the whole object."""
    return object


def namespace_manifest(
    name: str, installation: str, labels: dict[str, str], security: str = "restricted"
) -> dict[str, object]:
    """A project's namespace.

    Args:
        security: the pod security standard that it enforces.
    """
    enforce = {POD_SECURITY: security}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {**labels_of(installation, labels), **enforce}},
    }
