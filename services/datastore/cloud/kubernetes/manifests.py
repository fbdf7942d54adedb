"""From a datastore to the objects that provide it. Pure.

ConfigMap                a record of what is provided: how a service finds everything again
Secret                   credentials, in elearn's own namespace: the CSI driver reads it, no pod of a project can
StorageClass             NFS with a directory of its own: what csi-driver-nfs is told
PersistentVolume         a fixed share, bucket or folder; deleting it deletes nothing that lies in it
PersistentVolumeClaim    what pods mount
"""

import base64
from typing import Final

import msgspec

from services.datastore.cloud.kubernetes.admission import refusals
from services.datastore.cloud.kubernetes.options import (
    MOUNTPOINT,
    NFS_CSI,
    StorageOptions,
    host_folder,
    nfs_folder,
    own_directory,
    s3_driver,
)
from services.datastore.cloud.port import Directory
from shared.contracts.datastore import S3, Claim, ClaimVolume, DatastoreSpec
from shared.errors import Internal
from shared.kube.names import PROJECT, ROOM, object_name
from shared.kube.storage import class_claim, fixed_claim, fixed_volume, host_source, plain_path

Document = dict[str, object]

ROOM_NAME: Final = "datastore"
DATASTORE: Final = "elearn.dev/datastore"
UID: Final = "elearn.dev/uid"
RECORD: Final = "record"

_NFS_SIZE: Final = "1Gi"  # csi-driver-nfs enforces none
_RCLONE_MOUNT: Final = (
    "vfs-cache-mode=full",
    "vfs-write-back=1s",
    "vfs-links=true",
    "dir-cache-time=5s",
    "allow-other=true",
)
"""Never a write-back of 0: rclone then loses files that are renamed. ``vfs-links`` and not ``links``: the driver hands
the latter to the remote alone, and links would be refused."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster is told to remember of a datastore; no secrets.

    Attributes:
        name: of our objects, and of the claim unless that was there before.
        sub_path: which folder of the claim it is, "" for all of it.
        theirs: the claim was there before and is left alone.
        volume, storage_class: a PersistentVolume or StorageClass of ours bears the same name.
        secret: a Secret of ours does.
        refused: why it can't be provided, found out while it was tried.
        settled: everything was applied.
    """

    uid: str
    project: str
    datastore: str
    namespace: str
    name: str
    claim: str
    sub_path: str = ""
    theirs: bool = False
    volume: bool = False
    storage_class: bool = False
    secret: bool = False
    refused: str = ""
    settled: bool = False

    @property
    def mounted(self) -> ClaimVolume:
        """What is mounted for it."""
        return ClaimVolume(claim_name=self.claim, sub_path=self.sub_path, namespace=self.namespace)


class Objects(msgspec.Struct, frozen=True, kw_only=True):
    """A record, and what is applied in this order after it."""

    record: Record
    manifests: tuple[Document, ...]


def objects_of(
    directory: Directory, options: StorageOptions, *, installation: str, namespace: str, own_namespace: str
) -> Objects:
    """What provides a datastore.

    Args:
        namespace: the project's.
        own_namespace: elearn's, where credentials go.
    """
    name = object_name(installation, directory.project, directory.name, directory.uid)
    base = Record(
        uid=directory.uid,
        project=directory.project,
        datastore=directory.name,
        namespace=namespace,
        name=name,
        claim=name,
    )
    spec = directory.spec
    if errors := refusals(spec, options, installation):
        # It was admitted under other settings, and has nothing in the cluster yet.
        refused = f"{errors[0].field}: {errors[0].message}"
        return Objects(record=msgspec.structs.replace(base, refused=refused), manifests=())
    labels = labels_for(base)
    if spec.claim is not None:
        return _claimed(base, spec.claim, options)
    if spec.nfs is not None and own_directory(spec.nfs.server, spec.nfs.path, options):
        share = _nfs_class(name, spec.nfs.server, spec.nfs.path, spec.nfs.options, labels)
        claim = class_claim(
            name, namespace=namespace, storage_class=name, size=_NFS_SIZE, mode="ReadWriteMany", labels=labels
        )
        return Objects(record=msgspec.structs.replace(base, storage_class=True), manifests=(share, claim))
    secret, source, mount_options = _source(spec, options, name, own_namespace, labels)
    volume = fixed_volume(
        name,
        claim=name,
        namespace=namespace,
        labels=labels,
        source=source,
        read_only=spec.read_only,
        mount_options=mount_options,
    )
    claim = fixed_claim(name, namespace=namespace, volume=name, labels=labels, read_only=spec.read_only)
    sub_path = _sub_path(spec, options)
    record = msgspec.structs.replace(base, volume=True, secret=bool(secret), sub_path=sub_path)
    return Objects(record=record, manifests=(*secret, volume, claim))


def labels_for(record: Record) -> dict[str, str]:
    """The labels of everything of a datastore."""
    return {ROOM: ROOM_NAME, PROJECT: record.project, DATASTORE: record.datastore, UID: record.uid}


