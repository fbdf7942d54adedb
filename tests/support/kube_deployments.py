"""The controller that keeps Deployments in an emulated cluster: a ReplicaSet for each revision, and its pods."""

from uuid import uuid4

from shared.kube.names import digest
from shared.kube.resources import DEPLOYMENTS, PODS, REPLICA_SETS
from tests.support.kube_fields import Document
from tests.support.kube_pod_status import PodStatus
from tests.support.kube_scheduler import PodScheduler
from tests.support.kube_store import KubeStore

HASH = "pod-template-hash"


class DeploymentController:
    """Makes the pods of Deployments.

    Args:
        scheduler: places them; None: they do without nodes.
    """

    def __init__(self, store: KubeStore, status: PodStatus, scheduler: PodScheduler | None) -> None:
        self._store = store
        self._status = status
        self._scheduler = scheduler

    def deploy(self, deployment: Document, ready: int | None) -> None:
        """Roll out a Deployment until that many of its newest pods are ready; None: as many as it wants."""
        metadata, spec = deployment["metadata"], deployment["spec"]
        namespace, wanted = metadata["namespace"], spec.get("replicas", 1)
        revision = digest(metadata["uid"], str(spec["template"]))
        replica_set = self._replica_set(metadata, revision)
        self._make_pods(deployment, replica_set, revision)
        mine = self._pods(namespace, revision)
        placed = [pod for pod in mine if pod["spec"].get("nodeName") or self._scheduler is None]
        count = min(wanted if ready is None else ready, len(placed))
        for pod in placed[:count]:
            self._status.running(pod)
        for pod in mine[wanted:]:
            self._store.finish(PODS, pod["metadata"]["name"], namespace)
        if count == wanted:  # the old ones go only now
            self._end_others(metadata, replica_set)
        available = {"type": "Available", "status": "True" if count else "False"}
        progressing = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
        self._store.change(
            DEPLOYMENTS,
            metadata["name"],
            namespace,
            status={
                "observedGeneration": metadata.get("generation", 1),
                "replicas": wanted,
                "updatedReplicas": wanted,
                "readyReplicas": count,
                "availableReplicas": count,
                "unavailableReplicas": wanted - count,
                "conditions": [available, progressing],
            },
        )

    def _replica_set(self, metadata: Document, revision: str) -> Document:
        name, namespace = f"{metadata['name']}-{revision}", metadata["namespace"]
        if self._store.find(REPLICA_SETS, name, namespace) is None:
            owner = _owner("Deployment", metadata)
            made = {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": {}}
            self._store.add(REPLICA_SETS, made, namespace)
        return self._store.need(REPLICA_SETS, name, namespace)

    def _make_pods(self, deployment: Document, replica_set: Document, revision: str) -> None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        labels = {**spec["template"].get("metadata", {}).get("labels", {}), HASH: revision}
        parent = _owner("ReplicaSet", replica_set["metadata"])
        for _ in range(len(self._pods(metadata["namespace"], revision)), spec.get("replicas", 1)):
            name = f"{metadata['name']}-{revision}-{uuid4().hex[:5]}"
            about = {"name": name, "labels": labels, "ownerReferences": [parent]}
            made = {"metadata": about, "spec": dict(spec["template"]["spec"])}
            pod = self._store.add(PODS, made, metadata["namespace"])
            if self._scheduler is not None:
                self._scheduler.schedule(pod)

    def _pods(self, namespace: str, revision: str) -> list[Document]:
        return [
            pod for pod in self._store.all(PODS, namespace) if pod["metadata"].get("labels", {}).get(HASH) == revision
        ]

    def _end_others(self, metadata: Document, newest: Document) -> None:
        for other in self._store.all(REPLICA_SETS, metadata["namespace"]):
            owners = [each["uid"] for each in other["metadata"].get("ownerReferences", ())]
            if metadata["uid"] in owners and other["metadata"]["name"] != newest["metadata"]["name"]:
                self._store.finish(REPLICA_SETS, other["metadata"]["name"], metadata["namespace"])


def _owner(kind: str, metadata: Document) -> Document:
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }
