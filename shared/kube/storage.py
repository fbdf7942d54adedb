"""Claims, and volumes made for exactly one claim. Pure."""

import posixpath
from collections.abc import Mapping, Sequence
from typing import Final

from shared.kube.names import INSTALLATION, label_value
from shared.kube.objects import Metadata, Volume

Document = dict[str, object]

UNSIZED: Final = "1Ti"
"""What a volume without a size of its own (an NFS share, a bucket, a folder) says, as one must be said."""
ASKED: Final = "1Gi"
"""What the claim of such a volume asks for: quotas count that, and it binds to any volume that says more."""


def fixed_volume(
    name: str,
    *,
    claim: str,
    namespace: str,
    labels: Mapping[str, str],
    source: Mapping[str, object],
    read_only: bool = False,
    mount_options: Sequence[str] = (),
) -> Document:
    """A volume that only the named claim may use; what lies in it stays when it is deleted.

    Args:
        source: one of the API's volume sources, such as ``{"nfs": {…}}``.
    """
    spec: Document = {
        "capacity": {"storage": UNSIZED},
        "accessModes": ["ReadOnlyMany" if read_only else "ReadWriteMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
        "volumeMode": "Filesystem",
        "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim},
        **source,
    }
    if mount_options:
        spec["mountOptions"] = list(mount_options)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": spec,
    }


def fixed_claim(
    name: str, *, namespace: str, volume: str, labels: Mapping[str, str], read_only: bool = False
) -> Document:
    """The claim of :func:`fixed_volume`."""
    return _claim(
        name,
        namespace,
        labels,
        {"storageClassName": "", "volumeName": volume},
        size=ASKED,
        mode="ReadOnlyMany" if read_only else "ReadWriteMany",
    )


def class_claim(
    name: str, *, namespace: str, storage_class: str, size: str, mode: str, labels: Mapping[str, str]
) -> Document:
    """A claim that a storage class provides for."""
    return _claim(name, namespace, labels, {"storageClassName": storage_class}, size=size, mode=mode)


def volume_asked(manifest: Mapping[str, object]) -> str:
    """The volume that a claim's manifest names; "" where it names none, or is of something else."""
    spec = manifest.get("spec")
    if manifest.get("kind") != "PersistentVolumeClaim" or not isinstance(spec, Mapping):
        return ""
    return str(spec.get("volumeName", ""))


def freeing(volume: Volume, claim: Metadata, installation: str) -> Document | None:
    """The change by which a volume of ours forgets an earlier claim of this one's name; None: there is none to forget.

    It names the volume's resourceVersion, so that it does nothing to a volume that was bound meanwhile.
    """
    held = volume.spec.claim_ref
    ours = volume.metadata.labels.get(INSTALLATION) == label_value(installation)
    meant = (held.namespace, held.name) == (claim.namespace, claim.name)
    if not ours or not meant or held.uid in ("", claim.uid):
        return None
    return {
        "metadata": {"resourceVersion": volume.metadata.resource_version},
        "spec": {"claimRef": {"uid": None, "resourceVersion": None}},
    }


def plain_path(path: str) -> str:
    """An absolute path without ``..``, doubled slashes and the like, so that two can be compared."""
    return posixpath.normpath(f"/{path.lstrip('/')}")


def lies_in(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it."""
    path, folder = plain_path(path), plain_path(folder)
    return folder == "/" or path == folder or path.startswith(f"{folder}/")


def nfs_source(server: str, path: str) -> Document:
    return {"nfs": {"server": server, "path": path}}


def host_source(path: str) -> Document:
    """A folder of the node, which the operator has made: one that the kubelet makes nobody but root could write to."""
    return {"hostPath": {"path": path, "type": "Directory"}}


def _claim(
    name: str, namespace: str, labels: Mapping[str, str], how: Mapping[str, object], *, size: str, mode: str
) -> Document:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {
            "accessModes": [mode],
            "volumeMode": "Filesystem",
            "resources": {"requests": {"storage": size}},
            **how,
        },
    }
