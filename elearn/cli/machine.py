"""``elearn up``, ``down``, ``status``, ``login``: the platform of this machine, and which one to talk to."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elearn.cli.options import Format, Output
from elearn.cli.output import details, show, table, words, write
from elearn.cli.progress import Steps

if TYPE_CHECKING:
    from elearn.up import Event

Home = Annotated[
    Path | None, typer.Option("--home", help="Where everything is kept; by default ELEARN_HOME, else ~/.elearn.")
]


def up(
    home: Home = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The gateway's port; 0: any that is free; by default as before."),
    ] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Return when everything is ready.")] = False,
    output: Output = Format.table,
) -> None:
    """Bring the whole platform up on this machine.

    It listens on loopback only. Without --detach, Ctrl-C ends it.
    """
    from elearn.up import Progress, Ready
    from elearn.up import up as bring_up

    with Steps() as steps:
        changing: dict[str, list[str]] = {}  # names by what they are about

        def report(event: "Event") -> None:
            if isinstance(event, Progress):
                for names in changing.values():
                    if event.name in names:
                        names.remove(event.name)
                reason = f" ({event.reason})" if event.reason else ""
                if event.state not in ("ready", "stopped"):
                    changing.setdefault(event.state, []).append(event.name)
                if sys.stderr.isatty():
                    steps.say("; ".join(f"{state} {', '.join(names)}" for state, names in changing.items() if names))
                elif event.state not in ("starting", "stopping"):
                    steps.say(f"{event.name} {event.state}{reason}")
            elif isinstance(event, Ready):
                steps.stop()
                if not detach and not show(output, {"url": event.url, "seconds": event.seconds}):
                    write(f"elearn is up at {event.url} ({event.seconds:.1f} s); Ctrl-C ends it")
                sys.stdout.flush()

        status = bring_up(home, port, detach, report=report)
    if not detach:
        return
    if not show(output, status):
        write(f"elearn is up at {status.url}")
        details((("Token", status.token_file), ("End it with", f"elearn down --home {status.home}")))
    _warn_of_login(Path(status.home))


def _warn_of_login(home: Path) -> None:
    from elearn.client.connection import read_login

    known = read_login(home)
    if known is not None:
        print(
            f"note: commands talk to {known.url} still; `elearn login --forget` makes them talk to this one",
            file=sys.stderr,
        )


def down(home: Home = None, output: Output = Format.table) -> None:
    """End everything of `elearn up`, tasks included.

    Data stays; so does what runs in a cluster, and `elearn up` takes it up again.
    """
    from elearn.up import cloud
    from elearn.up import down as bring_down

    with Steps() as steps:
        steps.say("ending services and tasks")
        ended = bring_down(home)
    if not show(output, {"ended": ended}):
        write("elearn is down" if ended else "elearn was not up")
        if ended and cloud(home) != "local":
            write("What runs in the cluster goes on; `elearn up` takes it up again.")


def status(home: Home = None, output: Output = Format.table) -> None:
    """What of `elearn up` is running."""
    from elearn.up import status as look

    found = look(home)
    if show(output, found):
        return
    if found.url is None:
        write(f"elearn is not up in {found.home}: start it with `elearn up`")
        return
    write(f"elearn is {'ready' if found.ready else 'not ready'} at {found.url}")
    table(
        ("service", "pid", "state", "restarts", "reason"),
        [(each.name, each.pid, each.state, each.restarts or "", each.reason or "") for each in found.services],
    )


def login(
    url: Annotated[str | None, typer.Argument(help="Where elearn is: https://elearn.example.org")] = None,
    token_stdin: Annotated[bool, typer.Option("--token-stdin", help="Read the token from standard input.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Forget the login.")] = False,
    output: Output = Format.table,
) -> None:
    """Keep an address and its token, so that commands talk to it.

    The token is asked for, or read with --token-stdin; it is never an argument, which others could read.
    """
    from elearn.client import Client
    from elearn.client.connection import (
        Connection,
        Login,
        checked_url,
        forget_login,
        home,
        write_login,
    )
    from shared.errors import Invalid, Unauthenticated

    if forget:
        forgotten = forget_login(home())
        if not show(output, {"forgotten": forgotten}):
            write("the login is forgotten" if forgotten else "there was no login")
        return
    if url is None:
        raise Invalid("name the address: elearn login https://elearn.example.org")
    url = checked_url(url)
    if token_stdin or not sys.stdin.isatty():
        token = sys.stdin.readline().strip()
    else:
        token = typer.prompt("Token", hide_input=True, err=True).strip()
    if not token:
        raise Unauthenticated("no token was given")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise Unauthenticated("that is not a token: it holds characters that no token has")
    with Client.at(Connection(url=url, token=token), patience=5.0) as client:
        client.cluster()  # tells whether the address and the token are good
    path = write_login(home(), Login(url=url, token=token))
    if not show(output, {"url": url, "file": str(path)}):
        write(f"logged in at {url}; kept in {path}")
    if url.startswith("http:") and not Connection(url=url, token=token).loopback:
        print(f"note: {words(url)} is not encrypted: the token travels in the open", file=sys.stderr)
