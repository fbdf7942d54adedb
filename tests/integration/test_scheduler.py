"""The scheduler room whole: real NATS, real PostgreSQL, real processes; only the datastore room is a stand-in."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Unpack

import pytest

from services.scheduler.app import compose
from services.scheduler.settings import Settings
from shared.archive import pack
from shared.bus import Bus
from shared.codec import decode_json
from shared.context import Cause, caused_by
from shared.contracts import datastore, training
from shared.contracts.common import ListRequest, Named
from shared.contracts.datastore import LocalVolume, MountableDatastore, MountReply, MountRequest
from shared.contracts.training import (
    Mount,
    Role,
    Roles,
    StopTraining,
    SubmitTraining,
    Training,
    TrainingEvent,
    TrainingSpec,
)
from shared.errors import Conflict, Invalid, NotFound
from shared.local.processes import LocalProcesses, processes_root
from tests.support.rooms import answering, running_room, until
from tests.support.trainings import Asked

ENVIRON = {"ELEARN_CPUS": "4", "ELEARN_MEMORY": "8Gi", "ELEARN_STOP_GRACE": "2"}


class House:
    """The room under test and its surroundings."""

    def __init__(self, bus: Bus, data: Path, home: Path) -> None:
        self.bus = bus
        self.data = data
        self.home = home

    async def submit(self, command: list[str], *, name: str = "digits", **fields: Unpack[Asked]) -> Training:
        spec = TrainingSpec(name=name, command=tuple(command), **fields)
        return await self.bus.call(training.SUBMIT, SubmitTraining(project="default", spec=spec))

    async def get(self, name: str) -> Training:
        return await self.bus.call(training.GET, Named(project="default", name=name))

    async def until(self, name: str, *states: str, timeout: float = 20.0) -> Training:
        return await until(lambda: self.get(name), lambda one: one.state in states, timeout=timeout)

    async def until_freed(self, name: str) -> Training:
        return await until(lambda: self.get(name), lambda one: one.freed_at is not None)

    async def events(self, name: str, last: str) -> list[str]:
        """What happened to a training, up to its event ``last``."""
        found = []
        async with (
            asyncio.timeout(15),
            contextlib.aclosing(self.bus.events(since=0, subject=f"elearn.v1.training.*.default.{name}")) as events,
        ):
            async for event in events:
                body = decode_json(TrainingEvent, bytes(event.data))
                assert body.training.name == name
                found.append(event.type.removeprefix("elearn.v1.training."))
                if found[-1] == last:
                    return found
        raise AssertionError("unreachable")


def python(code: str) -> list[str]:
    return ["python", "-c", code]


@pytest.fixture
async def house(clean_nats: str, database_url: str, tmp_path: Path) -> AsyncIterator[House]:
    data = tmp_path / "data"
    (data / "digits").mkdir(parents=True)
    (data / "runs").mkdir()

    async def mount(request: MountRequest) -> MountReply:
        there = [name for name in request.names if name in ("digits", "runs")]
        return MountReply(
            datastores=tuple(
                MountableDatastore(name=name, volume=LocalVolume(path=str(data / name)), read_only=name == "digits")
                for name in there
            ),
            missing=tuple(name for name in request.names if name not in ("digits", "runs", "slow")),
            not_ready={"slow": "provisioning"} if "slow" in request.names else {},
        )

    home = tmp_path / "home"
    environ = {**ENVIRON, "ELEARN_HOME": str(home)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRON.items():
            patch.setenv(name, value)
        async with (
            answering(clean_nats, "datastore", {datastore.MOUNT: mount}),
            running_room("scheduler", Settings, compose, clean_nats, database_url, environ) as bus,
        ):
            yield House(bus, data, home)


async def test_a_training_runs_and_is_freed(house: House) -> None:
    submitted = await house.submit(
        python("import os, pathlib; pathlib.Path('out/hello').write_text(os.environ['ELEARN_TRAINING'])"),
        mounts=(Mount(datastore="digits", path="data"), Mount(datastore="runs", path="out", own=True)),
    )
    assert submitted.name == "digits-1"
    assert submitted.state == "queued"
    done = await house.until_freed("digits-1")
    assert done.state == "succeeded", done.reason
    assert (house.data / "runs" / "digits-1" / "hello").read_text() == "digits-1"
    assert done.tasks[0].exit_code == 0
    assert await house.events("digits-1", "freed") == ["queued", "starting", "running", "succeeded", "freed"]
    assert (await house.submit(["true"])).name == "digits-2"


CLUSTER = Roles(chief=Role(cpu=0.1), worker=Role(replicas=2, cpu=0.1), ps=Role(cpu=0.1))
CHIEF_OR_SLEEP = "import os, time; os.environ['ELEARN_ROLE'] == 'chief' or time.sleep(600)"


async def used_cpu(house: House) -> float:
    cluster = await house.bus.call(training.CLUSTER, training.AllProjects())
    return cluster.nodes[0].cpu_used


async def test_the_chiefs_end_ends_the_others_and_frees_everything(house: House) -> None:
    await house.submit(python(CHIEF_OR_SLEEP), roles=CLUSTER)
    done = await house.until_freed("digits-1")
    assert done.state == "succeeded"
    assert {task.name: task.state for task in done.tasks} == {
        "chief-0": "succeeded",
        "worker-0": "stopped",
        "worker-1": "stopped",
        "ps-0": "stopped",
    }
    assert len({task.address for task in done.tasks}) == 4
    assert await used_cpu(house) == 0
    usage = await house.bus.call(training.USAGE, training.ProjectRequest(project="default"))
    assert (usage.running, usage.cpu) == (0, 0.0)
    assert usage.cpu_seconds > 0


async def test_every_task_is_told_of_its_cluster(house: House) -> None:
    code = "import os, sys; print(os.environ['TF_CONFIG'], sys.argv[1:])"
    command = [*python(code), "--me={role}:{index}", "--ps={ps_hosts}", "{other} {}"]
    await house.submit(command, roles=Roles(chief=Role(cpu=0.1), ps=Role(cpu=0.1)))
    done = await house.until_freed("digits-1")
    log = await house.bus.call(training.READ_LOG, training.ReadLog(project="default", name="digits-1", task="chief-0"))
    assert log.end
    chief, ps = (task.address for task in done.tasks)
    assert log.data.decode() == (
        f'{{"cluster":{{"chief":["{chief}"],"ps":["{ps}"]}},"task":{{"type":"chief","index":0}}}} '
        f"['--me=chief:0', '--ps={ps}', '{{other}} {{}}']\n"
    )


async def test_a_failing_chief_is_retried_in_the_same_folder_while_retries_last(house: House) -> None:
    code = (
        "import os, pathlib, sys; n = int(os.environ['ELEARN_ATTEMPT']);"
        "assert len(os.listdir('out')) == n - 1; pathlib.Path(f'out/{n}').touch(); sys.exit(n < 3 and 'not yet')"
    )
    mounts = (Mount(datastore="runs", path="out", own=True),)
    await house.submit(python(code), mounts=mounts, retries=2)
    done = await house.until_freed("digits-1")
    assert (done.state, done.attempt) == ("succeeded", 3), done.reason
    assert [attempt.state for attempt in done.attempts] == ["failed", "failed", "succeeded"]
    assert done.attempts[0].reason == "chief-0 ended with exit code 1: not yet"
    assert all(attempt.freed_at for attempt in done.attempts)
    assert (await house.events("digits-1", "freed")).count("retrying") == 2

    await house.submit(python("raise SystemExit(3)"), retries=1)
    failed = await house.until_freed("digits-2")
    assert (failed.state, failed.attempt) == ("failed", 2)
    assert failed.reason == "chief-0 ended with exit code 3 (attempt 2)"


async def kill_task(house: House, one: Training, task: training.Task) -> None:
    """kill -9 of a task's own process, and of no other on this machine."""
    processes = LocalProcesses(processes_root(house.home, "scheduler"))
    status = await processes.status(f"t.default.{one.name}.{one.attempt}.{task.name}")
    assert status is not None
    assert status.task is not None
    os.kill(status.task.pid, signal.SIGKILL)


