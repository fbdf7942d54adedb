"""What is up: kept in ELEARN_HOME/state.json by the supervisor, read by everybody."""

from typing import Literal

import msgspec

from shared.local.identity import ProcessIdentity

ProcessState = Literal["starting", "ready", "unready", "restarting", "stopping", "stopped"]
"""``unready``: it runs and was ready, but says now that it lacks something."""


class Ports(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TCP ports on 127.0.0.1; chosen once, so that whoever connects again finds the same."""

    api: int
    nats: int
    postgres: int
    health: dict[str, int]


class ServiceState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process of the platform."""

    name: str
    state: ProcessState
    process: ProcessIdentity | None = None
    restarts: int = 0
    reason: str | None = None
    """Why it is not ready, in words."""


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of it."""

    ports: Ports
    supervisor: ProcessIdentity | None = None
    """None once it was taken down in an orderly way; clients read it to tell that from a crash."""
    services: tuple[ServiceState, ...] = ()
    cloud: str = "local"
    """Where tasks run: what runs elsewhere than on this machine goes on when the platform is taken down."""


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process as `elearn status` shows it."""

    name: str
    pid: int | None
    state: ProcessState
    restarts: int = 0
    reason: str | None = None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What `elearn status -o json` prints."""

    ready: bool
    url: str | None
    services: tuple[ServiceStatus, ...]
    nats_url: str | None
    """Without a password; the one for pipelines and operations lies in ``nats_url_file``."""
    nats_url_file: str | None
    home: str
    token_file: str


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="progress"):
    """A process of the platform changed its state."""

    name: str
    state: ProcessState
    reason: str | None = None


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="ready"):
    """Everything is up."""

    url: str
    seconds: float


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="failed"):
    """It could not be brought up; ``kind`` is the class of the error that says so."""

    kind: str
    detail: str


Event = Progress | Ready | Failed
