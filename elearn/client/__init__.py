"""The Python client: ``from elearn import Client``.

Synchronous, typed with the structs of :mod:`shared.contracts`, safe to use from several threads. There is no
asynchronous twin: code that runs on an event loop calls it with ``asyncio.to_thread``.
"""

from elearn.client.client import Client
from elearn.client.errors import Damaged, TimedOut, Unreachable

__all__ = ["Client", "Damaged", "TimedOut", "Unreachable"]
