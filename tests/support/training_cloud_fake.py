"""A cloud of a few dictionaries with knobs: what a `TrainingCloud` is, without any process.

Its state (`FakeMachines`) outlives the driver, as that of a real cloud does.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime

import msgspec

from services.scheduler.cloud.port import (
    AttemptGone,
    AttemptSeen,
    BoardPlan,
    Examination,
    Launch,
    LogPart,
    Observation,
    Synced,
    Work,
)
from services.scheduler.errors import CannotLaunch, NoRoomLeft
from services.scheduler.model import Capabilities, Demand, NodeState
from services.scheduler.placement import fits, minus, total
from shared.contracts.datastore import LocalVolume
from shared.contracts.training import Task, TrainingSpec
from shared.errors import Unavailable

Ref = tuple[str, str, int]


class FakeMachines:
    """What there is, whoever looks.

    Attributes:
        away: calls fail as if nothing could be reached.
        gone: volumes that have vanished.
        restarts: how often a task that may be restarted is.
    """

    def __init__(self, cpu: float = 4.0) -> None:
        self.total = Demand(cpu=cpu, memory=2**33, gpu=2)
        self.attempts: dict[Ref, dict[str, Task]] = {}
        self.launches: dict[Ref, Launch] = {}
        self.logs: dict[tuple[str, str, int, str], bytes] = {}
        self.started: list[str] = []
        self.away = False
        self.gone: set[str] = set()
        self.restarts = 3
        self.watchers: set[asyncio.Queue[Ref]] = set()

    def tell(self, ref: Ref) -> None:
        for queue in self.watchers:
            queue.put_nowait(ref)

    def end(self, ref: Ref, name: str, code: int) -> None:
        """A task's program ends."""
        task = self.attempts[ref][name]
        plan = next(each for each in self.launches[ref].plan if each.name == name)
        now = datetime.now(UTC)
        if code and plan.on_failure == "restart" and task.restarts < self.restarts:
            changed = msgspec.structs.replace(task, restarts=task.restarts + 1, started_at=now)
        else:
            state = "failed" if code else "succeeded"
            changed = msgspec.structs.replace(task, state=state, exit_code=code, finished_at=now)
        self.attempts[ref][name] = changed
        self.tell(ref)


class FakeCloud:
    """The driver."""

    name = "fake"

    def __init__(self, machines: FakeMachines) -> None:
        self.machines = machines

    def _reach(self) -> None:
        if self.machines.away:
            raise Unavailable("the fake cloud is away")

    async def capabilities(self) -> Capabilities:
        return Capabilities()

    def leading(self) -> Mapping[str, Work]:
        return {}

    def everywhere(self) -> Mapping[str, Work]:
        return {}

    async def examine(self, project: str, spec: TrainingSpec) -> Examination:
        return Examination()

    async def capacity(self) -> tuple[NodeState, ...]:
        self._reach()
        return (NodeState(name="fake", total=self.machines.total),)

    async def launch(self, launch: Launch) -> None:
        self._reach()
        ref = (launch.project, launch.name, launch.attempt)
        for mount in launch.mounts:
            if isinstance(mount.volume, LocalVolume) and mount.volume.path in self.machines.gone:
                raise CannotLaunch(f"datastore {mount.datastore!r} is not there")
        if ref not in self.machines.launches:
            held = total(task.demand for each in self.machines.launches.values() for task in each.plan)
            need = total(task.demand for task in launch.plan)
            if not fits(need, minus(self.machines.total, held)):
                raise NoRoomLeft("waiting for room")
            self.machines.launches[ref] = launch
        tasks = self.machines.attempts.setdefault(ref, {})
        for position, plan in enumerate(launch.plan):
            if plan.name not in tasks:
                self.machines.started.append(f"{ref} {plan.name}")
                tasks[plan.name] = Task(
                    name=plan.name,
                    role=plan.role,
                    index=plan.index,
                    state="running",
                    address=f"fake:{1000 + position}",
                    node="fake",
                    started_at=datetime.now(UTC),
                )
                self.machines.logs[(*ref, plan.name)] = b"hello\n"
        self.machines.tell(ref)

    async def free(self, project: str, name: str, attempt: int) -> tuple[Task, ...]:
        self._reach()
        ref = (project, name, attempt)
        self.machines.launches.pop(ref, None)
        tasks = self.machines.attempts.pop(ref, {})
        self.machines.tell(ref)
        now = datetime.now(UTC)
        return tuple(
            task if task.finished_at else msgspec.structs.replace(task, state="stopped", finished_at=now)
            for task in tasks.values()
        )

    async def settle(self, holding: frozenset[Ref]) -> None:
        self._reach()
        for ref in [ref for ref in self.machines.launches if ref not in holding and ref not in self.machines.attempts]:
            del self.machines.launches[ref]

    async def forget(self, project: str, name: str) -> None:
        self._reach()
        for key in [key for key in self.machines.logs if key[:2] == (project, name)]:
            del self.machines.logs[key]

    async def logs(self, project: str, name: str, attempt: int, task: str, *, offset: int, length: int) -> LogPart:
        self._reach()
        log = self.machines.logs.get((project, name, attempt, task), b"")
        start = max(len(log) + offset, 0) if offset < 0 else offset
        return LogPart(data=log[start : start + length], offset=start, size=len(log))

    async def watch(self) -> AsyncGenerator[Observation, None]:
        queue: asyncio.Queue[Ref] = asyncio.Queue()
        self.machines.watchers.add(queue)
        try:
            for ref in tuple(self.machines.attempts):
                yield self._shown(ref)
            yield Synced()
            while True:
                yield self._shown(await queue.get())
        finally:
            self.machines.watchers.discard(queue)

    def _shown(self, ref: Ref) -> Observation:
        tasks = self.machines.attempts.get(ref)
        if tasks is None:
            return AttemptGone(project=ref[0], name=ref[1], attempt=ref[2])
        return AttemptSeen(project=ref[0], name=ref[1], attempt=ref[2], tasks=tuple(tasks.values()))

    async def open_board(self, board: BoardPlan) -> str:
        self._reach()
        return f"http://fake/{board.name}"

    async def close_board(self, project: str, name: str) -> None:
        self._reach()

    async def close(self) -> None:
        return None
