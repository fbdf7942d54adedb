"""One local replica: its files, what its model server is told, and how it stands."""

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from services.serving.cloud.port import Deployment
from shared.contracts.datastore import LocalVolume
from shared.errors import Unsupported
from shared.local.processes import ProcessSpec, ProcessStatus, Restart

State = Literal["starting", "ready", "failing", "leaving", "over"]

_ID: Final = re.compile(r"([0-9a-f]+)\.r(\d+)\.(\d+)")
_INHERITED: Final = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR", "TZ")
_RESTARTS_UNTIL_FAILING: Final = 3
_NEVER_RAN_AGAIN: Final = 5.0
_CONNECTION_AGE: Final = 5.0
_HAND_OVER_SECONDS: Final = _CONNECTION_AGE * 1.1 + 1.0
_KILL_AFTER: Final = 5.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a model server says of itself in its ready file."""

    state: str
    pid: int
    reason: str = ""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for every replica.

    Attributes:
        command: starts a model server; ``--config FILE`` is added.
        start_seconds: a replica that does not answer so long after its start is failing.
        grace_seconds: how long a replica that is ended may take to answer what it has begun.
    """

    command: tuple[str, ...]
    host: str
    start_seconds: float
    grace_seconds: float
    max_batch: int
    batch_micros: int


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """Names one replica; ``id`` is its process."""

    uid: str
    revision: int
    slot: int

    @property
    def id(self) -> str:
        return f"{self.uid}.r{self.revision}.{self.slot}"

    @classmethod
    def of(cls, id: str) -> "Replica | None":
        """The replica that a process is, or None where it is none of ours."""
        match = _ID.fullmatch(id)
        return cls(uid=match[1], revision=int(match[2]), slot=int(match[3])) if match else None


class Folder:
    """The files of one serving."""

    def __init__(self, root: Path, uid: str) -> None:
        self.path = root / uid

    def config(self, replica: Replica) -> Path:
        return self.path / f"r{replica.revision}.{replica.slot}.json"

    def ready(self, replica: Replica) -> Path:
        return self.path / f"r{replica.revision}.{replica.slot}.ready"

    def log(self, replica: Replica) -> Path:
        return self.path / f"r{replica.revision}.{replica.slot}.log"

    def report(self, replica: Replica) -> Report | None:
        """What the model server says now; None where it has said nothing that can be read."""
        try:
            return msgspec.json.decode(self.ready(replica).read_bytes(), type=Report)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def clear(self, replica: Replica) -> None:
        """Removes what only a living replica needs; its log stays as long as the serving."""
        self.config(replica).unlink(missing_ok=True)
        self.ready(replica).unlink(missing_ok=True)


def prepare(
    replica: Replica,
    deployment: Deployment,
    options: Options,
    folder: Folder,
    *,
    ports: Sequence[int],
    environment: Mapping[str, str],
    hold: str,
) -> ProcessSpec:
    """Writes the model server's configuration; answers the process to start.

    Raises:
        Unsupported: a version does not lie on this machine.
    """
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    threads = math.ceil(deployment.cpu) if deployment.cpu else 0
    config = {
        "model": deployment.model,
        "versions": [
            {"version": source.number, "path": str(_path(source.volume, source.path))} for source in deployment.sources
        ],
        "labels": deployment.labels,
        "traffic": {str(number): share for number, share in deployment.traffic.items()},
        "host": options.host,
        "grpc_port": ports[0],
        "rest_port": ports[1],
        "reuse_port": True,
        "batching": {
            "max_batch_size": options.max_batch,
            "timeout_micros": options.batch_micros,
            "threads": threads,
        },
        "intra_op_threads": threads,
        "connection_age_seconds": _CONNECTION_AGE,
        "grace_seconds": options.grace_seconds,
        "ready_file": str(folder.ready(replica)),
    }
    path = folder.config(replica)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(config))
    fresh.replace(path)
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return ProcessSpec(
        argv=(*options.command, "--config", str(path)),
        env={**inherited, "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2", **environment},
        cwd=str(folder.path),
        log=str(folder.log(replica)),
        log_limit=16 * 2**20,
        grace=_HAND_OVER_SECONDS + options.grace_seconds + _KILL_AFTER,
        restart=Restart(policy="always"),
        hold=(hold,),
    )


def stands(status: ProcessStatus, report: Report | None, *, now: float, start_seconds: float) -> tuple[State, str]:
    """How a replica stands, and why, from what its keeper and its model server say. Pure.

    Args:
        now: seconds since the epoch.
    """
    if status.finished:
        never_ran = status.state == "failed" and now - (status.finished_at or now) < _NEVER_RAN_AGAIN
        return ("failing", status.words()) if never_ran else ("over", status.words())
    if status.stop_requested:
        return "leaving", ""
    if report is not None and status.task is not None and report.pid == status.task.pid:
        if report.state == "failed":
            return "failing", report.reason
        if status.state == "running":
            return ("ready", "") if report.state == "serving" else ("leaving", "")
    if status.restarts >= _RESTARTS_UNTIL_FAILING:
        return "failing", f"its model server ended {status.restarts} times{_how(status)}; its log says more"
    started = status.started_at or status.created_at
    if status.state == "running" and now - started > start_seconds:
        return "failing", f"its model server did not answer within {start_seconds:g} s"
    return "starting", "its model server ended, and is started again" if status.restarts else ""


def _how(status: ProcessStatus) -> str:
    if status.signal is not None:
        return f", the last time by signal {status.signal}"
    return "" if status.exit_code is None else f", the last time with exit code {status.exit_code}"


def now() -> float:
    """Seconds since the epoch, as keepers write them."""
    return time.time()


def _path(volume: object, path: str) -> Path:
    if not isinstance(volume, LocalVolume):
        raise Unsupported("the local cloud serves models from directories of this machine only")
    return Path(volume.path) / path
