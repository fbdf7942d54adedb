"""The local driver: tasks under shims, resources from the ledger, directories at their mount paths."""

import asyncio
import contextlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from services.scheduler.cloud.local import log_file, preparing
from services.scheduler.cloud.local.boards import Boards
from services.scheduler.cloud.local.layout import (
    Layout,
    Place,
    Placement,
    TaskId,
    attempt_prefix,
    is_ours,
    owner,
    parse_process_id,
    process_id,
)
from services.scheduler.cloud.local.observing import task_from
from services.scheduler.cloud.local.secret_files import NoSecret, SecretFiles
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
from services.scheduler.frameworks.port import Framework
from services.scheduler.model import Capabilities, Demand, NodeState, TaskPlan
from shared.contracts.problem import FieldError
from shared.contracts.training import RoleName, Task, TrainingSpec
from shared.errors import Conflict, Invalid, NotFound, StorageFull, TooLarge, Unsupported
from shared.local import directories, gpus, spec
from shared.local.ledger import Grant, Ledger, Request, Shortage, Snapshot
from shared.local.ports import Ports
from shared.local.processes import LocalProcesses, ProcessSpec, ProcessStatus, Restart, processes_root

_log = structlog.get_logger(__name__)

CodeSource = Callable[[str, str], AsyncIterator[bytes]]
"""The bytes of an archive of code, by project and digest."""


