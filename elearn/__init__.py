"""elearn: TensorFlow as a Service. ``from elearn import Client``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elearn.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    # On demand: the command line's help and the services have no use for the client's imports.
    if name == "Client":
        from elearn.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
