"""Admission, placement, reconcile, retry: tables."""

import re
from datetime import datetime
from pathlib import Path
from typing import Literal

import pytest
from msgspec.structs import replace

from services.scheduler import admission
from services.scheduler.admission import Holder, Waiting, admit, ordinal, size_errors
from services.scheduler.model import Demand, NodeState
from services.scheduler.placement import place
from services.scheduler.reconcile import Action, Desired, Plan, Shown, reconcile
from services.scheduler.retry import LONGEST, pause_before_attempt
from shared.contracts.training import TrainingState
from tests.support.trainings import START, at, demand, node

G = 2**30


def waits(name: str, *tasks: Demand, priority: int = 0, sequence: int = 0, **fields: object) -> Waiting:
    sequence = sequence or int("".join(filter(str.isdigit, name)) or 1)
    plain = Waiting(project="p", name=name, priority=priority, sequence=sequence, tasks=tasks, queued_at=START)
    return replace(plain, **fields)


def holds(
    name: str,
    *tasks: Demand,
    project: str = "search",
    nodes: tuple[str, ...] = (),
    claims: tuple[str, ...] = (),
) -> Holder:
    return Holder(project=project, name=name, tasks=tasks, nodes=nodes, claims=claims)


def outcome(queue: list[Waiting], holders: list[Holder], nodes: list[NodeState]) -> dict[str, str]:
    found = admit(queue, holders, nodes, at(0))
    return {each.waiting.name: "start" if each.admitted else each.reason for each in found.verdicts}


def test_the_words_of_the_design() -> None:
    found = outcome(
        [
            waits("a1", demand(cpu=1), not_before=at(5), note="attempt 1 failed"),
            waits("b2", demand(cpu=1), not_before=at(9)),
            waits("c3", *[demand(cpu=1, gpu=1)] * 2),
        ],
        [holds("ctr-41", *[demand(cpu=1, gpu=4)] * 2)],
        [node(cpu=64, gpu=8)],
    )
    assert found["c3"] == "waiting for 2 GPUs: 8 of 8 in use by search/ctr-41; third in queue"
    assert found["a1"] == "attempt 1 failed; first in queue"


