"""From what runs to what shall run."""

import random
from typing import Literal

import pytest

from services.serving.rollout import Running, Steps, next_steps

State = Literal["starting", "ready", "failing", "leaving", "over"]


def replicas(text: str) -> list[Running]:
    """``1:rrs 2:f`` is revision 1 with two ready and one starting, revision 2 with a failing one."""
    states: dict[str, State] = {"s": "starting", "r": "ready", "f": "failing", "l": "leaving", "o": "over"}
    found = []
    for part in text.split():
        revision, letters = part.split(":")
        for slot, letter in enumerate(letters):
            found.append(Running(id=f"{revision}.{slot}", revision=int(revision), slot=slot, state=states[letter]))
    return found


@pytest.mark.parametrize(
    ("now", "wanted", "steps"),
    [
        ("", 2, Steps(start=(0, 1))),
        ("2:rr", 2, Steps()),
        ("2:r", 2, Steps(start=(1,))),
        ("2:or", 2, Steps(start=(0,), clear=("2.0",))),
        ("2:lr", 2, Steps(start=(2,))),
        ("2:rrr", 1, Steps(stop=("2.2", "2.1"))),
        ("2:srr", 2, Steps(stop=("2.0",))),
        ("2:rr", 0, Steps(stop=("2.1", "2.0"))),
        ("1:rr", 2, Steps(start=(0,))),
        ("1:rr 2:s", 2, Steps()),
        ("1:rr 2:r", 2, Steps(start=(1,), stop=("1.1",))),
        ("1:r 2:rs", 2, Steps()),
        ("1:r 2:rr", 2, Steps(stop=("1.0",))),
        ("1:rr 2:f", 2, Steps()),
        ("1:rrrrrrrr", 8, Steps(start=(0, 1))),
        ("1:sr", 1, Steps(start=(0,), stop=("1.0",))),
        ("1:rr 3:rr 2:", 2, Steps(start=(0,), stop=("1.1", "1.0"))),
        ("3:rr 1:s 2:rr", 2, Steps(stop=("1.0", "3.1", "3.0"))),
        ("1:o", 1, Steps(start=(0,), clear=("1.0",))),
    ],
)
def test_the_next_steps(now: str, wanted: int, steps: Steps) -> None:
    assert next_steps(replicas(now), revision=2, wanted=wanted) == steps


@pytest.mark.parametrize("seed", range(200))
def test_every_rollout_ends_and_keeps_enough_answering(seed: int) -> None:
    """A small world in which replicas start, answer and leave in any order."""
    chance = random.Random(seed)
    wanted = chance.randint(1, 9)
    world = {each.id: each for each in replicas("1:" + "r" * wanted)}
    for _ in range(1000):
        ready = sum(each.state == "ready" for each in world.values())
        assert ready >= wanted
        steps = next_steps(list(world.values()), revision=2, wanted=wanted)
        for id in steps.clear:
            del world[id]
        for id in steps.stop:
            world[id] = Running(id=id, revision=world[id].revision, slot=world[id].slot, state="leaving")
        for slot in steps.start:
            assert f"2.{slot}" not in world
            world[f"2.{slot}"] = Running(id=f"2.{slot}", revision=2, slot=slot, state="starting")
        moving = [each for each in world.values() if each.state in ("starting", "leaving")]
        if not moving and steps == Steps():
            break
        if moving:
            each = chance.choice(moving)
            state: State = "ready" if each.state == "starting" else "over"
            world[each.id] = Running(id=each.id, revision=each.revision, slot=each.slot, state=state)
    assert sorted((each.revision, each.state) for each in world.values()) == [(2, "ready")] * wanted