async def test_a_killed_worker_comes_back_on_its_address_and_a_killed_ps_makes_the_next_attempt(
    house: House,
) -> None:
    await house.submit(python("import time; time.sleep(600)"), roles=CLUSTER, retries=1)
    running = await house.until("digits-1", "running")
    worker = next(task for task in running.tasks if task.name == "worker-1")
    await kill_task(house, running, worker)

    def came_back(one: Training) -> bool:
        task = next(task for task in one.tasks if task.name == "worker-1")
        return task.restarts == 1 and task.state == "running" and task.address == worker.address

    after = await until(lambda: house.get("digits-1"), came_back)
    assert (after.state, after.attempt) == ("running", 1)

    await kill_task(house, running, next(task for task in running.tasks if task.role == "ps"))
    second = await until(lambda: house.get("digits-1"), lambda one: one.attempt == 2 and one.state == "running")
    assert second.attempts[0].reason == "ps-0 was ended by signal 9"
    stopped = await house.bus.call(training.STOP, StopTraining(project="default", name="digits-1", reason="enough"))
    assert (stopped.state, stopped.reason) == ("stopped", "enough")
    assert (await house.until_freed("digits-1")).state == "stopped"
    assert await used_cpu(house) == 0


async def test_a_mirrored_workers_death_fails_the_attempt(house: House) -> None:
    roles = Roles(chief=Role(cpu=0.1), worker=Role(cpu=0.1))
    await house.submit(python("import time; time.sleep(600)"), roles=roles)
    running = await house.until("digits-1", "running")
    await kill_task(house, running, running.tasks[1])
    failed = await house.until_freed("digits-1")
    assert (failed.state, failed.reason) == ("failed", "worker-0 was ended by signal 9")


