"""Clouds for trainings under one suite: how each is set up, and the hand that ends its tasks' programs."""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from services.scheduler.cloud.kubernetes.driver import KubernetesTrainings
from services.scheduler.cloud.local import LocalCloud
from services.scheduler.cloud.local.layout import owner
from services.scheduler.cloud.port import AttemptGone, AttemptSeen, Launch, Synced, TrainingCloud
from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.model import MountPlan
from shared.contracts.datastore import LocalVolume
from shared.contracts.training import Role, Roles, Task
from shared.local.gpus import Gpu
from shared.local.ledger import Ledger, Request
from shared.local.machine import Machine
from tests.support.kube_trainings import TrainingCluster, launch_of
from tests.support.logs_in_memory import LogsInMemory
from tests.support.training_cloud_fake import FakeCloud, FakeMachines

WAIT_FOR_ORDERS = """
import os, pathlib, time
print("hello", flush=True)
order = pathlib.Path(os.environ["ORDERS"]) / f"{os.environ['ELEARN_TRAINING']}.{os.environ['ELEARN_ROLE']}-{os.environ['ELEARN_INDEX']}"
while not order.exists():
    time.sleep(0.01)
code = int(order.read_text())
order.unlink()
raise SystemExit(code)
"""  # noqa: E501 - a program's line


class Cloud(ABC):
    """A cloud under test, and the hand that ends its tasks' programs.

    Attributes:
        reserves: it hands out resources itself, at launch, and refuses a gang that they are not there for. Else
            somebody behind it places tasks one by one, and those that find no place wait in words.
    """

    reserves: bool

    @abstractmethod
    def driver(self) -> TrainingCloud:
        """A driver over what is there: called again, it is one that knows nothing of the first."""

    @abstractmethod
    def end(self, launch: Launch, task: str, code: int) -> None:
        """Let a task's program end with an exit code."""

    def launch(self, name: str = "t-1", attempt: int = 1, **fields: Any) -> Launch:
        return launch_of(name, attempt, command=self.command(), env=self.env(), **fields)

    def command(self) -> tuple[str, ...]:
        return ("wait",)

    def env(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def hopeless(self, folder: Path) -> tuple[Launch, str]:
        """A launch for which there would be room and that can't succeed, and what is said of it."""


class Reserving(Cloud):
    """A cloud that hands out resources."""

    reserves = True

    @abstractmethod
    def forgotten(self, name: str, cpu: float) -> None:
        """Resources are handed out to an attempt of which nothing runs."""

    @abstractmethod
    def lose(self, volume: Path) -> None:
        """A volume is not there any more."""

    def hopeless(self, folder: Path) -> tuple[Launch, str]:
        volume = folder / "volume"
        volume.mkdir()
        mount = MountPlan(datastore="d", path="data", volume=LocalVolume(path=str(volume)))
        self.lose(volume)
        return self.launch(roles=Roles(chief=Role(cpu=4)), plans=(mount,)), "'d' is not there"


class Fake(Reserving):
    def __init__(self) -> None:
        self.machines = FakeMachines()

    def driver(self) -> TrainingCloud:
        return FakeCloud(self.machines)

    def end(self, launch: Launch, task: str, code: int) -> None:
        self.machines.end((launch.project, launch.name, launch.attempt), task, code)

    def forgotten(self, name: str, cpu: float) -> None:
        self.machines.launches["p", name, 1] = self.launch(name, roles=Roles(chief=Role(cpu=cpu)))

    def lose(self, volume: Path) -> None:
        self.machines.gone.add(str(volume))


class Local(Reserving):
    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.orders = folder / "orders"
        self.orders.mkdir()
        gpus = tuple(Gpu(index=i, uuid=f"fake-{i}", name="fake", memory=2**34) for i in range(2))
        self.ledger = Ledger(self.home / "ledger.json", Machine(cpu=4, memory=2**33, gpus=gpus))
        self.archives: dict[str, Path] = {}

    def driver(self) -> LocalCloud:
        return LocalCloud(self.home, self.ledger, TensorFlow(), self._code, grace=2, restarts=3)

    def forgotten(self, name: str, cpu: float) -> None:
        self.ledger.acquire(owner("p", name, 1), [Request(task="chief-0", cpu=cpu)])

    def lose(self, volume: Path) -> None:
        volume.rmdir()

    async def _code(self, _: str, digest: str) -> AsyncIterator[bytes]:
        yield await asyncio.to_thread(self.archives[digest].read_bytes)

    def command(self) -> tuple[str, ...]:
        return ("python", "-c", WAIT_FOR_ORDERS)

    def env(self) -> dict[str, str]:
        return {"ORDERS": str(self.orders)}

    def end(self, launch: Launch, task: str, code: int) -> None:
        order = self.orders / f".{task}"
        order.write_text(str(code))
        order.rename(self.orders / f"{launch.name}.{task}")


class Kubernetes(Cloud):
    """A cluster with one node of four CPUs, whose kubelet runs tasks that wait for the test's word."""

    reserves = False

    def __init__(self, cluster: TrainingCluster) -> None:
        self.cluster = cluster
        self.logs = LogsInMemory()

    def driver(self) -> KubernetesTrainings:
        return self.cluster.driver(self.logs)

    def end(self, launch: Launch, task: str, code: int) -> None:
        self.cluster.kubelet.end(launch, task, code)

    def hopeless(self, folder: Path) -> tuple[Launch, str]:
        self.cluster.server.fail(422, "Invalid", "spec.template: no such thing", method="POST", path="/jobs$")
        launch = self.launch(roles=Roles(chief=Role(cpu=2), worker=Role(cpu=2)))
        return launch, "the cluster refuses it: .*no such thing"


class Watch:
    """A watch that is read in the background."""

    def __init__(self, driver: TrainingCloud) -> None:
        self._driver = driver
        self._changed = asyncio.Condition()
        self.tasks: dict[tuple[str, int], dict[str, Task]] = {}
        self.synced = False

    async def __aenter__(self) -> "Watch":
        self._task = asyncio.create_task(self._read(), name="watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _read(self) -> None:
        async with contextlib.aclosing(self._driver.watch()) as watch:
            async for seen in watch:
                async with self._changed:
                    match seen:
                        case Synced():
                            self.synced = True
                        case AttemptSeen():
                            self.tasks[seen.name, seen.attempt] = {task.name: task for task in seen.tasks}
                        case AttemptGone():
                            self.tasks.pop((seen.name, seen.attempt), None)
                    self._changed.notify_all()
        raise AssertionError("a watch never ends")

    async def until(self, holds: Any) -> Any:
        async with asyncio.timeout(15), self._changed:
            await self._changed.wait_for(lambda: holds(self))
            return holds(self)

    async def until_task(self, name: str, state: str, training: str = "t-1", attempt: int = 1) -> Task:
        def find(watch: Watch) -> Task | None:
            task = watch.tasks.get((training, attempt), {}).get(name)
            return task if task is not None and task.state == state else None

        found: Task = await self.until(find)
        return found
