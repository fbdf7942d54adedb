"""The one process that runs a home's platform: starts its parts in order, keeps them running, ends them."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from elearn.up import databases, health, identity, leftovers, logfiles, nats, postgres, services
from elearn.up.errors import StartError
from elearn.up.files import read_struct, write_atomically
from elearn.up.home import DEFAULT_PORT, Home, unusable
from elearn.up.managed import Ailment, Managed, Spec
from elearn.up.place import SUPERUSER, Place, place
from elearn.up.ports import choose as choose_ports
from elearn.up.proc import MARK
from elearn.up.state import Event, Ports, Progress, Ready, State
from shared.local.identity import identify

_log = logging.getLogger("elearn.up")
_LOG_CHECK = 5.0
_START_SECONDS = 90.0

Command = Callable[[str], Sequence[str]]


class Supervisor:
    """Runs the platform of one home, which must be prepared and locked.

    Args:
        port: of the gateway; None for the one it had, 0 for any free one.
        report: told what happens, line by line.
        command: the arguments that start a service.
    """

    def __init__(
        self,
        home: Home,
        port: int | None,
        report: Callable[[Event], None],
        command: Command = services.command,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._home = home
        self._port = port
        self._report = report
        self._command = command
        self._environ = environ
        self._managed: list[Managed] = []
        self._ports: Ports | None = None
        self._stop = asyncio.Event()
        self._broken: BaseException | None = None
        self._flushing: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Ask :meth:`run` to end everything and return."""
        self._stop.set()

    async def run(self) -> None:
        """Bring everything up, keep it up until :meth:`stop`, bring everything down.

        Raises:
            UpError: it could not be brought up; nothing is left running.
        """
        began = time.monotonic()
        rotating: asyncio.Task[None] | None = None
        try:
            starting = asyncio.create_task(self._start(), name="start")
            stopping = asyncio.create_task(self._stop.wait(), name="stop")
            done, pending = await asyncio.wait(
                {starting, stopping}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            for task in pending - {stopping}:
                task.cancel()
            await asyncio.gather(*(pending - {stopping}), return_exceptions=True)
            if not done:
                raise StartError(f"not ready after {_START_SECONDS:.0f} s: {self._late()}")
            if starting in done:
                url = starting.result()
                rotating = asyncio.create_task(self._turn_logs_over(), name="turn logs over")
                self._report(Ready(url=url, seconds=round(time.monotonic() - began, 3)))
                await stopping
            if self._broken is not None:
                raise self._broken
        finally:
            if rotating is not None:
                rotating.cancel()
            await self._end()

    async def _start(self) -> str:
        home = self._home
        secrets = home.ensure_secrets((*services.SERVICES, nats.OPERATIONS), (*services.SERVICES, SUPERUSER))
        home.ensure_token()
        known = read_struct(home.state, State)
        await asyncio.to_thread(leftovers.end_processes, home, known)
        self._ports = ports = choose_ports(self._port, known.ports if known else None, services.SERVICES, DEFAULT_PORT)
        self._save(must=True)
        server = nats.write_config(home.nats, ports.nats, secrets.nats, services.SERVICES)
        bus = self._manage(self._nats(server, ports.nats))
        bus.start()
        where = await asyncio.to_thread(place, home.postgres, identity.current())
        passwords = {name: secrets.postgres[name] for name in services.SERVICES}
        made = await postgres.initialise(where, secrets.postgres[SUPERUSER], home.log("postgres"), passwords)
        superuser = databases.url(SUPERUSER, secrets.postgres[SUPERUSER], ports.postgres, "postgres")
        database = self._manage(self._postgres(where, ports.postgres))
        database.start()
        await database.ready()
        await databases.ensure(superuser, passwords, where.data)
        if made:
            self._flushing = asyncio.create_task(self._flush(where), name="flush the new data")
        await bus.ready()
        rooms = []
        for name in services.SERVICES:
            environment = services.environment(name, home, ports, secrets, self._environ, services.user_home())
            rooms.append(self._manage(self._service(name, environment, ports.health[name])))
        for room in rooms:
            room.start()
        await asyncio.gather(*(room.ready() for room in rooms))
        return f"http://127.0.0.1:{ports.api}"

    async def _flush(self, where: Place) -> None:
        try:
            await asyncio.to_thread(postgres.flush, where)
        except OSError as error:
            _log.error("can't flush PostgreSQL's data to the disk: %s", error)

    def _late(self) -> str:
        late = [each.spec.name for each in self._managed if each.state.state != "ready"]
        return f"{', '.join(late) or 'nothing'} not ready; see {self._home.logs}"

    def _manage(self, spec: Spec) -> Managed:
        managed = Managed(spec, self._changed, self._break)
        self._managed.append(managed)
        return managed

    def _changed(self, managed: Managed) -> None:
        self._save()
        state = managed.state
        self._report(Progress(name=state.name, state=state.state, reason=state.reason))

    def _break(self, error: BaseException) -> None:
        _log.error("keeping the platform up failed", exc_info=error)
        self._broken = error
        self._stop.set()

    def _save(self, *, must: bool = False, ended: bool = False) -> None:
        """Record what runs, before anything else happens: a killed supervisor leaves nothing unknown."""
        if self._ports is None:
            return
        state = State(
            ports=self._ports,
            supervisor=None if ended else identify(os.getpid()),
            services=tuple(each.state for each in self._managed),
            cloud=os.environ.get("ELEARN_CLOUD") or "local",
        )
        try:
            write_atomically(self._home.state, msgspec.json.encode(state), durable=must)
        except OSError as error:
            if must:
                raise unusable(self._home.root, error) from error
            _log.error("can't record what runs: %s", error)  # what runs is also found by its mark

    def _nats(self, command: Sequence[str], port: int) -> Spec:
        async def ails(pid: int) -> Ailment | None:
            said = await asyncio.to_thread(nats.ailment, self._home.log("nats"), pid)
            return None if said is None else Ailment(reason=f"stores nothing: {said}", curable=self._home.has_room())

        return Spec(
            name="nats",
            command=command,
            environment={"PATH": "/usr/bin:/bin", "ELEARN_HOME": str(self._home.root), MARK: "nats"},
            folder=self._home.nats,
            log=self._home.log("nats"),
            ready=lambda: nats.greets(port),
            ails=ails,
        )

    def _postgres(self, where: Place, port: int) -> Spec:
        async def clear() -> None:
            await asyncio.to_thread(postgres.clear_stale, where)

        return Spec(
            name="postgres",
            command=postgres.server(where, port),
            environment=postgres.environment(),
            folder=Path("/"),
            log=self._home.log("postgres"),
            ready=lambda: postgres.answers(port),
            before=clear,
            stop_signal=signal.SIGINT,  # ends sessions that are left and writes a checkpoint
            grace=30.0,
        )

    def _service(self, name: str, environment: Mapping[str, str], port: int) -> Spec:
        return Spec(
            name=name,
            command=self._command(name),
            environment=environment,
            folder=self._home.root,
            log=self._home.log(name),
            ready=lambda: health.is_ready(port),
        )

    async def _end(self) -> None:
        """End the services, then what they started, then what they stand on."""
        servers = [each for each in self._managed if each.spec.name in ("nats", "postgres")]
        rooms = [each for each in self._managed if each not in servers]
        await asyncio.gather(*(each.stop() for each in rooms))
        await asyncio.to_thread(leftovers.end_tasks, self._home)
        await asyncio.gather(*(each.stop() for each in servers))
        self._save(ended=True)

    async def _turn_logs_over(self) -> None:
        paths = [*(each.spec.log for each in self._managed), self._home.log("supervisor")]
        while True:
            for path in paths:
                try:
                    await asyncio.to_thread(logfiles.turn_over, path)
                except OSError as error:
                    _log.error("can't turn over %s: %s", path, error)
            await asyncio.sleep(_LOG_CHECK)
