"""What a watch tells. Pure."""

from typing import Generic, TypeAlias, TypeVar

import msgspec

T_co = TypeVar("T_co", covariant=True)


class Identity(msgspec.Struct, frozen=True):
    """Which object: a name may come back, a uid never does."""

    namespace: str
    name: str
    uid: str


class Added(msgspec.Struct, Generic[T_co], frozen=True):
    """An object that was not known before."""

    identity: Identity
    object: T_co


class Modified(msgspec.Struct, Generic[T_co], frozen=True):
    """A newer state of a known object; states in between may have gone unseen."""

    identity: Identity
    object: T_co


class Deleted(msgspec.Struct, Generic[T_co], frozen=True):
    """An object is gone, or no longer matches.

    Attributes:
        object: its last state, or None where it went while nobody looked.
    """

    identity: Identity
    object: T_co | None


class Synced(msgspec.Struct, frozen=True):
    """Everything that is there has been told; from here on come changes. It comes once."""


Change: TypeAlias = Added[T_co] | Modified[T_co] | Deleted[T_co]
Told: TypeAlias = Added[T_co] | Modified[T_co] | Deleted[T_co] | Synced
