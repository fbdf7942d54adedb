"""From a Job and its pods to how a save goes. Pure."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from services.registry.cloud.kubernetes.work import IN_LOG, unpack
from services.registry.cloud.port import Lost, Observation, Refused, Running, Succeeded
from services.registry.reconcile import Job
from services.registry.save_job.job import DISK_FULL_EXIT, Result
from shared.kube.objects import Job as KubeJob
from shared.kube.objects import Pod, condition, is_true
from shared.kube.states import image_trouble, is_over, no_room, over_words, stuck, terminated


class ReadLog(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome did not fit into the termination message: it is in the pod's log."""

    pod: str


class LookAgain(msgspec.Struct, frozen=True, kw_only=True):
    """The Job is over and none of the pods that were told of says how: ask for them."""


class Stuck(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing has started for too long: ask what the cluster says of the pod, or, where there is none, of the Job."""

    pod: str | None


def observe(
    job: Job, kube: KubeJob, pods: Sequence[Pod], *, now: datetime, start_seconds: float
) -> Observation | ReadLog | LookAgain | Stuck:
    """How a save goes.

    Args:
        pods: those of the Job that are known.
        start_seconds: how long it may take to start, once there is room for it.
    """
    for pod in pods:
        ended = terminated(pod)
        if ended is None:
            continue
        if ended.message == IN_LOG:
            return ReadLog(pod=pod.metadata.name)
        result = unpack(ended.message)
        if result is not None:
            return concluded(job, result)
        if ended.exit_code == DISK_FULL_EXIT:
            return Refused(job=job, reason="the model store's disk is full; free some space and save again")
    failed = condition(kube.status.conditions, "Failed")
    if failed is not None and failed.status == "True":
        over = [pod for pod in pods if is_over(pod)]
        if not over:
            return LookAgain()
        return Lost(job=job, reason=over_words(over[-1]))
    if is_true(kube.status.conditions, "Complete"):
        return LookAgain()
    made = kube.metadata.creation_timestamp
    if made is None or (now - made).total_seconds() < start_seconds:
        return Running(job=job)
    for pod in pods:
        if words := image_trouble(pod) or stuck(pod):
            return Refused(job=job, reason=f"the save job could not start: {words}")
        if pod.status.phase == "Pending" and not no_room(pod):
            return Stuck(pod=pod.metadata.name)
    return Running(job=job) if pods else Stuck(pod=None)


def in_use_elsewhere(words: str) -> bool:
    """Whether what the cluster says of a pod is that another node has one of its claims mounted: that ends."""
    return words.startswith("FailedAttachVolume: Multi-Attach error")


def concluded(job: Job, result: Result) -> Observation:
    """What a result says."""
    if result.facts is not None:
        return Succeeded(job=job, facts=result.facts)
    return Refused(job=job, reason=result.refused or "the save job gave no reason")


def lost(job: Job, kube: KubeJob) -> Lost:
    """The Job is over, and whatever could say how is gone."""
    failed = condition(kube.status.conditions, "Failed")
    if failed is not None and failed.message:
        return Lost(job=job, reason=f"the Job failed: {failed.message}")
    return Lost(job=job, reason="its pod was deleted before it could say how it went")
