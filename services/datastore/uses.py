"""Which datastores a training holds, told by its events: pure."""

from shared.contracts.training import Training

_ENDED = frozenset({"succeeded", "failed", "stopped"})
_OVER = frozenset({"freed", "deleted"})


def held_by(event: str, training: Training) -> tuple[str, ...]:
    """Names of the datastores that a training mounts, as of this event; none once it is freed.

    A retry takes them again: then its events begin anew with ``queued``.
    """
    if event in _OVER or (event in _ENDED and training.freed_at is not None):
        return ()
    return tuple(sorted({mount.datastore for mount in training.spec.mounts}))
