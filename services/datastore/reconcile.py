"""What the cloud should do so that it holds what the rows say: pure."""

from collections.abc import Collection, Iterable

import msgspec

from services.datastore.model import StoredDatastore


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Driver calls to make; each is idempotent.

    Attributes:
        provision: to be provided; asking again for what is provided already does nothing.
        release: the cloud lets go of these uids.
        gone: being deleted, and the cloud holds nothing of them.
    """

    provision: tuple[StoredDatastore, ...] = ()
    release: tuple[str, ...] = ()
    gone: tuple[StoredDatastore, ...] = ()


def reconcile(desired: Iterable[StoredDatastore], observed: Collection[str]) -> Plan:
    """Compare rows with the uids that the cloud holds (all of them: call it after the watch has synced)."""
    rows = tuple(desired)
    wanted = {row.uid for row in rows if row.state != "deleting"}
    return Plan(
        provision=tuple(row for row in rows if row.uid in wanted and row.uid not in observed),
        release=tuple(sorted(uid for uid in observed if uid not in wanted)),
        gone=tuple(row for row in rows if row.state == "deleting" and row.uid not in observed),
    )
