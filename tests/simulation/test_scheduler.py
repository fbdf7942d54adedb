"""Thousands of schedules of trainings, each from a seed: users, a cloud, a controller that dies, a hostile bus.

Everything the room decides by is real (`decide`, `admit`, `reconcile`); the world around it is a few dictionaries.
The bus repeats and reorders what it carries, delivers again after a crash between commit and acknowledgement, and
the controller may die between a call to the cloud and the note of its result. Whatever happens, nothing runs twice,
nothing is handed out twice, and once the faults cease everything ends and is freed.
"""

import random
from datetime import datetime

import pytest

from services.scheduler.admission import Holder, Waiting, admit
from services.scheduler.decide import decide
from services.scheduler.errors import WrongState
from services.scheduler.model import (
    Admit,
    DeadlinePassed,
    Demand,
    Freed,
    Message,
    NodeState,
    Refused,
    Retry,
    Seen,
    Stop,
    TrainingRecord,
    Vanished,
)
from services.scheduler.placement import total
from services.scheduler.reconcile import Action, Desired, Key, Shown, reconcile
from services.scheduler.retry import pause_before_attempt
from shared.contracts.training import ENDED, Task
from tests.support.trainings import at, cluster, record, replace, task

Attempt = tuple[Key, int]
CAPACITY = NodeState(name="n", total=Demand(cpu=2.0, memory=2**40, gpu=0))


