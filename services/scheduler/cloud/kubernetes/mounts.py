"""A training's mounts as volumes of its pods, and what of them the init container sees. Pure."""

import posixpath
from collections.abc import Sequence

import msgspec

from services.scheduler.cloud.kubernetes.preparation import VOLUMES, WORKSPACE, Folder
from services.scheduler.errors import CannotLaunch
from services.scheduler.model import MountPlan
from shared.contracts.datastore import ClaimVolume
from shared.kube.single_node import Neighbours, neighbours

Document = dict[str, object]


class PodMounts(msgspec.Struct, frozen=True, kw_only=True):
    """What mounts come to.

    Attributes:
        volumes: of the pod.
        task: mounts of the task's container.
        preparing: mounts of the init container, which sees each volume's top.
        folders: what the init container makes or looks for: the kubelet would make what is missing, as root.
        points: places in the working directory where something is mounted, made likewise.
        beside: how the pod gets to where its claims are, of those that one node alone can mount.
    """

    volumes: tuple[Document, ...] = ()
    task: tuple[Document, ...] = ()
    preparing: tuple[Document, ...] = ()
    folders: tuple[Folder, ...] = ()
    points: tuple[str, ...] = ()
    beside: Neighbours = Neighbours()


def mount_path(path: str) -> str:
    """Where a mount lies in the container."""
    return path if path.startswith("/") else posixpath.join(WORKSPACE, path)


def pod_mounts(mounts: Sequence[MountPlan], namespace: str) -> PodMounts:
    """Volumes, each claim once, and their mounts.

    Raises:
        CannotLaunch: a datastore is no claim of this namespace.
    """
    names: dict[str, str] = {}
    on_one_node: list[str] = []
    writable: set[str] = set()
    task: list[Document] = []
    preparing: list[Document] = []
    folders: list[Folder] = []
    for number, mount in enumerate(mounts):
        claim = _claim_of(mount, namespace)
        name = names.setdefault(claim.claim_name, f"claim-{len(names)}")
        if claim.single_node:
            on_one_node.append(claim.claim_name)
        if not mount.read_only:
            writable.add(claim.claim_name)
        each: Document = {"name": name, "mountPath": mount_path(mount.path), "readOnly": mount.read_only}
        sub_path = posixpath.join(claim.sub_path, mount.folder).strip("/")
        task.append({**each, "subPath": sub_path} if sub_path else each)
        if mount.folder:
            top = f"{VOLUMES}/{number}"
            seen: Document = {"name": name, "mountPath": top, "readOnly": mount.read_only}
            preparing.append({**seen, "subPath": claim.sub_path} if claim.sub_path else seen)
            folders.append(Folder(datastore=mount.datastore, volume=top, path=mount.folder, make=not mount.read_only))
    volumes: list[Document] = [
        {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": claim not in writable}}
        for claim, name in names.items()
    ]
    return PodMounts(
        volumes=tuple(volumes),
        task=tuple(task),
        preparing=tuple(preparing),
        folders=tuple(folders),
        points=tuple(mount.path for mount in mounts if not mount.path.startswith("/")),
        beside=neighbours(on_one_node),
    )


def _claim_of(mount: MountPlan, namespace: str) -> ClaimVolume:
    if not isinstance(mount.volume, ClaimVolume):
        raise CannotLaunch(f"datastore {mount.datastore!r} is no claim of this cluster")
    if mount.volume.namespace not in ("", namespace):
        raise CannotLaunch(
            f"datastore {mount.datastore!r} lies in namespace {mount.volume.namespace}, the training in {namespace}"
        )
    return mount.volume
