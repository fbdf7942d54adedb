"""What replicas hold of this machine: CPU, memory and GPUs each, and a pair of ports for all of a serving."""

from collections.abc import Sequence

from services.serving.cloud.local.replica import Replica
from services.serving.cloud.port import Deployment
from shared.local import gpus
from shared.local.ledger import Grant, Ledger, Request, Shortage
from shared.local.ports import Ports, can_bind

_PAIR = 2


class Resources:
    """The ledger in this room's words. Methods block for a millisecond or so: call them in a thread.

    Owners end with the uid, or the replica, that they are for, so that they are found without anything else
    being known; before it stands what people know it by.

    Args:
        cpu: cores of a replica whose serving names none.
        memory: bytes of such a replica.
    """

    def __init__(self, ledger: Ledger, *, cpu: float, memory: int) -> None:
        self._ledger = ledger
        self._ports = Ports(ledger)
        self._cpu = cpu
        self._memory = memory

    @property
    def alive(self) -> str:
        """The file that every replica holds, so that its claims count while it lives."""
        return str(self._ledger.alive_path)

    def too_much(self, *, replicas: int, cpu: float | None, memory: int | None, gpu: int) -> str | None:
        """Why so many replicas will never fit this machine, or None."""
        request = self._request(cpu, memory, gpu)
        return self._ledger.fits_ever([request] * max(replicas, 1))

    def acquire(self, deployment: Deployment, replica: Replica) -> dict[str, str] | str:
        """What a replica may use, as environment variables; or what it waits for, in words."""
        request = self._request(deployment.cpu, deployment.memory, deployment.gpu)
        answer = self._ledger.acquire(_owner(deployment, replica.id), [request])
        match answer:
            case Grant(parts=parts):
                devices = self._ledger.machine.gpus
                return gpus.environment([devices[index] for part in parts for index in part.gpus])
            case Shortage():
                return answer.words()

    def ports(self, deployment: Deployment, *, nothing_runs: bool) -> Sequence[int]:
        """The serving's ports for gRPC and REST: the same ones for ever, unless a stranger took one.

        Args:
            nothing_runs: no replica listens on them, so they must be free.

        Raises:
            Unavailable: this machine has no free ports.
        """
        owner = _owner(deployment, deployment.uid)
        held = self._ports.reserve(owner, _PAIR)
        if nothing_runs and not all(can_bind(port) for port in held):
            self._ports.release(owner)
            held = self._ports.reserve(owner, _PAIR)
        return held

    def release(self, replica: Replica) -> None:
        """Gives back what a replica held; having nothing is success."""
        self._release(f"-{replica.id}")

    def release_all(self, uid: str) -> None:
        """Gives back whatever is held for a serving, its ports included."""
        self._release(f"-{uid}", f"-{uid}.")

    def holders(self) -> set[str]:
        """The uids of servings that hold ports."""
        return {owner.rpartition("-")[2] for owner in self._ledger.snapshot().ports if "/serving-" in owner}

    def close(self) -> None:
        """Lets go of the ledger; what is held stays held."""
        self._ledger.close()

    def _release(self, suffix: str, inside: str | None = None) -> None:
        snapshot = self._ledger.snapshot()
        owners = {*snapshot.ports, *(grant.owner for grant in snapshot.grants)}
        for owner in owners:
            if "/serving-" in owner and (owner.endswith(suffix) or (inside is not None and inside in owner)):
                self._ledger.release(owner)

    def _request(self, cpu: float | None, memory: int | None, gpu: int) -> Request:
        return Request(
            task="replica",
            cpu=self._cpu if cpu is None else cpu,
            memory=self._memory if memory is None else memory,
            gpus=gpu,
        )


def _owner(deployment: Deployment, tail: str) -> str:
    return f"{deployment.project}/{deployment.name}/serving-{tail}"
