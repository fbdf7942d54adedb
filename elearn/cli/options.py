"""Options that every command takes, and what they mean together."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from elearn.client import Client


class Format(StrEnum):
    table = "table"
    json = "json"
    yaml = "yaml"


Output = Annotated[Format, typer.Option("-o", "--output", help="How to print what is answered.")]
Project = Annotated[
    str | None,
    typer.Option("-p", "--project", help="The project; by default ELEARN_PROJECT, else `default`."),
]
Labels = Annotated[
    list[str] | None, typer.Option("-l", "--label", help="Only those with this label: key=value; repeatable.")
]
State = Annotated[str | None, typer.Option("--state", help="Only those in this state.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done, showing progress.")]
Timeout = Annotated[str | None, typer.Option("--timeout", help="Wait no longer than this: 90s, 10m.")]
Sure = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask; scripts are never asked.")]


@contextmanager
def connected(project: str | None) -> "Iterator[Client]":
    """A client for one command."""
    # httpx brings a command line of its own along: half of the time that this takes to start.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    import stamina.instrumentation

    from elearn.client import Client

    # stamina tells of each retry on standard output, which belongs to what was asked for.
    stamina.instrumentation.set_on_retry_hooks(())
    with Client(project=project) as client:
        yield client


def confirm(question: str, sure: bool) -> None:
    """Ask the person at the terminal, if there is one; a no ends the command."""
    if not sure and sys.stdin.isatty():
        typer.confirm(question, abort=True, err=True)


def key_values(pairs: list[str] | None, option: str) -> dict[str, str]:
    """The mapping of repeated ``key=value`` options.

    Raises:
        Invalid: one of them is not of this form.
    """
    from shared.errors import Invalid

    found = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Invalid(f"{option} {pair!r}: write it like key=value")
        found[key] = value
    return found


def seconds(text: str | None, option: str = "--timeout") -> float | None:
    """A duration option in seconds.

    Raises:
        Invalid: it is not a duration.
    """
    from shared.contracts.common import parse_duration
    from shared.errors import Invalid

    if text is None:
        return None
    try:
        return parse_duration(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ValueError as error:
        raise Invalid(f"{option}: {error}") from None
