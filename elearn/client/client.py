"""``Client``: everything elearn does, from Python."""

from collections.abc import Iterator
from types import TracebackType

import httpx

from elearn.client.connection import Connection, checked_name, connect
from elearn.client.datastores import Datastores
from elearn.client.deadletters import DeadLetters
from elearn.client.events import Events
from elearn.client.models import Models
from elearn.client.servings import Servings
from elearn.client.trainings import Trainings
from elearn.client.transport import Transport
from shared.contracts.common import Page
from shared.contracts.event import Event
from shared.contracts.training import Cluster, QueueEntry, Usage


class Client:
    """Talks to one elearn, in one project. Use it from any thread; close it, or use it with ``with``.

        with Client() as elearn:
            training = elearn.trainings.submit("training.yaml")
            elearn.trainings.wait(training.name)

    Args:
        url: elearn's address; by default ``ELEARN_URL``, then what ``elearn login`` kept, then the
            `elearn up` of ``ELEARN_HOME``.
        token: by default ``ELEARN_TOKEN``, or the one that belongs to the address.
        project: by default ``ELEARN_PROJECT``, else ``default``.
        patience: seconds for which a request is tried again while elearn is away.
        transport: what carries the requests, in place of the network.

    Raises:
        ElearnError: of :mod:`shared.errors`, here and from every method: what was refused, and why.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        project: str | None = None,
        *,
        patience: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._start(connect(url, token, project), patience, transport)

    @classmethod
    def at(
        cls,
        connection: Connection,
        *,
        patience: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> "Client":
        """A client of a connection that is settled already."""
        client = cls.__new__(cls)
        client._start(connection, patience, transport)
        return client

    def _start(self, connection: Connection, patience: float, transport: httpx.BaseTransport | None) -> None:
        self.connection = connection
        self._transport = Transport(connection, patience=patience, inner=transport)
        self._base = f"/v1/projects/{checked_name(connection.project, 'project')}"
        self.trainings = Trainings(self._transport, self._base)
        self.datastores = Datastores(self._transport, self._base)
        self.models = Models(self._transport, self._base)
        self.servings = Servings(self._transport, self._base)
        self.deadletters = DeadLetters(self._transport)
        self._events = Events(self._transport, self._base)

    def events(
        self, since: str | int | None = None, subject: str | None = None, *, follow: bool = True
    ) -> Iterator[Event]:
        """Lifecycle events, each once and in order, also across lost connections.

        Args:
            since: a sequence number (go on after it) or an instant (ISO 8601); None: only what
                happens from now on, or, without ``follow``, everything that is kept.
            subject: ``elearn.v1.training.failed.>`` and the like.
            follow: go on for ever; otherwise end with what has happened up to now.
        """
        return self._events.stream(since, subject, follow=follow)

    def queue(self) -> Iterator[QueueEntry]:
        """Trainings that wait, in the order in which they will be started."""
        return self._transport.pages(f"{self._base}/queue", Page[QueueEntry])

    def usage(self) -> Usage:
        """What the project's trainings hold now and have held so far."""
        return self._transport.call("GET", f"{self._base}/usage", Usage)

    def cluster(self) -> Cluster:
        """The machines: what they have and what is handed out."""
        return self._transport.call("GET", "/v1/cluster", Cluster)

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
