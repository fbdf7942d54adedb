"""The cluster that the live suite runs on, seen and touched through its API alone."""

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from shared.kube import Cluster, KubernetesSettings
from shared.kube.client import Cluster as Kube
from shared.kube.names import INSTALLATION
from shared.kube.objects import Job, Metadata, Partial, Pod, Service
from shared.kube.resources import (
    CLUSTER_ROLE_BINDINGS,
    CLUSTER_ROLES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    JOBS,
    NAMESPACES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    SECRETS,
    SERVICES,
    STORAGE_CLASSES,
    Resource,
)
from shared.kube.states import is_over, terminated, trouble
from shared.kube.storage import class_claim

T = TypeVar("T")

IMAGE = os.environ.get("ELEARN_TEST_IMAGE", "elearn:dev")
STORAGE_CLASS = os.environ.get("ELEARN_TEST_STORAGE_CLASS", "")
HOST_ROOT = os.environ.get("ELEARN_TEST_HOST_ROOT", "/tmp/elearn-test")
RESTART = os.environ.get("ELEARN_TEST_RESTART_API_SERVER", "")
"""A shell command that restarts the API server and returns when it answers again."""

CLUSTER_WIDE = (NAMESPACES, PERSISTENT_VOLUMES, STORAGE_CLASSES)
SMALL: dict[str, object] = {"cpu": "50m", "memory": "96Mi"}


