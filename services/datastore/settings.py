"""What this room reads from the environment."""

from pathlib import Path

from shared.settings import ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    """The datastore service's settings.

    Attributes:
        local_roots: folders below which local datastores may lie, joined by colons. Default: the user's
            home and ELEARN_HOME.
        local_private: names of elearn's own folders directly below ELEARN_HOME, joined by commas, which
            never become datastores.
        storage_check_seconds: pause between two looks at whether directories are still there, in seconds.
        upload_abandoned_seconds: an upload to which nothing was added for so long is removed, in seconds.
    """

    local_roots: tuple[Path, ...] = ()
    local_private: tuple[str, ...] = (
        "api",
        "code",
        "datastore",
        "ledger",
        "logs",
        "models",
        "nats",
        "postgres",
        "processes",
        "registry",
        "run",
        "scheduler",
        "serving",
        "state",
        "trainings",
        "up",
        "uploads",
        "work",
    )
    storage_check_seconds: float = 30.0
    upload_abandoned_seconds: float = 3600.0

    def roots(self) -> tuple[Path, ...]:
        """The folders below which local datastores may lie."""
        return self.local_roots or (Path("~").expanduser(), self.home)