class Cloud:
    """Processes of one machine. Everything in it survives the controller."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.running: dict[Attempt, dict[str, Task]] = {}
        self.demands: dict[Attempt, Demand] = {}
        self.started: set[tuple[Attempt, str]] = set()
        self.won: set[Attempt] = set()

    def launch(self, one: TrainingRecord) -> bool:
        """Start what was not started; False where there is no room."""
        key = ((one.project, one.name), one.attempt)
        if key not in self.demands:
            if total([*self.demands.values(), one.demand]).cpu > CAPACITY.total.cpu + 1e-9:
                return False
            self.demands[key] = one.demand
        tasks = self.running.setdefault(key, {})
        for plan in one.plan:
            if plan.name in tasks:
                continue
            assert (key, plan.name) not in self.started, "a task was started twice"
            self.started.add((key, plan.name))
            tasks[plan.name] = task(one, plan.name, "running")
            if self.dice.random() < 0.1:
                break  # the launch was cut short: the controller died in the middle of it
        others = [other for other in self.running if other[0] == key[0] and other[1] != key[1]]
        assert not others, "two attempts of one training hold compute at once"
        return True

    def free(self, key: Attempt) -> tuple[Task, ...]:
        self.demands.pop(key, None)
        tasks = self.running.pop(key, {})
        return tuple(
            each if each.finished_at else replace(each, state="stopped", finished_at=at(2)) for each in tasks.values()
        )

    def something_happens(self) -> None:
        """A process ends, well or badly, or comes back."""
        living = [
            (key, each) for key, tasks in self.running.items() for each in tasks.values() if each.finished_at is None
        ]
        if not living:
            return
        key, one = self.dice.choice(living)
        state = self.dice.choices(("succeeded", "failed", "lost", "restarted"), (5, 2, 1, 2))[0]
        if state == "restarted":
            self.running[key][one.name] = replace(one, restarts=one.restarts + 1)
            return
        code = {"succeeded": 0, "failed": 1}.get(state)
        self.running[key][one.name] = replace(one, state=state, exit_code=code, finished_at=at(2))
        if state == "succeeded" and (one.role == "chief" or one.name == "worker-0"):
            self.won.add(key)


class World:
    """A room with its rows, its bus and its controller."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.cloud = Cloud(self.dice)
        self.rows: dict[Key, TrainingRecord] = {}
        self.events: dict[Key, list[str]] = {}
        self.bus: list[tuple[Key, Message]] = []
        self.shown: dict[Key, list[Shown]] = {}
        self.synced = False
        self.calls: list[Action] = []
        self.clock = 0.0
        self.sequence = 0
        self.hostile = True

    @property
    def now(self) -> datetime:
        return at(self.clock)

    # -- rows

    def submit(self) -> None:
        self.sequence += 1
        roles = cluster(
            chief=self.dice.choice((0, 1, 1)),
            workers=self.dice.randint(1, 2),
            ps=self.dice.randint(0, 1),
            evaluator=self.dice.choice((0, 0, 1)),
        )
        name = f"t-{self.sequence}"
        deadline = self.dice.choice((None, None, 40))
        retries, priority = self.dice.randint(0, 2), self.dice.choice((0, 0, 5))
        one = record(name, self.sequence, roles=roles, retries=retries, priority=priority, deadline=deadline)
        self.rows["p", name] = replace(one, queued_at=self.now)
        self.events["p", name] = ["queued"]

    def apply(self, key: Key, message: Message) -> None:
        """A transaction: it commits whole."""
        one = self.rows[key]
        try:
            decision = decide(one, message, self.now, pause_before_attempt)
        except WrongState:
            return
        self.rows[key] = decision.record
        self.events[key] += [each.event for each in decision.events if each.noun == "training"]

    def deliver(self) -> None:
        """One message of the bus: any of them, and perhaps once more."""
        if not self.bus:
            return
        position = self.dice.randrange(len(self.bus)) if self.hostile else 0
        key, message = self.bus[position]
        self.apply(key, message)
        crashed_before_ack = self.hostile and self.dice.random() < 0.2
        if not crashed_before_ack:
            del self.bus[position]

    # -- controller

    def look(self) -> None:
        """The watch: what is there now goes into the controller's memory, and onto the bus."""
        self.shown = {}
        for (key, attempt), tasks in self.cloud.running.items():
            self.shown.setdefault(key, []).append(Shown(attempt=attempt, tasks=len(tasks)))
            if key in self.rows and (not self.hostile or self.dice.random() < 0.7):
                self.bus.append((key, Seen(attempt=attempt, tasks=tuple(tasks.values()))))
        self.synced = True

    def round(self) -> None:
        before = self.shown
        while self.hostile and self.dice.random() < 0.6:  # the rows take a while to be read, and the world goes on
            self.dice.choice((self.look, self.deliver))()
        active = [one for one in self.rows.values() if one.active]
        desired = [
            Desired(
                project=one.project,
                name=one.name,
                state=one.state,
                attempt=one.attempt,
                holding=one.holding,
                tasks=len(one.plan),
                deadline_at=one.deadline_at,
            )
            for one in active
        ]
        plan = reconcile(desired, self.now, shown_before=before, shown_after=self.shown, synced=self.synced)
        for action in plan.actions:
            if action.what == "vanished":
                there = (action.key, action.attempt) in self.cloud.running
                assert not there, "what could not be seen was taken for lost"
                self.apply(action.key, Vanished(attempt=action.attempt))
            elif action.what == "deadline":
                self.apply(action.key, DeadlinePassed())
            elif all(call.key != action.key for call in self.calls):
                self.calls.append(action)
        admission = admit(
            [
                Waiting(
                    project=one.project,
                    name=one.name,
                    priority=one.spec.priority,
                    sequence=one.sequence,
                    tasks=tuple(each.demand for each in one.plan),
                    queued_at=one.queued_at,
                    not_before=one.not_before,
                    blocked=one.holding,
                )
                for one in active
                if one.state == "queued"
            ],
            [
                Holder(project=one.project, name=one.name, tasks=tuple(each.demand for each in one.plan))
                for one in active
                if one.holding
            ],
            [CAPACITY],
            self.now,
        )
        for verdict in admission.verdicts:
            key = (verdict.waiting.project, verdict.waiting.name)
            if verdict.admitted and self.rows[key].state == "queued" and not self.rows[key].holding:
                self.apply(key, Admit())

    def call(self) -> None:
        """Perform a call to the cloud; the controller may die before its result is noted."""
        if not self.calls:
            return
        action = self.calls.pop(self.dice.randrange(len(self.calls)))
        one = self.rows.get(action.key)
        result: Message | None = None
        if action.what == "free":
            tasks = self.cloud.free((action.key, action.attempt))
            result = Freed(attempt=action.attempt, tasks=tasks)
        elif one is not None and one.attempt == action.attempt and one.state == "starting":
            refused = Refused(attempt=action.attempt, reason="no room", for_good=False)
            result = None if self.cloud.launch(one) else refused
        if self.hostile and self.dice.random() < 0.15:
            self.die()
        elif result is not None:
            self.apply(action.key, result)

    def die(self) -> None:
        """kill -9 of the controller: what it knew is gone, rows and cloud stay."""
        self.calls.clear()
        self.shown = {}
        self.synced = False
        if self.dice.random() < 0.5:
            self.bus.clear()

    # -- users and time

    def user(self) -> None:
        key = self.dice.choice(list(self.rows))
        self.sequence += 1
        self.apply(key, self.dice.choice((Stop(reason="enough"), Retry(sequence=self.sequence))))

    def step(self) -> None:
        self.clock += self.dice.random()
        acts = (self.deliver, self.look, self.round, self.call, self.cloud.something_happens, self.die, self.user)
        self.dice.choices(acts, (30, 15, 20, 20, 8, 1, 1))[0]()
        assert total(self.cloud.demands.values()).cpu <= CAPACITY.total.cpu + 1e-9

    def settle(self) -> None:
        """No more faults: everything has to come to its end."""
        self.hostile = False
        self.bus.clear()
        for _ in range(600):
            self.clock += 5
            self.look()
            while self.bus:
                self.deliver()
            self.round()
            while self.calls:
                self.call()
            self.cloud.something_happens()
            if not any(one.active for one in self.rows.values()):
                return
        raise AssertionError([one for one in self.rows.values() if one.active])

    def check(self) -> None:
        assert not self.cloud.running
        assert not self.cloud.demands
        for key, one in self.rows.items():
            story = self.events[key]
            assert one.state in ENDED
            assert one.freed_at is not None
            assert not one.holding
            # A refused launch tells of its start again; otherwise every attempt is told of once.
            assert story.count("starting") >= one.attempt
            assert story.count("running") <= one.attempt
            assert story.count("succeeded") <= 1 + story.count("queued") - 1
            rounds = 1 + sum(story[place : place + 2] == ["retrying", "queued"] for place in range(len(story) - 1))
            assert story.count("freed") <= rounds
            assert sum(story.count(state) for state in ENDED) == rounds
            assert story[-1] == "freed"
            assert [each.number for each in one.attempts] == sorted({each.number for each in one.attempts})
            if one.state == "succeeded":
                assert (key, one.attempt) in self.cloud.won


@pytest.mark.parametrize("block", range(10))
def test_every_schedule_ends_well(block: int) -> None:
    for seed in range(block * 200, block * 200 + 200):
        world = World(seed)
        for _ in range(3):
            world.submit()
        try:
            for _ in range(120):
                world.step()
            world.settle()
            world.check()
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
