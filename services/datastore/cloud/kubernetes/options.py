"""What the operator says of the cluster's storage, and what follows for what may be asked for. Pure."""

from collections.abc import Mapping
from typing import Final

import msgspec

from shared.contracts.datastore import Backend, DatastoreSpec
from shared.contracts.problem import FieldError
from shared.errors import Unsupported
from shared.kube.model_store import store_kind
from shared.kube.quantities import whole
from shared.kube.storage import lies_in, plain_path

RCLONE: Final = "rclone.csi.veloxpack.io"
MOUNTPOINT: Final = "s3.csi.aws.com"
NFS_CSI: Final = "nfs.csi.k8s.io"


class StorageOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Read from ``ELEARN_<FIELD>``.

    Attributes:
        kubernetes_host_roots: folders of the nodes below which ``local:`` datastores may lie; none: there are none.
            They must be there, the same on every node unless there is only one, and what is made below them gets
            their mode: pods that are not root write to it if that is 0777.
        kubernetes_model_store: where the registry keeps models: the value that it has. No datastore may lie there;
            not set: nothing is known of it, and nothing refused.
        kubernetes_nfs_shares: NFS shares, as ``server:/path``, that datastores may lie on, at or below the path, beside
            those of ``kubernetes_nfs_own``. They are mounted whole and a datastore is a folder of them, so that no link
            leads out. Not set: whatever nodes can mount, any project may.
        kubernetes_nfs_own: NFS shares, as ``server:/path``, below which every datastore gets a directory of its own,
            made by csi-driver-nfs; all others are mounted as they are.
        kubernetes_s3_driver: the CSI driver for S3 that is written to: ``rclone.csi.veloxpack.io``.
        kubernetes_s3_read_only_driver: the one for read-only datastores: either, or ``s3.csi.aws.com``.
        kubernetes_s3_driver_identity: S3 datastores without keys are opened with those of the CSI driver or of its
            node, so that every project reaches every bucket which these open; ``false``: without any, as anybody.
        kubernetes_glusterfs: volumes that the operator has mounted on every node, as ``volume=/path``.
        kubernetes_single_node_classes: storage classes whose claims one node alone may mount (``ReadWriteOnce``): all
            pods that mount such a claim run on one node.
        kubernetes_claim_seconds: a claim that is not bound by then has failed, in seconds.
        kubernetes_files_idle_seconds: the pod that reads and writes a datastore's files for the API ends so long
            after the last request, in seconds.
    """

    kubernetes_host_roots: tuple[str, ...] = ()
    kubernetes_model_store: str = ""
    kubernetes_nfs_shares: tuple[str, ...] = ()
    kubernetes_nfs_own: tuple[str, ...] = ()
    kubernetes_s3_driver: str = ""
    kubernetes_s3_read_only_driver: str = ""
    kubernetes_s3_driver_identity: bool = False
    kubernetes_glusterfs: tuple[str, ...] = ()
    kubernetes_single_node_classes: tuple[str, ...] = ()
    kubernetes_claim_seconds: float = 120.0
    kubernetes_files_idle_seconds: float = 300.0

    @property
    def glusterfs(self) -> dict[str, str]:
        """Where each GlusterFS volume is mounted on the nodes."""
        return {volume: path for volume, _, path in (each.partition("=") for each in self.kubernetes_glusterfs)}

    def backends(self) -> tuple[Backend, ...]:
        """Kinds of storage that this cluster makes into directories."""
        offered: list[Backend] = ["nfs", "claim"]
        if self.kubernetes_host_roots:
            offered.append("local")
        if self.kubernetes_s3_driver or self.kubernetes_s3_read_only_driver:
            offered.append("s3")
        if self.kubernetes_glusterfs:
            offered.append("glusterfs")
        return tuple(offered)

    def hints(self) -> Mapping[Backend, str]:
        """What an operator provides so that the others are offered too."""
        all_hints: dict[Backend, str] = {
            "local": "name folders of the nodes in ELEARN_KUBERNETES_HOST_ROOTS, or use nfs or a claim",
            "s3": f"install a CSI driver for S3 and name it in ELEARN_KUBERNETES_S3_DRIVER ({RCLONE}) or, for reading"
            f" alone, ELEARN_KUBERNETES_S3_READ_ONLY_DRIVER ({MOUNTPOINT})",
            "glusterfs": "Kubernetes has no GlusterFS of its own since 1.26: mount the volume on every node and name it"
            " in ELEARN_KUBERNETES_GLUSTERFS (volume=/path), or export it over NFS",
        }
        offered = self.backends()
        return {backend: hint for backend, hint in all_hints.items() if backend not in offered}


def options_problem(options: StorageOptions) -> str:
    """What can't be meant in the settings, as a sentence, or ""."""
    if options.kubernetes_s3_driver not in ("", RCLONE):
        return (
            f"ELEARN_KUBERNETES_S3_DRIVER: {options.kubernetes_s3_driver!r} is not a driver that elearn can"
            f" ask for S3 to write to: {RCLONE}"
        )
    if options.kubernetes_s3_read_only_driver not in ("", RCLONE, MOUNTPOINT):
        return (
            f"ELEARN_KUBERNETES_S3_READ_ONLY_DRIVER: {options.kubernetes_s3_read_only_driver!r} is not a driver"
            f" that elearn can ask: {RCLONE} or {MOUNTPOINT}"
        )
    for volume, path in options.glusterfs.items():
        if not volume or not path.startswith("/"):
            return f"ELEARN_KUBERNETES_GLUSTERFS: {volume}={path} is not of the form volume=/path"
    for share in options.kubernetes_nfs_own:
        server, _, path = share.partition(":/")
        if not server or not path:
            return f"ELEARN_KUBERNETES_NFS_OWN: {share!r} is not of the form server:/path"
    for share in options.kubernetes_nfs_shares:
        server, colon, _ = share.partition(":/")
        if not server or not colon:
            return f"ELEARN_KUBERNETES_NFS_SHARES: {share!r} is not of the form server:/path"
    for root in options.kubernetes_host_roots:
        if not root.startswith("/"):
            return f"ELEARN_KUBERNETES_HOST_ROOTS: {root!r} is not an absolute path"
    if options.kubernetes_model_store:
        try:
            store_kind(options.kubernetes_model_store)
        except Unsupported as error:
            return error.detail
    return ""


