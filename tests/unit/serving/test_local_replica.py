"""How a local replica stands, from what its keeper and its model server say."""

import pytest
from msgspec.structs import replace

from services.serving.cloud.local.replica import Replica, Report, stands
from shared.local.identity import ProcessIdentity
from shared.local.spec import ProcessStatus, State

SERVER = ProcessIdentity(pid=7, started=1, boot="b")


def status(state: State = "running", **more: object) -> ProcessStatus:
    plain = ProcessStatus(id="ab.r1.0", state=state, shim=SERVER, task=SERVER, started_at=100.0)
    return replace(plain, **more)


def report(state: str = "serving", pid: int = 7, reason: str = "") -> Report:
    return Report(state=state, pid=pid, reason=reason)


@pytest.mark.parametrize(
    ("keeper", "server", "expected"),
    [
        (status(), None, "starting"),
        (status(), report(), "ready"),
        (status(), report(pid=6), "starting"),
        (status(), report("draining"), "leaving"),
        (status(), report("failed", reason="no SavedModel"), "failing: no SavedModel"),
        (status("waiting", exit_code=1), report("failed", reason="no SavedModel"), "failing: no SavedModel"),
        (status("waiting", exit_code=1), None, "starting"),
        (status("ending"), report(), "starting"),
        (status(stop_requested=True), report(), "leaving"),
        (status(restarts=1), None, "starting: its model server ended, and is started again"),
        (
            status("waiting", restarts=3, signal=9),
            None,
            "failing: its model server ended 3 times, the last time by signal 9; its log says more",
        ),
        (status(restarts=3), report(), "ready"),
        (status(started_at=50.0), None, "failing: its model server did not answer within 60 s"),
        (status("lost"), report(), "over"),
        (status("exited", exit_code=0, finished_at=100.0), report("draining"), "over"),
        (status("failed", error="command not found: x", finished_at=110.0), None, "failing: command not found: x"),
        (status("failed", error="command not found: x", finished_at=100.0), None, "over"),
    ],
)
def test_stands(keeper: ProcessStatus, server: Report | None, expected: str) -> None:
    state, _, reason = expected.partition(": ")
    found = stands(keeper, server, now=112.0, start_seconds=60.0)
    assert found[0] == state
    assert not reason or found[1] == reason


def test_processes_are_told_apart_by_name() -> None:
    replica = Replica(uid="0a1b", revision=12, slot=3)
    assert Replica.of(replica.id) == replica
    assert Replica.of("default.digits-1.a1.worker-0") is None
