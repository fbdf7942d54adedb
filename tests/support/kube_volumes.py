"""The controller that binds claims to volumes in an emulated cluster."""

from collections.abc import Callable

from shared.kube.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES
from tests.support.kube_fields import Document
from tests.support.kube_store import KubeStore

MANAGER = "kube-controller-manager"


class VolumeBinder:
    """Binds a claim to the volume that it names, or to one that a storage class is taken to have made.

    Args:
        say: tells an event of a claim: its name, reason, message and namespace.
    """

    def __init__(self, store: KubeStore, say: Callable[[str, str, str, str], None]) -> None:
        self._store = store
        self._say = say

    def bind(self, claim: str, namespace: str, volume: str = "") -> None:
        """A claim gets its volume, unless that is another claim's: one of the same name in earlier days is another."""
        found = self._store.need(PERSISTENT_VOLUME_CLAIMS, claim, namespace)
        name = volume or found["spec"].get("volumeName") or f"pvc-{found['metadata']['uid']}"
        there = self._store.find(PERSISTENT_VOLUMES, name)
        if there is not None and not self._takes(there, found):
            self._say(claim, "FailedBinding", f'volume "{name}" already bound to a different claim.', namespace)
            return
        size = found["spec"].get("resources", {}).get("requests", {})
        self._store.change(PERSISTENT_VOLUME_CLAIMS, claim, namespace, spec={"volumeName": name})
        self._store.change(PERSISTENT_VOLUME_CLAIMS, claim, namespace, status={"phase": "Bound", "capacity": size})

    def _takes(self, volume: Document, claim: Document) -> bool:
        """Note in a volume which claim it belongs to; False if that is another."""
        wanted = {field: claim["metadata"][field] for field in ("namespace", "name", "uid")}
        held = volume["spec"].get("claimRef") or {}
        if any(held.get(field) not in (None, value) for field, value in wanted.items()):
            return False
        name, version = volume["metadata"]["name"], claim["metadata"]["resourceVersion"]
        noted = {**wanted, "resourceVersion": held.get("resourceVersion", version)}
        self._store.change(PERSISTENT_VOLUMES, name, spec={"claimRef": noted}, manager=MANAGER)
        self._store.change(PERSISTENT_VOLUMES, name, status={"phase": "Bound"})
        return True

    def freed(self, volume: Document) -> None:
        """A volume that is reserved for a claim and not bound goes to it as soon as both are there."""
        held = volume["spec"].get("claimRef") or {}
        if not held or held.get("uid"):
            return
        if volume.get("status", {}).get("phase") == "Released":
            self._store.change(PERSISTENT_VOLUMES, volume["metadata"]["name"], status={"phase": "Available"})
        claim = self._store.find(PERSISTENT_VOLUME_CLAIMS, held.get("name", ""), held.get("namespace", ""))
        if claim is not None and claim.get("status", {}).get("phase") == "Pending":
            self.bind(held["name"], held["namespace"])

    def released(self, claim: Document) -> None:
        """A claim is gone: its volume goes on naming it, and is nobody else's."""
        for volume in self._store.all(PERSISTENT_VOLUMES):
            if (volume["spec"].get("claimRef") or {}).get("uid") == claim["metadata"]["uid"]:
                self._store.change(PERSISTENT_VOLUMES, volume["metadata"]["name"], status={"phase": "Released"})