def spec_errors(spec: DatastoreSpec, options: StorageOptions) -> list[FieldError]:
    """What keeps this cluster from ever providing a datastore whose backend it offers."""
    match spec.backend():
        case "local":
            return _local_errors(spec, options)
        case "nfs":
            return _nfs_errors(spec, options)
        case "s3":
            return _s3_errors(spec, options)
        case "glusterfs":
            return _glusterfs_errors(spec, options)
        case "claim":
            return _claim_errors(spec)


def host_folder(path: str, options: StorageOptions) -> tuple[str, str]:
    """The allowed root that holds a folder of the nodes, the innermost of several, and the path below it.

    Raises:
        ValueError: none does.
    """
    clean = plain_path(path)
    roots = [plain_path(root).rstrip("/") for root in options.kubernetes_host_roots]
    holding = [root for root in roots if clean.startswith(f"{root}/")]
    if not holding:
        raise ValueError(path)
    root = max(holding, key=len)
    return root or "/", clean[len(root) + 1 :]


def s3_driver(*, read_only: bool, options: StorageOptions) -> str:
    """The CSI driver for an S3 datastore, or "" where there is none."""
    if read_only:
        return options.kubernetes_s3_read_only_driver or options.kubernetes_s3_driver
    return options.kubernetes_s3_driver


def nfs_share(server: str, path: str) -> str:
    """A share as the operator names it; a server's name is the same in capitals."""
    return f"{server.lower().rstrip('.')}:{plain_path(path)}"


def nfs_folder(server: str, path: str, options: StorageOptions) -> tuple[str, str]:
    """The share to mount for a folder of a server, and the path below it.

    That is the share that the operator names, the innermost of several; the folder itself where none is named at all.

    Raises:
        ValueError: it lies on none.
    """
    clean = plain_path(path)
    if not options.kubernetes_nfs_shares:
        return clean, ""
    named = (nfs_share(*each.split(":", 1)).split(":", 1) for each in options.kubernetes_nfs_shares)
    host = nfs_share(server, path).split(":", 1)[0]
    holding = [share for on, share in named if on == host and lies_in(clean, share)]
    if not holding:
        raise ValueError(path)
    share = max(holding, key=len)
    return share, clean.removeprefix(share).strip("/")


def own_directory(server: str, path: str, options: StorageOptions) -> bool:
    """Whether datastores on this share get a directory each."""
    shares = {nfs_share(*each.split(":", 1)) for each in options.kubernetes_nfs_own}
    return nfs_share(server, path) in shares


def _local_errors(spec: DatastoreSpec, options: StorageOptions) -> list[FieldError]:
    path = spec.local.path if spec.local else ""
    if _odd(path):
        return [FieldError(field="local.path", message=f"{path!r} must be an absolute path without '..'")]
    try:
        host_folder(path, options)
    except ValueError:
        roots = ", ".join(options.kubernetes_host_roots)
        words = f"{path} lies below none of the folders that the operator allows ({roots})"
        return [FieldError(field="local.path", message=f"{words}; see ELEARN_KUBERNETES_HOST_ROOTS")]
    return []