@pytest.mark.parametrize(
    ("queue", "holders", "nodes", "expected"),
    [
        # Everyone for whom there is room starts, in order.
        ([waits("a1", demand(1)), waits("b2", demand(1))], [], [node(cpu=2)], {"a1": "start", "b2": "start"}),
        # A gang starts whole or not at all.
        (
            [waits("a1", *[demand(1)] * 3)],
            [holds("x", demand(2))],
            [node(cpu=4)],
            {"a1": "waiting for 3 CPUs: 2 of 4 in use by search/x; first in queue"},
        ),
        # Priority goes before arrival.
        (
            [waits("a1", demand(2)), waits("b2", demand(2), priority=5)],
            [],
            [node(cpu=2)],
            {"b2": "start", "a1": "waiting for 2 CPUs: 2 of 2 in use by p/b2; first in queue"},
        ),
        # Nobody overtakes on what the first is short of.
        (
            [waits("a1", demand(4)), waits("b2", demand(1))],
            [holds("x", demand(2))],
            [node(cpu=4)],
            {
                "a1": "waiting for 4 CPUs: 2 of 4 in use by search/x; first in queue",
                "b2": "behind p/a1, which waits for 4 CPUs; second in queue",
            },
        ),
        # What the first is not short of may be used, as long as enough is left for it.
        (
            [waits("a1", demand(2, gpu=1)), waits("b2", demand(2)), waits("c3", demand(1))],
            [holds("x", demand(1, gpu=1))],
            [node(cpu=5, gpu=1)],
            {
                "a1": "waiting for 1 GPU: 1 of 1 in use by search/x; first in queue",
                "b2": "start",
                "c3": "behind p/a1, which waits for 1 GPU; second in queue",
            },
        ),
        # Sums are enough but no machine is: that is said, and nobody passes.
        (
            [waits("a1", demand(3)), waits("b2", demand(1))],
            [holds("x", demand(2), nodes=("n1",)), holds("y", demand(2), nodes=("n2",))],
            [node("n1", cpu=4), node("n2", cpu=4)],
            {
                "a1": "waiting for 3 CPUs: 4 of 8 in use by search/x and search/y; first in queue",
                "b2": "behind p/a1, which waits for 3 CPUs; second in queue",
            },
        ),
        # Storage of one machine: the tasks fit on two, and wait for one; so does who is behind.
        (
            [waits("a1", demand(2), demand(2), claims=("c",)), waits("b2", demand(1))],
            [holds("x", demand(2), nodes=("n1",)), holds("y", demand(2), nodes=("n2",))],
            [node("n1", cpu=4), node("n2", cpu=4)],
            {
                "a1": "waiting for 4 CPUs on one machine: 4 of 8 in use by search/x and search/y; first in queue",
                "b2": "behind p/a1, which waits for 4 CPUs on one machine; second in queue",
            },
        ),
        (
            [waits("a1", demand(2), demand(2), claims=("c",)), waits("b2", demand(2))],
            [holds("x", demand(1), nodes=("n1",))],
            [node("n1", cpu=4), node("n2", cpu=4)],
            {"a1": "start", "b2": "start"},
        ),
        # Who shares such storage goes where it is mounted, and holds up nobody on other machines.
        (
            [waits("a1", demand(2), claims=("c", "d")), waits("b2", demand(1)), waits("c3", demand(4))],
            [holds("x", demand(3), nodes=("n1",), claims=("b", "c"))],
            [node("n1", cpu=4), node("n2", cpu=4)],
            {
                "a1": "waiting for 2 CPUs on n1, where its storage is mounted for search/x; first in queue",
                "b2": "start",
                "c3": "waiting for 4 CPUs: 4 of 8 in use by search/x and p/b2; second in queue",
            },
        ),
        (
            [waits("a1", demand(1), claims=("c",)), waits("b2", demand(4), claims=("c",)), waits("c3", demand(4))],
            [holds("x", demand(2), nodes=("n1",), claims=("c",))],
            [node("n1", cpu=4), node("n2", cpu=4)],
            {
                "a1": "start",
                "b2": "waiting for 4 CPUs on n1, where its storage is mounted for search/x, p/a1; first in queue",
                "c3": "start",
            },
        ),
        (
            [waits("a1", demand(1), claims=("c", "d"))],
            [holds("x", demand(1), nodes=("n1",), claims=("c",)), holds("y", demand(1), nodes=("n2",), claims=("d",))],
            [node("n1", cpu=4), node("n2", cpu=4)],
            {
                "a1": "waiting until one machine can mount its storage, which is mounted on n1 and n2 for search/x,"
                " search/y; first in queue"
            },
        ),
        # Where it is mounted is not known, or that machine is gone: it may go anywhere.
        (
            [waits("a1", demand(1), claims=("c",))],
            [holds("x", demand(1), claims=("c",)), holds("y", demand(1), nodes=("gone",), claims=("c",))],
            [node("n1", cpu=4), node("n2", cpu=4)],
            {"a1": "start"},
        ),
        (
            [waits("a1", demand(3), demand(3), claims=("c",)), waits("b2", demand(1))],
            [],
            [node("n1", cpu=4), node("n2", cpu=4)],
            {
                "a1": "needs 6 CPUs on one machine, and no machines are left that could hold it; first in queue",
                "b2": "start",
            },
        ),
        # A machine went away: what can't fit any more holds up nobody.
        (
            [waits("a1", demand(9)), waits("b2", demand(1))],
            [],
            [node(cpu=4)],
            {
                "a1": "needs 9 CPUs at once, and no machines are left that could hold it; first in queue",
                "b2": "start",
            },
        ),
        # The previous attempt is being freed.
        (
            [waits("a1", demand(1), blocked=True, note="attempt 1 failed: x")],
            [],
            [node()],
            {"a1": "attempt 1 failed: x; first in queue"},
        ),
        # Others than trainings hold something, too.
        (
            [waits("a1", demand(memory=6 * G))],
            [],
            [node(memory=8 * G, others={"serving p/digits": demand(memory=4 * G)})],
            {"a1": "waiting for 6Gi of memory: 4Gi of 8Gi in use by serving p/digits; first in queue"},
        ),
        # Nothing is known of any machine yet.
        (
            [waits("a1", demand(1))],
            [],
            [],
            {"a1": "needs 1 CPU at once, and no machines are left that could hold it; first in queue"},
        ),
    ],
)
def test_admission(
    queue: list[Waiting], holders: list[Holder], nodes: list[NodeState], expected: dict[str, str]
) -> None:
    assert outcome(queue, holders, nodes) == expected


