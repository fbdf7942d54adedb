"""How long to wait between two looks at something that takes its time."""

import time
from collections.abc import Iterator
from typing import Final

_SHORTEST: Final = 0.1
_LONGEST: Final = 1.0


def pauses(deadline: float | None) -> Iterator[float | None]:
    """Seconds to wait after each look, growing; None once ``deadline`` (of the monotonic clock) has passed."""
    pause = _SHORTEST
    while True:
        if deadline is None:
            yield pause
        else:
            left = deadline - time.monotonic()
            if left <= 0:
                yield None
                return
            yield min(pause, left)
        pause = min(pause * 1.3, _LONGEST)
