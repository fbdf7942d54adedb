"""Claims that one node alone can mount: their pods have to run there, all of them. Pure.

Kubernetes places pods by itself and lets such a claim lead them apart; the second node then waits for the first to let
go of the volume. So each of these pods bears a label that names the claim, and wants to be where others with that label
are. The first of them may go anywhere: Kubernetes lets a pod be its own first neighbour.

Only one claim of a pod is a demand. Of several demands Kubernetes counts a neighbour only where it meets all of them at
once (``podMatchesAllAffinityTerms`` in its scheduler), so that two would be no demand at all wherever the neighbours
mount one claim each. The others are wishes, of the greatest weight.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from shared.kube.names import label_value

Document = dict[str, object]

LABEL: Final = "claim.elearn.dev/"
"""What the labels begin with; the claim's name follows."""
MOUNTED: Final = "mounted"

_TOPOLOGY: Final = "kubernetes.io/hostname"
_ONE_NODE: Final = "ReadWriteOnce"
_ONE_POD: Final = "ReadWriteOncePod"
_MANY_NODES: Final = "ReadWriteMany"


class Neighbours(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod is made with to be where its claims are.

    Attributes:
        labels: of the pod.
        demands, wishes: terms of its affinity to pods.
    """

    labels: Mapping[str, str] = {}
    demands: tuple[Document, ...] = ()
    wishes: tuple[Document, ...] = ()

    def affinity(self, *wishes: Document) -> Document:
        """The ``affinity`` of a pod's spec; nothing where it has none.

        Args:
            wishes: more terms, of the same weight.
        """
        affinity: Document = {}
        if self.demands:
            affinity["requiredDuringSchedulingIgnoredDuringExecution"] = list(self.demands)
        if weighed := [{"weight": 100, "podAffinityTerm": term} for term in (*self.wishes, *wishes)]:
            affinity["preferredDuringSchedulingIgnoredDuringExecution"] = weighed
        return {"affinity": {"podAffinity": affinity}} if affinity else {}


def neighbours(claims: Sequence[str]) -> Neighbours:
    """What the pods that mount these claims are made with.

    Args:
        claims: those of a pod that one node alone can mount; the first is the one that it has to be near.
    """
    labels = {claim_label(claim): MOUNTED for claim in claims}
    terms = tuple(near({label: MOUNTED}) for label in labels)
    return Neighbours(labels=labels, demands=terms[:1], wishes=terms[1:])


def near(labels: Mapping[str, str]) -> Document:
    """The term of an affinity that leads to the node of pods of the same namespace with these labels."""
    return {"labelSelector": {"matchLabels": dict(labels)}, "topologyKey": _TOPOLOGY}


def claim_label(claim: str) -> str:
    """The label of the pods that mount a claim. Its key names it, as a pod may mount several."""
    return LABEL + label_value(claim)


def claims_named(labels: Mapping[str, str]) -> list[str]:
    """The claims that a pod's labels name."""
    return [label.removeprefix(LABEL) for label in sorted(labels) if label.startswith(LABEL)]


def single_node(access_modes: Collection[str]) -> bool:
    """Whether one node alone can mount a claim for writing."""
    return _ONE_NODE in access_modes and _MANY_NODES not in access_modes


def single_pod_problem(access_modes: Collection[str]) -> str:
    """Why a claim can't be shared by pods even of one node, with what to do, or ""."""
    if _ONE_POD not in access_modes:
        return ""
    return f"one pod alone can mount it ({_ONE_POD}), and elearn needs several: make it {_ONE_NODE} or {_MANY_NODES}"
