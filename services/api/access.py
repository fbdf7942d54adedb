"""Who asks, and whether their project exists: looked up once, then believed for a few seconds."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from services.api import store
from services.api.errors import BadToken, UnknownProject
from services.api.model import ADMIN, Principal, StoredToken, bearer_of, deletion_stands, digest_of, is_same
from shared.clock import now
from shared.errors import Conflict, Unavailable
from shared.postgres import Database

K = TypeVar("K")
V = TypeVar("V")

_MOST_REMEMBERED: Final = 10_000


class Memory(Generic[K, V]):
    """The last answers of a look-up.

    Args:
        fresh: how long an answer is believed, in seconds.
        grace: how long it is believed while the source of answers is away, in seconds.
    """

    def __init__(self, fresh: float, grace: float) -> None:
        self._fresh = fresh
        self._grace = max(fresh, grace)
        self._known: OrderedDict[K, tuple[float, V]] = OrderedDict()

    async def get(self, key: K, find: Callable[[K], Awaitable[V | None]]) -> V | None:
        """What ``find`` answers, or has answered a little while ago; that there is nothing is not remembered.

        Raises:
            Unavailable: ``find`` can't answer, and what is remembered is too old.
        """
        time = asyncio.get_running_loop().time()
        held = self._known.get(key)
        if held is not None and time - held[0] < self._fresh:
            return held[1]
        try:
            value = await find(key)
        except Unavailable:
            if held is not None and time - held[0] < self._grace:
                return held[1]
            raise
        self._known.pop(key, None)
        if value is not None:
            self._known[key] = (time, value)
            if len(self._known) > _MOST_REMEMBERED:
                self._known.popitem(last=False)
        return value

    def forget(self, forgotten: Callable[[K, V], bool]) -> None:
        """Look up again what ``forgotten`` says."""
        for key in [key for key, (_, value) in self._known.items() if forgotten(key, value)]:
            del self._known[key]


class Access:
    """Answers who a token belongs to and whether a project is there.

    Args:
        admin: digest of the operator's token; None: there is none.
        fresh, grace: see :class:`Memory`, in seconds.
    """

    def __init__(self, database: Database, admin: bytes | None, *, fresh: float, grace: float) -> None:
        self._database = database
        self._admin = admin
        self._tokens: Memory[bytes, StoredToken] = Memory(fresh, grace)
        self._projects: Memory[str, store.ProjectRow] = Memory(fresh, grace)

    async def principal(self, authorization: str | None) -> Principal:
        """Who shows this ``Authorization`` header.

        Raises:
            BadToken: nobody, or somebody whose token is not good any more.
            Unavailable: it can't be looked up now.
        """
        secret = bearer_of(authorization)
        if secret is None:
            raise BadToken("show a token: Authorization: Bearer <token>")
        digest = digest_of(secret)
        if self._admin is not None and is_same(digest, self._admin):
            return Principal(name=ADMIN, scope="admin")
        token = await self._tokens.get(digest, self._find_token)
        if token is None:
            raise BadToken("this token is not known; ask for another one")
        if token.expired(now()):
            raise BadToken(f"token {token.name!r} has expired; ask for another one")
        return token.principal()

    async def require_project(self, name: str, *, changing: bool) -> None:
        """Make sure that a project is there and, to change something in it, that it is to stay.

        Raises:
            UnknownProject: it is not.
            Conflict: it is being deleted.
            Unavailable: it can't be looked up now.
        """
        row = await self._projects.get(name, self._find_project)
        if row is None:
            raise UnknownProject(name)
        if changing and deletion_stands(row.deleting_at, now()):
            raise Conflict(f"project {name!r} is being deleted")

    def forget_token(self, name: str) -> None:
        """A token was deleted."""
        self._tokens.forget(lambda _, token: token.name == name)

    def forget_project(self, name: str) -> None:
        """A project has changed."""
        self._projects.forget(lambda key, _: key == name)

    async def _find_token(self, digest: bytes) -> StoredToken | None:
        async with self._database.transaction() as t:
            row = await store.find_token(t, digest)
        return row.token if row is not None and is_same(row.digest, digest) else None

    async def _find_project(self, name: str) -> store.ProjectRow | None:
        async with self._database.transaction() as t:
            return await store.find_project(t, name)
