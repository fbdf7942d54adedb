"""Which nodes take new pods. Pure."""

from typing import Final

from shared.kube.objects import Node, is_true

GPU: Final = "nvidia.com/gpu"
GPU_TOLERATION: Final[dict[str, object]] = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
"""Pods with GPUs have it: nodes with GPUs are usually kept free of others."""

_KEEPS_OUT: Final = ("NoSchedule", "NoExecute")


def is_usable(node: Node, *, gpu: bool = True) -> bool:
    """Whether new pods may go there.

    Args:
        gpu: pods that ask for GPUs, and tolerate the taint of nodes that are kept for such.
    """
    spec = node.spec
    kept_out = any(taint.effect in _KEEPS_OUT and not (gpu and taint.key == GPU) for taint in spec.taints)
    return is_true(node.status.conditions, "Ready") and not spec.unschedulable and not kept_out
