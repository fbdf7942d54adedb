"""One JSON line for each figure."""

import json
import math
import platform
import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def report(name: str, *, wanted: str, **figures: object) -> None:
    """Print a figure.

    Args:
        wanted: the aim in words, to be read beside the figure.
    """
    print(json.dumps({"benchmark": name, "wanted": wanted, **figures, "machine": machine()}), flush=True)


def machine() -> str:
    """What the figures were measured on, in words."""
    import os

    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and extremes, rounded."""
    return {
        "median": round(statistics.median(values), 4),
        "p99": round(percentile(values, 0.99), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
        "runs": len(values),
    }
