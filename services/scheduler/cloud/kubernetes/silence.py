"""Nodes that do not answer, on which pods of a freed attempt are left: who they are, and what is said of them. Pure.

A node that says itself that it is not ready does answer: it ends its pods, if late.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from shared.kube.objects import Node, Pod, condition

Silent = Mapping[str, datetime | None]
"""Since when nodes have not answered, as far as that is known."""

_MOST_NAMES: Final = 3


def silent_among(nodes: Iterable[Node], names: Collection[str]) -> Silent:
    """Those of the named nodes that the cluster has not heard of for so long that it does not know how they are."""
    ready = {
        node.metadata.name: condition(node.status.conditions, "Ready") for node in nodes if node.metadata.name in names
    }
    return {
        name: found.last_transition_time
        for name, found in ready.items()
        if found is not None and found.status == "Unknown"
    }


def given_up(left: Sequence[Pod], silent: Silent, lost_after: timedelta, now: datetime) -> list[Pod]:
    """The pods that are not waited for any longer.

    Args:
        lost_after: so long their nodes may be silent; zero: for ever.
    """
    if not lost_after:
        return []
    gone = {name for name, since in silent.items() if since is not None and since <= now - lost_after}
    return [pod for pod in left if pod.spec.node_name in gone]


def why_unended(left: Sequence[Pod], silent: Silent, lost_after: timedelta) -> str:
    """Why pods that were deleted are still there, and who can help."""
    nodes = sorted({pod.spec.node_name for pod in left if pod.spec.node_name in silent})
    if not nodes:
        return f"pods do not end: {', '.join(sorted(pod.metadata.name for pod in left)[:_MOST_NAMES])}"
    one, names = len(nodes) == 1, ", ".join(nodes[:_MOST_NAMES])
    words = f"node {names} does not answer" if one else f"nodes {names} do not answer"
    if lost_after:
        return f"{words}; what may still run there is given up after {lost_after.total_seconds():g} s"
    them = "it" if one else "them"
    return f"{words}, and may still run tasks: an operator has to bring {them} back, or delete {them} once off for good"
