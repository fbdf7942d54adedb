"""Trainings: submit, watch, read their logs, stop and try again."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Literal

from elearn.client.code import is_digest, send_code
from elearn.client.connection import checked_name
from elearn.client.errors import TimedOut
from elearn.client.transport import Query, Transport, label_query, lines_of
from elearn.client.waiting import pauses
from shared.codec import convert
from shared.contracts.common import Done, Page
from shared.contracts.training import ENDED, Plan, Task, Training, TrainingSpec
from shared.errors import Invalid, Unavailable

Until = Literal["running", "ended", "freed"]
Spec = TrainingSpec | Mapping[str, object] | str | Path

_QUIET: Final = 300.0
"""Seconds after which a followed log that says nothing is opened again: its connection may be dead."""
_PAUSE: Final = 0.2
_PREFIX: Final = re.compile(r"\[([a-z]+-\d+)\] ")


class Trainings:
    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._project_base = base
        self._base = f"{base}/trainings"

    def submit(self, spec: Spec, *, code: str | Path | None = None) -> Training:
        """Submit a training; it is queued, and starts when there is room for all of it.

        Args:
            spec: what to run, as a struct or a dict, or a YAML file with one training in it.
            code: the folder that becomes the working directory, in place of the spec's. A relative one is
                relative to the YAML file, or else to this process's working directory. It is packed and
                sent, unless elearn has the same already; ``sha256:…`` names one that was sent before.

        Raises:
            Invalid: a field can't be accepted, or more is asked for than the machines will ever have.
        """
        body = self._prepared(spec, code)
        return self._transport.call("POST", self._base, Training, body=body)

    def plan(self, spec: Spec, *, code: str | Path | None = None) -> Plan:
        """What a submit would do now; nothing is started or kept (but code is sent)."""
        body = self._prepared(spec, code)
        return self._transport.call("POST", self._base, Plan, query={"dry_run": True}, body=body)

    def list(self, *, state: str | None = None, labels: Mapping[str, str] | None = None) -> Iterator[Training]:
        """Every training, newest first, or those in a state that carry all of these labels."""
        query = {"state": state, "label": label_query(labels)}
        return self._transport.pages(self._base, Page[Training], query=query)

    def get(self, name: str) -> Training:
        return self._transport.call("GET", self._at(name), Training)

    def tasks(self, name: str, attempt: int | None = None) -> Iterator[Task]:
        """The tasks of an attempt; None: of the current one."""
        return self._transport.pages(f"{self._at(name)}/tasks", Page[Task], query={"attempt": attempt})

    def wait(self, name: str, *, until: Until = "ended", timeout: float | None = None) -> Training:
        """Wait for a training.

        Args:
            until: ``running`` (or ended before that), ``ended``, or ``freed``: ended and all compute
                given back.
            timeout: seconds.

        Returns:
            The training as it is then; look at its ``state``.

        Raises:
            TimedOut: it did not happen in time; the message says what it waits for.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in pauses(deadline):
            training = self.get(name)
            if _reached(training, until):
                return training
            if pause is None:
                raise TimedOut(
                    f"training {name} is still {training.state} after {timeout:g} s: {training.reason or 'no reason'}"
                )
            time.sleep(pause)
        raise AssertionError("unreachable")

    def logs(
        self,
        name: str,
        *,
        task: str | None = None,
        attempt: int | None = None,
        follow: bool = False,
        tail: int | None = None,
    ) -> Iterator[str]:
        """What the tasks wrote, line by line.

        Args:
            task: ``worker-1``; None: all tasks, with ``[worker-1] `` before each line where there are several.
            attempt: None: the current one; with ``follow``, those after it too.
            follow: go on until the task, or the training, ends; lost connections are gone on with.
            tail: begin with the last so many lines of each task.
        """
        if follow:
            return self._followed(name, task, attempt, tail)
        return self._lines(name, {"task": task, "attempt": attempt, "tail": tail})

    def stop(self, name: str, reason: str = "") -> Training:
        """End it before its time; its compute is freed, its record and logs stay."""
        return self._transport.call("POST", f"{self._at(name)}/stop", Training, body={"reason": reason})

    def free(self, name: str) -> Training:
        """Free compute that an ended training still holds."""
        return self._transport.call("POST", f"{self._at(name)}/free", Training, body={})

    def retry(self, name: str) -> Training:
        """Start another attempt of a training that has ended."""
        return self._transport.call("POST", f"{self._at(name)}/retry", Training, body={})

    def delete(self, name: str) -> None:
        """Delete the record and the logs of a training that has ended."""
        self._transport.call("DELETE", self._at(name), Done)

    def board(self, name: str) -> str:
        """Open its TensorBoard; the address where the gateway shows it. A browser adds ``?token=…`` once.

        Raises:
            NotFound: it names no ``tensorboard`` folder.
        """
        path = f"{self._at(name)}/board/"
        self._transport.send("GET", path)
        return f"{self._transport.connection.url}{path}"

    def _at(self, name: str) -> str:
        return f"{self._base}/{checked_name(name)}"

    def _prepared(self, spec: Spec, code: str | Path | None) -> dict[str, object]:
        """The spec with its code sent. Fields stay as they were given: unset ones are the gateway's to settle."""
        folder = Path.cwd()
        if isinstance(spec, TrainingSpec):
            import msgspec

            data: dict[str, object] = msgspec.to_builtins(spec)
        elif isinstance(spec, Mapping):
            data = dict(spec)
            convert(TrainingSpec, data)
        else:
            from elearn.client.documents import read_documents

            documents = read_documents(spec)
            if len(documents) != 1:
                raise Invalid(f"{spec} holds {len(documents)} documents: submit one at a time")
            documents[0].spec("training", TrainingSpec)
            data, folder = documents[0].data, documents[0].folder
        if code is not None:
            data["code"], folder = str(code), Path.cwd()
        given = data.get("code")
        if isinstance(given, str) and not is_digest(given):
            data["code"] = send_code(self._transport, self._project_base, folder / Path(given).expanduser())
        return data

    def _lines(self, name: str, query: Query) -> Iterator[str]:
        with self._transport.stream(f"{self._at(name)}/logs", query=query) as response:
            yield from lines_of(response.iter_bytes())

    def _followed(self, name: str, task: str | None, attempt: int | None, tail: int | None) -> Iterator[str]:
        """Attempt after attempt, so that what has been seen of one is known when it must be opened again."""
        training = self.get(name)
        number = attempt or training.attempt
        while number == 0 and training.state not in ENDED:
            training = self._next_attempt(name, 0)
            number = training.attempt
        while number:
            yield from self._attempt_followed(name, task, number, tail)
            if attempt is not None:
                return
            training = self._next_attempt(name, number)
            if training.attempt <= number:
                return
            number, tail = number + 1, None

    def _next_attempt(self, name: str, number: int) -> Training:
        """The training, once it has a later attempt or none will come."""
        for pause in pauses(None):
            training = self.get(name)
            if training.attempt > number or training.state in ENDED:
                break
            time.sleep(pause or 0)
        return training

    def _attempt_followed(self, name: str, task: str | None, number: int, tail: int | None) -> Iterator[str]:
        seen: Counter[str] = Counter()
        query: Query = {"task": task, "attempt": number, "tail": tail, "follow": True}
        while True:
            skip = Counter(seen)
            opened = False
            try:
                with self._transport.stream(f"{self._at(name)}/logs", query=query, quiet=_QUIET) as response:
                    opened = True
                    for line in lines_of(response.iter_bytes()):
                        match = _PREFIX.match(line)
                        writer = match[1] if match else ""
                        if skip[writer] > 0:
                            skip[writer] -= 1
                            continue
                        seen[writer] += 1
                        yield line
            except Unavailable:
                # It has been tried for as long as patience goes, or where its lines would go on is not known.
                if not opened or (tail is not None and seen):
                    raise
                time.sleep(_PAUSE)
            else:
                return


def _reached(training: Training, until: Until) -> bool:
    if until == "running":
        return training.state == "running" or training.state in ENDED
    return training.state in ENDED and (until == "ended" or training.freed_at is not None)
