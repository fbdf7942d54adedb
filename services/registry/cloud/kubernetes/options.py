"""Where the cluster keeps models, as the operator says it. Pure."""

from typing import Final, Literal

import msgspec

from shared.errors import Unsupported
from shared.kube.names import object_name
from shared.kube.quantities import whole
from shared.kube.storage import class_claim, fixed_claim, fixed_volume, host_source, nfs_source

Document = dict[str, object]

_FORMS: Final = "claim:NAME, class:NAME:SIZE, nfs:SERVER:/PATH or host:/PATH"


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Read from ``ELEARN_<FIELD>``.

    Attributes:
        kubernetes_model_store: what holds the models of a project in its namespace: ``claim:NAME``, a claim that
            the operator makes in each; ``class:NAME:SIZE``, a claim that elearn makes; ``nfs:SERVER:/PATH``, one share
            for all; ``host:/PATH``, a folder that every node shows (or the only one has), which elearn's user can
            write to.
        kubernetes_single_node_classes: storage classes whose claims one node alone may mount (``ReadWriteOnce``).
        kubernetes_save_cpu, kubernetes_save_memory: what a save job asks for.
        kubernetes_save_start_seconds: a job that can't start (no image, no mount) so long after it was made, though
            there is room for it, has failed, in seconds.
        kubernetes_archive_idle_seconds: the pod that reads downloads ends so long after the last one, in seconds.
    """

    kubernetes_model_store: str = ""
    kubernetes_single_node_classes: tuple[str, ...] = ()
    kubernetes_save_cpu: str = "500m"
    kubernetes_save_memory: str = "1Gi"
    kubernetes_save_start_seconds: float = 300.0
    kubernetes_archive_idle_seconds: float = 120.0


class StoreKind(msgspec.Struct, frozen=True, kw_only=True):
    """The model store, read."""

    kind: Literal["claim", "class", "nfs", "host"]
    name: str = ""
    size: str = ""
    server: str = ""
    path: str = ""


def store_kind(text: str) -> StoreKind:
    """What ``kubernetes_model_store`` says.

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


def store_manifests(
    store: StoreKind, *, installation: str, namespace: str, options: JobOptions, labels: dict[str, str]
) -> tuple[Document, ...]:
    """What provides the store in a namespace; nothing where the operator does."""
    claim = store_claim(store, installation)
    if store.kind == "claim":
        return ()
    if store.kind == "class":
        one_node = store.name in options.kubernetes_single_node_classes
        mode = "ReadWriteOnce" if one_node else "ReadWriteMany"
        made = class_claim(
            claim, namespace=namespace, storage_class=store.name, size=store.size, mode=mode, labels=labels
        )
        return (made,)
    source = nfs_source(store.server, store.path) if store.kind == "nfs" else host_source(store.path)
    name = object_name(installation, "models", namespace)
    return (
        fixed_volume(name, claim=claim, namespace=namespace, labels=labels, source=source),
        fixed_claim(claim, namespace=namespace, volume=name, labels=labels),
    )
