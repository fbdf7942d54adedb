"""Several watches as one, and a picture of what they tell."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Final, Generic, TypeVar

from shared.kube.changes import Deleted, Identity, Synced, Told

T = TypeVar("T")

WAITING: Final = 1000


async def merged(
    watches: Sequence[AsyncGenerator[Told[T], None]], *, waiting: int = WAITING
) -> AsyncGenerator[Told[T], None]:
    """The changes of all watches, in each one's order; :class:`Synced` once all of them are.

    A reader that falls behind slows the watches down: at most ``waiting`` changes lie in between. A watch that
    raises ends the whole, with its error. Iterate under ``contextlib.aclosing``.
    """
    queue: asyncio.Queue[Told[T] | BaseException] = asyncio.Queue(maxsize=waiting)
    readers = [asyncio.create_task(_drain(watch, queue), name=f"watch {n}") for n, watch in enumerate(watches)]
    pending = len(watches)
    try:
        while True:
            told = await queue.get()
            if isinstance(told, BaseException):
                raise told
            if isinstance(told, Synced):
                pending -= 1
                if pending:
                    continue
            yield told
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for watch in watches:
            await watch.aclose()


async def _drain(watch: AsyncGenerator[Told[T], None], queue: asyncio.Queue[Told[T] | BaseException]) -> None:
    try:
        async for told in watch:
            await queue.put(told)
        await queue.put(RuntimeError("a watch ended by itself"))
    except Exception as error:  # noqa: BLE001 - raised again where the changes are read
        await queue.put(error)


class Mirror(Generic[T]):
    """The objects as a watch has told them: feed it every change, and look.

    Its size is that of the objects that are there, as the watch's ``project`` left them.
    """

    def __init__(self) -> None:
        self._objects: dict[str, tuple[Identity, T]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self.synced = False

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[T]:
        return iter([seen for _, seen in self._objects.values()])

    def get(self, uid: str) -> T | None:
        """The object with this uid."""
        found = self._objects.get(uid)
        return found[1] if found else None

    def named(self, name: str, namespace: str = "") -> T | None:
        """The object of this name."""
        return self.get(self._names.get((namespace, name), ""))

    def take(self, told: Told[T]) -> T | None:
        """Note a change.

        Returns:
            The state before it, which tells what a deleted object was.
        """
        if isinstance(told, Synced):
            self.synced = True
            return None
        uid, key = told.identity.uid, (told.identity.namespace, told.identity.name)
        before = self.get(uid)
        if isinstance(told, Deleted):
            self._objects.pop(uid, None)
            if self._names.get(key) == uid:
                del self._names[key]
        else:
            self._objects[uid] = (told.identity, told.object)
            self._names[key] = uid
        return before
