"""From what the cluster shows to what is told of a datastore. Pure."""

from datetime import datetime

import msgspec

from services.datastore.cloud.kubernetes.manifests import Record
from services.datastore.cloud.port import Observation, Provided, Unprovided
from shared.contracts.datastore import ClaimVolume
from shared.kube.names import INSTALLATION
from shared.kube.objects import Claim
from shared.kube.single_node import single_node, single_pod_problem


class SeenClaim(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of a claim.

    Attributes:
        ours: an elearn made it.
        storage_class: "" where the volume was made for it.
    """

    namespace: str
    name: str
    phase: str
    ours: bool
    storage_class: str
    created_at: datetime | None
    going: bool
    access_modes: tuple[str, ...] = ()


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A claim that is not bound yet.

    Attributes:
        since: when it was made.
    """

    claim: SeenClaim
    since: datetime | None


def claim_seen(claim: Claim) -> SeenClaim:
    """What matters of a claim."""
    return SeenClaim(
        namespace=claim.metadata.namespace,
        name=claim.metadata.name,
        phase=claim.status.phase,
        ours=INSTALLATION in claim.metadata.labels,
        storage_class=claim.spec.storage_class_name or "",
        created_at=claim.metadata.creation_timestamp,
        going=claim.metadata.deletion_timestamp is not None,
        access_modes=claim.spec.access_modes,
    )


def volume_of(record: Record, claim: SeenClaim) -> ClaimVolume:
    """What is mounted; on how many nodes it can be, the claim itself says, whoever made it."""
    return msgspec.structs.replace(record.mounted, single_node=single_node(claim.access_modes))


def observe(record: Record, claim: SeenClaim | None) -> Observation | Pending | None:
    """How a datastore stands; None while it is still being put together."""
    if record.refused:
        return Unprovided(uid=record.uid, reason=record.refused)
    if not record.settled:
        return None
    where = f"claim {record.claim} in namespace {record.namespace}"
    if claim is None or claim.going:
        if record.theirs:
            return Unprovided(uid=record.uid, reason=f"there is no {where}: make one, or name another")
        words = f"{where} was deleted by somebody else: delete the datastore and create it again"
        return Unprovided(uid=record.uid, reason=words)
    if record.theirs and claim.ours:
        return Unprovided(uid=record.uid, reason=f"{where} is elearn's own: it can't be a datastore once more")
    if problem := single_pod_problem(claim.access_modes):
        return Unprovided(uid=record.uid, reason=f"{where} can't be a datastore: {problem}")
    if claim.phase == "Bound":
        return Provided(uid=record.uid, volume=volume_of(record, claim))
    if claim.phase == "Lost":
        return Unprovided(uid=record.uid, reason=f"the volume of {where} is gone")
    return Pending(claim=claim, since=claim.created_at)


def decide_pending(
    record: Record, pending: Pending, *, waits_for_pod: bool, age: float, patience: float, said: str
) -> Observation | None:
    """What a claim that is not bound means.

    Args:
        waits_for_pod: its storage class binds it when a pod first mounts it.
        age: seconds since it was made.
        patience: seconds that binding may take.
        said: what the cluster says of it.
    """
    if waits_for_pod:
        volume = volume_of(record, pending.claim)
        return Provided(uid=record.uid, volume=volume, note="its volume is made when it is first mounted")
    if age < patience:
        return None
    because = f": {said}" if said else ": nothing says why; see whether its storage class has a provisioner that runs"
    return Unprovided(
        uid=record.uid,
        reason=f"claim {record.claim} in namespace {record.namespace} was not bound within {patience:g} s{because}",
    )
