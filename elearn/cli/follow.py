"""Following trainings to their end: states and reasons as they change, and every line that the tasks write."""

import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, Queue
from typing import TYPE_CHECKING, Final, TextIO

from elearn.cli.output import span
from elearn.cli.progress import Steps

if TYPE_CHECKING:
    from elearn.client import Client
    from shared.contracts.training import Training
    from shared.errors import ElearnError

_LOOK_SECONDS: Final = 0.5
_LAST_WORDS_SECONDS: Final = 10.0
_SAVE_SECONDS: Final = 600.0
_PREFIX: Final = re.compile(r"\[([a-z]+)-(\d+)\] ")
_COLOURS: Final = {"chief": 36, "worker": 32, "ps": 35, "evaluator": 33}


def print_line(line: str, out: TextIO) -> None:
    """Print a line of a log; on a terminal its task is coloured, and only the last state of a bar is shown."""
    if out.isatty():
        line = line.rstrip("\r").rpartition("\r")[2]
        match = _PREFIX.match(line)
        if match:
            colour = _COLOURS.get(match[1], 37)
            line = f"\x1b[{colour}m{match[0]}\x1b[0m{line[match.end() :]}"
    out.write(line + "\n")
    out.flush()


def follow_to_end(client: "Client", names: Sequence[str], *, logs_out: bool) -> "list[Training]":
    """Follow each training to its end, one after the other.

    Args:
        logs_out: logs go to standard output, and not to standard error with the states.
    """
    return [_follow(client, name, sys.stdout if logs_out else sys.stderr) for name in names]


def _follow(client: "Client", name: str, out: TextIO) -> "Training":
    from shared.contracts.training import ENDED
    from shared.errors import ElearnError

    lines: Queue[str | ElearnError | None] = Queue(10_000)
    ended = threading.Event()

    def collect() -> None:
        try:
            for line in client.trainings.logs(name, follow=True):
                lines.put(line)
        except ElearnError as error:
            lines.put(error)
        except RuntimeError:
            if not ended.is_set():
                raise
            return  # whoever followed has left, and closed the client
        lines.put(None)

    # A thread of its own: a log that says nothing must not keep the state from being shown.
    threading.Thread(target=collect, name=f"logs of {name}", daemon=True).start()
    reading = True
    last = ""
    with Steps() as steps, _set_at_the_end(ended):
        while True:
            training = client.trainings.get(name)
            now = f"{name} {training.state}{f': {training.reason}' if training.reason else ''}"
            if now != last:
                last = now
                steps.keep(now)
            over = training.state in ENDED and training.freed_at is not None
            reading = reading and _print_ready(lines, out, _LAST_WORDS_SECONDS if over else None)
            if over:
                break
            if not reading:
                time.sleep(_LOOK_SECONDS)
        steps.keep(_summary(training))
        if training.state == "succeeded" and training.spec.save is not None:
            steps.say(f"saving model {training.spec.save.model}")
            steps.keep(_saved(client, training.name, training.spec.save.model))
    return training


def _saved(client: "Client", training: str, model: str) -> str:
    """How saving the training's model ended; whether the training succeeded is not asked here any more."""
    from shared.errors import ElearnError

    try:
        version = client.models.wait_saved(model, training, timeout=_SAVE_SECONDS)
    except ElearnError as error:
        return error.detail
    return f"saved as version {version.number} of model {model}"


@contextmanager
def _set_at_the_end(event: threading.Event) -> Iterator[None]:
    try:
        yield
    finally:
        event.set()


def _print_ready(lines: "Queue[str | ElearnError | None]", out: TextIO, patience: float | None) -> bool:
    """Print what has been written, for as long as until the next look at the state; False at the end of it.

    Args:
        patience: seconds to wait for the end itself, once the training is over; None: only until the next look.
    """
    deadline = time.monotonic() + (patience or _LOOK_SECONDS)
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except Empty:
            return True
        if line is None:
            return False
        if isinstance(line, str):
            print_line(line, out)
        else:
            print(f"the log breaks off: {line.detail}", file=sys.stderr)
    return True


def _summary(training: "Training") -> str:
    took = ""
    if training.started_at is not None and training.finished_at is not None:
        took = f" after {span((training.finished_at - training.started_at).total_seconds())}"
    freed = ""
    if training.freed_at is not None and training.finished_at is not None:
        seconds = (training.freed_at - training.finished_at).total_seconds()
        freed = f"; compute freed {max(seconds, 0.0):.2f} s later"
    return f"{training.name} {training.state}{took}{freed}"
