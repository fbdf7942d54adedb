"""Who may call the pods of a room: NetworkPolicies, which add up. Pure.

Probes of the kubelet and forwarded ports always get through.
"""

from collections.abc import Sequence
from typing import Final

from shared.kube.names import ROOM

Document = dict[str, object]

_NAMESPACE_NAME: Final = "kubernetes.io/metadata.name"


def ingress_policy(
    name: str, namespace: str, *, room: str, selects: dict[str, str], ingress: Sequence[Document]
) -> Document:
    """The policy by which the pods with these labels are called as the rules say, and by nobody else."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "labels": {ROOM: room}},
        "spec": {"podSelector": {"matchLabels": selects}, "policyTypes": ["Ingress"], "ingress": list(ingress)},
    }


def pods_here(labels: dict[str, str] | None = None) -> Document:
    """Pods of the policy's own namespace: with these labels, or all."""
    return {"podSelector": {"matchLabels": labels} if labels else {}}


def pods_of(namespace: str) -> Document:
    """All pods of a namespace."""
    return {"namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: namespace}}}