def test_four_holders_are_named_three_and_counted() -> None:
    holders = [holds(f"x{number}", demand(1)) for number in range(5)]
    found = outcome([waits("a1", demand(4))], holders, [node(cpu=8)])
    assert "in use by search/x0, search/x1, search/x2 and 2 more" in found["a1"]


def test_admission_says_when_time_alone_changes_something() -> None:
    queue = [waits("a1", demand(1), not_before=at(7)), waits("b2", demand(1), not_before=at(3))]
    assert admit(queue, [], [node()], at(0)).again_at == at(3)
    assert {each.admitted for each in admit(queue, [], [node()], at(9)).verdicts} == {True}


def test_ordinals() -> None:
    assert [ordinal(n) for n in (1, 3, 10, 11, 12, 21, 22, 113)] == [
        "first", "third", "tenth", "11th", "12th", "21st", "22nd", "113th",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tasks", "free", "expected"),
    [
        ([demand(1)], {"a": demand(1)}, ("a",)),
        ([demand(2)], {"a": demand(1), "b": demand(1)}, None),
        # The smaller GPU machine is filled first, and the great task still finds its place.
        (
            [demand(1, gpu=1), demand(1, gpu=8)],
            {"big": demand(8, gpu=8), "small": demand(8, gpu=1)},
            ("small", "big"),
        ),
        # No GPU asked for: not placed where it would waste them.
        ([demand(1)], {"gpu": demand(8, gpu=8), "cpu": demand(8)}, ("cpu",)),
        ([demand(0.1)] * 10, {"a": demand(1.0)}, ("a",) * 10),
        ([], {}, ()),
    ],
)
def test_placement(tasks: list[Demand], free: dict[str, Demand], expected: tuple[str, ...] | None) -> None:
    assert place(tasks, free) == expected


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([("chief", demand(2))], []),
        (
            [("chief", demand(1, gpu=8))],
            [("roles.chief.gpu", "a task asks for 8 GPUs; the largest that would fit is 4 GPUs")],
        ),
        (
            [("ps", demand(1, memory=64 * G))],
            [("roles.ps.memory", "a task asks for 64Gi of memory; the largest that would fit is 16Gi of memory")],
        ),
        (
            [("chief", demand(1)), *[("worker", demand(4))] * 4],
            [
                (
                    "roles.worker.replicas",
                    "all 5 tasks need 17 CPUs at once and there are 16; "
                    "the largest that would fit has worker at 3 in place of 4",
                )
            ],
        ),
        ([("chief", demand(8, gpu=4))], [("roles.chief", "no one machine has 4 GPUs and 8 CPUs together")]),
    ],
)
def test_what_will_never_fit(tasks: list[tuple[str, Demand]], expected: list[tuple[str, str]]) -> None:
    nodes = [node("n1", cpu=6, memory=16 * G, gpu=4), node("n2", cpu=10, memory=16 * G)]
    assert size_errors(tasks, nodes) == expected


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        ([("worker", demand(2))] * 2, []),
        (
            [("worker", demand(9))] * 2,
            [("roles.worker.cpu", "a task asks for 9 CPUs; the largest that would fit is 4 CPUs")],
        ),
        (
            [("chief", demand(1)), ("worker", demand(2)), ("worker", demand(2))],
            [("roles", "all 3 tasks must find room on one machine, as datastore 'runs' is on a claim that one machine "
              "alone can mount: they need 5 CPUs and the most that one has is 4 CPUs")],
        ),
        (
            [("chief", demand(1)), ("worker", demand(2, gpu=1))],
            [("roles", "all 2 tasks must find room on one machine, as datastore 'runs' is on a claim that one machine "
              "alone can mount: they need 1 GPU and 3 CPUs and no one has that much of everything")],
        ),
    ],
)  # fmt: skip
def test_what_will_never_fit_on_one_machine(tasks: list[tuple[str, Demand]], expected: list[tuple[str, str]]) -> None:
    nodes = [node("n1", cpu=4), node("n2", cpu=2, gpu=1)]
    assert size_errors(tasks, nodes, shared="runs") == expected


