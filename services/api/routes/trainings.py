"""``/v1/projects/{project}/trainings``: submit, watch, stop, free, retry and delete."""

from typing import Annotated

import msgspec

from services.api.middleware import UNCHANGED
from services.api.routes.listing import Trainings, list_request
from services.api.table import Answer, Call, NoBody, NoQuery, Route
from shared.contracts import training
from shared.contracts.common import Named, Page
from shared.contracts.rpc import Verb
from shared.contracts.training import (
    ENDED,
    Attempt,
    Plan,
    StopTraining,
    SubmitTraining,
    Task,
    Training,
    TrainingSpec,
)
from shared.errors import NotFound

BASE = "/v1/projects/{project}/trainings"


class Submit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to submit.

    Attributes:
        dry_run: only answer what would be done.
    """

    dry_run: bool = False


class Stop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a training is stopped; it becomes a part of its ``reason``."""

    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""


class WhichAttempt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Attributes:
    attempt: number of the attempt; without it, the current one.
    """

    attempt: Annotated[int, msgspec.Meta(ge=1)] | None = None


def _location(made: Training) -> str:
    return f"/v1/projects/{made.project}/trainings/{made.name}"


async def _submit(call: Call[TrainingSpec, Submit]) -> Answer:
    request = SubmitTraining(project=call.project, spec=call.body)
    if call.query.dry_run:
        call.request[UNCHANGED] = True
        return Answer(body=await call.gateway.bus.call(training.PLAN, request))
    made = await call.gateway.bus.call(training.SUBMIT, request)
    return Answer(body=made, status=201, location=_location(made))


async def _list(call: Call[None, Trainings]) -> Answer:
    return Answer(body=await call.gateway.bus.call(training.LIST, list_request(call.project, call.query)))


async def _get(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(training.GET, Named(project=call.project, name=call.name)))


async def _delete(call: Call[None, NoQuery]) -> Answer:
    await call.gateway.bus.call(training.DELETE, Named(project=call.project, name=call.name))
    return Answer(status=204)


def _accepted(changed: Training) -> Answer:
    """200 where all is done, 202 where it goes on behind the answer."""
    done = changed.state in ENDED and changed.freed_at is not None
    return Answer(body=changed, status=200 if done else 202, location=_location(changed))


async def _stop(call: Call[Stop, NoQuery]) -> Answer:
    request = StopTraining(project=call.project, name=call.name, reason=call.body.reason)
    return _accepted(await call.gateway.bus.call(training.STOP, request))


async def _ask(call: Call[NoBody, NoQuery], verb: Verb[Named, Training]) -> Answer:
    return _accepted(await call.gateway.bus.call(verb, Named(project=call.project, name=call.name)))


async def _free(call: Call[NoBody, NoQuery]) -> Answer:
    return await _ask(call, training.FREE)


async def _retry(call: Call[NoBody, NoQuery]) -> Answer:
    return await _ask(call, training.RETRY)


def attempt_of(found: Training, number: int | None) -> Attempt:
    """An attempt of a training, the current one where no number is given.

    Raises:
        NotFound: it has no such attempt.
    """
    if number is None or number == found.attempt:
        return Attempt(number=found.attempt, state=found.state, reason=found.reason, tasks=found.tasks)
    for attempt in found.attempts:
        if attempt.number == number:
            return attempt
    raise NotFound(f"training {found.name!r} has no attempt {number}; its latest is {found.attempt}")


async def _tasks(call: Call[None, WhichAttempt]) -> Answer:
    found = await call.gateway.bus.call(training.GET, Named(project=call.project, name=call.name))
    return Answer(body=Page(items=attempt_of(found, call.query.attempt).tasks))


_EXAMPLE = {
    "name": "digits",
    "command": ["python", "train.py", "--data", "data/digits", "--out", "out"],
    "mounts": [
        {"datastore": "digits", "path": "data/digits", "read_only": True},
        {"datastore": "runs", "path": "out", "own": True},
    ],
    "roles": {
        "chief": {"cpu": 1, "memory": "2Gi"},
        "worker": {"replicas": 2, "cpu": 1, "memory": "2Gi"},
        "ps": {"replicas": 1},
    },
    "retries": 2,
    "deadline": "2h",
    "labels": {"team": "search"},
    "save": {"model": "digits", "path": "out/export"},
}

ROUTES = (
    Route(
        method="POST",
        path=BASE,
        operation="submitTraining",
        noun="training",
        summary="Submit a training; with dry_run=true, answer what would be done",
        handle=_submit,
        scope="write",
        body=TrainingSpec,
        query=Submit,
        reply=Training,
        replies={200: Plan},
        statuses=(201, 200),
        problems=(409,),
        verb=training.SUBMIT,
        example=_EXAMPLE,
    ),
    Route(
        method="GET",
        path=BASE,
        operation="listTrainings",
        noun="training",
        summary="List trainings",
        handle=_list,
        scope="read",
        query=Trainings,
        reply=Page[Training],
        verb=training.LIST,
    ),
    Route(
        method="GET",
        path=BASE + "/{name}",
        operation="getTraining",
        noun="training",
        summary="Look at a training",
        handle=_get,
        scope="read",
        reply=Training,
        problems=(404,),
        verb=training.GET,
    ),
    Route(
        method="DELETE",
        path=BASE + "/{name}",
        operation="deleteTraining",
        noun="training",
        summary="Delete the record and logs of a training that has ended",
        handle=_delete,
        scope="write",
        statuses=(204,),
        problems=(404, 409),
        verb=training.DELETE,
    ),
    Route(
        method="POST",
        path=BASE + "/{name}/stop",
        operation="stopTraining",
        noun="training",
        summary="Stop a training and free its compute",
        handle=_stop,
        scope="write",
        body=Stop,
        optional=True,
        reply=Training,
        statuses=(202, 200),
        problems=(404, 409),
        verb=training.STOP,
        example={"reason": "the data was wrong"},
    ),
    Route(
        method="POST",
        path=BASE + "/{name}/free",
        operation="freeTraining",
        noun="training",
        summary="Free the compute that an ended training still holds",
        handle=_free,
        scope="write",
        body=NoBody,
        optional=True,
        reply=Training,
        statuses=(202, 200),
        problems=(404, 409),
        verb=training.FREE,
    ),
    Route(
        method="POST",
        path=BASE + "/{name}/retry",
        operation="retryTraining",
        noun="training",
        summary="Start another attempt of a training that has ended",
        handle=_retry,
        scope="write",
        body=NoBody,
        optional=True,
        reply=Training,
        statuses=(202, 200),
        problems=(404, 409),
        verb=training.RETRY,
    ),
    Route(
        method="GET",
        path=BASE + "/{name}/tasks",
        operation="listTasks",
        noun="training",
        summary="List the tasks of an attempt",
        handle=_tasks,
        scope="read",
        query=WhichAttempt,
        reply=Page[Task],
        problems=(404,),
        verb=training.GET,
    ),
)
