"""From the replicas that run to those that shall run, with enough of them answering all the way: pure."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import msgspec


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """One replica.

    Attributes:
        id: its process.
        slot: tells the replicas of a revision apart.
        state: ``leaving``: it is being ended; ``over``: nothing of it runs any more.
    """

    id: str
    revision: int
    slot: int
    state: Literal["starting", "ready", "failing", "leaving", "over"]


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """What to do next; after that, look again.

    Attributes:
        start: slots of the wanted revision to start a replica in.
        stop: replicas to end in an orderly way.
        clear: replicas that are over, to be forgotten.
    """

    start: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    clear: tuple[str, ...] = ()


def next_steps(replicas: Sequence[Running], *, revision: int, wanted: int) -> Steps:
    """The next steps towards ``wanted`` replicas of ``revision``.

    Replicas of another revision are ended one for one as new ones answer, so that there are never fewer
    answering than were wanted. New ones are started a quarter at a time (at least one), so that a version
    that fails costs one replica's resources and not twice everything.
    """
    clear = tuple(each.id for each in replicas if each.state == "over")
    living = [each for each in replicas if each.state not in ("leaving", "over")]
    own = sorted((each for each in living if each.revision == revision), key=lambda each: each.slot)
    old = [each for each in living if each.revision != revision]
    ready = sum(each.state == "ready" for each in own)

    stop: list[str] = []
    if len(own) > wanted:
        # The youngest go first, and those that do not answer before those that do.
        order = sorted(own, key=lambda each: (each.state == "ready", -each.slot))
        leaving = order[: len(own) - wanted]
        stop.extend(each.id for each in leaving)
        own = [each for each in own if each not in leaving]

    missing = wanted - len(own)
    if old and missing > 0:
        surge = max(1, math.ceil(wanted / 4))
        coming = sum(each.state != "ready" for each in own)
        missing = min(missing, max(surge - coming, 0))
    taken = {each.slot for each in replicas if each.revision == revision and each.state != "over"}
    free = (slot for slot in itertools.count() if slot not in taken)
    start = tuple(next(free) for _ in range(max(missing, 0)))

    keep = max(wanted - ready, 0)
    # Those that answer are kept longest.
    order = sorted(old, key=lambda each: (each.state == "ready", each.revision, -each.slot))
    stop.extend(each.id for each in order[: max(len(old) - keep, 0)])
    return Steps(start=start, stop=tuple(stop), clear=clear)