def record_manifest(record: Record) -> Document:
    """The ConfigMap that remembers a datastore."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": record.name, "namespace": record.namespace, "labels": labels_for(record)},
        "data": {RECORD: msgspec.json.encode(record).decode()},
    }


def _claimed(base: Record, claim: Claim, options: StorageOptions) -> Objects:
    if claim.name is not None:
        return Objects(record=msgspec.structs.replace(base, claim=claim.name, theirs=True), manifests=())
    storage_class = claim.storage_class or ""
    mode = "ReadWriteOnce" if storage_class in options.kubernetes_single_node_classes else "ReadWriteMany"
    made = class_claim(
        base.name,
        namespace=base.namespace,
        storage_class=storage_class,
        size=claim.size or "",
        mode=mode,
        labels=labels_for(base),
    )
    return Objects(record=base, manifests=(made,))


def _source(
    spec: DatastoreSpec, options: StorageOptions, name: str, own_namespace: str, labels: dict[str, str]
) -> tuple[tuple[Document, ...], Document, tuple[str, ...]]:
    """A Secret where there are credentials, the volume's source, and its mount options."""
    if spec.local is not None:
        root, _ = host_folder(spec.local.path, options)
        return (), host_source(root), ()
    if spec.nfs is not None:
        share, _ = nfs_folder(spec.nfs.server, spec.nfs.path, options)
        nfs: Document = {"server": spec.nfs.server, "path": share}
        return (), {"nfs": {**nfs, "readOnly": True} if spec.read_only else nfs}, spec.nfs.options
    if spec.glusterfs is not None:
        return (), host_source(plain_path(options.glusterfs[spec.glusterfs.volume])), ()
    if spec.s3 is not None:
        driver = s3_driver(read_only=spec.read_only, options=options)
        if driver == MOUNTPOINT:
            return (), _mountpoint(name, spec.s3), _mountpoint_options(spec.s3, options)
        read_only = ("read-only=true",) if spec.read_only else ()
        secret = _rclone_secret(name, own_namespace, spec.s3, options, labels)
        return (secret,), _rclone(driver, name, own_namespace, spec.s3), (*_RCLONE_MOUNT, *read_only)
    raise Internal(f"datastore {spec.name} names no storage")


def _sub_path(spec: DatastoreSpec, options: StorageOptions) -> str:
    """What is mounted by its path below a root or share: the kubelet lets no link lead out of that."""
    if spec.local is not None:
        return host_folder(spec.local.path, options)[1]
    if spec.nfs is not None:
        return nfs_folder(spec.nfs.server, spec.nfs.path, options)[1]
    if spec.glusterfs is not None:
        return plain_path(spec.glusterfs.path).strip("/")
    return ""


def _nfs_class(name: str, server: str, path: str, mount: tuple[str, ...], labels: dict[str, str]) -> Document:
    made: Document = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "labels": labels},
        "provisioner": NFS_CSI,
        "parameters": {
            "server": server,
            "share": plain_path(path),
            "subDir": "${pvc.metadata.namespace}/${pvc.metadata.name}",
            "onDelete": "retain",
        },
        "reclaimPolicy": "Retain",
        "volumeBindingMode": "Immediate",
    }
    return {**made, "mountOptions": list(mount)} if mount else made


def _rclone(driver: str, name: str, own_namespace: str, s3: S3) -> Document:
    """The remote bears the volume's name: the driver keeps one list of remotes for all mounts of a node, so that of two
    with the same name each would get the other's keys and files."""
    remote_path = f"{s3.bucket}/{s3.prefix.strip('/')}".rstrip("/")
    return {
        "csi": {
            "driver": driver,
            "volumeHandle": f"s3#{name}",
            "volumeAttributes": {"remote": name, "remotePath": remote_path},
            "nodePublishSecretRef": {"name": name, "namespace": own_namespace},
        }
    }


def _rclone_secret(name: str, own_namespace: str, s3: S3, options: StorageOptions, labels: dict[str, str]) -> Document:
    lines = [f"[{name}]", "type = s3", f"provider = {'Other' if s3.endpoint else 'AWS'}"]
    if s3.endpoint:
        lines.append(f"endpoint = {s3.endpoint}")
    if s3.region:
        lines.append(f"region = {s3.region}")
    if s3.access_key is not None:
        lines += [f"access_key_id = {s3.access_key}", f"secret_access_key = {s3.secret_key}"]
    # Said in either case: an environment of the driver's own must not decide.
    own_identity = s3.access_key is None and options.kubernetes_s3_driver_identity
    lines.append(f"env_auth = {str(own_identity).lower()}")
    lines.append("directory_markers = true")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": name, "namespace": own_namespace, "labels": labels},
        "data": {"configData": base64.b64encode(("\n".join(lines) + "\n").encode()).decode()},
    }


def _mountpoint(name: str, s3: S3) -> Document:
    return {
        "csi": {"driver": MOUNTPOINT, "volumeHandle": name, "volumeAttributes": {"bucketName": s3.bucket}},
    }


def _mountpoint_options(s3: S3, options: StorageOptions) -> tuple[str, ...]:
    given = ["read-only", "allow-other"]
    if not options.kubernetes_s3_driver_identity:
        given.append("no-sign-request")
    if s3.prefix.strip("/"):
        given.append(f"prefix {s3.prefix.strip('/')}/")
    if s3.region:
        given.append(f"region {s3.region}")
    if s3.endpoint:
        given += [f"endpoint-url {s3.endpoint}", "force-path-style"]
    return tuple(given)
