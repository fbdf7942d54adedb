"""How an API server's objects are written, by clients and by controllers and kubelets, and how they end. No I/O."""

import copy
import json
from typing import Any
from uuid import uuid4

import jsonpatch

from shared.kube.resources import NAMESPACES, PODS, Resource
from tests.support import kube_fields
from tests.support.kube_errors import (
    already_exists,
    apply_conflict,
    conflict,
    invalid,
    namespace_terminating,
    not_found,
)
from tests.support.kube_fields import Conflicts, Document
from tests.support.kube_objects import Key, KubeObjects
from tests.support.kube_validation import prepared_for_create, prepared_for_update, validate


class KubeStore(KubeObjects):
    """The state of a cluster, and its writes.

    Attributes:
        graceful: a deleted pod that has a node stays, with a deletionTimestamp, until :meth:`finish` is called.
        check: refuse manifests that the published schemas refuse.
    """

    def __init__(self, *, namespaces: tuple[str, ...] = ("default", "elearn"), check: bool = True) -> None:
        super().__init__()
        self.graceful = False
        self.check = check
        for name in namespaces:
            self.add(NAMESPACES, {"metadata": {"name": name}, "status": {"phase": "Active"}})

    # -- writing, as clients do ---------------------------------------------------------------------------------------

    def create(
        self, resource: Resource, namespace: str, document: Document, manager: str, *, dry: bool = False
    ) -> Document:
        metadata = document.setdefault("metadata", {})
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                raise invalid(resource, "", [("metadata.name", "Required value: name or generateName is required")])
            metadata["name"] = metadata["generateName"] + uuid4().hex[:5]
        name = metadata["name"]
        self._admit(resource, namespace, name, document)
        key = (namespace if resource.namespaced else "", name)
        live = self.find(resource, name, namespace)
        if live is not None:
            raise already_exists(resource, live)
        new = self._born(resource, key, document)
        if not dry:
            self._owned[resource, key] = kube_fields.written(None, new, {}, manager)
            self._put(resource, key, None, new)
        return new

    def apply(
        self, resource: Resource, namespace: str, name: str, document: Document, manager: str, *, force: bool, dry: bool
    ) -> Document:
        self._admit(resource, namespace, name, document)
        key = (namespace if resource.namespaced else "", name)
        live = self.find(resource, name, namespace)
        owned = self._owned.get((resource, key), {})
        try:
            merged, owned = kube_fields.apply(live, copy.deepcopy(document), owned, manager, force=force)
        except Conflicts as error:
            raise apply_conflict(resource, error.fields) from None
        new = self._born(resource, key, merged) if live is None else prepared_for_update(resource, live, merged)
        if not dry:
            self._owned[resource, key] = owned
            if live is None or _content(live) != _content(new):
                self._put(resource, key, live, new)
            else:
                return live
        return new

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Any,
        how: str,
        manager: str,
        *,
        subresource: str = "",
    ) -> Document:
        live = self.need(resource, name, namespace)
        base = copy.deepcopy(live)
        if subresource == "scale":
            change = {"spec": {"replicas": change["spec"]["replicas"]}}
        if how == "json":
            new = jsonpatch.apply_patch(base, change)
        else:
            new = kube_fields.strategic(base, change) if how == "strategic" else kube_fields.merge_patch(base, change)
        if subresource == "status":
            new = {**base, "status": new.get("status", {})}
        return self._write(resource, live, new, manager)

    def update(self, resource: Resource, namespace: str, name: str, document: Document, manager: str) -> Document:
        live = self.need(resource, name, namespace)
        given = document.get("metadata", {}).get("resourceVersion")
        if given and given != live["metadata"]["resourceVersion"]:
            raise conflict(
                resource,
                name,
                "the object has been modified; please apply your changes to the latest version and try again",
            )
        return self._write(resource, live, document, manager)

    def delete(self, resource: Resource, namespace: str, name: str, options: Document | None = None) -> Document:
        live = self.need(resource, name, namespace)
        options = options or {}
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != live["metadata"]["uid"]:
            raise conflict(
                resource,
                name,
                f"Precondition failed: UID in precondition: {wanted}, UID in object meta: {live['metadata']['uid']}",
            )
        if resource == NAMESPACES:
            return self._end_namespace(name)
        propagation = options.get("propagationPolicy", "Background")
        grace = options.get("gracePeriodSeconds", live.get("spec", {}).get("terminationGracePeriodSeconds", 30))
        if propagation == "Orphan":
            for kind, child in self._children(live["metadata"]["uid"]):
                refs = [ref for ref in child["metadata"]["ownerReferences"] if ref["uid"] != live["metadata"]["uid"]]
                self.change(kind, child["metadata"]["name"], child["metadata"].get("namespace", ""), owners=refs)
        if propagation == "Foreground" and self._children(live["metadata"]["uid"]):
            marked = self._mark(resource, live, grace=0, finalizer="foregroundDeletion")
            self.collect_garbage(live["metadata"]["uid"])
            return marked
        over = live.get("status", {}).get("phase") in ("Succeeded", "Failed")
        lingers = (
            resource == PODS and self.graceful and live.get("spec", {}).get("nodeName") and grace != 0 and not over
        )
        if lingers or live["metadata"].get("finalizers"):
            return self._mark(resource, live, grace=grace)
        self._end(resource, live)
        return live

    # -- writing, as controllers and kubelets do ----------------------------------------------------------------------

    def add(self, resource: Resource, document: Document, namespace: str = "", manager: str = "") -> Document:
        """An object of a stranger, or of the cluster itself, unchecked."""
        key = (namespace if resource.namespaced else "", document["metadata"]["name"])
        new = self._born(resource, key, document)
        if manager:
            self._owned[resource, key] = kube_fields.written(None, new, {}, manager)
        self._put(resource, key, None, new)
        return new

    def change(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        status: Document | None = None,
        labels: Document | None = None,
        spec: Document | None = None,
        owners: list[Document] | None = None,
        manager: str = "",
    ) -> Document:
        """Merge fields into an object."""
        live = self.need(resource, name, namespace)
        metadata: Document = {}
        if labels is not None:
            metadata["labels"] = labels
        if owners is not None:
            metadata["ownerReferences"] = owners
        change: Document = {"metadata": metadata}
        if status is not None:
            change["status"] = status
        if spec is not None:
            change["spec"] = spec
        new = kube_fields.merge_patch(copy.deepcopy(live), change)
        return self._write(resource, live, new, manager, checked=False)

    def finish(self, resource: Resource, name: str, namespace: str = "") -> None:
        """What lingers (a pod that is ending, an object with finalizers, a namespace) is gone."""
        live = self.find(resource, name, namespace)
        if live is None:
            return
        if resource == NAMESPACES:
            for kind in list(self._objects):
                for document in self.all(kind, name):
                    self._end(kind, document)
        self._end(resource, live)

    def collect_garbage(self, uid: str) -> None:
        """An object went, or is going in the foreground: delete what had it as the last of its owners."""
        for resource, key in sorted(self._dependents.get(uid, ()), key=lambda each: (each[0].plural, each[1])):
            child = self._objects.get(resource, {}).get(key)
            if child is None or child["metadata"].get("deletionTimestamp"):
                continue
            if not any(self._holds(owner["uid"]) for owner in child["metadata"].get("ownerReferences", ())):
                how = "Foreground" if uid in self._uids else "Background"
                self.delete(resource, key[0], key[1], {"propagationPolicy": how})

    # -- inside -------------------------------------------------------------------------------------------------------

    def _admit(self, resource: Resource, namespace: str, name: str, document: Document) -> None:
        if resource.namespaced:
            home = self.find(NAMESPACES, namespace)
            if home is None:
                raise not_found(NAMESPACES, namespace)
            if home.get("status", {}).get("phase") == "Terminating" and self.find(resource, name, namespace) is None:
                raise namespace_terminating(resource, name, namespace)
        validate(resource, name, document, schemas=self.check)

    def _born(self, resource: Resource, key: Key, document: Document) -> Document:
        return prepared_for_create(resource, key[0], document, stamp=self.stamp(), revision=self.revision)

    def _write(
        self, resource: Resource, live: Document, new: Document, manager: str, *, checked: bool = True
    ) -> Document:
        key = _key(live)
        if checked:
            new = prepared_for_update(resource, live, new)
        if _content(live) == _content(new):
            return live
        if manager:
            owned = self._owned.get((resource, key), {})
            self._owned[resource, key] = kube_fields.written(live, new, owned, manager)
        metadata = new["metadata"]
        if metadata.get("deletionTimestamp") and not metadata.get("finalizers") and resource != PODS:
            self._end(resource, live)
            return new
        self._put(resource, key, live, new)
        return new

    def _mark(self, resource: Resource, live: Document, *, grace: int, finalizer: str = "") -> Document:
        if live["metadata"].get("deletionTimestamp"):
            return live
        metadata = {**live["metadata"], "deletionTimestamp": self.stamp(grace), "deletionGracePeriodSeconds": grace}
        if finalizer:
            metadata["finalizers"] = [*metadata.get("finalizers", ()), finalizer]
        new = {**live, "metadata": metadata}
        self._put(resource, _key(live), live, new)
        return new

    def _end_namespace(self, name: str) -> Document:
        live = self.need(NAMESPACES, name)
        marked = self._mark(NAMESPACES, live, grace=0)
        new = {**marked, "metadata": dict(marked["metadata"]), "status": {"phase": "Terminating"}}
        self._put(NAMESPACES, ("", name), marked, new)
        return new

    def _end(self, resource: Resource, live: Document) -> None:
        key = _key(live)
        before = self._remove(resource, key)
        if before is None:
            return
        uid, owners = before["metadata"]["uid"], before["metadata"].get("ownerReferences", ())
        self.collect_garbage(uid)
        self._dependents.pop(uid, None)
        for owner in owners:
            self._dependents.get(owner["uid"], set()).discard((resource, key))
            waiting = self._uids.get(owner["uid"])
            if waiting and not self._holds(owner["uid"]) and not self._children(owner["uid"]):
                self._end(waiting[0], self._objects[waiting[0]][waiting[1]])


def _key(document: Document) -> Key:
    return document["metadata"].get("namespace", ""), document["metadata"]["name"]


def _content(document: Document) -> str:
    metadata = {k: v for k, v in document["metadata"].items() if k not in ("resourceVersion", "generation")}
    return json.dumps({**document, "metadata": metadata}, sort_keys=True, default=str)
