"""TensorBoards of this machine: one process each, on a port that the ledger reserved."""

import asyncio
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from services.scheduler.cloud.local.layout import Layout, board_id
from services.scheduler.cloud.local.preparing import source_of
from services.scheduler.cloud.port import BoardPlan
from shared.errors import Conflict, Unavailable, Unsupported
from shared.local.ports import Ports
from shared.local.processes import LocalProcesses, ProcessSpec

_UP_SECONDS: Final = 8.0  # a request waits this long; TensorBoard goes on starting when it is over
_LOOK_EVERY: Final = 0.1


class Boards:
    """Opens and closes TensorBoards."""

    def __init__(
        self,
        processes: LocalProcesses,
        ports: Ports,
        layout: Layout,
        python: Path,
        environ: Mapping[str, str],
    ) -> None:
        self._processes = processes
        self._ports = ports
        self._layout = layout
        self._python = python
        self._environ = environ
        self._opening: dict[str, asyncio.Lock] = {}

    async def open(self, board: BoardPlan) -> str:
        """Start it unless it runs, and wait until it listens; its base URL."""
        if importlib.util.find_spec("tensorboard") is None:
            raise Unsupported("TensorBoard is not installed beside elearn; install it with: pip install tensorboard")
        id = board_id(board.project, board.name)
        async with self._opening.setdefault(id, asyncio.Lock()):
            (port,) = await asyncio.to_thread(self._ports.reserve, id, 1)
            spec = await asyncio.to_thread(self._spec, board, port)
            await self._make_run(id, spec)
        await self._wait_until_up(id, port)
        return f"http://127.0.0.1:{port}"

    async def _make_run(self, id: str, spec: ProcessSpec) -> None:
        status = await self._processes.status(id)
        running = status is not None and not status.finished
        marker = Path(spec.cwd) / "command.json"
        command = msgspec.json.encode(spec.argv)
        if running and await asyncio.to_thread(_content, marker) == command:
            return
        await self._processes.stop(id)
        await self._processes.remove(id)
        await asyncio.to_thread(marker.write_bytes, command)
        status = await self._processes.start(id, spec)
        if status.state == "failed":
            raise Conflict(f"TensorBoard could not be started: {status.words()}")

    def _spec(self, board: BoardPlan, port: int) -> ProcessSpec:
        folder = self._layout.board(board.project, board.name)
        folder.mkdir(parents=True, exist_ok=True)
        top = source_of(msgspec.structs.replace(board.mount, folder=""), make=False)
        events = os.path.normpath(os.path.join(top, board.path))  # noqa: PTH118 - both are text by contract
        keep = ("HOME", "LANG", "LD_LIBRARY_PATH", "TZ", "USER")
        env = {name: self._environ[name] for name in keep if name in self._environ}
        env["PATH"] = f"{self._python.parent}:{self._environ.get('PATH', os.defpath)}"
        return ProcessSpec(
            argv=(
                str(self._python),
                "-m",
                "tensorboard.main",
                f"--logdir={events}",
                "--host=127.0.0.1",
                f"--port={port}",
                f"--path_prefix={board.path_prefix.rstrip('/')}",
                "--load_fast=false",
            ),
            env=env,
            cwd=str(folder),
            log=str(folder / "log"),
            grace=2.0,
        )

    async def _wait_until_up(self, id: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _UP_SECONDS
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                status = await self._processes.status(id)
                if status is None or status.finished:
                    how = "it was closed" if status is None else status.words()
                    raise Conflict(f"TensorBoard has ended: {how}") from None
                if loop.time() > until:
                    raise Unavailable("TensorBoard is starting; try again in a moment") from None
                await asyncio.sleep(_LOOK_EVERY)
            else:
                writer.close()
                await writer.wait_closed()
                return

    async def close(self, project: str, name: str) -> None:
        """End it and give its port back; none is success."""
        id = board_id(project, name)
        async with self._opening.setdefault(id, asyncio.Lock()):
            await self._processes.stop(id)
            await self._processes.remove(id)
            await asyncio.to_thread(self._ports.release, id)
        self._opening.pop(id, None)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