def until(condition: Callable[[], T | None], what: str, seconds: float = 60.0, every: float = 0.25) -> T:
    """Wait until the condition holds; answers what it answered."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds:g} s still not: {what}")
        time.sleep(every)


class LiveCluster:
    """What the suite itself does in the cluster: prepare, look, disturb, clean up.

    Attributes:
        installation: of this run; all namespaces begin with it.
        settings: of a client of the cluster.
    """

    def __init__(self, kubeconfig: str) -> None:
        self.installation = f"elearn-live-{secrets.token_hex(3)}"
        self._open: set[str] = set()
        self.settings = KubernetesSettings(
            kubeconfig=kubeconfig,
            kubernetes_installation=self.installation,
            kubernetes_namespace=self.system,
        )

    @property
    def system(self) -> str:
        """The namespace that drivers keep for themselves."""
        return f"{self.installation}-system"

    @property
    def folder(self) -> str:
        """The folder of the node that is this run's own."""
        return f"{HOST_ROOT}/{self.installation}"

    @property
    def root(self) -> str:
        """The part of it for datastores, beside the models."""
        return f"{self.folder}/data"

    def namespace(self, project: str = "default") -> str:
        return f"{self.installation}-{project}"

    def call(self, work: Callable[[Kube], Awaitable[T]]) -> T:
        """Do something with a client of the cluster."""

        async def run() -> T:
            async with Cluster(self.settings) as cluster:
                return await work(cluster)

        return asyncio.run(run())

    # -- looking

    def of_training(self, name: str, project: str = "default") -> list[str]:
        """Everything that is there of a training: ``Pod …``, ``Job …``, ``Service …``, ``Secret …``."""
        labels = {"elearn.dev/training": name}
        kinds: tuple[tuple[Resource, type[Any]], ...] = (
            (PODS, Pod),
            (JOBS, Job),
            (SERVICES, Service),
            (SECRETS, Partial),
        )

        async def look(cluster: Kube) -> list[str]:
            found: list[str] = []
            for resource, kind in kinds:
                there = await cluster.list(resource, kind, namespace=self.namespace(project), labels=labels)
                found += [f"{resource.kind} {each.metadata.name}" for each in there]
            return found

        return self.call(look)

    def pods(self, name: str, project: str = "default") -> list[Pod]:
        labels = {"elearn.dev/training": name}
        return self.call(lambda cluster: cluster.list(PODS, Pod, namespace=self.namespace(project), labels=labels))

    def pod(self, name: str, role: str) -> Pod:
        """The pod of a training's first task of a role."""
        return next(pod for pod in self.pods(name) if pod.metadata.labels["elearn.dev/role"] == role)

    # -- disturbing

    def delete_pod(self, pod: Pod) -> None:
        about = pod.metadata
        self.call(lambda cluster: cluster.delete(PODS, about.name, namespace=about.namespace, uid=about.uid))

    def secret(self, name: str, values: dict[str, str]) -> None:
        """A Secret in the default project's namespace, as its operator makes one."""
        manifest = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": self.namespace()},
            "stringData": values,
        }
        self.call(lambda cluster: cluster.create(manifest))

    # -- preparing and cleaning up

    def prepare(self, *, system: bool = True) -> None:
        """Namespaces, and a folder of the node that pods may write to who are not root.

        Args:
            system: also the namespace that drivers keep for themselves, which the chart makes by itself.
        """

        async def make(cluster: Kube) -> None:
            if system:
                await cluster.create(_namespace(self.system))
            await cluster.create(_namespace(f"{self.installation}-root", "privileged"))

        self.call(make)
        if not STORAGE_CLASS:
            self.as_root(f"mkdir -p {self.folder}/models {self.root} && chmod -R 0777 {self.folder}")

    def open_project(self) -> None:
        """The default project's namespace and model store, made beforehand: claims by class may belong to root."""
        models = class_claim(
            "models",
            namespace=self.namespace(),
            storage_class=STORAGE_CLASS,
            size="1Gi",
            mode="ReadWriteOnce",
            labels={},
        )

        async def make(cluster: Kube) -> None:
            await cluster.create(_namespace(self.namespace(), "privileged"))
            await cluster.create(models)

        self.call(make)
        self.open_claims()

    def open_claims(self) -> None:
        """Let pods write who are not root, where a provisioner makes folders that belong to root."""
        namespace = self.namespace()
        claims = self.call(lambda cluster: cluster.list(PERSISTENT_VOLUME_CLAIMS, Partial, namespace=namespace))
        for claim in claims:
            if claim.metadata.uid not in self._open:
                self._open.add(claim.metadata.uid)
                self.as_root("chmod 0777 /claim", claim=claim.metadata.name, namespace=namespace)

    def as_root(self, script: str, *, claim: str = "", namespace: str = "") -> None:
        """Run a script in a pod that is root, with the node's folder at its own path, or with a claim at ``/claim``."""
        where = namespace or f"{self.installation}-root"
        name = f"as-root-{secrets.token_hex(4)}"
        source: dict[str, Any] = {"hostPath": {"path": HOST_ROOT, "type": "DirectoryOrCreate"}}
        if claim:
            source = {"persistentVolumeClaim": {"claimName": claim}}
        manifest = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": where},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "securityContext": {"runAsUser": 0, "runAsNonRoot": False},
                "containers": [
                    {
                        "name": "script",
                        "image": IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-ec", script],
                        "volumeMounts": [{"name": "data", "mountPath": "/claim" if claim else HOST_ROOT}],
                    }
                ],
                "volumes": [{"name": "data", **source}],
            },
        }
        self.call(lambda cluster: cluster.create(manifest))

        def ended() -> Pod | None:
            found = self.call(lambda cluster: cluster.get(PODS, name, Pod, namespace=where))
            assert found is not None, f"pod {name} has gone"
            return found if is_over(found) else None

        try:
            pod = until(ended, f"pod {name} has ended", 120)
        except AssertionError as error:
            left = self.call(lambda cluster: cluster.get(PODS, name, Pod, namespace=where))
            raise AssertionError(f"{error}: {trouble(left) if left is not None else 'it is gone'}") from error
        end = terminated(pod)
        assert end is not None, f"pod {name}: {pod.status.reason}"
        assert end.exit_code == 0, f"{script!r} ended with {end.exit_code} {end.message}"
        self.delete_pod(pod)

    def clean_up(self) -> None:
        """Remove everything of this run."""
        if not STORAGE_CLASS and f"{self.installation}-root" in self._names(NAMESPACES):
            self.as_root(f"rm -rf {self.folder}")

        async def remove(cluster: Kube) -> None:
            # Objects first, owners before what they own: namespaces that are deleted whole have been seen to stay.
            for resource in (DEPLOYMENTS, JOBS, SERVICES, PODS, CONFIG_MAPS, SECRETS, PERSISTENT_VOLUME_CLAIMS):
                for each in await cluster.list(resource, Partial, everywhere=True):
                    about = each.metadata
                    await cluster.delete(resource, about.name, namespace=about.namespace, uid=about.uid)
            for resource in (*CLUSTER_WIDE, CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES):
                for each in await cluster.list(resource, Partial):
                    await cluster.delete(resource, each.metadata.name, uid=each.metadata.uid)

        self.call(remove)
        until(lambda: not self.left(), "nothing of this run is left in the cluster", 180, every=1.0)

    def left(self) -> list[str]:
        """What of this run is there, in no namespace or any."""
        return [f"{kind.kind} {name}" for kind in CLUSTER_WIDE for name in self._names(kind)] + [
            f"{kind.kind} {about.namespace}/{about.name}"
            for kind in (PODS, JOBS, SERVICES, CONFIG_MAPS)
            for about in self._everywhere(kind)
        ]

    def _names(self, resource: Resource) -> list[str]:
        return [each.metadata.name for each in self.call(lambda cluster: cluster.list(resource, Partial))]

    def _everywhere(self, resource: Resource) -> list[Metadata]:
        found = self.call(
            lambda cluster: cluster.list(
                resource, Partial, everywhere=True, ours=False, labels={INSTALLATION: self.installation}
            )
        )
        return [each.metadata for each in found]


def _namespace(name: str, level: str = "restricted") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": level}},
    }


def needs(setting: str, name: str) -> pytest.MarkDecorator:
    """Skip where the environment does not say how."""
    return pytest.mark.skipif(not setting, reason=f"{name} is not set")