def _nfs_errors(spec: DatastoreSpec, options: StorageOptions) -> list[FieldError]:
    if spec.nfs is None:
        return []
    errors = []
    if _odd(spec.nfs.path):
        errors.append(FieldError(field="nfs.path", message=f"{spec.nfs.path!r} must be an absolute path without '..'"))
    if not spec.nfs.server or any(letter in spec.nfs.server for letter in "/ ,\n"):
        errors.append(FieldError(field="nfs.server", message=f"{spec.nfs.server!r} is not the name of a server"))
    if any(not option or set(option) & set(" ,\n") for option in spec.nfs.options):
        errors.append(FieldError(field="nfs.options", message="name each option by itself, without spaces or commas"))
    if errors:
        return errors
    if own_directory(spec.nfs.server, spec.nfs.path, options):
        words = "every datastore on this share gets a new directory of its own, which would stay empty"
        return [FieldError(field="read_only", message=words)] if spec.read_only else []
    try:
        nfs_folder(spec.nfs.server, spec.nfs.path, options)
    except ValueError:
        shares = ", ".join((*options.kubernetes_nfs_shares, *options.kubernetes_nfs_own))
        words = f"{nfs_share(spec.nfs.server, spec.nfs.path)} lies on none of the shares that the operator allows"
        return [FieldError(field="nfs.path", message=f"{words} ({shares}); see ELEARN_KUBERNETES_NFS_SHARES")]
    return []


def _s3_errors(spec: DatastoreSpec, options: StorageOptions) -> list[FieldError]:
    if spec.s3 is None:
        return []
    driver = s3_driver(read_only=spec.read_only, options=options)
    if not driver:
        words = "this cluster offers S3 for reading alone: say read_only: true"
        return [FieldError(field="read_only", message=words)]
    errors = []
    if (spec.s3.access_key is None) != (spec.s3.secret_key is None):
        errors.append(FieldError(field="s3.secret_key", message="give both access_key and secret_key, or neither"))
    if driver == MOUNTPOINT and spec.s3.access_key is not None:
        words = (
            f"{MOUNTPOINT} takes no keys of a single datastore: leave them out; whether it uses its own says the"
            " operator in ELEARN_KUBERNETES_S3_DRIVER_IDENTITY"
        )
        errors.append(FieldError(field="s3.access_key", message=words))
    for field in ("bucket", "endpoint", "prefix", "region", "access_key", "secret_key"):
        text = getattr(spec.s3, field) or ""
        if any(ord(letter) < 32 for letter in text):
            errors.append(FieldError(field=f"s3.{field}", message="must not hold line ends or control characters"))
    if driver == MOUNTPOINT and any(letter.isspace() for letter in spec.s3.prefix):
        errors.append(FieldError(field="s3.prefix", message=f"{MOUNTPOINT} can't be given a prefix with spaces"))
    if not spec.s3.bucket:
        errors.append(FieldError(field="s3.bucket", message="must not be empty"))
    if ".." in spec.s3.prefix.split("/"):
        errors.append(FieldError(field="s3.prefix", message="must not hold '..'"))
    return errors


def _glusterfs_errors(spec: DatastoreSpec, options: StorageOptions) -> list[FieldError]:
    if spec.glusterfs is None:
        return []
    if spec.glusterfs.volume not in options.glusterfs:
        offered = ", ".join(sorted(options.glusterfs))
        words = f"the operator has mounted on the nodes: {offered}; see ELEARN_KUBERNETES_GLUSTERFS"
        return [FieldError(field="glusterfs.volume", message=words)]
    if _odd(spec.glusterfs.path):
        return [FieldError(field="glusterfs.path", message="must be an absolute path without '..'")]
    return []


def _claim_errors(spec: DatastoreSpec) -> list[FieldError]:
    if spec.claim is None or spec.claim.name is not None:
        return []
    if not spec.claim.size:
        return [FieldError(field="claim.size", message="say how large it shall be, like 10Gi")]
    try:
        large = whole(spec.claim.size)
    except ValueError as error:
        return [FieldError(field="claim.size", message=str(error))]
    return [] if large > 0 else [FieldError(field="claim.size", message="must be more than nothing")]


def _odd(path: str) -> bool:
    return not path.startswith("/") or ".." in path.split("/") or any(ord(letter) < 32 for letter in path)
