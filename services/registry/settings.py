"""What this room reads from the environment."""

from pathlib import Path

from shared.settings import ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    """The registry's settings.

    Attributes:
        model_store: folder that holds every version, as ``<project>/<model>/<number>``. Default: ``models``
            below ELEARN_HOME.
        saves_at_once: save jobs that may run at the same time.
        save_timeout_seconds: a save that has not ended by then has failed, in seconds.
    """

    model_store: str = ""
    saves_at_once: int = 2
    save_timeout_seconds: float = 3600.0

    def store(self) -> Path:
        """The folder of the model store."""
        return Path(self.model_store).expanduser() if self.model_store else self.home / "models"
