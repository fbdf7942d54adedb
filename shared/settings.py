"""Settings: a frozen struct filled from ``ELEARN_…`` variables of the environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


class SettingsError(Exception):
    """A setting is missing or can't be read; the message names the variable."""


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service reads.

    Attributes:
        nats_url: NATS with JetStream, user and password included.
        postgres_url: this service's own database.
        home: folder for what the service keeps on disk.
        cloud: where compute runs: ``local`` or ``kubernetes``.
        health_host, health_port: where ``/healthz``, ``/readyz`` and ``/metrics`` answer; port 0: nowhere, host ``*``:
            every address, IPv4 and IPv6.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``json`` or ``text``.
        pool_size: most connections to the database, besides the leader's one.
        outbox_retention_days: how long published events stay in the log, in days.
    """

    nats_url: str
    postgres_url: str
    home: Path = Path("~/.elearn")
    cloud: str = "local"
    health_host: str = "127.0.0.1"
    health_port: int = 0
    log_level: str = "info"
    log_format: str = "json"
    pool_size: int = 6
    outbox_retention_days: float = 30.0


def load(kind: type[T], environ: Mapping[str, str]) -> T:
    """Read the struct's fields from ``ELEARN_<FIELD>``; paths have ``~`` expanded.

    Raises:
        SettingsError: a variable without a default is not set, or one can't be read.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        variable = f"ELEARN_{field.name.upper()}"
        text = environ.get(variable)
        if text is None or text == "":
            if field.required:
                raise SettingsError(f"{variable} is not set")
            if isinstance(field.default, Path):
                values[field.name] = field.default.expanduser()
            continue
        values[field.name] = _convert(variable, text, field.type)
    return kind(**values)


def _convert(variable: str, text: str, kind: Any) -> object:
    if kind is Path:
        return Path(text).expanduser()
    if kind == tuple[Path, ...]:
        return tuple(Path(part).expanduser() for part in text.split(":") if part)
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        converted: object = msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{variable}: {str(error)[:1].lower()}{str(error)[1:]}") from None
    return converted
