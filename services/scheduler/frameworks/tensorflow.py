"""TensorFlow: chief, workers, parameter servers and evaluator, told of each other by `TF_CONFIG` or by flags."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from services.scheduler.frameworks.port import Addresses
from services.scheduler.model import OnFailure
from shared.contracts.problem import FieldError
from shared.contracts.training import RoleName

_PLACEHOLDER: Final = re.compile(r"\{(role|index|ps_hosts|worker_hosts|chief_hosts)\}")
_IN_CLUSTER: Final[tuple[RoleName, ...]] = ("chief", "worker", "ps")


class TensorFlow:
    """The driver of TensorFlow 1 and 2.

    An evaluator is told of the cluster but is no part of it. Where there is no chief, the first worker acts
    as one, as TensorFlow itself has it.
    """

    reserved_env: frozenset[str] = frozenset({"TF_CONFIG"})

    def shape_errors(self, counts: Mapping[RoleName, int]) -> list[FieldError]:
        single: tuple[RoleName, ...] = ("chief", "evaluator")
        errors = [
            FieldError(field=f"roles.{role}.replicas", message="there can be only one")
            for role in single
            if counts.get(role, 0) > 1
        ]
        if not counts.get("chief") and not counts.get("worker"):
            errors.append(
                FieldError(field="roles", message="name a chief, or workers of which the first acts as chief")
            )
        return errors

    def decides(self, counts: Mapping[RoleName, int]) -> tuple[RoleName, int]:
        return ("chief", 0) if counts.get("chief") else ("worker", 0)

    def on_failure(self, role: RoleName, counts: Mapping[RoleName, int]) -> OnFailure:
        if role == "evaluator":
            return "ignore"
        # With parameter servers a worker may come back on its address; an all-reduce can miss nobody.
        return "restart" if role == "worker" and counts.get("ps") else "fail"

    def environment(self, addresses: Addresses, role: RoleName, index: int | str) -> dict[str, str]:
        if sum(len(hosts) for hosts in addresses.values()) <= 1:
            return {}
        cluster = {each: list(addresses[each]) for each in _IN_CLUSTER if addresses.get(each)}
        # Text in place of the number is filled in later, by the cloud: no quotes around it.
        number = msgspec.Raw(str(index).encode())
        config = {"cluster": cluster, "task": {"type": role, "index": number}}
        return {"TF_CONFIG": msgspec.json.encode(config).decode()}

    def command(
        self, command: Sequence[str], addresses: Addresses, role: RoleName, index: int | str
    ) -> tuple[str, ...]:
        values = {
            "role": role,
            "index": str(index),
            "ps_hosts": ",".join(addresses.get("ps", ())),
            "worker_hosts": ",".join(addresses.get("worker", ())),
            "chief_hosts": ",".join(addresses.get("chief", ())),
        }
        return tuple(_PLACEHOLDER.sub(lambda match: values[match[1]], word) for word in command)
