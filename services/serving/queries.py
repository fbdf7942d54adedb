"""Reads answered over request and reply."""

from datetime import datetime

from services.serving import store
from services.serving.errors import NoSuchServing
from services.serving.views import view
from shared.contracts.common import ListRequest, Named, Page
from shared.contracts.serving import Serving
from shared.errors import Invalid
from shared.paging import decode_cursor, encode_cursor, fitting
from shared.postgres import Database


class Queries:
    """What this room answers without changing anything."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, request: Named) -> Serving:
        """One serving.

        Raises:
            NoSuchServing: there is none.
        """
        async with self._database.transaction() as transaction:
            stored = await store.load(transaction, request.project, request.name)
        if stored is None:
            raise NoSuchServing(request.project, request.name)
        return view(stored)

    async def list(self, request: ListRequest) -> Page[Serving]:
        """Servings of a project, newest first.

        Raises:
            Invalid: the cursor is not one of this list.
        """
        async with self._database.transaction() as transaction:
            found = await store.page(
                transaction,
                request.project,
                before=_place(request.cursor),
                limit=request.limit,
                state=request.state,
                labels=request.labels,
            )
        shown = fitting(found[: request.limit])
        following = None
        if len(found) > len(shown):
            last = shown[-1]
            following = encode_cursor(last.created_at.isoformat(), last.name)
        return Page(items=tuple(view(stored) for stored in shown), next=following)


def _place(cursor: str | None) -> tuple[datetime, str] | None:
    key = decode_cursor(cursor, str, str)
    if key is None:
        return None
    try:
        return datetime.fromisoformat(str(key[0])), str(key[1])
    except ValueError:
        raise Invalid.field("cursor", "is not a cursor of this list") from None
