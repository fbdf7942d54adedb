"""Telling how long work goes: a line that changes on a terminal, plain lines elsewhere; on standard error."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.status import Status


class Steps:
    """States that something goes through. Use it with ``with``; every new text is told once."""

    def __init__(self) -> None:
        self._last = ""
        self._status: Status | None = None

    def say(self, text: str) -> None:
        """The state it is in now; it may be followed by another."""
        if text == self._last:
            return
        self._last = text
        if not sys.stderr.isatty():
            print(text, file=sys.stderr, flush=True)
            return
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True, highlight=False).status("")
            self._status.start()
        from rich.markup import escape

        self._status.update(escape(text))

    def keep(self, text: str) -> None:
        """A line that stays."""
        self._last = ""
        if self._status is not None:
            self._status.console.print(text, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Take the changing line away, so that others may print."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __enter__(self) -> "Steps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Bar:
    """Bytes that are moved. Use it with ``with``, and call it with what is there and what is in all."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._tenth = -1

    def __call__(self, there: int, total: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=there, total=total)
            return
        tenth = 10 * there // max(total, 1)
        if tenth != self._tenth and total > 64 << 20:  # small ones are done before a line is read
            self._tenth = tenth
            print(f"{self._what}: {10 * tenth} %", file=sys.stderr, flush=True)

    def __enter__(self) -> "Bar":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(self._what, total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
