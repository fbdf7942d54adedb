"""What commands print: tables for people, JSON and YAML for programs."""

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from elearn.cli.options import Format

T = TypeVar("T")

_COLOURS = {
    "succeeded": "green",
    "ready": "green",
    "running": "cyan",
    "failed": "red",
    "degraded": "yellow",
    "lost": "red",
    "stopped": "yellow",
    "queued": "yellow",
    "unready": "yellow",
    "restarting": "yellow",
}


def write(text: str) -> None:
    """Print to standard output, as it is."""
    sys.stdout.write(text + "\n")


def show(output: Format, value: object) -> bool:
    """Print as JSON or YAML where that is asked for; False where it is not."""
    if output is Format.table:
        return False
    import msgspec

    encoded = msgspec.json.encode(value)
    if output is Format.json:
        write(msgspec.json.format(encoded, indent=2).decode())
    else:
        import yaml

        sys.stdout.write(yaml.safe_dump(msgspec.json.decode(encoded), sort_keys=False, allow_unicode=True))
    return True


def show_list(
    output: Format,
    items: Iterable[T],
    columns: Sequence[str],
    row: Callable[[T], Sequence[object]],
    nothing: str,
) -> None:
    """Print a list: an array, or a table with one row each.

    Args:
        nothing: what to say (on standard error) where there are none.
    """
    found = list(items)
    if show(output, found):
        return
    if found:
        table(columns, [row(item) for item in found])
    else:
        print(nothing, file=sys.stderr)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; on a terminal the last column folds, a pipe gets whole lines."""
    cells = [[words(cell) for cell in row] for row in rows]
    heads = [column.upper() for column in columns]
    if sys.stdout.isatty():
        _draw(heads, cells)
        return
    widths = [max(len(row[at]) for row in (heads, *cells)) for at in range(len(heads))]
    for row in (heads, *cells):
        write("   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _draw(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for number, head in enumerate(heads):
        drawn.add_column(head, no_wrap=number < len(heads) - 1, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    Console(highlight=False).print(drawn)


def details(pairs: Iterable[tuple[str, object]]) -> None:
    """Print what is known of one thing, a line each; what is empty is left out."""
    known = [(name, text) for name, value in pairs if (text := words(value)) not in ("", "-")]
    width = max((len(name) for name, _ in known), default=0)
    for name, text in known:
        write(f"{name + ':':<{width + 1}} {text}")


def words(value: object) -> str:
    """A value as a person reads it."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={words(each)}" for key, each in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(words(each) for each in value) or "-"
    return str(value)


def age(moment: datetime | None) -> str:
    """How long ago, in the largest unit that fits: ``14s``, ``3m``, ``5h``, ``2d``."""
    return "-" if moment is None else span((datetime.now(UTC) - moment).total_seconds())


def span(seconds: float) -> str:
    """Seconds in words, briefly."""
    seconds = max(seconds, 0.0)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s" if seconds >= 10 else f"{seconds:.1f}s"


def took(begin: datetime | None, end: datetime | None) -> str:
    """How long something took, or has taken so far."""
    return "-" if begin is None else span(((end or datetime.now(UTC)) - begin).total_seconds())


def size(count: int | None) -> str:
    """Bytes in words."""
    from shared.contracts.common import format_memory

    return "-" if count is None else format_memory(count)
