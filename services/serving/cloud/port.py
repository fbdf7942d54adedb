"""What the serving room asks of a cloud: keep so many model servers of these versions behind one endpoint."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, Protocol

import msgspec

from services.serving.model import Observed, Source
from shared.contracts.problem import FieldError
from shared.contracts.serving import ServingSpec


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud can do; what asks for more is refused when it comes in.

    Attributes:
        cloud: its name, for sentences.
        traffic_split: requests that name no version can be spread over several.
        autoscaling: the number of replicas can follow the load, between bounds.
    """

    cloud: str
    traffic_split: bool
    autoscaling: bool = False


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """What shall run for one serving; ``uid`` is its identity, project and name are for people and labels.

    Attributes:
        revision: a higher one replaces a lower one without a request lost: its replicas are ready before
            those of the other are ended.
        sources: the versions that every replica loads.
        traffic: version to per cent.
        labels: names by which clients may ask for a version.
        cpu: cores for each replica; None: the cloud's default.
        memory: bytes for each replica; None: the cloud's default.
        max_replicas: the cloud decides how many there are, from ``replicas`` up to this; 0: it does not.
        cpu_percent: of the CPU that replicas asked for, what they shall use then on average.
    """

    uid: str
    project: str
    name: str
    model: str
    revision: int
    replicas: int
    sources: tuple[Source, ...]
    traffic: dict[int, int]
    labels: dict[str, int]
    cpu: float | None = None
    memory: int | None = None
    gpu: int = 0
    max_replicas: int = 0
    cpu_percent: int = 70


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What there is of one serving."""

    uid: str
    observed: Observed


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud holds nothing of it any more: no process, no port, no GPU."""

    uid: str


class Synced(msgspec.Struct, frozen=True):
    """A watch has told all there is; from here on come changes."""


Observation = Seen | Gone | Synced

Work = Callable[[], Coroutine[Any, Any, None]]


class ServingCloud(Protocol):
    """Runs model servers.

    Calls are idempotent and derived from stored state. What can't be reached raises ``Unavailable``, which is
    never taken for an answer.
    """

    capabilities: Capabilities

    async def admit(self, spec: ServingSpec) -> list[FieldError]:
        """What keeps this cloud from ever running it, known at once."""

    async def apply(self, deployment: Deployment) -> None:
        """Make it so, from now on; :meth:`watch` tells how it goes."""

    async def remove(self, uid: str) -> None:
        """End everything of a serving; what is gone is success. The watch tells ``Gone``."""

    def watch(self) -> AsyncGenerator[Observation, None]:
        """What is there, then :class:`Synced`, then every change; never ends. Iterate under ``aclosing``."""

    def work(self) -> Mapping[str, Work]:
        """What the driver itself has to do in the replica that leads, by name; each runs for ever."""
