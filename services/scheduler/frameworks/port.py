"""What the scheduler asks of a framework: the shape of its clusters, and what its processes are told."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from services.scheduler.model import OnFailure
from shared.contracts.problem import FieldError
from shared.contracts.training import RoleName

Addresses = Mapping[RoleName, Sequence[str]]
"""``host:port`` of every task, by role and index."""


class Framework(Protocol):
    """One framework; all of it is pure."""

    reserved_env: frozenset[str]
    """Variables that the platform sets and a user may not."""

    def shape_errors(self, counts: Mapping[RoleName, int]) -> list[FieldError]:
        """Why a cluster of so many tasks per role can't be."""

    def decides(self, counts: Mapping[RoleName, int]) -> tuple[RoleName, int]:
        """The task whose end decides how the training ends."""

    def on_failure(self, role: RoleName, counts: Mapping[RoleName, int]) -> OnFailure:
        """What the failure of a task of this role means."""

    def environment(self, addresses: Addresses, role: RoleName, index: int | str) -> dict[str, str]:
        """What a task is told of its cluster.

        Args:
            index: or text that the cloud makes the index of, put in where the number belongs.
        """

    def command(
        self, command: Sequence[str], addresses: Addresses, role: RoleName, index: int | str
    ) -> tuple[str, ...]:
        """The start command with its placeholders filled."""
