"""Every benchmark in turn, or those named: ``python -m benchmarks submit outbox``."""

import importlib
import sys

NAMES = ("outbox", "submit", "freed", "idle", "wall", "serving", "cluster", "pods")


def main() -> None:
    """Run them; each prints its own line."""
    chosen = sys.argv[1:] or NAMES
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        sys.exit(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    for name in chosen:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
