"""Near which pods a pod may be placed, as Kubernetes' own scheduler sees it: the affinity of pods to pods."""

from collections.abc import Mapping, Sequence

from tests.support.kube_fields import Document

HOSTNAME = "kubernetes.io/hostname"


def may_be_near(pod: Document, on_node: Mapping[str, Sequence[Document]]) -> set[str]:
    """The nodes on which a pod finds the pods that it must be near.

    A neighbour counts only where it meets all terms. Where there is none at all, a pod that meets its own terms may go
    anywhere: it is the first.
    """
    terms = _affinity(pod).get("requiredDuringSchedulingIgnoredDuringExecution", ())
    if not terms:
        return set(on_node)
    near = {
        node for node, others in on_node.items() if any(_meets(other, pod, terms) for other in others if other != pod)
    }
    return set(on_node) if not near and _meets(pod, pod, terms) else near


def wishes_met(pod: Document, others: Sequence[Document]) -> int:
    """How much of what a pod would like is on a node."""
    return sum(
        wish["weight"]
        for wish in _affinity(pod).get("preferredDuringSchedulingIgnoredDuringExecution", ())
        if any(_meets(other, pod, [wish["podAffinityTerm"]]) for other in others)
    )


def _affinity(pod: Document) -> Document:
    near: Document = pod["spec"].get("affinity", {}).get("podAffinity", {})
    return near


def _meets(other: Document, pod: Document, terms: Sequence[Document]) -> bool:
    labels, same = other["metadata"].get("labels", {}), other["metadata"]["namespace"] == pod["metadata"]["namespace"]
    for term in terms:
        assert term["topologyKey"] == HOSTNAME
        if not same or not term["labelSelector"]["matchLabels"].items() <= labels.items():
            return False
    return True
