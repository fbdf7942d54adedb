"""The Kubernetes serving cloud on an emulated cluster, whose model servers answer where their versions are there."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from services.serving.cloud.kubernetes import KubernetesServings, ServerOptions, ServingOptions
from services.serving.cloud.kubernetes.manifests import CONFIG, REVISION
from shared.contracts.datastore import ClaimVolume
from shared.kube.client import Cluster
from shared.kube.names import ROOM
from shared.kube.resources import DEPLOYMENTS, PODS, Resource
from shared.kube.settings import ProjectSettings
from tests.support.kube_fields import Document
from tests.support.kube_kubelet import PodServer
from tests.support.kube_life import ClusterLife

NAMESPACE = "elearn-default"
MODELS = ClaimVolume(claim_name="models")
SERVER = ServerOptions(cpu=0.25, memory=2**28, start_seconds=1.0, grace_seconds=2.0, max_batch=8, batch_micros=0)


def servings_on(cluster: Cluster, **options: Any) -> KubernetesServings:
    """A driver."""
    chosen = msgspec.structs.replace(ServingOptions(kubernetes_serving_server="elearn"), **options)
    return KubernetesServings(cluster, ProjectSettings(), chosen, SERVER, look_often=0.1)


class ModelServers:
    """Starts the pods of Deployments: one whose versions are below ``models`` is ready, any other keeps ending."""

    def __init__(self, server: PodServer, life: ClusterLife, models: Path) -> None:
        self.store, self.life, self.models = server.store, life, models
        self.store.on_write.append(self._written)

    def _written(self, resource: Resource, before: Document | None, after: Document | None) -> None:
        if resource == DEPLOYMENTS and after is not None and (before is None or before["spec"] != after["spec"]):
            asyncio.get_running_loop().call_soon(
                self._settle, after["metadata"]["name"], after["metadata"]["namespace"]
            )

    def _settle(self, name: str, namespace: str) -> None:
        deployment = self.store.find(DEPLOYMENTS, name, namespace)
        if deployment is None:
            return
        template = deployment["spec"]["template"]["metadata"]
        config = msgspec.json.decode(template["annotations"][CONFIG])
        missing = [each["version"] for each in config["versions"] if not (self.models / str(each["version"])).exists()]
        if not missing:
            self.life.deployed(name, namespace=namespace)
            return
        for pod in self.store.all(PODS, namespace):
            labels = pod["metadata"]["labels"]
            if labels.get(ROOM) == "serving" and labels[REVISION] == template["labels"][REVISION]:
                self.crash(pod, f"there is no SavedModel in {config['versions'][0]['path']}")

    def crash(self, pod: Document, message: str) -> None:
        """A pod's server keeps ending."""
        box = {
            "name": "server",
            "ready": False,
            "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s restarting"}},
            "lastState": {"terminated": {"exitCode": 1, "message": message}},
        }
        about = pod["metadata"]
        self.store.change(
            PODS, about["name"], about["namespace"], status={"phase": "Running", "containerStatuses": [box]}
        )
