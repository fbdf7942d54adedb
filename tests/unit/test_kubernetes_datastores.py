"""Datastores on Kubernetes: what is refused, what is made, what is told. Tables."""

import base64
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from services.datastore.cloud.kubernetes.admission import models_errors
from services.datastore.cloud.kubernetes.manifests import Record, objects_of, record_manifest
from services.datastore.cloud.kubernetes.observing import Pending, SeenClaim, decide_pending, observe
from services.datastore.cloud.kubernetes.options import (
    MOUNTPOINT,
    RCLONE,
    StorageOptions,
    host_folder,
    options_problem,
    spec_errors,
)
from services.datastore.cloud.port import Directory, Observation, Provided, Unprovided
from shared.contracts.datastore import S3, Claim, ClaimVolume, DatastoreSpec, GlusterFs, Local, Nfs
from shared.kube.names import object_name
from shared.kube.quantities import whole
from tests.support.kube import assert_valid

ALL = StorageOptions(
    kubernetes_host_roots=("/srv/data",),
    kubernetes_nfs_own=("files.example:/own/",),
    kubernetes_s3_driver=RCLONE,
    kubernetes_s3_read_only_driver=MOUNTPOINT,
    kubernetes_glusterfs=("gv0=/mnt/gv0",),
    kubernetes_single_node_classes=("standard",),
)
NONE = StorageOptions()
SHARES = replace(ALL, kubernetes_nfs_shares=("files.example:/export/",))
NFS = Nfs(server="files.example", path="/export/")
OWN = Nfs(server="files.example", path="/own")


def spec(**backend: Any) -> DatastoreSpec:
    return DatastoreSpec(name="digits", **backend)


def made(chosen: DatastoreSpec, options: StorageOptions = ALL) -> dict[str, Any]:
    """The manifests by kind; each is what Kubernetes takes."""
    directory = Directory(uid="u1", project="search", name="digits", spec=chosen)
    objects = objects_of(directory, options, installation="elearn", namespace="elearn-search", own_namespace="elearn")
    assert_valid(record_manifest(objects.record), *objects.manifests)
    found: dict[str, Any] = {str(each["kind"]): each for each in objects.manifests}
    assert len(found) == len(objects.manifests)
    return {**found, "record": objects.record}


@pytest.mark.parametrize(
    ("options", "offered"),
    [(NONE, {"nfs", "claim"}), (ALL, {"nfs", "claim", "local", "s3", "glusterfs"})],
)
def test_what_is_offered_follows_what_the_operator_provides(options: StorageOptions, offered: set[str]) -> None:
    assert set(options.backends()) == offered
    assert not offered & set(options.hints())
    assert offered | set(options.hints()) == {"nfs", "claim", "local", "s3", "glusterfs"}


@pytest.mark.parametrize(
    ("chosen", "options", "field"),
    [
        (spec(local=Local(path="/srv/data/digits")), ALL, None),
        (spec(local=Local(path="/srv/data")), ALL, "local.path"),
        (spec(local=Local(path="/srv/data/../../etc")), ALL, "local.path"),
        (spec(local=Local(path="/srv/database")), ALL, "local.path"),
        (spec(nfs=NFS), ALL, None),
        (spec(nfs=OWN), ALL, None),
        (spec(nfs=OWN, read_only=True), ALL, "read_only"),
        (spec(nfs=Nfs(server="a b", path="/x")), ALL, "nfs.server"),
        (spec(nfs=Nfs(server="a", path="/x/../..")), ALL, "nfs.path"),
        (spec(nfs=Nfs(server="a", path="/x", options=("hard,nosuid",))), ALL, "nfs.options"),
        (spec(nfs=NFS), SHARES, None),
        (spec(nfs=OWN), SHARES, None),
        (spec(nfs=Nfs(server="Files.example.", path="//export//deep/./er")), SHARES, None),
        (spec(nfs=Nfs(server="files.example", path="/exported")), SHARES, "nfs.path"),
        (spec(nfs=Nfs(server="files.example", path="/")), SHARES, "nfs.path"),
        (spec(nfs=Nfs(server="files.example", path="/own/elearn-ads")), SHARES, "nfs.path"),
        (spec(nfs=Nfs(server="other.example", path="/export")), SHARES, "nfs.path"),
        (spec(s3=S3(bucket="b")), ALL, None),
        (spec(s3=S3(bucket="b", access_key="a")), ALL, "s3.secret_key"),
        (spec(s3=S3(bucket="b", access_key="a", secret_key="s\nx = y")), ALL, "s3.secret_key"),
        (spec(s3=S3(bucket="b", prefix="a/../..")), ALL, "s3.prefix"),
        (spec(s3=S3(bucket="")), ALL, "s3.bucket"),
        (spec(s3=S3(bucket="b", access_key="a", secret_key="s"), read_only=True), ALL, "s3.access_key"),
        (spec(s3=S3(bucket="b")), replace(ALL, kubernetes_s3_driver=""), "read_only"),
        (spec(glusterfs=GlusterFs(servers=("a",), volume="gv0")), ALL, None),
        (spec(glusterfs=GlusterFs(servers=("a",), volume="other")), ALL, "glusterfs.volume"),
        (spec(glusterfs=GlusterFs(servers=("a",), volume="gv0", path="/..")), ALL, "glusterfs.path"),
        (spec(claim=Claim(name="theirs")), ALL, None),
        (spec(claim=Claim(storage_class="fast", size="10Gi")), ALL, None),
        (spec(claim=Claim(storage_class="fast")), ALL, "claim.size"),
        (spec(claim=Claim(storage_class="fast", size="much")), ALL, "claim.size"),
        (spec(claim=Claim(storage_class="fast", size="0")), ALL, "claim.size"),
    ],
)
def test_what_can_never_be_provided_is_refused_by_field(
    chosen: DatastoreSpec, options: StorageOptions, field: str | None
) -> None:
    assert [error.field for error in spec_errors(chosen, options)] == ([] if field is None else [field])


