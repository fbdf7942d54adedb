"""What is refused at once, and keeps datastores off the models of all projects. Pure."""

from services.datastore.cloud.kubernetes.options import (
    StorageOptions,
    host_folder,
    nfs_folder,
    nfs_share,
    own_directory,
    spec_errors,
)
from shared.contracts.datastore import DatastoreSpec
from shared.contracts.problem import FieldError
from shared.kube.model_store import StoreKind, store_claim, store_kind
from shared.kube.storage import lies_in


def refusals(spec: DatastoreSpec, options: StorageOptions, installation: str) -> list[FieldError]:
    """Why this cluster will not provide a datastore whose backend it offers."""
    return spec_errors(spec, options) or models_errors(spec, options, installation)


def models_errors(spec: DatastoreSpec, options: StorageOptions, installation: str) -> list[FieldError]:
    """Why a datastore that nothing else speaks against would open the models to its project.

    What counts is all that its volume shows, not its own folder alone: a link that a training makes may lead anywhere
    in the volume.
    """
    if not options.kubernetes_model_store:
        return []
    store = store_kind(options.kubernetes_model_store)
    if spec.claim is not None and spec.claim.name == store_claim(store, installation):
        words = f"claim {spec.claim.name} is where elearn keeps models: name another"
        return [FieldError(field="claim.name", message=words)]
    if store.kind == "nfs" and spec.nfs is not None:
        return _nfs_errors(spec.nfs.server, spec.nfs.path, options, store)
    if store.kind == "host" and spec.local is not None:
        root, _ = host_folder(spec.local.path, options)
        return _folder_errors("local.path", spec.local.path, root, store.path, "ELEARN_KUBERNETES_HOST_ROOTS")
    if store.kind == "host" and spec.glusterfs is not None:
        root = options.glusterfs[spec.glusterfs.volume]
        path = f"{root}/{spec.glusterfs.path}"
        return _folder_errors("glusterfs.path", path, root, store.path, "ELEARN_KUBERNETES_GLUSTERFS")
    return []


def _nfs_errors(server: str, path: str, options: StorageOptions, store: StoreKind) -> list[FieldError]:
    if nfs_share(server, "/") != nfs_share(store.server, "/"):
        return []
    if own_directory(server, path, options):
        # A new directory below the share, and nothing else of it, is mounted.
        return [_inside("nfs.path", path)] if lies_in(path, store.path) else []
    share, _ = nfs_folder(server, path, options)
    return _folder_errors("nfs.path", path, share, store.path, "ELEARN_KUBERNETES_NFS_SHARES")


def _folder_errors(field: str, path: str, root: str, models: str, setting: str) -> list[FieldError]:
    if lies_in(path, models) or lies_in(models, path):
        return [_inside(field, path)]
    if lies_in(models, root):
        words = f"{path} is mounted with all of {root}, where elearn keeps models: the operator has to name a folder"
        return [FieldError(field=field, message=f"{words} beside them in {setting}")]
    return []


def _inside(field: str, path: str) -> FieldError:
    return FieldError(field=field, message=f"{path} is, holds or lies in the folder where elearn keeps models")
