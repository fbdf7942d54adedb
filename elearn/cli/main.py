"""The entry point: every error is one line on standard error and an exit status that is not 0."""

import os
import sys
from collections.abc import Sequence

import typer

from elearn.cli.app import app

FAILED = 1
USAGE = 2


def main() -> None:
    """Run the command that the process was started with."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and give its exit status."""
    try:
        status = app(list(arguments), prog_name="elearn", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _misused(error)
    except typer.Abort:
        return _fail("given up")
    except BrokenPipeError:
        # The reader (`head`) has seen enough; Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last resort: whoever typed is told in one line
        return _failed(error)
    return status if isinstance(status, int) else 0


def _failed(error: Exception) -> int:
    from shared.errors import ElearnError

    if isinstance(error, ElearnError):
        return _fail(error.detail)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    if os.environ.get("ELEARN_DEBUG"):
        raise error
    return _fail(f"this is a mistake in elearn itself: {type(error).__name__}: {error} (ELEARN_DEBUG=1 shows where)")


def _misused(error: typer.TyperException) -> int:
    words = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":
        print(words)
        return USAGE
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "elearn")
    _fail(f"{words.rstrip('.')}; see `{path} --help`")
    return error.exit_code or USAGE


def _fail(words: str) -> int:
    """Say what is wrong, in one line whatever it holds."""
    print(f"elearn: {' '.join(words.split())}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    main()