def nfs(path: str, server: str = "files.example") -> DatastoreSpec:
    return spec(nfs=Nfs(server=server, path=path))


def local(path: str) -> DatastoreSpec:
    return spec(local=Local(path=path))


def gluster(path: str) -> DatastoreSpec:
    return spec(glusterfs=GlusterFs(servers=("a",), volume="gv0", path=path))


@pytest.mark.parametrize(
    ("chosen", "store", "options", "field"),
    [
        (nfs("/models"), "nfs:files.example:/models", ALL, "nfs.path"),
        (nfs("//models//x/"), "nfs:files.example:/models", ALL, "nfs.path"),
        (nfs("/"), "nfs:files.example:/models", ALL, "nfs.path"),
        (nfs("/srv"), "nfs:FILES.example.:/x/..//srv/models/", ALL, "nfs.path"),
        (nfs("/models-of-mine"), "nfs:files.example:/models", ALL, None),
        (nfs("/models", "other.example"), "nfs:files.example:/models", ALL, None),
        (nfs("/models"), "host:/models", ALL, None),
        (nfs("/models"), "", ALL, None),
        (nfs("/own"), "nfs:files.example:/own/models", ALL, None),  # a directory beside them
        (nfs("/own"), "nfs:files.example:/own", ALL, "nfs.path"),
        (nfs("/own"), "nfs:files.example:/", ALL, "nfs.path"),
        (nfs("/export/x"), "nfs:files.example:/export/models", ALL, None),
        (nfs("/export/x"), "nfs:files.example:/export/models", SHARES, "nfs.path"),  # by a link in the share
        (local("/srv/data/x"), "host:/srv/models", ALL, None),
        (local("/srv/data/models"), "host:/srv/data/models", ALL, "local.path"),
        (local("/srv/data/models/deep"), "host:/srv/data/models", ALL, "local.path"),
        (local("/srv/data/x"), "host:/srv", ALL, "local.path"),
        (local("/srv/data/x"), "host:/srv/data/models", ALL, "local.path"),  # by a link below the root
        (gluster("/models"), "host:/mnt/gv0//models", ALL, "glusterfs.path"),
        (gluster("/x"), "host:/mnt/gv0/models", ALL, "glusterfs.path"),
        (gluster("/x"), "host:/mnt/gv1", ALL, None),
        (spec(claim=Claim(name="models")), "claim:models", ALL, "claim.name"),
        (spec(claim=Claim(name="mine")), "claim:models", ALL, None),
        (spec(claim=Claim(name=object_name("elearn", "models"))), "class:fast:1Gi", ALL, "claim.name"),
        (spec(claim=Claim(name=object_name("elearn", "models"))), "host:/srv/models", ALL, "claim.name"),
        (spec(claim=Claim(storage_class="fast", size="1Gi")), "class:fast:1Gi", ALL, None),
        (spec(s3=S3(bucket="models")), "host:/models", ALL, None),
    ],
)
def test_no_datastore_lies_where_models_are_kept(
    chosen: DatastoreSpec, store: str, options: StorageOptions, field: str | None
) -> None:
    known = replace(options, kubernetes_model_store=store)
    assert spec_errors(chosen, known) == []
    errors = models_errors(chosen, known, "elearn")
    assert [error.field for error in errors] == ([] if field is None else [field])
    assert all("where elearn keeps models" in error.message for error in errors)


