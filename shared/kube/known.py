"""What a watch has told so far: of each object its uid and resourceVersion, and what that makes of the next news. Pure.

Nothing stale passes for new. A resourceVersion counts upwards within a kind, so a list that is older than what was
told before comes from a server that lags behind, and is not believed; see :meth:`Known.lags`.
"""

from enum import Enum

from shared.kube.changes import Identity


class News(Enum):
    """What an object's state is to somebody who knows the earlier ones."""

    ADDED = "added"
    MODIFIED = "modified"
    NONE = "none"


class Known:
    """What was told. Its size is two strings and a key for each object that there is."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], tuple[str, str]] = {}  # (namespace, name): (uid, resourceVersion)
        self._unseen: set[tuple[str, str]] | None = None
        self._newest = ""

    def __len__(self) -> int:
        return len(self._objects)

    @property
    def newest(self) -> str:
        """The newest resourceVersion that was heard of, or "" before the first."""
        return self._newest

    def heard(self, version: str) -> None:
        """A list, an event or a bookmark carried this resourceVersion."""
        if version and not older(version, self._newest):
            self._newest = version

    def lags(self, version: str) -> bool:
        """Whether a list of this resourceVersion is older than what was told already."""
        return older(version, self._newest)

    def forget_newest(self) -> None:
        """The server's history itself went back (restored from a backup): believe what it says now."""
        self._newest = ""
        self._objects = {key: (uid, "") for key, (uid, _) in self._objects.items()}

    def told(self, identity: Identity, version: str) -> tuple[Identity | None, News]:
        """An object is there in this state.

        Returns:
            Another object that must have gone, as this one has its name; and what this state is.
        """
        key = (identity.namespace, identity.name)
        before = self._objects.get(key)
        if self._unseen is not None:
            self._unseen.discard(key)
        if before is not None and before[0] == identity.uid:
            if version == before[1] or older(version, before[1]):
                return None, News.NONE
            self._objects[key] = (identity.uid, version)
            return None, News.MODIFIED
        self._objects[key] = (identity.uid, version)
        gone = Identity(identity.namespace, identity.name, before[0]) if before else None
        return gone, News.ADDED

    def gone(self, identity: Identity) -> bool:
        """An object was deleted; whether that is news."""
        key = (identity.namespace, identity.name)
        before = self._objects.get(key)
        if before is None or before[0] != identity.uid:
            return False
        del self._objects[key]
        return True

    def begin_list(self) -> None:
        """A whole list follows."""
        self._unseen = set(self._objects)

    def end_list(self) -> list[Identity]:
        """The list is complete: what it did not have is gone."""
        unseen, self._unseen = self._unseen or set(), None
        return [Identity(*key, self._objects.pop(key)[0]) for key in sorted(unseen)]


def older(version: str, than: str) -> bool:
    """Whether a resourceVersion came before another; where one is no number there is no telling: False."""
    if not (version.isdigit() and than.isdigit()):
        return False
    return (len(version), version) < (len(than), than)