async def test_the_queue_says_what_it_waits_for(house: House) -> None:
    await house.submit(python("import time; time.sleep(600)"), roles=Roles(chief=Role(cpu=3)))
    await house.until("digits-1", "running")
    await house.submit(["true"], name="big", roles=Roles(chief=Role(cpu=2)))
    await house.submit(["true"], name="small", roles=Roles(chief=Role(cpu=1)))
    queue = await house.bus.call(training.QUEUE, ListRequest(project="default"))
    reasons = {entry.name: entry.reason for entry in queue.items}
    assert reasons == {
        "big-1": "waiting for 2 CPUs: 3 of 4 in use by default/digits-1; first in queue",
        "small-1": "behind default/big-1, which waits for 2 CPUs; second in queue",
    }
    assert (await house.get("big-1")).reason == reasons["big-1"]
    listed = await house.bus.call(training.LIST, ListRequest(project="default", state="queued"))
    assert {one.name: one.reason for one in listed.items} == reasons
    plan = await house.bus.call(
        training.PLAN,
        SubmitTraining(project="default", spec=TrainingSpec(name="next", command=("true", "{role}"))),
    )
    assert (plan.name, plan.fits_now, plan.tasks[0].command) == ("next-1", False, ("true", "chief"))
    assert plan.reason.endswith("third in queue")
    await house.bus.call(training.STOP, StopTraining(project="default", name="digits-1"))
    for name in ("big-1", "small-1"):
        assert (await house.until_freed(name)).state == "succeeded"


async def test_a_deadline_ends_it(house: House) -> None:
    await house.submit(python("import time; time.sleep(600)"), deadline=0.5, retries=3)
    ended = await house.until_freed("digits-1")
    assert (ended.state, ended.reason) == ("failed", "its deadline of 0.5 s has passed")


