"""How pods stand, in words. Pure."""

from typing import Final

from shared.kube.objects import ContainerStatus, Pod, Terminated, condition
from shared.kube.single_node import claims_named

_IMAGE: Final = frozenset(
    {"ErrImageNeverPull", "ErrImagePull", "ImageInspectError", "ImagePullBackOff", "InvalidImageName"}
)
_STUCK: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_AFFINITY: Final = "pod affinity rules"
"""In what Kubernetes says of nodes that lack the pods which a pod has to be near."""
_GATES: Final = "ReadinessGatesNotReady"
"""Why a node itself says that a pod is not ready whose containers are."""
_WORDS: Final = 300


def is_ready(pod: Pod) -> bool:
    """Whether it runs, answers, and is not on its way out."""
    found = condition(pod.status.conditions, "Ready")
    return found is not None and found.status == "True" and pod.metadata.deletion_timestamp is None


def is_unheard_of(pod: Pod) -> bool:
    """Whether its node has not been heard of for so long that the cluster says so: it may still run there, or not.

    Of a pod whose containers were all ready when its node last spoke, nobody else says that it is not.
    """
    ready, containers = (condition(pod.status.conditions, kind) for kind in ("Ready", "ContainersReady"))
    return (
        ready is not None
        and containers is not None
        and ready.status != "True"
        and containers.status == "True"
        and ready.reason != _GATES
    )


def is_over(pod: Pod) -> bool:
    """Whether nothing of it runs any more."""
    return pod.status.phase in ("Succeeded", "Failed")


def terminated(pod: Pod) -> Terminated | None:
    """How its first container ended, once it has for good."""
    if not is_over(pod) or not pod.status.container_statuses:
        return None
    return pod.status.container_statuses[0].state.terminated


def no_room(pod: Pod) -> str:
    """Why no node takes it, or ""."""
    placed = condition(pod.status.conditions, "PodScheduled")
    if placed is None or placed.status != "False":
        return ""
    said = f"no node takes it: {_short(placed.message or placed.reason)}"
    claims = claims_named(pod.metadata.labels)
    if claims and _AFFINITY in placed.message:
        said = f"{said.rstrip('.')}; it has to run on the node where others mount its storage, {', '.join(claims)}"
    return said


def image_trouble(pod: Pod) -> str:
    """Why its image can't be had, or ""."""
    for each in _containers(pod):
        waiting = each.state.waiting
        if waiting is not None and waiting.reason in _IMAGE:
            image = next((box.image for box in pod.spec.containers if box.name == each.name), "")
            return f"image {image} can't be pulled: {_short(waiting.message or waiting.reason)}"
    return ""


def stuck(pod: Pod) -> str:
    """Why it can't be started, or keeps ending, or ""."""
    for each in _containers(pod):
        waiting = each.state.waiting
        if waiting is not None and waiting.reason in _STUCK:
            return f"it can't be started: {_short(waiting.message or waiting.reason)}"
        if waiting is not None and waiting.reason == "CrashLoopBackOff":
            ended = each.last_state.terminated
            return f"it ended {each.restart_count} times" + (f", the last time: {ended_words(ended)}" if ended else "")
    return ""


def trouble(pod: Pod) -> str:
    """The first of all these, or ""."""
    return image_trouble(pod) or stuck(pod) or no_room(pod)


def ended_words(ended: Terminated) -> str:
    """How a container ended."""
    if ended.reason == "OOMKilled":
        return "killed for want of memory"
    said = f" ({_short(ended.message)})" if ended.message else ""
    if ended.signal:
        return f"signal {ended.signal}{said}"
    return f"exit code {ended.exit_code}{said}"


def over_words(pod: Pod) -> str:
    """How a pod came to its end; a disruption is told as one."""
    disrupted = condition(pod.status.conditions, "DisruptionTarget")
    if disrupted is not None and disrupted.status == "True":
        return f"its pod was taken away ({disrupted.reason}): {_short(disrupted.message)}"
    if pod.status.reason:
        return f"its pod ended: {pod.status.reason}: {_short(pod.status.message)}"
    ended = terminated(pod)
    return f"its pod ended: {ended_words(ended)}" if ended else "its pod ended"


def _containers(pod: Pod) -> tuple[ContainerStatus, ...]:
    return (*pod.status.init_container_statuses, *pod.status.container_statuses)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WORDS else f"{line[:_WORDS]}…"
