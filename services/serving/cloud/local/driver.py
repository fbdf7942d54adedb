"""Servings on this machine: model servers that share a pair of ports, each under a keeper of its own.

Keepers outlive this service. What runs is read from their records every time, so a service that was killed
goes on where it was; what shall run is told by :meth:`LocalServings.apply`, and nothing is touched before.
"""

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Final

import structlog

from services.serving.cloud.local.replica import Folder, Options, Replica, now, prepare, stands
from services.serving.cloud.local.resources import Resources
from services.serving.cloud.port import (
    Capabilities,
    Deployment,
    Gone,
    Observation,
    Seen,
    Synced,
    Work,
)
from services.serving.model import Observed
from services.serving.model import Replica as SeenReplica
from services.serving.rollout import Running, next_steps
from shared.contracts.common import parse_cpu, parse_memory
from shared.contracts.problem import FieldError
from shared.contracts.serving import Endpoint, ServingSpec
from shared.errors import ElearnError
from shared.local.processes import LocalProcesses
from shared.supervise import Wake, retrying

log = structlog.get_logger(__name__)

_LOOK_OFTEN: Final = 0.1
_LOOK_SELDOM: Final = 10.0
_LOOK_WAITING: Final = 1.0


class LocalServings:
    """The local cloud of the serving room.

    Args:
        root: folder for configurations and logs, one folder per serving.
    """

    def __init__(self, *, root: Path, processes: LocalProcesses, resources: Resources, options: Options) -> None:
        self.capabilities = Capabilities(cloud="local", traffic_split=True)
        self._root = root
        self._processes = processes
        self._resources = resources
        self._options = options
        self._desired: dict[str, Deployment] = {}
        self._removed: set[str] = set()
        self._strays: set[str] = set()
        self._endpoints: dict[str, Endpoint] = {}
        self._seen: dict[str, Observed] = {}
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._wake = Wake()
        self._bells: set[Wake] = set()
        self._looked = asyncio.Event()
        self._pause = 0.0

    async def admit(self, spec: ServingSpec) -> list[FieldError]:
        """A replica, or all of them, that this machine will never have room for."""
        errors = []
        cpu = memory = None
        try:
            cpu = None if spec.cpu is None else parse_cpu(spec.cpu)
        except ValueError as error:
            errors.append(FieldError(field="cpu", message=str(error)))
        try:
            memory = None if spec.memory is None else parse_memory(spec.memory)
        except ValueError as error:
            errors.append(FieldError(field="memory", message=str(error)))
        if errors:
            return errors
        for replicas, field in ((1, ""), (spec.replicas, "replicas")):
            words = await asyncio.to_thread(
                self._resources.too_much, replicas=replicas, cpu=cpu, memory=memory, gpu=spec.gpu
            )
            if words is not None:
                named = "gpu" if "GPU" in words else "memory" if "memory" in words else "cpu"
                return [FieldError(field=field or named, message=words)]
        return []

    async def apply(self, deployment: Deployment) -> None:
        """Keep so many replicas of this revision from now on."""
        self._desired[deployment.uid] = deployment
        self._removed.discard(deployment.uid)
        self._strays.discard(deployment.uid)
        self._wake.ring()

    async def remove(self, uid: str) -> None:
        """End all replicas, and give back what the serving held."""
        self._desired.pop(uid, None)
        self._removed.add(uid)
        self._wake.ring()

    async def watch(self) -> AsyncGenerator[Observation, None]:
        """See the port."""
        bell = Wake()
        self._bells.add(bell)
        told: dict[str, Observed] = {}
        synced = False
        try:
            await self._looked.wait()
            while True:
                seen = dict(self._seen)
                for uid in [uid for uid in told if uid not in seen]:
                    del told[uid]
                    yield Gone(uid=uid)
                for uid, observed in seen.items():
                    if told.get(uid) != observed:
                        told[uid] = observed
                        yield Seen(uid=uid, observed=observed)
                if not synced:
                    synced = True
                    yield Synced()
                await bell.wait()
        finally:
            self._bells.discard(bell)

    def work(self) -> Mapping[str, Work]:
        """Looking after the replicas."""
        return {"local model servers": self._run, "watch of model servers": self._listen}

    async def _run(self) -> None:
        self._looked.clear()
        try:
            await retrying("local model servers", self._pass, on=(ElearnError, OSError))
        finally:
            for task in self._stopping.values():
                task.cancel()
            await asyncio.gather(*self._stopping.values(), return_exceptions=True)

    async def _listen(self) -> None:
        async with contextlib.aclosing(self._processes.watch()) as changes:
            async for _ in changes:
                self._wake.ring()

    async def _pass(self) -> None:
        """One look at everything, and the next step for each serving."""
        await self._wake.wait(self._pause)
        self._pause = _LOOK_SELDOM
        running = await self._look()
        if not self._looked.is_set():
            # What holds ports and has no process any more must be seen, so that it is cleared up.
            self._strays = await asyncio.to_thread(self._resources.holders) - self._desired.keys()
        servings = {*running, *self._desired, *self._removed, *self._strays}
        seen: dict[str, Observed] = {}
        for uid in sorted(servings):
            replicas = running.get(uid, [])
            try:
                waiting = await self._step(uid, [each for each, _ in replicas])
            except (ElearnError, OSError) as error:
                waiting = str(error)
                log.warning("serving not settled, trying again", uid=uid, error=waiting)
            if waiting is None:
                continue
            if waiting:
                self._pause = min(self._pause, _LOOK_WAITING)
            if any(each.state != "ready" for each, _ in replicas):
                self._pause = min(self._pause, _LOOK_OFTEN)
            seen[uid] = self._observed(uid, replicas, waiting)
        if seen != self._seen or not self._looked.is_set():
            self._seen = seen
            self._looked.set()
            for bell in self._bells:
                bell.ring()

    async def _look(self) -> dict[str, list[tuple[Running, str]]]:
        """Every replica that there is, by serving, with why it stands as it does."""
        statuses = await self._processes.list()

        def read() -> dict[str, list[tuple[Running, str]]]:
            found: dict[str, list[tuple[Running, str]]] = {}
            moment = now()
            for status in statuses:
                replica = Replica.of(status.id)
                if replica is None:
                    continue
                report = Folder(self._root, replica.uid).report(replica)
                state, why = stands(status, report, now=moment, start_seconds=self._options.start_seconds)
                if state != "over" and status.id in self._stopping:
                    state = "leaving"
                found.setdefault(replica.uid, []).append(
                    (Running(id=status.id, revision=replica.revision, slot=replica.slot, state=state), why)
                )
            return found

        return await asyncio.to_thread(read)

    async def _step(self, uid: str, replicas: list[Running]) -> str | None:
        """The next step of a serving; answers what it waits for, or None when nothing is left of it."""
        if uid in self._removed:
            return await self._take_away(uid, replicas)
        deployment = self._desired.get(uid)
        if deployment is None:
            return ""
        steps = next_steps(replicas, revision=deployment.revision, wanted=deployment.replicas)
        for id in steps.clear:
            await self._clear(id)
        for id in steps.stop:
            self._stop(id, hand_over=True)
        nothing_runs = all(each.state == "over" for each in replicas)
        if uid not in self._endpoints or (steps.start and nothing_runs):
            await self._open(deployment, nothing_runs=nothing_runs)
        for slot in steps.start:
            waiting = await self._start(deployment, slot)
            if waiting:
                return waiting
        if steps.clear or steps.stop or steps.start:
            self._pause = min(self._pause, _LOOK_OFTEN)
        return ""

    async def _take_away(self, uid: str, replicas: list[Running]) -> str | None:
        for each in replicas:
            if each.state == "over":
                await self._clear(each.id)
            else:
                self._stop(each.id)
        if any(each.state != "over" for each in replicas):
            return ""
        await asyncio.to_thread(self._resources.release_all, uid)
        await asyncio.to_thread(shutil.rmtree, Folder(self._root, uid).path, ignore_errors=True)
        self._endpoints.pop(uid, None)
        self._removed.discard(uid)
        self._strays.discard(uid)
        return None

    async def _open(self, deployment: Deployment, *, nothing_runs: bool) -> None:
        """Makes sure of the serving's ports, and that they are free where nobody of ours listens."""
        grpc, rest = await asyncio.to_thread(self._resources.ports, deployment, nothing_runs=nothing_runs)
        host = self._options.host
        self._endpoints[deployment.uid] = Endpoint(
            grpc=f"{host}:{grpc}", rest=f"http://{host}:{rest}/v1/models/{deployment.model}"
        )

    async def _start(self, deployment: Deployment, slot: int) -> str:
        """Starts a replica; answers what it waits for where this machine has no room for it now."""
        replica = Replica(uid=deployment.uid, revision=deployment.revision, slot=slot)
        granted = await asyncio.to_thread(self._resources.acquire, deployment, replica)
        if isinstance(granted, str):
            return granted
        ports = await asyncio.to_thread(self._resources.ports, deployment, nothing_runs=False)
        spec = await asyncio.to_thread(
            prepare,
            replica,
            deployment,
            self._options,
            Folder(self._root, deployment.uid),
            ports=ports,
            environment=granted,
            hold=self._resources.alive,
        )
        status = await self._processes.start(replica.id, spec)
        log.info(
            "replica started",
            project=deployment.project,
            serving=deployment.name,
            revision=deployment.revision,
            replica=slot,
            state=status.state,
        )
        return ""

    def _stop(self, id: str, *, hand_over: bool = False) -> None:
        """Ends a replica in the background: it may take all of its grace time.

        Args:
            hand_over: others answer on the same ports, so it shall leave them without a client noticing.
        """
        if id not in self._stopping:
            work = self._end(id, hand_over)
            task = self._stopping[id] = asyncio.create_task(work, name=f"end replica {id}")
            task.add_done_callback(lambda _: self._stopping.pop(id, None))

    async def _end(self, id: str, hand_over: bool) -> None:
        try:
            if hand_over:
                await self._processes.signal(id, signal.SIGUSR1)
            await self._processes.stop(id)
        except (ElearnError, OSError) as error:
            log.warning("replica not ended, trying again", replica=id, error=str(error))
        self._wake.ring()

    async def _clear(self, id: str) -> None:
        """Forgets a replica that is over; what it held is given back first, so that a crash leaks nothing."""
        replica = Replica.of(id)
        if replica is None:
            return
        await asyncio.to_thread(self._resources.release, replica)
        await asyncio.to_thread(Folder(self._root, replica.uid).clear, replica)
        await self._processes.remove(id)

    def _observed(self, uid: str, replicas: list[tuple[Running, str]], waiting: str) -> Observed:
        shown = sorted(replicas, key=lambda entry: (entry[0].revision, entry[0].slot))
        return Observed(
            replicas=tuple(
                SeenReplica(revision=each.revision, state=each.state, reason=why)
                for each, why in shown
                if each.state != "leaving" and each.state != "over"
            ),
            endpoint=self._endpoints.get(uid),
            waiting=waiting,
        )
