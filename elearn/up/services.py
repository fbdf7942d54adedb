"""The five services as processes: their commands and the environment each is started with."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from elearn.up import databases, nats
from elearn.up.home import Home, Secrets
from elearn.up.proc import MARK
from elearn.up.state import Ports

SERVICES = ("api", "scheduler", "datastore", "registry", "serving")

# The caller's own address book, which would be wrong or none of a service's business.
_NOT_INHERITED = frozenset({"ELEARN_URL", "ELEARN_TOKEN", "ELEARN_PROJECT"})


def command(name: str) -> Sequence[str]:
    """The arguments that start a service."""
    # -P: the working directory is the user's, and no module of ours is to be found there.
    return (sys.executable, "-P", "-m", f"services.{name}")


def user_home() -> Path | None:
    """The calling user's home; None for a user id that has none."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def environment(
    name: str, home: Home, ports: Ports, secrets: Secrets, inherited: Mapping[str, str], user: Path | None
) -> dict[str, str]:
    """The environment of a service: the caller's, with what the platform knows better.

    What the user may set is left as it is: ELEARN_CLOUD, ELEARN_LOCAL_ROOTS, ELEARN_MODEL_STORE, ELEARN_CPUS,
    ELEARN_MEMORY, ELEARN_FAKE_GPUS, ELEARN_LOG_LEVEL, ELEARN_KUBERNETES_… and whatever else a service reads.

    Args:
        user: the user's own folder, below which local datastores may lie as well.
    """
    settings = {
        "ELEARN_CLOUD": "local",
        "ELEARN_LOCAL_ROOTS": ":".join(str(root) for root in (user, home.root) if root),
        "ELEARN_MODEL_STORE": str(home.models),
        # Two homes that work on one cluster must not take each other's trainings for their own.
        "ELEARN_KUBERNETES_INSTALLATION": secrets.installation,
        **{key: value for key, value in inherited.items() if key not in _NOT_INHERITED},
        "ELEARN_HOME": str(home.root),
        "ELEARN_NATS_URL": nats.url(name, secrets.nats[name], ports.nats),
        "ELEARN_POSTGRES_URL": databases.url(name, secrets.postgres[name], ports.postgres, name),
        "ELEARN_HEALTH_HOST": "127.0.0.1",
        "ELEARN_HEALTH_PORT": str(ports.health[name]),
        "PYTHONUNBUFFERED": "1",
        MARK: name,
    }
    if name == "api":
        settings["ELEARN_LISTEN"] = f"127.0.0.1:{ports.api}"
        settings["ELEARN_ADMIN_TOKEN_FILE"] = str(home.token)
    return settings
