"""NATS and PostgreSQL out of elearn's own image, each in a container of its own, for trying it in a cluster.

``python -m elearn.up.bundled nats`` becomes nats-server with ``/etc/nats/nats.conf``; ``… postgres`` makes a data
folder below ``/var/lib/postgresql/data`` with the roles and databases of the services, and becomes the server.
Passwords come as the official images take them: ``POSTGRES_PASSWORD``, ``ELEARN_POSTGRES_PASSWORD_API``, …, and are
those of the data folder's making for ever.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from elearn.up import binaries, postgres
from elearn.up.databases import SAFE_PASSWORD
from elearn.up.errors import StartError, UpError
from elearn.up.identity import current
from elearn.up.place import Place, place

NATS_CONFIG: Final = Path("/etc/nats/nats.conf")
POSTGRES_FOLDER: Final = Path("/var/lib/postgresql/data")
_PORT: Final = 5432
_SERVICES: Final = ("api", "scheduler", "datastore", "registry", "serving")
_HBA: Final = "host all all all scram-sha-256\n"


def nats_command(config: Path = NATS_CONFIG) -> list[str]:
    """The arguments that start nats-server.

    Raises:
        MissingPartError: the image holds none.
    """
    return [str(binaries.nats_server()), "--config", str(config)]


def passwords(environment: Mapping[str, str]) -> dict[str, str]:
    """Of the superuser (``postgres``) and of each service.

    Raises:
        StartError: one is missing, or not made of 16 or more of A-Z, a-z, 0-9, _ and -.
    """
    names = {name: f"ELEARN_POSTGRES_PASSWORD_{name.upper()}" for name in _SERVICES}
    names["postgres"] = "POSTGRES_PASSWORD"
    missing = sorted(variable for variable in names.values() if not environment.get(variable))
    if missing:
        raise StartError(f"set {', '.join(missing)}: PostgreSQL's roles need passwords")
    unsafe = sorted(variable for variable in names.values() if not SAFE_PASSWORD.fullmatch(environment[variable]))
    if unsafe:
        raise StartError(f"{', '.join(unsafe)}: a password is 16 or more of A-Z, a-z, 0-9, _ and -")
    return {name: environment[variable] for name, variable in names.items()}


async def postgres_command(where: Place, known: Mapping[str, str], port: int = _PORT) -> list[str]:
    """Make the data folder where it is missing; the arguments that start the server, for whoever has a password.

    Args:
        known: see :func:`passwords`.

    Raises:
        StartError: the data folder could not be made.
        HomeError: there is no room for it, or no right to write there.
    """
    services = {name: known[name] for name in _SERVICES}
    if await postgres.initialise(where, known["postgres"], where.folder / "initdb.log", services):
        (where.data / "pg_hba.conf").write_text(_HBA)
        await asyncio.to_thread(postgres.flush, where)
    (where.data / "postmaster.pid").unlink(missing_ok=True)  # of a container before: this folder is nobody else's
    settings = {**postgres.SETTINGS, "listen_addresses": "*", "max_connections": "200", "shared_buffers": "64MB"}
    return postgres.server(where, port, settings)


def command_of(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """What to become, and with which environment.

    Raises:
        UpError: it can't be started; the message says why.
    """
    if arguments == ["nats"]:
        return nats_command(), dict(os.environ)
    if arguments == ["postgres"]:
        where = place(POSTGRES_FOLDER, current())
        return asyncio.run(postgres_command(where, passwords(os.environ))), postgres.environment()
    raise StartError("usage: python -m elearn.up.bundled nats|postgres")


if __name__ == "__main__":
    try:
        command, environment = command_of(sys.argv[1:])
    except UpError as error:
        sys.exit(f"elearn: {error.detail}")
    os.execve(command[0], command, environment)  # noqa: S606 - the container's own process
