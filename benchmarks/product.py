"""The running product for a benchmark: a home of its own, gone afterwards."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from elearn import Client
from elearn.up import down, up


@contextlib.contextmanager
def running() -> Iterator[tuple[Client, Path]]:
    """`elearn up` on free ports below a temporary folder; yields a client and that folder."""
    with tempfile.TemporaryDirectory(prefix="elearn-bench-") as folder:
        home = Path(folder) / "home"
        os.environ["ELEARN_LOCAL_ROOTS"] = folder
        ready = up(home, port=0, detach=True)
        try:
            with Client(url=ready.url, token=(home / "token").read_text().strip()) as client:
                yield client, Path(folder)
        finally:
            down(home)
