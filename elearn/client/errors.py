"""Errors of the client's own; everything that a service answers is raised as :mod:`shared.errors` has it.

ElearnError
├── Unavailable
│   └── Unreachable        503  nothing answers at the address at all
├── TimedOut               504  what was waited for did not happen in time
└── Damaged                502  bytes arrived that are not the ones that were promised
"""

from shared.errors import ElearnError, Unavailable


class Unreachable(Unavailable):
    """Nothing answers at elearn's address."""

    type = "unreachable"


class TimedOut(ElearnError):
    """What was waited for did not happen in time; it may still happen."""

    status = 504
    title = "Timed out"
    type = "timed-out"


class Damaged(ElearnError):
    """A download's digest is not the one that was promised."""

    status = 502
    title = "Damaged download"
    type = "damaged"