def test_what_was_admitted_under_other_settings_is_refused_before_anything_is_made() -> None:
    for chosen, options, words in (
        (nfs("/models"), replace(ALL, kubernetes_model_store="nfs:files.example:/models"), "where elearn keeps models"),
        (local("/data/x"), ALL, "local.path: /data/x lies below none"),
    ):
        found = made(chosen, options)
        assert list(found) == ["record"]
        assert words in found["record"].refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kubernetes_s3_driver": MOUNTPOINT}, "ELEARN_KUBERNETES_S3_DRIVER"),
        ({"kubernetes_s3_read_only_driver": "x"}, "ELEARN_KUBERNETES_S3_READ_ONLY_DRIVER"),
        ({"kubernetes_glusterfs": ("gv0",)}, "volume=/path"),
        ({"kubernetes_nfs_own": ("server",)}, "server:/path"),
        ({"kubernetes_nfs_shares": ("files.example",)}, "ELEARN_KUBERNETES_NFS_SHARES"),
        ({"kubernetes_nfs_shares": ("files.example:/",)}, ""),
        ({"kubernetes_model_store": "models"}, "ELEARN_KUBERNETES_MODEL_STORE"),
        ({"kubernetes_host_roots": ("srv",)}, "absolute"),
        ({}, ""),
    ],
)
def test_settings_that_mean_nothing_are_refused(change: dict[str, Any], words: str) -> None:
    problem = options_problem(replace(ALL, **change))
    assert (words in problem) if words else problem == ""


def test_a_fixed_share_is_a_volume_for_one_claim() -> None:
    found = made(spec(nfs=Nfs(server="files.example", path="/export/", options=("nfsvers=4.1",))))
    volume, claim = found["PersistentVolume"], found["PersistentVolumeClaim"]
    assert volume["spec"]["nfs"] == {"server": "files.example", "path": "/export"}
    assert volume["spec"]["mountOptions"] == ["nfsvers=4.1"]
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert volume["spec"]["claimRef"]["name"] == claim["metadata"]["name"]
    assert volume["spec"]["claimRef"]["namespace"] == claim["metadata"]["namespace"] == "elearn-search"
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert claim["spec"]["storageClassName"] == volume["spec"]["storageClassName"] == ""
    read_only = made(spec(nfs=NFS, read_only=True))
    assert read_only["PersistentVolume"]["spec"]["nfs"]["readOnly"] is True
    assert read_only["PersistentVolume"]["spec"]["accessModes"] == ["ReadOnlyMany"]


@pytest.mark.parametrize(
    ("named", "share", "path"),
    [
        ((), "/export/digits", ""),
        (("files.example:/export",), "/export", "digits"),
        (("files.example:/export/digits/",), "/export/digits", ""),
        (("files.example:/", "files.example:/export", "other.example:/export/digits"), "/export", "digits"),
        (("files.example:/",), "/", "export/digits"),
    ],
)
def test_a_folder_of_a_named_share_is_a_path_below_it(named: tuple[str, ...], share: str, path: str) -> None:
    found = made(nfs("//export/digits/"), replace(ALL, kubernetes_nfs_shares=named))
    assert found["PersistentVolume"]["spec"]["nfs"] == {"server": "files.example", "path": share}
    assert found["record"].mounted.sub_path == path


@pytest.mark.parametrize(
    "chosen",
    [nfs("/export"), spec(s3=S3(bucket="b")), local("/srv/data/x"), gluster("/x")],
    ids=lambda chosen: chosen.backend(),
)
def test_what_has_no_size_asks_for_little_of_a_quota_and_gets_it(chosen: DatastoreSpec) -> None:
    found = made(chosen)
    asked = found["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"]
    assert asked == "1Gi"
    assert whole(found["PersistentVolume"]["spec"]["capacity"]["storage"]) >= whole(asked)


def test_a_share_of_own_directories_goes_through_its_csi_driver() -> None:
    found = made(spec(nfs=OWN))
    assert found["StorageClass"]["provisioner"] == "nfs.csi.k8s.io"
    assert found["StorageClass"]["parameters"]["onDelete"] == "retain"
    assert found["StorageClass"]["reclaimPolicy"] == "Retain"
    assert found["PersistentVolumeClaim"]["spec"]["storageClassName"] == found["StorageClass"]["metadata"]["name"]
    assert "PersistentVolume" not in found


