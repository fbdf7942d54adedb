"""Says which rights a service lacks, by name, before something fails for want of them."""

from collections.abc import Sequence
from typing import Final

import structlog

from shared.errors import ElearnError
from shared.kube.access import Right, missing_rights, server_version
from shared.kube.client import Cluster
from shared.kube.resources import Resource
from shared.supervise import Wake, retrying

_log = structlog.get_logger(__name__)

_EVERY: Final = 600.0


def rights_to(
    verbs: str, *resources: Resource, places: Sequence[str | None] = (None,), subresource: str = ""
) -> list[Right]:
    """Rights by their verbs, as in ``rights_to("list watch", PODS)``.

    Args:
        places: namespaces; None: all of them, or none as for nodes.
    """
    return [
        Right(verb=verb, resource=resource, namespace=place, subresource=subresource)
        for resource in resources
        for verb in verbs.split()
        for place in places
    ]


async def tell_missing(cluster: Cluster, wanted: Sequence[Right]) -> None:
    """Look now and then, for ever, whether the cluster is recent enough and lets us do what we have to."""
    told: set[str] = set()
    idle = Wake()

    async def look() -> None:
        await server_version(cluster)
        missing = {str(right) for right in await missing_rights(cluster, wanted)}
        for right in sorted(missing - told):
            _log.error("Kubernetes does not let us do what we have to: add it to our role", missing=right)
        told.clear()
        told.update(missing)
        await idle.wait(_EVERY)

    await retrying("rights in Kubernetes", look, on=(ElearnError,), longest=60.0)