async def test_logs_are_followed_kept_and_deleted(house: House) -> None:
    await house.submit(python("import time; print('begin'); time.sleep(0.3); print('end')"))
    text, offset = b"", 0
    while True:
        chunk = await house.bus.call(
            training.READ_LOG,
            training.ReadLog(project="default", name="digits-1", task="chief-0", offset=offset, wait=10),
        )
        text, offset = text + chunk.data, chunk.offset + len(chunk.data)
        if chunk.end:
            break
    assert text == b"begin\nend\n"
    await house.until_freed("digits-1")
    last = await house.bus.call(
        training.READ_LOG, training.ReadLog(project="default", name="digits-1", task="chief-0", offset=-4)
    )
    assert last.data == b"end\n"
    with pytest.raises(NotFound, match="it has chief-0"):
        await house.bus.call(training.READ_LOG, training.ReadLog(project="default", name="digits-1", task="worker-7"))
    await house.bus.call(training.DELETE, Named(project="default", name="digits-1"))
    with pytest.raises(NotFound):
        await house.get("digits-1")
    folder = house.home / "trainings" / "default" / "digits-1"

    async def is_there() -> bool:
        return folder.exists()

    await until(is_there, lambda there: not there)
    assert (await house.submit(["true"])).name == "digits-2"


async def test_stop_retry_and_delete_know_the_state(house: House) -> None:
    await house.submit(python("import time; time.sleep(600)"))
    await house.until("digits-1", "running")
    named = Named(project="default", name="digits-1")
    with pytest.raises(Conflict, match="only one that has ended"):
        await house.bus.call(training.RETRY, named)
    with pytest.raises(Conflict, match="stop it before"):
        await house.bus.call(training.DELETE, named)
    freed = await house.bus.call(training.FREE, named)
    assert freed.state == "stopped"
    await house.until_freed("digits-1")
    again = await house.bus.call(training.RETRY, named)
    assert (again.state, again.freed_at) == ("queued", None)
    second = await house.until("digits-1", "running")
    assert second.attempt == 2
    await house.bus.call(training.STOP, StopTraining(project="default", name="digits-1"))
    await house.until_freed("digits-1")
    with pytest.raises(NotFound):
        await house.bus.call(training.STOP, StopTraining(project="default", name="nothing-1"))


async def test_every_wrong_field_is_named_and_nothing_is_left_behind(house: House) -> None:
    with pytest.raises(Invalid) as refused:
        await house.submit(
            ["no-such-program"],
            code="sha256:" + "0" * 64,
            env={"TF_CONFIG": "x", "1A": "y"},
            mounts=(
                Mount(datastore="nowhere", path="a"),
                Mount(datastore="slow", path="../b"),
                Mount(datastore="runs", path="a/c"),
            ),
            roles=Roles(chief=Role(gpu=1, cpu=5), worker=Role(memory="2Q")),
            deadline="soon",
            labels={"a b": "c"},
            tensorboard="elsewhere",
        )
    assert {error.field for error in refused.value.errors} == {
        "command",
        "code",
        "env.TF_CONFIG",
        "env.1A",
        "mounts.0.datastore",
        "mounts.1.datastore",
        "mounts.1.path",
        "mounts.2.path",
        "roles.worker.memory",
        "deadline",
        "labels.a b",
        "tensorboard",
    }
    with pytest.raises(Invalid) as refused:
        await house.submit(["true"], roles=Roles(chief=Role(gpu=1, cpu=5)))
    assert {error.field: error.message for error in refused.value.errors} == {
        "roles.chief.gpu": "a task asks for 1 GPU; the largest that would fit is 0 GPUs",
        "roles.chief.cpu": "a task asks for 5 CPUs; the largest that would fit is 4 CPUs",
    }
    page = await house.bus.call(training.LIST, ListRequest(project="default"))
    assert page.items == ()
    assert (await house.submit(["true"])).name == "digits-1"


