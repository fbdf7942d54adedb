"""Events: what a cluster says of its objects, for whoever looks."""

from uuid import uuid4

from shared.kube.resources import EVENTS, Resource
from tests.support.kube_store import KubeStore


def record_event(
    store: KubeStore, resource: Resource, name: str, reason: str, message: str, *, namespace: str = "default"
) -> None:
    """Warn of an object, whether or not it is there."""
    involved = {"kind": resource.kind, "name": name, "namespace": namespace}
    if found := store.find(resource, name, namespace):
        involved["uid"] = found["metadata"]["uid"]
    store.add(
        EVENTS,
        {
            "metadata": {"name": f"{name}.{uuid4().hex[:8]}"},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "involvedObject": involved,
        },
        namespace,
    )
