"""The objects that an API server keeps: their resourceVersions, their history, who owns them and who hears of them.

How they may be written is in ``kube_store.py``.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from shared.kube.resources import ALL, Resource
from tests.support.kube_errors import not_found
from tests.support.kube_fields import Document, Owned

Key = tuple[str, str]  # (namespace, name)


class Entry:
    """A moment of the history: an object before and after."""

    __slots__ = ("after", "before", "revision")

    def __init__(self, revision: int, before: Document | None, after: Document | None) -> None:
        self.revision, self.before, self.after = revision, before, after


class KubeObjects:
    """Objects of all kinds.

    Attributes:
        revision: counts every write.
        oldest: the first revision that the history knows.
        clock: what stamps are of.
        resources: the kinds that there are, by group, version and plural.
        history: of each kind, oldest first.
        snapshots: what a list showed at a revision, for its later pages.
        on_change: called after every write.
        on_write: the same, with kind and object before and after.
    """

    def __init__(self) -> None:
        self.revision = 1000
        self.oldest = 1000
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
            raise not_found(resource, name)
        return found

    def managers(self, resource: Resource, name: str, namespace: str = "") -> Owned:
        """Who owns which fields."""
        return self._owned.get((resource, (namespace if resource.namespaced else "", name)), {})

    def compact(self) -> None:
        """Forget the history: every older resourceVersion and every page's token is answered with 410."""
        self.oldest = self.revision = self.revision + 1
        self.history.clear()
        self.snapshots.clear()

    def stamp(self, later: int = 0) -> str:
        """The time, so many seconds later, as objects tell it."""
        return (self.clock() + timedelta(seconds=later)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _holds(self, uid: str) -> bool:
        """Whether an owner keeps its dependents from being collected."""
        found = self._uids.get(uid)
        document = self._objects.get(found[0], {}).get(found[1]) if found else None
        return document is not None and "foregroundDeletion" not in document["metadata"].get("finalizers", ())

    def _children(self, uid: str) -> list[tuple[Resource, Document]]:
        found = [
            (resource, self._objects.get(resource, {}).get(key)) for resource, key in self._dependents.get(uid, ())
        ]
        return [(resource, child) for resource, child in found if child is not None]

    def _put(self, resource: Resource, key: Key, before: Document | None, new: Document) -> None:
        self.revision += 1
        new["metadata"]["resourceVersion"] = str(self.revision)
        self._objects.setdefault(resource, {})[key] = new
        self._uids[new["metadata"]["uid"]] = (resource, key)
        for owner in new["metadata"].get("ownerReferences", ()):
            self._dependents.setdefault(owner["uid"], set()).add((resource, key))
        self._note(resource, Entry(self.revision, before, new))

    def _remove(self, resource: Resource, key: Key) -> Document | None:
        """An object is no more: it as it was; None: it was not there."""
        before = self._objects.get(resource, {}).pop(key, None)
        if before is None:
            return None
        self._owned.pop((resource, key), None)
        self._uids.pop(before["metadata"]["uid"], None)
        self.revision += 1
        last = {**before, "metadata": {**before["metadata"], "resourceVersion": str(self.revision)}}
        self._note(resource, Entry(self.revision, last, None))
        return before

    def _note(self, resource: Resource, entry: Entry) -> None:
        self.history.setdefault(resource, []).append(entry)
        for tell in self.on_change:
            tell()
        for hear in self.on_write:
            hear(resource, entry.before, entry.after)