async def test_code_arrives_in_parts_and_becomes_the_working_directory(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train.py").write_text("import helper; print(helper.WORD)")
    (folder / "helper.py").write_text("WORD = 'unpacked'")
    packed = pack(folder, tmp_path / "code.tar.gz")
    data = (tmp_path / "code.tar.gz").read_bytes()
    half = len(data) // 2

    async def put(offset: int, part: bytes, *, end: bool = False, digest: str = packed.digest) -> None:
        await house.bus.call(
            training.PUT_CODE,
            training.CodeChunk(project="default", digest=digest, upload="u1", offset=offset, data=part, end=end),
        )

    wrong = "sha256:" + "1" * 64
    with pytest.raises(Invalid, match="hash to"):
        await put(0, data, end=True, digest=wrong)
    with pytest.raises(NotFound, match="PUT /v1/projects/default/code/"):
        await house.bus.call(training.STAT_CODE, training.CodeRequest(project="default", digest=wrong))
    with pytest.raises(Conflict, match="not begun"):
        await put(half, data[half:])
    await put(0, data[:half])
    await put(0 + half, data[half:], end=True)
    await put(half, data[half:], end=True)  # the answer was lost, the part is sent again
    stat = await house.bus.call(training.STAT_CODE, training.CodeRequest(project="default", digest=packed.digest))
    assert stat.size == len(data)
    read = await house.bus.call(
        training.READ_CODE, training.ReadCode(project="default", digest=packed.digest, offset=half)
    )
    assert read.end
    assert read.data == data[half:]

    await house.submit(["python", "train.py"], code=packed.digest, roles=CLUSTER)
    done = await house.until_freed("digits-1")
    assert done.state == "succeeded", done.reason
    log = await house.bus.call(training.READ_LOG, training.ReadLog(project="default", name="digits-1", task="chief-0"))
    assert log.data == b"unpacked\n"


async def test_outputs_are_found_in_their_datastore(house: House) -> None:
    mounts = (Mount(datastore="digits", path="data", read_only=True), Mount(datastore="runs", path="out", own=True))
    await house.submit(["true"], mounts=mounts)
    found = await house.bus.call(
        training.FIND_OUTPUT, training.FindOutput(project="default", name="digits-1", path="out/export")
    )
    assert (found.datastore, found.path) == ("runs", "digits-1/export")
    assert [mount.datastore for mount in found.lineage.inputs] == ["digits"]
    with pytest.raises(Invalid, match="lies below no mount"):
        await house.bus.call(
            training.FIND_OUTPUT, training.FindOutput(project="default", name="digits-1", path="elsewhere")
        )


async def test_lists_page_and_filter(house: House) -> None:
    for number in range(5):
        await house.submit(["true"], name="odd" if number % 2 else "even", labels={"n": str(number)})
    found: list[str] = []
    cursor = None
    while True:
        page = await house.bus.call(training.LIST, ListRequest(project="default", limit=2, cursor=cursor))
        found += [one.name for one in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert found == ["even-3", "odd-2", "even-2", "odd-1", "even-1"]
    page = await house.bus.call(training.LIST, ListRequest(project="default", labels={"n": "3"}))
    assert [one.name for one in page.items] == ["odd-2"]
    for request in (ListRequest(project="default", state="done"), ListRequest(project="default", cursor="x")):
        with pytest.raises(Invalid):
            await house.bus.call(training.LIST, request)


async def test_one_request_sent_twice_under_one_key_is_one_training(house: House) -> None:
    with caused_by(Cause(actor="alice", idempotency_key="k1")):
        first = await house.submit(["true"])
        again = await house.submit(["true"])
        with pytest.raises(Conflict, match="Idempotency-Key"):
            await house.submit(["false"])
    assert (first.name, again.name, first.created_by) == ("digits-1", "digits-1", "alice")
    assert (await house.submit(["true"])).name == "digits-2"
