"""What the cloud should do so that it runs what the rows say: pure."""

from collections.abc import Collection, Iterable, Mapping

import msgspec

from services.serving.cloud.port import Deployment
from services.serving.model import StoredServing
from shared.contracts.common import parse_cpu, parse_memory


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Calls to make; each is idempotent.

    Attributes:
        locate: the registry has to be asked where the versions of these lie.
        apply: to be run so from now on.
        remove: the cloud lets go of these uids.
    """

    locate: tuple[StoredServing, ...] = ()
    apply: tuple[Deployment, ...] = ()
    remove: tuple[str, ...] = ()


def reconcile(desired: Iterable[StoredServing], applied: Mapping[str, Deployment], observed: Collection[str]) -> Plan:
    """Compare rows with what was applied since this process leads, and with the uids that the cloud holds.

    Call it after the watch has synced, so that ``observed`` is all of them.
    """
    locate: list[StoredServing] = []
    apply: list[Deployment] = []
    keep: set[str] = set()
    for row in desired:
        target = row.target
        if target is None:
            continue  # nothing of it ever worked: what is left of it is ended
        keep.add(row.uid)
        if not target.sources:
            locate.append(row)
            continue
        deployment = deployment_of(row)
        if applied.get(row.uid) != deployment:
            apply.append(deployment)
    remove = {uid for uid in (*observed, *applied) if uid not in keep}
    return Plan(locate=tuple(locate), apply=tuple(apply), remove=tuple(sorted(remove)))


def deployment_of(row: StoredServing) -> Deployment:
    """What shall run for a serving whose target revision is located."""
    target = row.target
    if target is None:
        raise ValueError(f"serving {row.name} has nothing to run")
    spec = row.spec
    return Deployment(
        uid=row.uid,
        project=row.project,
        name=row.name,
        model=spec.model,
        revision=target.number,
        replicas=spec.replicas,
        sources=target.sources,
        traffic=target.traffic,
        labels={target.alias: target.version} if target.alias else {},
        cpu=None if spec.cpu is None else parse_cpu(spec.cpu),
        memory=None if spec.memory is None else parse_memory(spec.memory),
        gpu=spec.gpu,
        max_replicas=spec.max_replicas,
        cpu_percent=spec.cpu_percent,
    )
