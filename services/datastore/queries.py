"""Reads answered over request and reply."""

from services.datastore import store
from services.datastore.errors import NoSuchDatastore
from services.datastore.model import view
from shared.contracts.common import ListRequest, Named, Page
from shared.contracts.datastore import Datastore, MountableDatastore, MountReply, MountRequest
from shared.paging import decode_cursor, encode_cursor, fitting
from shared.postgres import Database


class Queries:
    """What this room answers without changing anything."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, request: Named) -> Datastore:
        """One datastore.

        Raises:
            NoSuchDatastore: there is none.
        """
        async with self._database.transaction() as transaction:
            stored = await store.load(transaction, request.project, request.name)
            if stored is None:
                raise NoSuchDatastore(request.project, request.name)
            users = await store.users_of(transaction, request.project, [request.name])
        return view(stored, users[request.name])

    async def list(self, request: ListRequest) -> Page[Datastore]:
        """Datastores of a project by name.

        Raises:
            Invalid: the cursor is not one of this list.
        """
        cursor = decode_cursor(request.cursor, str)
        async with self._database.transaction() as transaction:
            found = await store.page(
                transaction,
                request.project,
                after=str(cursor[0]) if cursor else "",
                limit=request.limit,
                state=request.state,
                labels=request.labels,
            )
            shown = fitting(found[: request.limit])
            users = await store.users_of(transaction, request.project, [stored.name for stored in shown])
        return Page(
            items=tuple(view(stored, users[stored.name]) for stored in shown),
            next=encode_cursor(shown[-1].name) if len(found) > len(shown) else None,
        )

    async def mount(self, request: MountRequest) -> MountReply:
        """What a cloud needs to mount these datastores."""
        async with self._database.transaction() as transaction:
            found = await store.load_named(transaction, request.project, request.names)
        mountable: list[MountableDatastore] = []
        not_ready: dict[str, str] = {}
        for name in dict.fromkeys(request.names):
            stored = found.get(name)
            if stored is None:
                continue
            if stored.state != "ready" or stored.volume is None:
                not_ready[name] = f"{stored.state}: {stored.reason}" if stored.reason else stored.state
                continue
            mountable.append(MountableDatastore(name=name, volume=stored.volume, read_only=stored.spec.read_only))
        missing = tuple(name for name in dict.fromkeys(request.names) if name not in found)
        return MountReply(datastores=tuple(mountable), missing=missing, not_ready=not_ready)