def test_keys_are_in_the_secret_and_nowhere_else() -> None:
    keys = S3(bucket="b", prefix="p/", endpoint="https://s3.example", access_key="AKEY", secret_key="SKEY")
    found = made(spec(s3=keys))
    secret = found.pop("Secret")
    assert secret["metadata"]["namespace"] == "elearn"
    config = base64.b64decode(secret["data"]["configData"]).decode()
    assert "access_key_id = AKEY" in config
    assert "secret_access_key = SKEY" in config
    csi = found["PersistentVolume"]["spec"]["csi"]
    assert csi["nodePublishSecretRef"] == {"name": secret["metadata"]["name"], "namespace": "elearn"}
    assert csi["volumeAttributes"]["remotePath"] == "b/p"
    assert "vfs-write-back=0s" not in found["PersistentVolume"]["spec"]["mountOptions"]
    assert "KEY" not in repr(found)


def test_no_two_datastores_share_a_remote() -> None:
    """A node's plugin keeps all remotes in one place, by their names."""
    remotes = set()
    for project, name, uid in (("search", "digits", "u1"), ("ads", "digits", "u2"), ("search", "digits", "u3")):
        wanted = Directory(uid=uid, project=project, name=name, spec=spec(s3=S3(bucket="b")))
        objects = objects_of(wanted, ALL, installation="elearn", namespace="n", own_namespace="elearn")
        found: dict[str, Any] = {str(each["kind"]): each for each in objects.manifests}
        remote = found["PersistentVolume"]["spec"]["csi"]["volumeAttributes"]["remote"]
        config = base64.b64decode(found["Secret"]["data"]["configData"]).decode()
        assert re.findall(r"^\[(.*)\]$", config, re.MULTILINE) == [remote]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", remote)
        remotes.add(remote)
    assert len(remotes) == 3


def test_links_in_a_bucket_are_links() -> None:
    options = made(spec(s3=S3(bucket="b")))["PersistentVolume"]["spec"]["mountOptions"]
    assert "vfs-links=true" in options


def test_reading_alone_goes_through_the_driver_for_reading() -> None:
    volume = made(spec(s3=S3(bucket="b", prefix="/p", region="eu"), read_only=True))["PersistentVolume"]
    assert volume["spec"]["csi"]["driver"] == MOUNTPOINT
    options = ["read-only", "allow-other", "no-sign-request", "prefix p/", "region eu"]
    assert volume["spec"]["mountOptions"] == options


@pytest.mark.parametrize(
    ("keys", "allowed", "said"),
    [
        (S3(bucket="b"), False, "false"),
        (S3(bucket="b"), True, "true"),
        (S3(bucket="b", access_key="A", secret_key="S"), True, "false"),
    ],
)
def test_the_drivers_own_keys_open_a_bucket_only_where_the_operator_says_so(keys: S3, allowed: bool, said: str) -> None:
    options = replace(ALL, kubernetes_s3_driver_identity=allowed)
    config = base64.b64decode(made(spec(s3=keys), options)["Secret"]["data"]["configData"]).decode()
    assert re.findall("^env_auth = (.*)$", config, re.MULTILINE) == [said]
    read_only = made(spec(s3=S3(bucket="b"), read_only=True), options)["PersistentVolume"]["spec"]
    assert ("no-sign-request" in read_only["mountOptions"]) is not allowed


@pytest.mark.parametrize(
    ("chosen", "root", "path"),
    [
        (spec(local=Local(path="/srv/data//digits/")), "/srv/data", "digits"),
        (spec(local=Local(path="/srv/data/deep/er")), "/srv/data", "deep/er"),
        (spec(local=Local(path="//srv/data/deep")), "/srv/data", "deep"),
        (spec(glusterfs=GlusterFs(servers=("a",), volume="gv0", path="/digits")), "/mnt/gv0", "digits"),
        (spec(glusterfs=GlusterFs(servers=("a",), volume="gv0")), "/mnt/gv0", ""),
        (gluster("/.data"), "/mnt/gv0", ".data"),
        (gluster("//.data//./..deep/"), "/mnt/gv0", ".data/..deep"),
        (gluster("/./"), "/mnt/gv0", ""),
        (gluster("/."), "/mnt/gv0", ""),
    ],
)
def test_folders_of_nodes_are_paths_below_what_the_operator_names(chosen: DatastoreSpec, root: str, path: str) -> None:
    found = made(chosen)
    assert found["PersistentVolume"]["spec"]["hostPath"] == {"path": root, "type": "Directory"}
    assert found["record"].mounted.sub_path == path


