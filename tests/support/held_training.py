"""Runs the train.py beside it, unedited, and writes down every start; held, the chief goes slowly and does not end.

What a test does to a running training then always meets it running, however slow the machine. Copied beside an
example's train.py by the tests; in place of ``python train.py --out out …`` comes ``python held.py --out out …``.
"""

import os
import re
import sys
import time
from pathlib import Path

OUT = Path(sys.argv[sys.argv.index("--out") + 1])
task = f"{os.environ['ELEARN_ROLE']}-{os.environ['ELEARN_INDEX']}"
with (OUT / "starts").open("a") as file:
    file.write(f"{os.environ['ELEARN_ATTEMPT']} {task} {os.getpid()} {os.environ['CUDA_VISIBLE_DEVICES']!r}\n")

import train  # type: ignore[import-not-found]  # noqa: E402 - what is slow comes after the trace


def say(text: str) -> None:
    """In place of train.say: the same; while there is a hold, with a pause at each epoch, and no end to the last."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    step = re.match(r"(?:epoch \d+/\d+ )?step (\d+)(?:/(\d+))?", text)
    if step is None:
        return
    last = int(step[2] or sys.maxsize)
    until = time.monotonic() + 0.5
    while (OUT / "hold").exists() and (time.monotonic() < until or int(step[1]) > 0.8 * last):
        time.sleep(0.01)


train.say = say
train.main()
