"""Where the cluster keeps models, as the operator says it in ``ELEARN_KUBERNETES_MODEL_STORE``. Pure."""

from typing import Final, Literal

import msgspec

from shared.errors import Unsupported
from shared.kube.names import object_name
from shared.kube.quantities import whole

_FORMS: Final = "claim:NAME, class:NAME:SIZE, nfs:SERVER:/PATH or host:/PATH"


class StoreKind(msgspec.Struct, frozen=True, kw_only=True):
    """The model store, read."""

    kind: Literal["claim", "class", "nfs", "host"]
    name: str = ""
    size: str = ""
    server: str = ""
    path: str = ""


def store_kind(text: str) -> StoreKind:
    """What the setting says.

    Raises:
        Unsupported: nothing that can be meant.
    """
    kind, _, rest = text.partition(":")
    first, _, second = rest.partition(":")
    try:
        match kind:
            case "claim" if rest and not second:
                return StoreKind(kind="claim", name=rest)
            case "class" if first and second and whole(second) > 0:
                return StoreKind(kind="class", name=first, size=second)
            case "nfs" if first and second.startswith("/"):
                return StoreKind(kind="nfs", server=first, path=second)
            case "host" if rest.startswith("/"):
                return StoreKind(kind="host", path=rest)
    except ValueError as error:
        raise Unsupported(f"ELEARN_KUBERNETES_MODEL_STORE: {error}") from None
    said = repr(text) if text else "not set"
    raise Unsupported(f"ELEARN_KUBERNETES_MODEL_STORE: {said}; say where models are kept: {_FORMS}")


def store_claim(store: StoreKind, installation: str) -> str:
    """The name of the store's claim, the same in every namespace."""
    return store.name if store.kind == "claim" else object_name(installation, "models")
