"""How long to wait before the attempt that follows a failure: pure."""

from typing import Final

PAUSES: Final = (0.0, 1.0, 5.0, 15.0, 60.0)
LONGEST: Final = 300.0


def pause_before_attempt(failures: int) -> float:
    """Seconds to wait after the n-th failure (n from 1).

    The first one costs nothing: most often a process was killed, and the work goes on from its checkpoint.
    What fails again and again must not keep the cloud busy.
    """
    if failures <= len(PAUSES):
        return PAUSES[max(0, failures - 1)]
    return LONGEST
