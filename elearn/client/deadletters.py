"""Dead letters: messages that a service could not handle."""

from collections.abc import Iterator

from elearn.client.transport import Transport
from shared.contracts.common import Done, Page
from shared.contracts.identity import DeadLetter


class DeadLetters:
    _PATH = "/v1/deadletters"

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[DeadLetter]:
        """Every message that was given up, oldest first."""
        return self._transport.pages(self._PATH, Page[DeadLetter])

    def resend(self, sequence: int) -> None:
        """Hand a message to its service again, once what was wrong has been mended."""
        self._transport.call("POST", f"{self._PATH}/{sequence:d}/resend", Done, body={})

    def drop(self, sequence: int) -> None:
        """Forget a message for good."""
        self._transport.call("DELETE", f"{self._PATH}/{sequence:d}", Done)
