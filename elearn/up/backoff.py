"""How long to wait before a process that ended is started again."""

FIRST = 0.05
LONGEST = 10.0
STEADY = 30.0
"""Seconds of life after which a process counts as healthy and its next end as the first."""


def pause(ends: int) -> float:
    """Seconds before the next start, after ``ends`` ends in a row, each soon after its start."""
    return 0.0 if ends < 1 else min(LONGEST, FIRST * 4.0 ** min(ends - 1, 10))


def ends_in_a_row(before: int, lived: float) -> int:
    """The count for :func:`pause` after a process ended that lived for ``lived`` seconds."""
    return 1 if lived >= STEADY else before + 1
