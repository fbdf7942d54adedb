"""Datastores: a named directory over some storage backend."""

from typing import Annotated, Literal

import msgspec

from shared.contracts.common import (
    Chunk,
    Done,
    Instant,
    Labels,
    ListRequest,
    Name,
    Named,
    Page,
    label_errors,
)
from shared.contracts.problem import FieldError
from shared.contracts.rpc import Verb

DatastoreState = Literal["provisioning", "ready", "failed", "deleting"]
Backend = Literal["local", "nfs", "s3", "glusterfs", "claim"]
BACKENDS: tuple[Backend, ...] = ("local", "nfs", "s3", "glusterfs", "claim")


class Local(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder of this machine, below a root that the operator named; it is made if it is not there."""

    path: str


class Nfs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A share of an NFS server."""

    server: str
    path: str
    options: tuple[str, ...] = ()


class S3(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A prefix in a bucket of an S3-compatible store."""

    bucket: str
    endpoint: str | None = None
    prefix: str = ""
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = None


class GlusterFs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder of a GlusterFS volume."""

    servers: tuple[str, ...]
    volume: str
    path: str = "/"


class Claim(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A claim that exists (``name``), or one to be made (``storage_class`` and ``size``)."""

    name: str | None = None
    storage_class: str | None = None
    size: str | None = None


class DatastoreSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a user asks for: a name and exactly one backend.

    Attributes:
        read_only: no mount of it may write.
    """

    name: Name
    kind: Literal["datastore"] = "datastore"
    local: Local | None = None
    nfs: Nfs | None = None
    s3: S3 | None = None
    glusterfs: GlusterFs | None = None
    claim: Claim | None = None
    read_only: bool = False
    labels: Labels = {}

    def backend(self) -> Backend:
        """The backend that was chosen; :func:`datastore_errors` has made sure that there is one."""
        return next(each for each in BACKENDS if getattr(self, each) is not None)


class Datastore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A datastore as users see it; secrets in ``spec`` are replaced by ``***``.

    Attributes:
        reason: why it is in this state, in words.
        used_by: names of trainings that mount it and are not freed yet.
    """

    project: Name
    name: Name
    backend: Backend
    spec: DatastoreSpec
    state: DatastoreState
    read_only: bool
    created_at: Instant
    reason: str = ""
    created_by: str = ""
    ready_at: Instant | None = None
    used_by: tuple[str, ...] = ()


class LocalVolume(msgspec.Struct, frozen=True, kw_only=True, tag="local"):
    """A directory of this machine.

    Attributes:
        path: absolute, with no symbolic link in it.
    """

    path: str


class ClaimVolume(msgspec.Struct, frozen=True, kw_only=True, tag="claim"):
    """A claim in the cluster's namespace of the project.

    Attributes:
        namespace: that namespace, for who is not told the project; empty: not said.
        single_node: one node alone can mount it, so all that mount it have to run there.
    """

    claim_name: str
    sub_path: str = ""
    namespace: str = ""
    single_node: bool = False


class HostPathVolume(msgspec.Struct, frozen=True, kw_only=True, tag="host_path"):
    """A directory of the cluster's nodes."""

    path: str


Volume = LocalVolume | ClaimVolume | HostPathVolume
"""What a cloud mounts for a datastore: one member of the union per way of mounting."""


class MountableDatastore(msgspec.Struct, frozen=True, kw_only=True):
    """What another room needs to mount a datastore."""

    name: Name
    volume: Volume
    read_only: bool


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of a directory listing.

    Attributes:
        path: relative to the datastore.
        size: bytes; 0 for what is not a file.
        target: where a symbolic link points.
    """

    path: str
    kind: Literal["file", "directory", "symlink", "other"]
    size: int
    modified_at: Instant
    target: str | None = None


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found.

    Attributes:
        seconds: how long it took.
        writable: a file could be written, renamed, read back and deleted (False for a read-only one).
        free_bytes: space left, where the backend can tell.
    """

    ok: bool
    message: str
    seconds: float
    writable: bool
    free_bytes: int | None = None


class Arrival(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a data pipeline says of data that has arrived in a datastore."""

    path: str = ""
    version: str = ""


class DatastoreEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``elearn.v1.datastore.<event>.<project>.<name>``."""

    datastore: Datastore


class ArrivalEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of ``elearn.v1.data.arrived.<project>.<datastore>``; pipelines may add fields of their own."""

    path: str = ""
    version: str = ""


# -- verbs ------------------------------------------------------------------------------------------


class CreateDatastore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    spec: DatastoreSpec


class MountRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    names: tuple[Name, ...]


class MountReply(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    datastores: those that are ready, in the order asked for.
    missing: names that do not exist.
    not_ready: names that exist and their state in words.
    """

    datastores: tuple[MountableDatastore, ...]
    missing: tuple[str, ...] = ()
    not_ready: dict[str, str] = {}


class FileRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names a file or folder: ``path`` is relative to the datastore, empty for its top."""

    project: Name
    name: Name
    path: str = ""


class ListFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    name: Name
    path: str = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 500
    cursor: str | None = None


class ReadFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for at most ``length`` bytes from ``offset`` on (``CHUNK_BYTES`` at most)."""

    project: Name
    name: Name
    path: str
    offset: int = 0
    length: int = 512 * 1024


class WriteFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of an upload; the file appears, whole, with the part that has ``end`` set.

    Attributes:
        upload: a token that the caller chose for this upload; parts of one upload come in order.
    """

    project: Name
    name: Name
    path: str
    upload: str
    offset: int
    data: bytes
    end: bool = False


class Arrived(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    name: Name
    arrival: Arrival


CREATE = Verb("datastore", "create", CreateDatastore, Datastore)
GET = Verb("datastore", "get", Named, Datastore)
LIST = Verb("datastore", "list", ListRequest, Page[Datastore])
DELETE = Verb("datastore", "delete", Named, Done)
PROBE = Verb("datastore", "probe", Named, Probe)
ARRIVED = Verb("datastore", "arrived", Arrived, Done)
MOUNT = Verb("datastore", "mount", MountRequest, MountReply)
STAT_FILE = Verb("datastore", "stat_file", FileRequest, FileEntry)
LIST_FILES = Verb("datastore", "list_files", ListFiles, Page[FileEntry])
READ_FILE = Verb("datastore", "read_file", ReadFile, Chunk)
WRITE_FILE = Verb("datastore", "write_file", WriteFile, Done)
DELETE_FILE = Verb("datastore", "delete_file", FileRequest, Done)


def datastore_errors(spec: DatastoreSpec) -> list[FieldError]:
    """What is wrong with a spec in any cloud."""
    errors = label_errors("labels", spec.labels)
    chosen = [each for each in BACKENDS if getattr(spec, each) is not None]
    if not chosen:
        errors.append(FieldError(field="local", message="name one backend: local, nfs, s3, glusterfs or claim"))
    for extra in chosen[1:]:
        errors.append(FieldError(field=extra, message=f"one backend only: {chosen[0]} is given already"))
    if spec.local is not None and not spec.local.path.startswith("/"):
        errors.append(FieldError(field="local.path", message=f"{spec.local.path!r} must be an absolute path"))
    if spec.nfs is not None and not spec.nfs.path.startswith("/"):
        errors.append(FieldError(field="nfs.path", message=f"{spec.nfs.path!r} must be an absolute path"))
    if spec.claim is not None and (spec.claim.name is None) == (spec.claim.storage_class is None):
        errors.append(FieldError(field="claim", message="give either name, or storage_class and size"))
    return errors