def wants(
    state: TrainingState, *, holding: bool = True, attempt: int = 1, deadline_at: datetime | None = None
) -> Desired:
    return Desired(
        project="p", name="t", state=state, attempt=attempt, holding=holding, tasks=2, deadline_at=deadline_at
    )


def act(what: Literal["launch", "free", "vanished", "deadline"], attempt: int = 1) -> Action:
    return Action(what=what, project="p", name="t", attempt=attempt)


@pytest.mark.parametrize(
    ("rows", "shown", "synced", "expected"),
    [
        ([wants("queued", holding=False, attempt=0)], [], True, []),
        ([wants("starting")], [], True, [act("launch")]),
        ([wants("starting")], [], False, [act("launch")]),
        ([wants("starting")], [Shown(attempt=1, tasks=1)], True, [act("launch")]),
        ([wants("starting")], [Shown(attempt=1, tasks=2)], True, []),
        ([wants("running")], [Shown(attempt=1, tasks=2)], True, []),
        ([wants("running")], [], True, [act("vanished")]),
        ([wants("running")], [], False, []),  # not seen is not gone
        ([wants("succeeded")], [Shown(attempt=1, tasks=2)], True, [act("free")]),
        ([wants("succeeded")], [], True, [act("free")]),  # the ledger may still hold something
        ([wants("queued")], [Shown(attempt=1, tasks=2)], True, [act("free")]),
        ([wants("running", attempt=2)], [Shown(attempt=2, tasks=2), Shown(attempt=1, tasks=1)], True, [act("free")]),
        ([], [Shown(attempt=3, tasks=1)], True, [act("free", 3)]),
        ([wants("running", deadline_at=at(0))], [Shown(attempt=1, tasks=2)], True, [act("deadline")]),
        ([wants("queued", holding=False, deadline_at=at(0))], [], True, [act("deadline")]),
    ],
)  # fmt: skip
def test_reconcile(rows: list[Desired], shown: list[Shown], synced: bool, expected: list[Action]) -> None:
    there = {("p", "t"): shown} if shown else {}
    plan = reconcile(rows, at(0), shown_before=there, shown_after=there, synced=synced)
    assert list(plan.actions) == expected


def test_what_was_shown_while_the_rows_were_read_has_not_vanished() -> None:
    there = {("p", "t"): [Shown(attempt=1, tasks=2)]}
    plan = reconcile([wants("running")], at(0), shown_before={}, shown_after=there, synced=True)
    assert plan == Plan(actions=())


def test_what_is_shown_while_the_rows_are_read_may_have_a_row_by_now() -> None:
    there = {("p", "t"): [Shown(attempt=1, tasks=2)]}
    assert reconcile([], at(0), shown_before={}, shown_after=there, synced=True) == Plan(actions=())


def test_reconcile_wakes_for_the_next_deadline() -> None:
    rows = [wants("running", deadline_at=at(9)), wants("running", deadline_at=at(5))]
    there = {("p", "t"): [Shown(attempt=1, tasks=2)]}
    plan = reconcile(rows, at(0), shown_before=there, shown_after=there, synced=True)
    assert plan.again_at == at(5)


def test_pauses_grow_to_a_bound() -> None:
    pauses = [pause_before_attempt(failures) for failures in range(1, 10)]
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST


def test_pure_files_are_pure() -> None:
    room = Path(admission.__file__).parent
    forbidden = r"^\s*(import|from) (asyncio|time|random|logging|structlog|asyncpg|nats|aiohttp|os|shared\.clock)\b"
    names = ("model", "decide", "history", "spec", "admission", "placement", "retry", "reconcile")
    files = [*(room / f"{name}.py" for name in names), *(room / "frameworks").glob("*.py")]
    assert not [file.name for file in files if re.search(forbidden, file.read_text(), re.MULTILINE)]
