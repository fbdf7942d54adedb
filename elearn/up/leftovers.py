"""Ending what an earlier supervisor of a home left running. Only its owner, who holds the lock, may do so."""

import signal

from elearn.up import place, postgres, proc
from elearn.up.home import Home
from elearn.up.state import State
from shared.local.identity import is_alive

_GRACE = 10.0


def end_processes(home: Home, known: State | None) -> bool:
    """End the services, then the servers they stand on: by their records, and by their marks.

    Returns:
        Whether there were any.
    """
    found = proc.supervised(home.root)
    for each in known.services if known else ():
        if each.process is not None:
            found.setdefault(each.name, []).append(each.process)
    # PostgreSQL overwrites its environment, so a mark could not be read; its working directory tells.
    data = place.data_folder(home.postgres)
    found.pop("postgres", None)
    database = postgres.masters(data)
    rooms = [process for name, each in found.items() if name != "nats" for process in each]
    bus = found.get("nats", [])
    there = any(is_alive(each) for each in (*rooms, *bus, *database))
    proc.end(dict.fromkeys(rooms), _GRACE)
    proc.end(dict.fromkeys(bus), _GRACE)
    proc.end(database, 30.0, signal.SIGINT)
    postgres.end_remains(data)
    return there


def end_tasks(home: Home) -> None:
    """End what the services started and what outlives them: the tasks of trainings, and model servers."""
    # Needed once, at the end: the supervisor, which stays, would carry eight megabytes for it all the time.
    from shared.local.processes import end_all

    end_all(home.root)
