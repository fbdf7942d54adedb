"""``elearn deadletters``: messages that a service could not handle."""

from typing import Annotated

import typer

from elearn.cli.options import Format, Output, Sure, confirm, connected
from elearn.cli.output import show, show_list, words, write

app = typer.Typer(no_args_is_help=True, help="Messages that a service could not handle.")

Sequences = Annotated[list[int], typer.Argument(metavar="SEQUENCE...", help="Numbers as `list` shows them.")]


@app.command("list")
def list_(output: Output = Format.table) -> None:
    """What was given up, and why."""
    with connected(None) as client:
        show_list(
            output,
            client.deadletters.list(),
            ("sequence", "time", "consumer", "subject", "deliveries", "error"),
            lambda each: (
                each.sequence,
                words(each.time),
                each.consumer,
                each.subject,
                each.deliveries,
                each.error,
            ),
            "there are no dead letters",
        )


@app.command()
def resend(sequences: Sequences, output: Output = Format.table) -> None:
    """Hand messages to their service again, once what was wrong has been mended."""
    with connected(None) as client:
        for sequence in sequences:
            client.deadletters.resend(sequence)
    if not show(output, {"resent": sequences}):
        write(f"sent again: {words(sequences)}")


@app.command()
def drop(sequences: Sequences, yes: Sure = False, output: Output = Format.table) -> None:
    """Forget messages for good."""
    confirm(f"Forget {len(sequences)} message(s) for good?", yes)
    with connected(None) as client:
        for sequence in sequences:
            client.deadletters.drop(sequence)
    if not show(output, {"dropped": sequences}):
        write(f"dropped: {words(sequences)}")