def test_the_innermost_root_holds_a_folder() -> None:
    options = StorageOptions(kubernetes_host_roots=("/", "/srv/", "/srv/data"))
    assert host_folder("/srv/data/digits", options) == ("/srv/data", "digits")
    assert host_folder("/srv/x", options) == ("/srv", "x")
    assert host_folder("/etc", options) == ("/", "etc")


def test_claims_of_a_class_and_claims_that_are_there() -> None:
    fast = made(spec(claim=Claim(storage_class="fast", size="10Gi")))["PersistentVolumeClaim"]
    assert fast["spec"]["accessModes"] == ["ReadWriteMany"]
    assert fast["spec"]["resources"]["requests"]["storage"] == "10Gi"
    one = made(spec(claim=Claim(storage_class="standard", size="1Gi")))["PersistentVolumeClaim"]
    assert one["spec"]["accessModes"] == ["ReadWriteOnce"]
    theirs = made(spec(claim=Claim(name="theirs")))
    assert list(theirs) == ["record"]
    assert (theirs["record"].claim, theirs["record"].theirs) == ("theirs", True)


RECORD = Record(
    uid="u1", project="p", datastore="d", namespace="elearn-p", name="n", claim="n", volume=True, settled=True
)
CLAIM = SeenClaim(
    namespace="elearn-p",
    name="n",
    phase="Bound",
    ours=True,
    storage_class="",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    going=False,
)


ANYWHERE = ClaimVolume(claim_name="n", namespace="elearn-p")
ON_ONE_NODE = replace(ANYWHERE, single_node=True)


@pytest.mark.parametrize(
    ("record", "claim", "told"),
    [
        (RECORD, CLAIM, Provided(uid="u1", volume=RECORD.mounted)),
        (RECORD, replace(CLAIM, phase="Lost"), "is gone"),
        (RECORD, None, "deleted by somebody else"),
        (RECORD, replace(CLAIM, going=True), "deleted by somebody else"),
        (replace(RECORD, settled=False), CLAIM, None),
        (replace(RECORD, settled=False, refused="no quota"), None, "no quota"),
        (replace(RECORD, theirs=True), None, "there is no claim n in namespace elearn-p"),
        (replace(RECORD, theirs=True), CLAIM, "elearn's own"),
        (replace(RECORD, theirs=True), replace(CLAIM, ours=False), Provided(uid="u1", volume=RECORD.mounted)),
        (RECORD, replace(CLAIM, access_modes=("ReadWriteOnce",)), Provided(uid="u1", volume=ON_ONE_NODE)),
        (
            replace(RECORD, theirs=True),
            replace(CLAIM, ours=False, access_modes=("ReadWriteOnce", "ReadOnlyMany")),
            Provided(uid="u1", volume=ON_ONE_NODE),
        ),
        (RECORD, replace(CLAIM, access_modes=("ReadWriteOnce", "ReadWriteMany")), Provided(uid="u1", volume=ANYWHERE)),
        (RECORD, replace(CLAIM, access_modes=("ReadOnlyMany",)), Provided(uid="u1", volume=ANYWHERE)),
        (
            replace(RECORD, theirs=True),
            replace(CLAIM, ours=False, access_modes=("ReadWriteOncePod",)),
            "make it ReadWriteOnce or ReadWriteMany",
        ),
    ],
)
def test_what_is_told(record: Record, claim: SeenClaim | None, told: Observation | str | None) -> None:
    seen = observe(record, claim)
    if isinstance(told, str):
        assert isinstance(seen, Unprovided)
        assert told in seen.reason
    else:
        assert seen == told


@pytest.mark.parametrize(
    ("waits", "age", "told"),
    [(False, 5.0, None), (False, 121.0, "not bound within 120 s: no such server"), (True, 999.0, "first mounted")],
)
def test_a_claim_that_is_not_bound(waits: bool, age: float, told: str | None) -> None:
    pending = observe(RECORD, replace(CLAIM, phase="Pending", access_modes=("ReadWriteOnce",)))
    assert isinstance(pending, Pending)
    seen = decide_pending(RECORD, pending, waits_for_pod=waits, age=age, patience=120.0, said="no such server")
    assert not isinstance(seen, Provided) or seen.volume == ON_ONE_NODE
    words = seen.note if isinstance(seen, Provided) else seen.reason if isinstance(seen, Unprovided) else None
    assert (words is None) if told is None else (words is not None and told in words)
