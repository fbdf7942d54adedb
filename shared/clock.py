"""The one place where I/O code reads the time; pure code is handed ``now``."""

from datetime import UTC, datetime


def now() -> datetime:
    """The current moment in UTC."""
    return datetime.now(UTC)
