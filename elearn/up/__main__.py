"""The supervisor's process: ``python -m elearn.up HOME [PORT]``; speaks lines of JSON with who started it.

Told ``detach`` on its standard input it goes on alone; when that input ends without, so does it.
"""

import asyncio
import logging
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from elearn.up import services
from elearn.up.errors import StartError
from elearn.up.home import Home, unusable
from elearn.up.state import Event, Failed
from elearn.up.supervisor import Command, Supervisor
from shared.errors import ElearnError

DETACH = b"detach\n"

_log = logging.getLogger("elearn.up")


class _Teller:
    """Writes events to whoever started us, as long as somebody reads."""

    def __init__(self) -> None:
        self._listening = True

    def __call__(self, event: Event) -> None:
        if not self._listening:
            return
        try:
            sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
            sys.stdout.buffer.flush()
        except OSError:
            self._listening = False


def _mind_the_starter(stop: Callable[[], None]) -> None:
    """Stop when the standard input ends, unless told to detach. Only a pipe says anything: not a terminal."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return

    def on_readable() -> None:
        loop.remove_reader(descriptor)
        if os.read(descriptor, len(DETACH)) != DETACH:
            stop()

    loop.add_reader(descriptor, on_readable)


async def _supervise(home: Home, port: int | None, tell: Callable[[Event], None], command: Command) -> None:
    supervisor = Supervisor(home, port, tell, command)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, supervisor.stop)
    _mind_the_starter(supervisor.stop)
    await supervisor.run()


def main(arguments: list[str], command: Command = services.command) -> int:
    """Run the platform of the home ``arguments[0]`` until told to stop; answers the exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    home = Home(Path(arguments[0]))
    port = int(arguments[1]) if len(arguments) > 1 else None
    tell = _Teller()
    try:
        home.prepare()
        with home.locked(supervise=True):
            asyncio.run(_supervise(home, port, tell, command))
    except ElearnError as error:
        return _fail(tell, error)
    except OSError as error:
        return _fail(tell, unusable(home.root, error))
    except Exception as error:  # noqa: BLE001 - a mistake of ours, told to the user as such
        _log.exception("unexpected")
        return _fail(tell, StartError(f"unexpected {type(error).__name__}; see {home.log('supervisor')}"))
    return 0


def _fail(tell: _Teller, error: ElearnError) -> int:
    _log.error("%s", error.detail)
    tell(Failed(kind=type(error).__name__, detail=error.detail))
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