class LocalCloud:
    """Trainings as processes of this machine.

    Args:
        home: the folder in which everything lies.
        ledger: shared with the other rooms of this home.
        framework: what tasks are told of each other.
        code: where archives of code come from.
        grace: seconds between SIGTERM and SIGKILL.
        restarts: how often a task that may be restarted is, within one attempt.
        log_limit: bytes of log kept for each task; the oldest half goes beyond.
        python: what ``python`` means in a command.
        environ: the service's environment, of which tasks get a few harmless variables.
    """

    name = "local"

    def __init__(
        self,
        home: Path,
        ledger: Ledger,
        framework: Framework,
        code: CodeSource,
        *,
        grace: float = 10.0,
        restarts: int = 10,
        log_limit: int = 256 * 2**20,
        python: Path = Path(sys.executable),
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._layout = Layout(home)
        self._ledger = ledger
        self._ports = Ports(ledger)
        self._framework = framework
        self._code = code
        self._grace = grace
        self._restarts = restarts
        self._log_limit = log_limit
        self._python = python.absolute()
        self._environ = environ
        self._node = platform.node() or "localhost"
        self._processes = LocalProcesses(processes_root(home, "scheduler"))
        self._boards = Boards(self._processes, self._ports, self._layout, self._python, environ)
        self._secrets = SecretFiles(home)
        self._probed: directories.Capabilities | None = None
        self._placements: dict[Path, Placement] = {}

    def leading(self) -> Mapping[str, Work]:
        """Nothing: shims watch over tasks."""
        return {}

    def everywhere(self) -> Mapping[str, Work]:
        """Nothing."""
        return {}

    async def capabilities(self) -> Capabilities:
        """What this machine can do."""
        can = await self._directories()
        return Capabilities(
            absolute_mounts=can.absolute_mounts,
            absolute_mounts_missing=f"absolute mount paths are not possible on this machine ({can.why})",
            images=False,
            volumes=frozenset({"local"}),
        )

    async def _directories(self) -> directories.Capabilities:
        if self._probed is None:
            self._probed = await asyncio.to_thread(directories.probe)
        return self._probed

    async def examine(self, project: str, spec: TrainingSpec) -> Examination:
        """Whether the program and its Python are there, and what is done otherwise here."""
        can = await self._directories()
        if preparing.is_plain(spec) and not spec.secrets:
            return preparing.examine(spec, self._python, can, self._environ)
        found = await asyncio.to_thread(preparing.examine, spec, self._python, can, self._environ)
        missing = await asyncio.to_thread(self._missing_secrets, project, spec)
        return msgspec.structs.replace(found, errors=(*found.errors, *missing))

    def _missing_secrets(self, project: str, spec: TrainingSpec) -> list[FieldError]:
        errors = []
        for variable, secret in spec.secrets.items():
            try:
                self._secrets.value(project, secret)
            except NoSecret as problem:
                errors.append(FieldError(field=f"secrets.{variable}", message=str(problem)))
        return errors

    async def capacity(self) -> tuple[NodeState, ...]:
        """This machine."""
        return (_node_state(self._node, await asyncio.to_thread(self._ledger.snapshot)),)

    # -- launch and free

    async def launch(self, launch: Launch) -> None:
        """Reserve, prepare, start. See :meth:`TrainingCloud.launch`."""
        grant = await self._reserve(launch)
        try:
            await self._start(launch, grant)
        except (CannotLaunch, Invalid, Unsupported, Conflict, TooLarge, NotFound) as error:
            await self.free(launch.project, launch.name, launch.attempt)
            raise CannotLaunch(error.detail, error.errors) from error

    async def _reserve(self, launch: Launch) -> Grant:
        requests = [
            Request(task=task.name, cpu=task.demand.cpu, memory=task.demand.memory, gpus=task.demand.gpu)
            for task in launch.plan
        ]
        holder = owner(launch.project, launch.name, launch.attempt)
        answer = await asyncio.to_thread(self._ledger.acquire, holder, requests)
        if isinstance(answer, Shortage):
            raise NoRoomLeft(answer.words())
        return answer

    async def _start(self, launch: Launch, grant: Grant) -> None:
        addresses, placement = await self._place(launch, grant)
        can = await self._directories()
        mounts = await asyncio.to_thread(preparing.sources, launch.mounts)
        archive = await self._fetch_code(launch)
        try:
            await asyncio.gather(
                *(self._start_task(launch, task, addresses, placement, archive, mounts, can) for task in launch.plan)
            )
        finally:
            if archive is not None:
                archive.unlink(missing_ok=True)

    async def _place(self, launch: Launch, grant: Grant) -> tuple[dict[RoleName, tuple[str, ...]], Placement]:
        """Addresses by role, and what each task gets; the same ones when asked again."""
        hosts: list[str] = [""] * len(launch.plan)
        if preparing.needs_addresses(launch):
            holder = owner(launch.project, launch.name, launch.attempt)
            ports = await asyncio.to_thread(self._ports.reserve, holder, len(launch.plan))
            hosts = [f"127.0.0.1:{port}" for port in ports]
        by_role: dict[RoleName, list[str]] = {}
        for task, host in zip(launch.plan, hosts, strict=True):
            by_role.setdefault(task.role, []).append(host)
        parts = {part.task: part for part in grant.parts}
        placement = {
            task.name: Place(address=host, gpus=tuple(str(index) for index in parts[task.name].gpus))
            for task, host in zip(launch.plan, hosts, strict=True)
        }
        path = self._layout.placement(launch.project, launch.name, launch.attempt)
        await asyncio.to_thread(_write_placement, self._layout.root, path, placement)
        self._placements[path] = placement
        return {role: tuple(found) for role, found in by_role.items()}, placement

    async def _fetch_code(self, launch: Launch) -> Path | None:
        """The archive of code as a file of its own, until the tasks have unpacked it."""
        if launch.spec.code is None:
            return None
        folder = self._layout.attempt(launch.project, launch.name, launch.attempt)
        descriptor, name = await asyncio.to_thread(tempfile.mkstemp, ".tar", "code-", folder)
        path = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for part in self._code(launch.project, launch.spec.code):
                    await asyncio.to_thread(file.write, part)
        except OSError as problem:
            path.unlink(missing_ok=True)
            raise StorageFull(f"can't store the code: {problem.strerror}") from problem
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    async def _start_task(
        self,
        launch: Launch,
        task: TaskPlan,
        addresses: dict[RoleName, tuple[str, ...]],
        placement: Placement,
        archive: Path | None,
        mounts: tuple[directories.Mount, ...],
        can: directories.Capabilities,
    ) -> None:
        project, name, attempt = launch.project, launch.name, launch.attempt
        cwd = self._layout.work(project, name, attempt) / task.name
        binds = await asyncio.to_thread(preparing.working_directory, cwd, archive, mounts, can)
        try:
            secrets = await asyncio.to_thread(self._secrets.values, project, launch.spec.secrets)
        except NoSecret as problem:
            raise CannotLaunch(str(problem)) from problem
        devices = [self._ledger.machine.gpus[int(index)] for index in placement[task.name].gpus]
        process = ProcessSpec(
            argv=preparing.command_of(launch, task, addresses, self._framework, self._python),
            env=preparing.environment_of(
                launch,
                task,
                addresses,
                self._framework,
                self._python,
                gpus.environment(devices),
                self._environ,
                secrets,
            ),
            cwd=str(cwd),
            log=str(self._layout.log(project, name, attempt, task.name)),
            log_limit=self._log_limit,
            grace=self._grace,
            restart=(Restart(policy="on_failure", most=self._restarts) if task.on_failure == "restart" else Restart()),
            mounts=binds,
            hold=(str(self._ledger.alive_path),),
        )
        await self._processes.start(process_id(project, name, attempt, task.name), process)

    async def free(self, project: str, name: str, attempt: int) -> tuple[Task, ...]:
        """Stop every process, then give everything back. See :meth:`TrainingCloud.free`."""
        found = await self._processes.list(attempt_prefix(project, name, attempt))
        ended = await asyncio.gather(*(self._processes.stop(status.id) for status in found))
        tasks = [await self._task(status) for status in ended if status is not None]
        await asyncio.to_thread(self._ledger.release, owner(project, name, attempt))
        for status in found:
            await self._processes.remove(status.id)
        await asyncio.to_thread(preparing.remove_tree, self._layout.work(project, name, attempt))
        self._placements.pop(self._layout.placement(project, name, attempt), None)
        return tuple(task for task in tasks if task is not None)

    async def settle(self, holding: frozenset[tuple[str, str, int]]) -> None:
        """Release what the ledger has handed out to attempts that nobody knows."""
        known = {owner(*each) for each in holding}
        for status in await self._processes.list():
            if (identity := parse_process_id(status.id)) is not None:
                known.add(owner(identity.project, identity.name, identity.attempt))
        snapshot = await asyncio.to_thread(self._ledger.snapshot)
        for each in {*snapshot.ports, *(grant.owner for grant in snapshot.grants)}:
            if is_ours(each) and each not in known:
                _log.warning("nobody knows who holds this: released", owner=each)
                await asyncio.to_thread(self._ledger.release, each)

    async def forget(self, project: str, name: str) -> None:
        """Remove a training's folder."""
        await asyncio.to_thread(preparing.remove_tree, self._layout.training(project, name))

    # -- looking

    async def logs(self, project: str, name: str, attempt: int, task: str, *, offset: int, length: int) -> LogPart:
        """A part of a task's log."""
        path = self._layout.log(project, name, attempt, task)
        return await asyncio.to_thread(log_file.read, path, offset, length)

    async def watch(self) -> AsyncGenerator[Observation, None]:
        """Attempts as their processes come, change and go."""
        shown: dict[tuple[str, str, int], dict[str, Task]] = {}
        async with contextlib.aclosing(self._processes.watch()) as changes:
            async for change in changes:
                if isinstance(change, spec.Synced):
                    yield Synced()
                    continue
                identity = parse_process_id(change.id)
                if identity is None:
                    continue
                key = (identity.project, identity.name, identity.attempt)
                tasks = shown.setdefault(key, {})
                if isinstance(change, spec.Removed):
                    tasks.pop(identity.task, None)
                elif (task := await self._task(change)) is not None:
                    tasks[identity.task] = task
                if tasks:
                    yield AttemptSeen(project=key[0], name=key[1], attempt=key[2], tasks=tuple(tasks.values()))
                else:
                    del shown[key]
                    self._placements.pop(self._layout.placement(*key), None)
                    yield AttemptGone(project=key[0], name=key[1], attempt=key[2])

    async def _task(self, status: ProcessStatus) -> Task | None:
        identity = parse_process_id(status.id)
        if identity is None:
            return None
        last_words = ""
        if status.state == "exited" and status.exit_code and not status.stop_requested:
            log = self._layout.log(identity.project, identity.name, identity.attempt, identity.task)
            last_words = await asyncio.to_thread(log_file.last_line, log)
        place = await self._place_of(identity)
        return task_from(identity, status, place, self._node, last_words)

    async def _place_of(self, identity: TaskId) -> Place:
        path = self._layout.placement(identity.project, identity.name, identity.attempt)
        known = self._placements.get(path)
        if known is None:
            known = await asyncio.to_thread(_read_placement, path)
            self._placements[path] = known
        return known.get(identity.task, Place())

    # -- TensorBoard

    async def open_board(self, board: BoardPlan) -> str:
        """A TensorBoard under the shim on a reserved port."""
        return await self._boards.open(board)

    async def close_board(self, project: str, name: str) -> None:
        """End it."""
        await self._boards.close(project, name)

    async def close(self) -> None:
        """Let go of the ledger."""
        await asyncio.to_thread(self._ledger.close)


def _node_state(name: str, snapshot: Snapshot) -> NodeState:
    machine = snapshot.machine
    others: dict[str, Demand] = {}
    granted = 0
    for grant in snapshot.grants:
        held = Demand(
            cpu=sum(part.cpu for part in grant.parts),
            memory=sum(part.memory for part in grant.parts),
            gpu=sum(len(part.gpus) for part in grant.parts),
        )
        granted += held.gpu
        if not is_ours(grant.owner):
            others[grant.owner] = held
    elsewhere = len(machine.gpus) - granted - len(snapshot.free_gpus)
    if elsewhere > 0:
        others["another elearn of this user"] = Demand(gpu=elsewhere)
    return NodeState(
        name=name,
        total=Demand(cpu=machine.cpu, memory=machine.memory, gpu=len(machine.gpus)),
        others=others,
        gpu_type=re.sub(r"\s+", " ", machine.gpus[0].name) if machine.gpus else "",
    )


def _write_placement(root: Path, path: Path, placement: Placement) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        (path.parent / "logs").mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(msgspec.json.encode(placement))
        temporary.rename(path)
    except OSError as problem:
        raise StorageFull(f"can't write {path}: {problem.strerror}") from problem


def _read_placement(path: Path) -> Placement:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Placement)
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}
