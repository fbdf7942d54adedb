"""Runs the train.py beside it, unedited, and writes down every start; held, the chief goes slowly and does not end.

What a test does to a running training then always meets it running, however slow the machine. Copied beside an
example's train.py by the tests; in place of ``python train.py --out out …`` comes ``python held.py --out out …``.
"""

import os
import re
import sys
import time
from pathlib import Path
from typing import TextIO

OUT = Path(sys.argv[sys.argv.index("--out") + 1])
task = f"{os.environ['ELEARN_ROLE']}-{os.environ['ELEARN_INDEX']}"
with (OUT / "starts").open("a") as file:
    file.write(f"{os.environ['ELEARN_ATTEMPT']} {task} {os.getpid()} {os.environ['CUDA_VISIBLE_DEVICES']!r}\n")

import train  # type: ignore[import-not-found]  # noqa: E402 - what is slow comes after the trace


def say(*words: object, file: TextIO | None = None, flush: bool = True) -> None:
    """In place of the example's say or print: the same; held, with a pause at each epoch and no end to the last."""
    text = " ".join(map(str, words))
    stream = file or sys.stdout
    stream.write(f"{text}\n")
    if flush:
        stream.flush()
    told = re.match(r"(?:epoch|step) (\d+)/(\d+)", text)
    if told is None:
        return
    done = int(told[1]) / int(told[2])
    until = time.monotonic() + 0.5
    while (OUT / "hold").exists() and (time.monotonic() < until or done > 0.8):
        time.sleep(0.01)


train.say = train.print = say
train.main()
