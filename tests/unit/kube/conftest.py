"""An emulated cluster, and a client of it."""

import random
from collections.abc import AsyncIterator

import pytest

from shared.kube import Cluster
from tests.support.kube_server import KubeServer


@pytest.fixture
async def server() -> AsyncIterator[KubeServer]:
    async with KubeServer() as running:
        yield running


@pytest.fixture
async def cluster(server: KubeServer) -> AsyncIterator[Cluster]:
    async with client(server) as connected:
        yield connected


def client(server: KubeServer, **settings: object) -> Cluster:
    """A client that does not wait long, always by the same dice."""
    return Cluster(
        server.settings(**settings),
        find=server.access,
        first_pause=0.001,
        longest_pause=0.01,
        chance=random.Random(7),
    )
