"""A service says which rights it lacks, by verb."""

import asyncio

from structlog.testing import capture_logs

from shared.kube import Cluster
from shared.kube.resources import JOBS, PODS
from shared.kube.rights import rights_to, tell_missing
from tests.support.kube_server import KubeServer


async def test_each_missing_verb_is_named_once(server: KubeServer, cluster: Cluster) -> None:
    server.deny("delete", "jobs", "elearn-a")
    server.deny("create", "pods/proxy")
    wanted = [*rights_to("get delete", JOBS, places=("elearn-a",)), *rights_to("create", PODS, subresource="proxy")]
    with capture_logs() as logs:
        telling = asyncio.create_task(tell_missing(cluster, wanted))
        async with asyncio.timeout(5):
            while len(logs) < 2:
                await asyncio.sleep(0.01)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
    assert sorted(each["missing"] for each in logs) == [
        "create pods/proxy in all namespaces",
        "delete jobs.batch in namespace elearn-a",
    ]
