"""``elearn events``: what has happened, and what happens."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from elearn.cli.options import Format, Output, Project, connected
from elearn.cli.output import show, words, write

if TYPE_CHECKING:
    from shared.contracts.event import Event


def events(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as they happen.")] = False,
    since: Annotated[
        str | None,
        typer.Option(help="A time (2026-01-31T12:00:00Z), how long ago (10m), or a sequence: those after it."),
    ] = None,
    subject: Annotated[str | None, typer.Option(help="Only these: elearn.v1.training.failed.> and the like.")] = None,
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """What has happened, or happens.

    All lifecycle events that are kept, or with --follow those from now on (or --since).
    JSON is one array; with --follow one object a line.
    """
    with connected(project) as client:
        found = client.events(since, subject, follow=follow)
        if output is not Format.table and not follow:
            show(output, list(found))
            return
        for event in found:
            if output is Format.json:
                import msgspec

                write(msgspec.json.encode(event).decode())
            elif output is Format.yaml:
                write("---")
                show(output, event)
            else:
                write(line_of(event))
            sys.stdout.flush()


def line_of(event: "Event") -> str:
    """An event in one line: when, what happened to whom, and why."""
    _, _, noun, happened, _, name = event.subject.split(".", 5)
    about, reason = _about(noun, event.data)
    shown = f"{name}{about}"
    sequence = "" if event.sequence is None else str(event.sequence)
    return f"{words(event.time)}  {sequence:>6}  {noun + ' ' + happened:<24}  {shown:<24}  {reason}".rstrip()


def _about(noun: str, data: bytes) -> tuple[str, str]:
    """What an event's body adds to its name, and the reason that it gives."""
    import msgspec

    body = msgspec.json.decode(data)
    thing = body.get(noun) if isinstance(body, dict) else None
    if noun == "data" and isinstance(body, dict):
        return "", " ".join(f"{key}={value}" for key, value in body.items() if value)
    if not isinstance(thing, dict):
        return "", ""
    reason = str(thing.get("reason") or "")
    if noun == "task":
        return f"/{thing.get('name')}", reason
    if noun == "version":
        return f"/{thing.get('number')}", reason
    if noun == "alias":
        return f"/{thing.get('name')}", f"version {thing.get('version')}"
    return "", reason
