"""Whether tasks fit on machines: pure.

Best fit, greatest first: GPUs are scarce, so a task goes where it leaves the fewest of them unused. A gang
fits only when each of its tasks does, which sums over all machines can't tell.
"""

from collections.abc import Iterable, Mapping, Sequence

from services.scheduler.model import Demand

SLACK = 1e-9  # sums of decimal fractions of cores


def fits(demand: Demand, free: Demand) -> bool:
    """One machine's free resources hold the demand."""
    return demand.cpu <= free.cpu + SLACK and demand.memory <= free.memory and demand.gpu <= free.gpu


def minus(free: Demand, demand: Demand) -> Demand:
    """What is left; it may be negative where more is handed out than there is."""
    return Demand(cpu=free.cpu - demand.cpu, memory=free.memory - demand.memory, gpu=free.gpu - demand.gpu)


def total(demands: Iterable[Demand]) -> Demand:
    """The sum."""
    cpu, memory, gpu = 0.0, 0, 0
    for each in demands:
        cpu, memory, gpu = cpu + each.cpu, memory + each.memory, gpu + each.gpu
    return Demand(cpu=cpu, memory=memory, gpu=gpu)


def place(demands: Sequence[Demand], free: Mapping[str, Demand], *, together: bool = False) -> tuple[str, ...] | None:
    """The machine for each task, in the order of ``demands``; None where they do not all fit at once.

    Args:
        together: one machine has to hold them all.
    """
    if together and len(demands) > 1:
        found = place((total(demands),), free)
        return None if found is None else found * len(demands)
    left = dict(free)
    chosen = [""] * len(demands)
    order = sorted(
        range(len(demands)),
        key=lambda index: (-demands[index].gpu, -demands[index].cpu, -demands[index].memory, index),
    )
    for index in order:
        demand = demands[index]
        best = min(
            (name for name, room in left.items() if fits(demand, room)),
            key=lambda name: (left[name].gpu, left[name].cpu, left[name].memory, name),
            default=None,
        )
        if best is None:
            return None
        chosen[index] = best
        left[best] = minus(left[best], demand)
    return tuple(chosen)
