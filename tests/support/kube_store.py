"""What an API server keeps: objects with resourceVersions, their history, owners, and the rules of writing. No I/O."""

import copy
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import jsonpatch

from shared.kube.resources import ALL, JOBS, NAMESPACES, PERSISTENT_VOLUME_CLAIMS, PODS, SERVICES, Resource
from tests.support import kube_fields
from tests.support.kube import schema_errors
from tests.support.kube_fields import Conflicts, Document, Owned

Key = tuple[str, str]  # (namespace, name)

_IMMUTABLE: dict[str, tuple[str, ...]] = {
    "jobs": ("spec.template", "spec.selector", "spec.completionMode", "spec.podFailurePolicy"),
    "deployments": ("spec.selector",),
    "persistentvolumeclaims": ("spec.accessModes", "spec.storageClassName", "spec.volumeName", "spec.volumeMode"),
    "services": ("spec.clusterIP",),
    "storageclasses": ("provisioner", "parameters"),
}
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


class ApiError(Exception):
    """An answer that refuses."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status: Document = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details,
            "code": code,
        }


class Entry:
    """A moment of the history: an object before and after."""

    __slots__ = ("after", "before", "revision")

    def __init__(self, revision: int, before: Document | None, after: Document | None) -> None:
        self.revision, self.before, self.after = revision, before, after


class KubeStore:
    """The state of a cluster, and its writes.

    Attributes:
        revision: counts every write.
        graceful: a deleted pod that has a node stays, with a deletionTimestamp, until :meth:`finish` is called.
        check: refuse manifests that the published schemas refuse.
    """

    def __init__(self, *, namespaces: tuple[str, ...] = ("default", "elearn"), check: bool = True) -> None:
        self.revision = 1000
        self.oldest = 1000
        self.graceful = False
        self.check = check
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.resources = {(resource.group, resource.version, resource.plural): resource for resource in ALL}
        self.history: dict[Resource, list[Entry]] = {}
        self.snapshots: dict[tuple[Resource, int], list[Document]] = {}
        self.on_change: list[Callable[[], None]] = []
        self.on_write: list[Callable[[Resource, Document | None, Document | None], None]] = []
        self._objects: dict[Resource, dict[Key, Document]] = {}
        self._owned: dict[tuple[Resource, Key], Owned] = {}
        self._uids: dict[str, tuple[Resource, Key]] = {}
        self._dependents: dict[str, set[tuple[Resource, Key]]] = {}
        for name in namespaces:
            self.add(NAMESPACES, {"metadata": {"name": name}, "status": {"phase": "Active"}})

    # -- looking ------------------------------------------------------------------------------------------------------

    def find(self, resource: Resource, name: str, namespace: str = "") -> Document | None:
        """An object, as it is now; not to be changed."""
        return self._objects.get(resource, {}).get((namespace if resource.namespaced else "", name))

    def all(self, resource: Resource, namespace: str | None = None) -> list[Document]:
        """Objects of a kind, in the order of their names."""
        found = self._objects.get(resource, {})
        return [found[key] for key in sorted(found) if namespace is None or key[0] == namespace]

    def need(self, resource: Resource, name: str, namespace: str = "") -> Document:
        found = self.find(resource, name, namespace)
        if found is None:
            raise self.missing(resource, name)
        return found

    def managers(self, resource: Resource, name: str, namespace: str = "") -> Owned:
        """Who owns which fields."""
        return self._owned.get((resource, (namespace if resource.namespaced else "", name)), {})

    @staticmethod
    def missing(resource: Resource, name: str) -> ApiError:
        return ApiError(
            404,
            "NotFound",
            f'{_full(resource)} "{name}" not found',
            name=name,
            group=resource.group,
            kind=resource.plural,
        )

    # -- writing, as clients do ---------------------------------------------------------------------------------------

    def create(
        self, resource: Resource, namespace: str, document: Document, manager: str, *, dry: bool = False
    ) -> Document:
        metadata = document.setdefault("metadata", {})
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                raise self._invalid(
                    resource, "", [("metadata.name", "Required value: name or generateName is required")]
                )
            metadata["name"] = metadata["generateName"] + uuid4().hex[:5]
        name = metadata["name"]
        self._admit(resource, namespace, name, document)
        key = (namespace if resource.namespaced else "", name)
        live = self.find(resource, name, namespace)
        if live is not None:
            words = (
                f'object is being deleted: {_full(resource)} "{name}" already exists'
                if live["metadata"].get("deletionTimestamp")
                else f'{_full(resource)} "{name}" already exists'
            )
            raise ApiError(409, "AlreadyExists", words, name=name, group=resource.group, kind=resource.plural)
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
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{who}" using {resource.api_version}',
                    "field": field,
                }
                for field, who in error.fields
            ]
            told = ", ".join(f'conflict with "{who}": {field}' for field, who in error.fields)
            raise ApiError(
                409, "Conflict", f"Apply failed with {len(causes)} conflict(s): {told}", causes=causes
            ) from None
        new = self._born(resource, key, merged) if live is None else self._changed(resource, live, merged)
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
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {_full(resource)} "{name}": the object has been modified;'
                " please apply your changes to the latest version and try again",
                name=name,
                group=resource.group,
                kind=resource.plural,
            )
        return self._write(resource, live, document, manager)

    def delete(self, resource: Resource, namespace: str, name: str, options: Document | None = None) -> Document:
        live = self.need(resource, name, namespace)
        options = options or {}
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted and wanted != live["metadata"]["uid"]:
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {_full(resource)} "{name}": Precondition failed: UID in'
                f" precondition: {wanted}, UID in object meta: {live['metadata']['uid']}",
                name=name,
                group=resource.group,
                kind=resource.plural,
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

    def compact(self) -> None:
        """Forget the history: every older resourceVersion and every page's token is answered with 410."""
        self.oldest = self.revision = self.revision + 1
        self.history.clear()
        self.snapshots.clear()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _holds(self, uid: str) -> bool:
        found = self._uids.get(uid)
        document = self._objects.get(found[0], {}).get(found[1]) if found else None
        return document is not None and "foregroundDeletion" not in document["metadata"].get("finalizers", ())

    def _children(self, uid: str) -> list[tuple[Resource, Document]]:
        found = [
            (resource, self._objects.get(resource, {}).get(key)) for resource, key in self._dependents.get(uid, ())
        ]
        return [(resource, child) for resource, child in found if child is not None]

    def _admit(self, resource: Resource, namespace: str, name: str, document: Document) -> None:
        if resource.namespaced:
            home = self.find(NAMESPACES, namespace)
            if home is None:
                raise self.missing(NAMESPACES, namespace)
            if home.get("status", {}).get("phase") == "Terminating" and self.find(resource, name, namespace) is None:
                raise ApiError(
                    403,
                    "Forbidden",
                    f'{_full(resource)} "{name}" is forbidden: unable to create new content in namespace {namespace}'
                    " because it is being terminated",
                    name=name,
                    kind=resource.plural,
                    causes=[
                        {
                            "reason": "NamespaceTerminating",
                            "message": f"namespace {namespace} is being terminated",
                            "field": "metadata.namespace",
                        }
                    ],
                )
        problems = []
        strict = resource in (PODS, SERVICES, JOBS) or resource == NAMESPACES
        if not (_DNS_LABEL if strict else _DNS_NAME).fullmatch(name):
            problems.append(
                ("metadata.name", f'Invalid value: "{name}": must be no more than 63 characters, a DNS label')
            )
        if resource == SERVICES and not name[:1].isalpha():
            problems.append(("metadata.name", f'Invalid value: "{name}": a DNS-1035 label must start with a letter'))
        problems += [
            ("metadata.labels", f'Invalid value: "{value}": a valid label must be at most 63 characters')
            for value in (document.get("metadata", {}).get("labels") or {}).values()
            if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value)
        ]
        if self.check:
            problems += [("", error) for error in schema_errors(document)]
        unknown = [found[1] for _, words in problems if (found := re.search(r"\('(\w+)' was unexpected", words))]
        if unknown:
            told = ", ".join(f'unknown field "{field}"' for field in dict.fromkeys(unknown))
            raise ApiError(400, "BadRequest", f"strict decoding error: {told}")
        if problems:
            raise self._invalid(resource, name, problems)

    @staticmethod
    def _invalid(resource: Resource, name: str, problems: list[tuple[str, str]]) -> ApiError:
        told = ", ".join(f"{field}: {words}" for field, words in problems)
        causes = [{"reason": "FieldValueInvalid", "message": words, "field": field} for field, words in problems]
        full = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
        return ApiError(
            422,
            "Invalid",
            f'{full} "{name}" is invalid: {told}',
            name=name,
            group=resource.group,
            kind=resource.kind,
            causes=causes,
        )

    def _born(self, resource: Resource, key: Key, document: Document) -> Document:
        new = copy.deepcopy(document)
        new["apiVersion"], new["kind"] = resource.api_version, resource.kind
        metadata = new["metadata"]
        if resource.namespaced:
            metadata["namespace"] = key[0]
        metadata.setdefault("uid", str(uuid4()))
        metadata["creationTimestamp"] = self._stamp()
        metadata["generation"] = 1
        if resource == SERVICES:
            new.setdefault("spec", {}).setdefault(
                "clusterIP", f"10.96.{self.revision // 250 % 250}.{self.revision % 250}"
            )
        if resource == PERSISTENT_VOLUME_CLAIMS:
            new.setdefault("status", {"phase": "Pending"})
        if resource == PODS:
            new.setdefault("status", {"phase": "Pending"})
        return new

    def _changed(self, resource: Resource, live: Document, new: Document) -> Document:
        metadata = {**new.get("metadata", {})}
        for field in ("uid", "creationTimestamp", "generation", "namespace", "deletionTimestamp"):
            if field in live["metadata"]:
                metadata[field] = live["metadata"][field]
        if new.get("spec") != live.get("spec"):
            metadata["generation"] = live["metadata"].get("generation", 0) + 1
        new = {**new, "apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": metadata}
        problems = [
            (field, "Invalid value: field is immutable")
            for field in _IMMUTABLE.get(resource.plural, ())
            if _at(live, field) is not None and _at(new, field) != _at(live, field)
        ]
        if problems:
            raise self._invalid(resource, metadata["name"], problems)
        return new

    def _write(
        self, resource: Resource, live: Document, new: Document, manager: str, *, checked: bool = True
    ) -> Document:
        key = _key(live)
        if checked:
            new = self._changed(resource, live, new)
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
        metadata = {**live["metadata"], "deletionTimestamp": self._stamp(grace), "deletionGracePeriodSeconds": grace}
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
        before = self._objects.get(resource, {}).pop(key, None)
        if before is None:
            return
        uid, owners = before["metadata"]["uid"], before["metadata"].get("ownerReferences", ())
        self._owned.pop((resource, key), None)
        self._uids.pop(uid, None)
        self.revision += 1
        last = {**before, "metadata": {**before["metadata"], "resourceVersion": str(self.revision)}}
        self._note(resource, Entry(self.revision, last, None))
        self.collect_garbage(uid)
        self._dependents.pop(uid, None)
        for owner in owners:
            self._dependents.get(owner["uid"], set()).discard((resource, key))
            waiting = self._uids.get(owner["uid"])
            if waiting and not self._holds(owner["uid"]) and not self._children(owner["uid"]):
                self._end(waiting[0], self._objects[waiting[0]][waiting[1]])

    def _put(self, resource: Resource, key: Key, before: Document | None, new: Document) -> None:
        self.revision += 1
        new["metadata"]["resourceVersion"] = str(self.revision)
        self._objects.setdefault(resource, {})[key] = new
        self._uids[new["metadata"]["uid"]] = (resource, key)
        for owner in new["metadata"].get("ownerReferences", ()):
            self._dependents.setdefault(owner["uid"], set()).add((resource, key))
        self._note(resource, Entry(self.revision, before, new))

    def _note(self, resource: Resource, entry: Entry) -> None:
        self.history.setdefault(resource, []).append(entry)
        for tell in self.on_change:
            tell()
        for hear in self.on_write:
            hear(resource, entry.before, entry.after)

    def _stamp(self, later: int = 0) -> str:
        return (self.clock() + timedelta(seconds=later)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _full(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def _key(document: Document) -> Key:
    return document["metadata"].get("namespace", ""), document["metadata"]["name"]


def _at(document: Document, dotted: str) -> Any:
    value: Any = document
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _content(document: Document) -> str:
    metadata = {k: v for k, v in document["metadata"].items() if k not in ("resourceVersion", "generation")}
    return json.dumps({**document, "metadata": metadata}, sort_keys=True, default=str)
