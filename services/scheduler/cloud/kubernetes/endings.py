"""How a task's pod came to its end: by its own program, or by the cluster's doing. Pure.

succeeded    exit code 0, and nobody had told it to end
failed       its program ended otherwise, or used more than it may
unstartable  there is no such program, or what had to be prepared for it can't be
disrupted    the cluster took the pod away, or lost it, or what it needs was away: not the user's failure
deleted      somebody deleted the pod while it ran: what its program ended with says nothing
"""

import re
from datetime import datetime
from typing import Final, Literal

import msgspec

from services.scheduler.cloud.kubernetes.identity import CONTAINER
from services.scheduler.cloud.kubernetes.preparation import AWAY
from shared.kube.objects import ContainerStatus, Pod, Terminated, condition
from shared.kube.states import is_over

End = Literal["succeeded", "failed", "unstartable", "disrupted", "deleted"]

LONGEST_REASON: Final = 300

_BY_CLUSTER: Final = frozenset(
    {
        "Evicted",
        "NodeAffinity",
        "NodeLost",
        "NodeShutdown",
        "Preempted",
        "Preempting",
        "Shutdown",
        "Terminated",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
    }
)
"""Reasons of pods that the cluster ended or a node did not take; ``OutOf…`` besides."""
_LOST_TRACK: Final = frozenset({"ContainerStatusUnknown", "Unknown"})
"""Of containers that a node found no trace of: it was restarted, or went."""
_NOT_STARTED: Final = frozenset({"ContainerCannotRun", "StartError"})
_NO_PROGRAM: Final = re.compile(
    r"executable file not found|no such file or directory|permission denied|exec format error|(is|not) a directory",
    re.I,
)
_OWN_LIMIT: Final = re.compile(r"exceed", re.IGNORECASE)
_SIGNALS: Final = range(129, 193)
"""Exit codes by which a runtime tells of signals 1 to 64."""


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a pod ended; an exit code or a signal is its program's."""

    end: End
    words: str = ""
    exit_code: int | None = None
    signal: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


def ending_of(pod: Pod, *, asked_at: datetime | None) -> Ending | None:
    """How a pod ended; None while its program may still run.

    Args:
        asked_at: when somebody deleted it.
    """
    box = next((each for each in pod.status.container_statuses if each.name == CONTAINER), None)
    ended = box.state.terminated if box is not None else None
    if ended is None and not is_over(pod):
        return None
    finished = ended.finished_at if ended is not None else None
    times = Ending(end="disrupted", started_at=_started_at(box), finished_at=finished or _last_end(pod))
    exit_code, signal = _exit(ended)
    if words := taken_away(pod, before=times.finished_at) or _by_cluster(pod):
        return msgspec.structs.replace(times, words=words, exit_code=exit_code, signal=signal)
    if words := _over_limit(pod):
        return msgspec.structs.replace(times, end="failed", words=words, exit_code=exit_code, signal=signal)
    if asked_at is not None and (times.finished_at is None or times.finished_at >= asked_at):
        return msgspec.structs.replace(
            times, end="deleted", words="its pod was deleted", exit_code=exit_code, signal=signal
        )
    return _by_itself(pod, ended, times)


def _by_itself(pod: Pod, ended: Terminated | None, times: Ending) -> Ending:
    if ended is None:
        for each in pod.status.init_container_statuses:
            failed = each.state.terminated
            if failed is not None and failed.exit_code:
                return _unprepared(failed, times)
        if pod.status.phase == "Succeeded":
            return msgspec.structs.replace(times, end="succeeded", exit_code=0)
        return msgspec.structs.replace(times, words="its pod ended, and nothing tells how")
    if ended.reason in _LOST_TRACK:
        return msgspec.structs.replace(times, words="its node was restarted, or lost track of it")
    if ended.reason in _NOT_STARTED:
        said = shortened(ended.message or ended.reason)
        if _NO_PROGRAM.search(ended.message):
            return msgspec.structs.replace(times, end="unstartable", words=said, started_at=None)
        return msgspec.structs.replace(times, words=f"its node could not start it: {said}", started_at=None)
    exit_code, signal = _exit(ended)
    if exit_code == 0:
        return msgspec.structs.replace(times, end="succeeded", exit_code=0)
    # Whoever has failed has run: what never did is given up for good.
    started = times.started_at or pod.status.start_time or times.finished_at or pod.metadata.creation_timestamp
    words = "killed for want of memory" if ended.reason == "OOMKilled" else last_line(ended.message)
    return msgspec.structs.replace(
        times, end="failed", words=words, exit_code=exit_code, signal=signal, started_at=started
    )


