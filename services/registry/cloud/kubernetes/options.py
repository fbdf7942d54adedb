"""What the operator says of saving, and what provides the model store. Pure."""

import msgspec

from shared.kube.model_store import StoreKind, store_claim
from shared.kube.names import object_name
from shared.kube.storage import class_claim, fixed_claim, fixed_volume, host_source, nfs_source

Document = dict[str, object]


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Read from ``ELEARN_<FIELD>``.

    Attributes:
        kubernetes_model_store: what holds the models of a project in its namespace: ``claim:NAME``, a claim that
            the operator makes in each; ``class:NAME:SIZE``, a claim that elearn makes; ``nfs:SERVER:/PATH``, one share
            for all; ``host:/PATH``, a folder that every node shows (or the only one has), which elearn's user can
            write to.
        kubernetes_single_node_classes: storage classes whose claims one node alone may mount (``ReadWriteOnce``): all
            pods that mount such a claim run on one node.
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


def made_for_one_node(store: StoreKind, options: JobOptions) -> bool:
    """Whether a claim that elearn makes for the store can be mounted by one node alone."""
    return store.kind == "class" and store.name in options.kubernetes_single_node_classes


def store_manifests(
    store: StoreKind, *, installation: str, namespace: str, options: JobOptions, labels: dict[str, str]
) -> tuple[Document, ...]:
    """What provides the store in a namespace; nothing where the operator does."""
    claim = store_claim(store, installation)
    if store.kind == "claim":
        return ()
    if store.kind == "class":
        mode = "ReadWriteOnce" if made_for_one_node(store, options) else "ReadWriteMany"
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
