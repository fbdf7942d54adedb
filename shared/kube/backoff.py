"""Pauses between tries: doubling up to a limit, each with jitter, so that a thousand clients don't return at once."""

import random


class Backoff:
    """The pauses of one piece of work.

    Args:
        first: seconds of the first pause, before jitter.
        longest: seconds that no pause exceeds.
        chance: where jitter comes from; seeded in tests.
    """

    def __init__(self, *, first: float, longest: float, chance: random.Random) -> None:
        self._first = first
        self._longest = longest
        self._chance = chance
        self._step = 0

    def next(self, at_least: float = 0.0) -> float:
        """Seconds to pause now: between half and all of the step, or what the server asked for if that is more."""
        step = min(self._longest, self._first * 2.0 ** min(self._step, 30))
        self._step += 1
        jitter = 0.5 + 0.5 * self._chance.random()
        return max(at_least, step * jitter)

    def reset(self) -> None:
        """Something succeeded: begin with the first pause again."""
        self._step = 0
