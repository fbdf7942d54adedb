"""The model server's configuration: one JSON file, read once at the start."""

from pathlib import Path
from typing import Annotated

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Weight = Annotated[int, msgspec.Meta(ge=0, le=100)]


class ConfigError(Exception):
    """The configuration can't be used, and why."""


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version to load.

    Attributes:
        path: directory of its SavedModel.
    """

    version: Positive
    path: str


class Batching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests that wait at the same time are put together for one run of the model.

    Attributes:
        max_batch_size: rows in one run at the most; 1 turns batching off.
        timeout_micros: the longest that a request waits for others, in microseconds. A request that is
            alone does not wait at all.
        max_queue: requests that wait or run at the most; more are refused with RESOURCE_EXHAUSTED.
        threads: runs at the same time; 0 for as many as the process may use CPUs.
    """

    max_batch_size: Positive = 64
    timeout_micros: NotNegative = 1000
    max_queue: Positive = 1024
    threads: NotNegative = 0


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model, its versions, and where they are served.

    Attributes:
        model: the name that clients ask for.
        versions: loaded before the ports are opened; the highest answers where no version is named.
        labels: label to version, TensorFlow Serving's `version_labels`.
        traffic: version to per cent, together 100: how requests that name no version are spread.
        base_path: directory of numbered versions that `HandleReloadConfigRequest` may load from; without
            it reloading is refused.
        host: address to listen on; `*` is every address, IPv4 and IPv6.
        grpc_port, rest_port: 0 picks a free one; `rest_port` null leaves REST out.
        reuse_port: several servers of one user may listen on the same pair of ports; the kernel spreads
            connections over them.
        warm_up: run every signature once, or the model's own `tf_serving_warmup_requests`, before serving.
        tensor_content: answer with raw bytes in `tensor_content` rather than typed fields, as TensorFlow
            Serving's flag `enable_serialization_as_tensor_content` does.
        max_message_bytes: largest request, and largest tensor that a request may describe.
        connection_age_seconds: gRPC connections are told so long after they were made, without a call
            failing, to make a new one: so clients spread over servers that were added, and leave one that goes.
            Only where a client has set gRPC's channel argument `grpc.enable_retries` to 0 may a call fail then
            with UNAVAILABLE, begun by no server.
        grace_seconds: how long requests in flight may take to end after SIGTERM.
        ready_file: written, whole or not at all, with :class:`Report` when the state changes.
        inter_op_threads: threads that one run spreads its operations over; 0 runs them all in the
            thread that runs the batch, which is many times quicker for small models.
        intra_op_threads: threads that one operation may use; 0 leaves it to TensorFlow.
    """

    model: Annotated[str, msgspec.Meta(min_length=1)]
    versions: Annotated[list[Version], msgspec.Meta(min_length=1)]
    labels: dict[str, int] = {}
    traffic: dict[int, Weight] = {}
    base_path: str | None = None
    host: str = "127.0.0.1"
    grpc_port: Port = 8500
    rest_port: Port | None = 8501
    reuse_port: bool = True
    batching: Batching = Batching()
    warm_up: bool = True
    tensor_content: bool = False
    max_message_bytes: Positive = 64 * 2**20
    connection_age_seconds: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    grace_seconds: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    ready_file: str | None = None
    inter_op_threads: NotNegative = 0
    intra_op_threads: NotNegative = 0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the ready file.

    Attributes:
        state: `serving`, `draining` (on its way out), or `failed` (`reason` says why; the process ends).
        pid: the server's process.
        grpc_port, rest_port: where it listens.
        versions: those that answer.
    """

    state: str
    pid: int
    model: str
    versions: list[int] = []
    grpc_port: int | None = None
    rest_port: int | None = None
    reason: str = ""


def load(path: Path) -> ServerConfig:
    """Reads a configuration.

    Raises:
        ConfigError: not there, not JSON, or with a field that can't be.
    """
    try:
        config = msgspec.json.decode(path.read_bytes(), type=ServerConfig)
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    problem = problem_of(config)
    if problem:
        raise ConfigError(f"{path}: {problem}")
    return config


def problem_of(config: ServerConfig) -> str | None:
    """What contradicts itself in a configuration, or None."""
    numbers = [version.version for version in config.versions]
    if len(set(numbers)) != len(numbers):
        return "versions: a version is named twice"
    for label, number in config.labels.items():
        if number not in numbers:
            return f"labels.{label}: version {number} is not among the versions"
    for number in config.traffic:
        if number not in numbers:
            return f"traffic: version {number} is not among the versions"
    if config.traffic and sum(config.traffic.values()) != 100:
        return f"traffic: the shares add up to {sum(config.traffic.values())}, not to 100"
    return None
