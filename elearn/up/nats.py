"""nats-server with JetStream on loopback: a user per service, and one for pipelines and operations."""

import asyncio
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from elearn.up import binaries
from elearn.up.files import write_atomically
from shared.contracts.event import DEAD_STREAM, PREFIX, STREAM

OPERATIONS = "elearn"
"""The user for data pipelines and operations: tells that data arrived, reads everything that happens."""

_MEGABYTE = 2**20
_TAIL = 2**16
"""Bytes at a log's end that are looked at; an ill server complains again at every message."""
_ILL = re.compile(
    rb"\[(?:ERR|WRN|FTL)\] (.*(?:critical write error|failed to store a msg|JetStream .*will be DISABLED).*)",
    re.IGNORECASE,
)
DURABLES = ("datastore-trainings", "registry-servings", "registry-trainings", "serving-models")
"""The services' own consumers, which nobody else may read from, acknowledge for, change or delete."""

_JETSTREAM_READS = (
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    *(
        f"$JS.API.{verb}.{stream}{rest}"
        for stream in (STREAM, DEAD_STREAM)
        for verb, rest in (
            ("STREAM.INFO", ""),
            ("STREAM.MSG.GET", ""),
            ("DIRECT.GET", ""),
            ("DIRECT.GET", ".>"),
            ("CONSUMER.NAMES", ""),
            ("CONSUMER.LIST", ""),
            ("CONSUMER.INFO", ".*"),
            ("CONSUMER.CREATE", ""),
            ("CONSUMER.CREATE", ".>"),
            ("CONSUMER.DURABLE.CREATE", ".*"),
            ("CONSUMER.MSG.NEXT", ".*"),
            ("CONSUMER.DELETE", ".*"),
        )
    ),
    f"$JS.ACK.{STREAM}.>",
    f"$JS.ACK.{DEAD_STREAM}.>",
    f"$JS.FC.{STREAM}.>",
)


class Permissions(msgspec.Struct, frozen=True, kw_only=True):
    """The subjects a user may publish to and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    publish_never: tuple[str, ...] = ()


def inbox(user: str) -> str:
    """The prefix of the subjects on which a service's requests are answered; nobody else may listen there."""
    return f"_INBOX_{user}"


def service_permissions(name: str, services: tuple[str, ...]) -> Permissions:
    """What a service needs: events both ways, requests to others, answers under its own name alone."""
    return Permissions(
        publish=(
            f"{PREFIX}.>",
            "elearn.dead.>",
            "elearn.rpc.>",
            "$SRV.>",
            "$JS.API.>",
            "$JS.ACK.>",
            "$JS.FC.>",
            *(f"{inbox(other)}.>" for other in services),
            "_INBOX.>",  # whoever asks with an ordinary client, `nats micro ls` for one
        ),
        subscribe=(
            f"{PREFIX}.>",
            "elearn.dead.>",
            f"elearn.rpc.{name}.>",
            "$SRV.*",
            f"$SRV.*.{name}",
            f"$SRV.*.{name}.*",
            "$JS.EVENT.ADVISORY.>",
            f"{inbox(name)}.>",
        ),
    )


def operations_permissions() -> Permissions:
    """What pipelines and operations need; the services' own consumers are out of their reach."""
    return Permissions(
        publish=(
            f"{PREFIX}.data.arrived.>",
            *(f"$SRV.{verb}{rest}" for verb in ("PING", "INFO", "STATS") for rest in ("", ".>")),
            *_JETSTREAM_READS,
        ),
        subscribe=(f"{PREFIX}.>", "$JS.EVENT.ADVISORY.>", "_INBOX.>", f"{inbox(OPERATIONS)}.>"),
        publish_never=tuple(
            subject
            for durable in DURABLES
            for subject in (
                f"$JS.API.CONSUMER.CREATE.{STREAM}.{durable}",
                f"$JS.API.CONSUMER.CREATE.{STREAM}.{durable}.>",
                f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{durable}",
                f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{durable}",
                f"$JS.API.CONSUMER.DELETE.{STREAM}.{durable}",
                f"$JS.ACK.{STREAM}.{durable}.>",
            )
        ),
    )


def permissions(services: tuple[str, ...]) -> dict[str, Permissions]:
    """Every user's permissions."""
    return {
        **{name: service_permissions(name, services) for name in services},
        OPERATIONS: operations_permissions(),
    }


def config(
    host: str, port: int, store: str, passwords: Mapping[str, str], services: tuple[str, ...]
) -> dict[str, object]:
    """The settings of a nats-server; written as JSON, which is a subset of its configuration language."""
    users = []
    for user, allowed in permissions(services).items():
        publish: dict[str, object] = {"allow": list(allowed.publish)}
        if allowed.publish_never:
            publish["deny"] = list(allowed.publish_never)
        users.append(
            {
                "user": user,
                "password": passwords[user],
                "permissions": {"publish": publish, "subscribe": {"allow": list(allowed.subscribe)}},
            }
        )
    return {
        "host": host,
        "port": port,
        "server_name": "elearn",
        "max_payload": 8 * _MEGABYTE,
        "max_connections": 1000,
        "ping_interval": "60s",
        "jetstream": {
            "store_dir": store,
            "max_memory_store": 64 * _MEGABYTE,
            "max_file_store": 10 * 1024 * _MEGABYTE,
        },
        "authorization": {"users": users},
    }


def template(services: tuple[str, ...]) -> str:
    """The configuration for a server that elearn does not start itself: passwords come from its environment.

    Committed as ``deploy/nats/nats.conf``.
    """
    variables = {user: f"ELEARN_NATS_PASSWORD_{user.upper()}" for user in permissions(services)}
    text = json.dumps(config("0.0.0.0", 4222, "/data", variables, services), indent=2)  # noqa: S104
    for variable in variables.values():
        text = text.replace(f'"{variable}"', f"${variable}")  # unquoted: the server looks it up
    return f"# Made by elearn.up.nats.template; change it there.\n{text}\n"


def write_config(folder: Path, port: int, passwords: Mapping[str, str], services: tuple[str, ...]) -> list[str]:
    """Write the configuration and the operations user's address below ``folder``, for their owner's eyes.

    Returns:
        The arguments that start the server in the foreground.
    """
    path = folder / "nats.conf"
    settings = config("127.0.0.1", port, str(folder / "data"), passwords, services)
    write_atomically(path, json.dumps(settings, indent=2).encode())
    write_atomically(folder / "url", f"{url(OPERATIONS, passwords[OPERATIONS], port)}\n".encode())
    return [str(binaries.nats_server()), "--config", str(path)]


def url(user: str, password: str, port: int) -> str:
    """The address of the server for a user."""
    return f"nats://{user}:{password}@127.0.0.1:{port}"


def ailment(log: Path, pid: int) -> str | None:
    """What keeps the running server from storing anything, in its own words; None while it is well.

    After one write that failed, on a full disk for one, it answers as ever but refuses every message until it is
    started anew, however much room there is by then. It says so in its log alone.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None  # what can't be read says nothing
    mine = b"[%d] " % pid
    said = [found[1] for line in lines if line.startswith(mine) and (found := _ILL.search(line))]
    return said[-1].decode(errors="replace") if said else None


async def greets(port: int, timeout: float = 5.0) -> bool:
    """Whether a nats-server answers there; it does so only once JetStream has recovered its streams."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return (await reader.readexactly(5)) == b"INFO "
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
