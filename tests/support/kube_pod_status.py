"""What kubelets, and whoever disrupts pods, write into the status of a pod."""

from typing import Any

from shared.kube.names import digest
from shared.kube.resources import PODS
from tests.support.kube_fields import Document
from tests.support.kube_store import KubeStore


class PodStatus:
    """Writes the status of pods, each with its phase, conditions and containers."""

    def __init__(self, store: KubeStore) -> None:
        self._store = store

    def running(self, pod: Document, *, ready: bool = True) -> None:
        number = digest(pod["metadata"]["uid"])
        at = sum(ord(letter) for letter in number)
        self._write(
            pod,
            {
                "phase": "Running",
                "podIP": f"10.244.{at % 250}.{at // 250 + 2}",
                "startTime": self._store.stamp(),
                "conditions": [
                    {"type": "PodScheduled", "status": "True"},
                    {"type": "Ready", "status": "True" if ready else "False"},
                ],
                "containerStatuses": _containers(pod, {"running": {"startedAt": self._store.stamp()}}, ready=ready),
            },
        )

    def ended(self, pod: Document, *, code: int = 0, reason: str = "", message: str = "", phase: str = "") -> None:
        """Its processes have ended; ``phase``: what its node says of it meanwhile."""
        terminated = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
            "startedAt": self._store.stamp(),
            "finishedAt": self._store.stamp(),
        }
        self._write(
            pod,
            {
                "phase": phase or ("Succeeded" if code == 0 else "Failed"),
                "conditions": [{"type": "Ready", "status": "False", "reason": "PodCompleted"}],
                "containerStatuses": _containers(pod, {"terminated": terminated}, ready=False),
            },
        )

    def waiting(self, pod: Document, reason: str, message: str) -> None:
        """Its containers do not start."""
        waiting = {"waiting": {"reason": reason, "message": message}}
        self._write(pod, {"phase": "Pending", "containerStatuses": _containers(pod, waiting, ready=False)})

    def silent(self, pod: Document) -> None:
        """Its node has not been heard of: all is as told last, but for being ready."""
        kinds = {"Ready": "False", "ContainersReady": "True"}
        told = [{"type": kind, "status": status} for kind, status in kinds.items()]
        self._write(pod, {**pod["status"], "conditions": told})

    def disrupted(self, pod: Document, why: str, words: str, **status: Any) -> None:
        """Something other than its own processes ends it; ``status``: what else is told of that."""
        condition = {"type": "DisruptionTarget", "status": "True", "reason": why, "message": words}
        terminated = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": self._store.stamp()}}
        change: Document = {"conditions": [condition], **status}
        if status.get("phase") == "Failed":
            change["containerStatuses"] = _containers(pod, terminated, ready=False)
        self._write(pod, change)

    def _write(self, pod: Document, status: Document) -> None:
        self._store.change(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"], status=status)


def _containers(pod: Document, state: Document, *, ready: bool) -> list[Document]:
    return [
        {"name": each["name"], "ready": ready, "restartCount": 0, "image": each.get("image", ""), "state": state}
        for each in pod["spec"]["containers"]
    ]
