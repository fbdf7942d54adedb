"""Applies what provides storage, so that a claim is bound to the volume that was made for it."""

from collections.abc import Iterable

from shared.kube.client import Cluster
from shared.kube.manifest import Manifest
from shared.kube.objects import Metadata, Volume
from shared.kube.resources import PERSISTENT_VOLUMES
from shared.kube.storage import freeing, volume_asked


async def apply_storage(cluster: Cluster, manifests: Iterable[Manifest]) -> None:
    """Apply manifests in their order.

    A volume stays when its claim goes with its namespace, and goes on naming that very claim: it is let go for the one
    that has its name now.

    Raises:
        ElearnError: see :meth:`Cluster.apply`.
    """
    for manifest in manifests:
        applied = await cluster.apply(manifest)
        if volume := volume_asked(manifest):
            await _free(cluster, volume, applied)


async def _free(cluster: Cluster, name: str, claim: Metadata) -> None:
    volume = await cluster.get(PERSISTENT_VOLUMES, name, Volume)
    if volume is not None and (change := freeing(volume, claim, cluster.installation)):
        await cluster.patch(PERSISTENT_VOLUMES, name, change)
