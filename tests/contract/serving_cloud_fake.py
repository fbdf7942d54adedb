"""A serving cloud in memory: forty lines that pass the same suite as the real ones."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from services.serving.cloud.port import Capabilities, Deployment, Gone, Observation, Seen, Synced, Work
from services.serving.model import Observed, Replica
from shared.contracts.datastore import LocalVolume
from shared.contracts.problem import FieldError
from shared.contracts.serving import Endpoint, ServingSpec


class FakeServings:
    """Replicas are ready at once; a revision whose files are not there fails and leaves the one before it."""

    def __init__(self, world: dict[str, Observed] | None = None) -> None:
        self.capabilities = Capabilities(cloud="fake", traffic_split=True)
        self.world: dict[str, Observed] = {} if world is None else world
        self._changed = asyncio.Event()

    async def admit(self, spec: ServingSpec) -> list[FieldError]:
        if spec.gpu:
            return [FieldError(field="gpu", message="this cloud has none")]
        return []

    async def apply(self, deployment: Deployment) -> None:
        wanted = (Replica(revision=deployment.revision, state="ready"),) * deployment.replicas
        for source in deployment.sources:
            assert isinstance(source.volume, LocalVolume)
            if not (Path(source.volume.path) / source.path).exists():
                reason = f"there is no SavedModel in {source.path}"
                failing = Replica(revision=deployment.revision, state="failing", reason=reason)
                before = self.world[deployment.uid].replicas if deployment.uid in self.world else ()
                wanted = (*(each for each in before if each.revision != deployment.revision), failing)
        endpoint = Endpoint(
            grpc=f"fake:{deployment.uid}", rest=f"http://fake/{deployment.uid}/v1/models/{deployment.model}"
        )
        self._set({**self.world, deployment.uid: Observed(replicas=wanted, endpoint=endpoint)})

    async def remove(self, uid: str) -> None:
        self._set({key: value for key, value in self.world.items() if key != uid})

    async def watch(self) -> AsyncGenerator[Observation, None]:
        told: dict[str, Observed] = {}
        synced = False
        while True:
            self._changed.clear()
            for uid in [uid for uid in told if uid not in self.world]:
                del told[uid]
                yield Gone(uid=uid)
            for uid, observed in tuple(self.world.items()):
                if told.get(uid) != observed:
                    told[uid] = observed
                    yield Seen(uid=uid, observed=observed)
            if not synced:
                synced = True
                yield Synced()
            await self._changed.wait()

    def work(self) -> Mapping[str, Work]:
        return {}

    def _set(self, world: dict[str, Observed]) -> None:
        self.world.clear()
        self.world.update(world)
        self._changed.set()