def _unprepared(failed: Terminated, times: Ending) -> Ending:
    """What a task needs could not be brought about; a killed init container says nothing of that."""
    if failed.reason == "OOMKilled":
        return msgspec.structs.replace(times, end="unstartable", words="preparing it was killed for want of memory")
    if failed.exit_code == AWAY:
        return msgspec.structs.replace(times, words=shortened(failed.message or "what it needs is away"))
    if failed.message and failed.reason not in _LOST_TRACK:
        return msgspec.structs.replace(times, end="unstartable", words=shortened(failed.message))
    if failed.reason in _LOST_TRACK or failed.exit_code in _SIGNALS:
        return msgspec.structs.replace(times, words="it was ended while it was prepared")
    words = f"preparing it ended with exit code {failed.exit_code}"
    return msgspec.structs.replace(times, end="unstartable", words=words)


def taken_away(pod: Pod, *, before: datetime | None = None) -> str:
    """Why the cluster takes a pod away, in words; "" where it does not, or did so only after its end.

    Args:
        before: when its program ended.
    """
    found = condition(pod.status.conditions, "DisruptionTarget")
    if found is None or found.status != "True":
        return ""
    since = found.last_transition_time
    if before is not None and since is not None and since > before:
        return ""
    return shortened(f"its pod was taken away ({found.reason}): {found.message}")


def _by_cluster(pod: Pod) -> str:
    status = pod.status
    known = status.reason in _BY_CLUSTER or status.reason.startswith("OutOf")
    refused = bool(status.reason) and not status.container_statuses and not status.init_container_statuses
    if not (known or refused) or _over_limit(pod):
        return ""
    return shortened(f"its pod was ended by the cluster ({status.reason}): {status.message}")


def _over_limit(pod: Pod) -> str:
    """A pod that filled more disk than it may is evicted too, by its own fault."""
    if pod.status.reason != "Evicted" or not _OWN_LIMIT.search(pod.status.message):
        return ""
    return shortened(pod.status.message)


def _exit(ended: Terminated | None) -> tuple[int | None, int | None]:
    """Exit code or signal, whichever it was."""
    if ended is None or ended.reason in _NOT_STARTED or ended.reason in _LOST_TRACK:
        return None, None
    if ended.signal:
        return None, ended.signal
    if ended.exit_code in _SIGNALS:
        return None, ended.exit_code - 128
    return ended.exit_code, None


def _started_at(box: ContainerStatus | None) -> datetime | None:
    if box is None:
        return None
    if box.state.running is not None:  # of a pod that was given up with its node
        return box.state.running.started_at
    started = box.state.terminated.started_at if box.state.terminated is not None else None
    return started if started is not None and started.year > 1970 else None  # the epoch: never


def _last_end(pod: Pod) -> datetime | None:
    """When the last thing of a pod ended that is known to have; None where nothing is."""
    boxes = (*pod.status.init_container_statuses, *pod.status.container_statuses)
    ends = [each.state.terminated.finished_at for each in boxes if each.state.terminated is not None]
    return max((end for end in ends if end is not None), default=None)


def last_line(text: str) -> str:
    """The last line that says something, as much of it as is shown."""
    return shortened(next((line for line in reversed(text.splitlines()) if line.strip()), ""))


def shortened(text: str) -> str:
    """In one line, as much as is shown."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 1]}…"
