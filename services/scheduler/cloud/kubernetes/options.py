"""How trainings run in a cluster, as the operator says it. Pure."""

import re
from typing import Final, Literal

import msgspec

from shared.errors import Unsupported
from shared.kube.names import LONGEST_LABEL

_QUEUE: Final = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class TrainingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Read from ``ELEARN_<FIELD>``.

    Attributes:
        kubernetes_training_image: what a training runs in that names no image; not set: elearn's own.
        kubernetes_start_seconds: a task whose image can't be pulled, or whose container can't be made, so long after
            its pod was made has failed, in seconds; so has one whose pod the cluster refuses for so long.
        kubernetes_schedule_seconds: an attempt of which some pod finds no node, no volume or no quota for so long is
            given up and tried again later, in seconds, so that the others do not hold their nodes for nothing.
        kubernetes_lost_node_seconds: the pods of a freed attempt are given up, in seconds, when their node has not
            answered for so long: the next attempt starts though they may still run there, behind a cut network, and
            write to the same folders. 0: never, until the node is back or somebody deletes it.
        kubernetes_code_url: where pods reach the scheduler's code server (``http://elearn-scheduler.elearn:8083``);
            not set: code is delivered in Secrets, which holds some megabytes.
        kubernetes_code_port: where this scheduler serves code to pods; 0: it does not.
        kubernetes_code_host: the address that it listens at for that; ``*``: every one, IPv4 and IPv6.
        kubernetes_log_seconds: how often, at the most, the log of a running task is fetched that nobody reads, in
            seconds: so much of it is lost with a node.
        kubernetes_board_access: how TensorBoards are reached: by the cluster's own names (``service``), or by a
            forwarded port of this machine (``forward``); not set: the former in a pod, the latter elsewhere.
        kubernetes_board_image: what TensorBoards run in, an image with Python 3.11 or later; not set: elearn's own,
            which holds one where it was built in full.
        kubernetes_priority_class: the PriorityClass of tasks.
        kubernetes_queue: the queue of Kueue, in the project's namespace, by which the Jobs of trainings are let go that
            name none in their labels; not set: elearn lets them go itself.

    Raises:
        Unsupported: a queue can't have that name.
    """

    kubernetes_training_image: str = ""
    kubernetes_start_seconds: float = 300.0
    kubernetes_schedule_seconds: float = 600.0
    kubernetes_lost_node_seconds: float = 0.0
    kubernetes_code_url: str = ""
    kubernetes_code_port: int = 0
    kubernetes_code_host: str = "127.0.0.1"
    kubernetes_log_seconds: float = 30.0
    kubernetes_board_access: Literal["", "service", "forward"] = ""
    kubernetes_board_image: str = ""
    kubernetes_priority_class: str = ""
    kubernetes_queue: str = ""

    def __post_init__(self) -> None:
        if self.kubernetes_queue and not is_queue(self.kubernetes_queue):
            raise Unsupported(f"ELEARN_KUBERNETES_QUEUE: {self.kubernetes_queue!r} can't be the name of a queue")


def is_queue(name: str) -> bool:
    """Whether a queue of Kueue can have that name."""
    return len(name) <= LONGEST_LABEL and _QUEUE.fullmatch(name) is not None
