"""The versions of the one model: which are there, which of them answers a request."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from services.serving.server.errors import InvalidArgument, NotFound, ServeError, Unavailable

if TYPE_CHECKING:  # not at run time: with it comes TensorFlow
    from services.serving.server.model import LoadedModel

log = structlog.get_logger(__name__)

Loader = Callable[[Path], "LoadedModel"]


class State(IntEnum):
    """TensorFlow Serving's `ModelVersionStatus.State`, number for number."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(slots=True)
class Version:
    """One version, loaded or not.

    Attributes:
        error: why it ended, where it did not end by being unloaded.
        model: there while it is available or unloading.
    """

    number: int
    path: Path
    state: State = State.START
    error: ServeError | None = None
    model: "LoadedModel | None" = None
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def loaded(self) -> "LoadedModel":
        """The model; only while the version is in use."""
        if self.model is None:
            raise Unavailable(f"version {self.number} is being unloaded")
        return self.model


class Traffic:
    """Spreads requests over versions by weight, as evenly as can be (smooth weighted round robin)."""

    def __init__(self, weights: Mapping[int, int]) -> None:
        self._weights = {number: weight for number, weight in weights.items() if weight > 0}
        self._credit = dict.fromkeys(self._weights, 0)

    def __bool__(self) -> bool:
        return bool(self._weights)

    def next(self, available: Iterable[int]) -> int | None:
        """The version for the next request, or None where none with a weight is available."""
        choices = [number for number in available if number in self._weights]
        if not choices:
            return None
        for number in choices:
            self._credit[number] += self._weights[number]
        best = max(choices, key=lambda number: (self._credit[number], number))
        self._credit[best] -= sum(self._weights[number] for number in choices)
        return best


class Versions:
    """The versions of a model, by number.

    Args:
        load: reads a SavedModel, in a thread.
        grace: seconds that requests may take to leave a version that is being unloaded.
    """

    def __init__(
        self,
        name: str,
        *,
        load: Loader,
        labels: Mapping[str, int],
        traffic: Mapping[int, int],
        grace: float,
    ) -> None:
        self.name = name
        self._load = load
        self._labels = dict(labels)
        self._traffic = Traffic(traffic)
        self._grace = grace
        self._versions: dict[int, Version] = {}
        self._changing = asyncio.Lock()

    def __iter__(self) -> Iterator[Version]:
        return iter(sorted(self._versions.values(), key=lambda version: version.number))

    @property
    def available(self) -> list[int]:
        """Numbers of the versions that answer, lowest first."""
        return sorted(version.number for version in self._versions.values() if version.state is State.AVAILABLE)

    @contextmanager
    def use(self, name: str, *, version: int | None, label: str | None) -> Iterator[Version]:
        """The version that a request asks for; it is not unloaded while it is used.

        Raises:
            NotFound: another model's name, or a version that is not available.
            InvalidArgument: there is no such label.
        """
        chosen = self.find(name, version=version, label=label)
        chosen.users += 1
        try:
            yield chosen
        finally:
            chosen.users -= 1
            if not chosen.users:
                chosen.idle.set()

    def find(self, name: str, *, version: int | None, label: str | None) -> Version:
        """As :meth:`use`, without keeping it."""
        if not name:
            raise InvalidArgument("Missing ModelSpec")
        if label:
            if name == self.name and label not in self._labels:
                raise InvalidArgument(f"Unrecognized servable version label: {label}")
            version = self._labels.get(label)
        if name == self.name:
            number = version if version is not None else self._default()
            found = self._versions.get(number) if number is not None else None
            if found is not None and found.state is State.AVAILABLE:
                return found
        wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise NotFound(f"Servable not found for request: {wanted}")

    def statuses(self, name: str, *, version: int | None, label: str | None) -> list[Version]:
        """The versions that a status request asks for, those that ended included; highest first.

        Raises:
            NotFound: another model's name, or a version that never was.
            InvalidArgument: there is no such label.
        """
        if label:
            version = self.find(name, version=None, label=label).number
        found = [each for each in self if version in (None, each.number)] if name == self.name else []
        if not found:
            suffix = "" if version is None else f" with version {version}"
            raise NotFound(f"Could not find any versions of model {name}{suffix}")
        return found[::-1]

    async def serve(
        self,
        wanted: Mapping[int, Path],
        *,
        labels: Mapping[str, int] | None = None,
        traffic: Mapping[int, int] | None = None,
    ) -> None:
        """Makes these versions, and no others, the ones that answer: new ones are up before old ones go.

        Raises:
            ServeError: a new version could not be loaded; then nothing has changed.
            InvalidArgument: a label names a version that is not wanted.
        """
        for label, number in (labels or {}).items():
            if number not in wanted:
                raise InvalidArgument(f"label {label!r} names version {number}, which is not served")
        async with self._changing:
            fresh = [
                Version(number, path)
                for number, path in wanted.items()
                if number not in self.available or self._versions[number].path != path
            ]
            before = {version.number: self._versions.get(version.number) for version in fresh}
            try:
                for version in fresh:
                    if before[version.number] is None:
                        self._versions[version.number] = version
                    await self._bring_up(version)
            except ServeError:
                for version in fresh:
                    await self._take_down(version)
                raise
            for version in fresh:
                self._versions[version.number] = version
                version.state = State.AVAILABLE
            if labels is not None:
                self._labels = dict(labels)
            self._traffic = Traffic(traffic or {})
            replaced = [version for version in before.values() if version is not None]
            gone = [version for number, version in self._versions.items() if number not in wanted]
            for version in [*replaced, *gone]:
                await self._take_down(version)

    async def close(self) -> None:
        """Unloads everything."""
        async with self._changing:
            for version in list(self._versions.values()):
                await self._take_down(version)

    def _default(self) -> int | None:
        available = self.available
        if self._traffic:
            share = self._traffic.next(available)
            if share is not None:
                return share
        return available[-1] if available else None

    async def _bring_up(self, version: Version) -> None:
        version.state = State.LOADING
        started = asyncio.get_running_loop().time()
        try:
            version.model = await asyncio.to_thread(self._load, version.path)
        except ServeError as error:
            version.state = State.END
            version.error = error
            log.error("version failed to load", version=version.number, reason=error.message)
            raise
        seconds = round(asyncio.get_running_loop().time() - started, 3)
        log.info("version loaded", version=version.number, path=str(version.path), seconds=seconds)

    async def _take_down(self, version: Version) -> None:
        if version.model is None:
            return
        version.state = State.UNLOADING
        if version.users:
            version.idle.clear()
            try:
                async with asyncio.timeout(self._grace):
                    await version.idle.wait()
            except TimeoutError:
                log.warning("version unloaded under requests", version=version.number, users=version.users)
        model, version.model = version.model, None
        await asyncio.to_thread(model.close)
        version.state = State.END
        log.info("version unloaded", version=version.number)


def status_of(version: Version) -> tuple[int, str]:
    """A version's error as the number and words of a `StatusProto`; 0 where it has none."""
    if version.error is None:
        return 0, ""
    return version.error.code.number, version.error.message
