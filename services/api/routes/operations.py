"""Queue, usage, cluster, dead letters; and what is open to everybody: health, metrics, the documents."""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.api.routes.listing import Paging
from services.api.table import Answer, Call, NoBody, NoQuery, Route
from shared.contracts import training
from shared.contracts.common import ListRequest, Page
from shared.contracts.identity import DeadLetter
from shared.contracts.training import AllProjects, Cluster, ProjectRequest, QueueEntry, Usage
from shared.errors import Invalid, Unavailable
from shared.health import failing


async def _queue(call: Call[None, Paging]) -> Answer:
    request = ListRequest(project=call.project, limit=call.query.limit, cursor=call.query.cursor)
    return Answer(body=await call.gateway.bus.call(training.QUEUE, request))


async def _usage(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(training.USAGE, ProjectRequest(project=call.project)))


async def _cluster(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(training.CLUSTER, AllProjects()))


async def _dead_letters(call: Call[None, Paging]) -> Answer:
    cursor = call.query.cursor
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise Invalid.field("cursor", "is not a cursor of this list")
    page = await call.gateway.bus.dead_letters(after=int(cursor or 0), limit=call.query.limit)
    return Answer(body=page)


async def _resend(call: Call[NoBody, NoQuery]) -> Answer:
    await call.gateway.bus.resend_dead_letter(int(call.path["sequence"]))
    return Answer(status=202)


async def _drop(call: Call[None, NoQuery]) -> Answer:
    await call.gateway.bus.drop_dead_letter(int(call.path["sequence"]))
    return Answer(status=204)


async def _alive(_: Call[None, NoQuery]) -> web.Response:
    return web.json_response({"status": "ok"})


async def _ready(call: Call[None, NoQuery]) -> web.Response:
    missing = await failing(call.gateway.checks)
    if missing:
        words = "; ".join(f"{name}: {detail}" for name, detail in missing.items())
        raise Unavailable(f"not ready: {words}")
    return web.json_response({"status": "ok"})


async def _metrics(_: Call[None, NoQuery]) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _openapi(call: Call[None, NoQuery]) -> web.Response:
    return web.Response(body=call.gateway.documents["openapi"], content_type="application/json")


async def _asyncapi(call: Call[None, NoQuery]) -> web.Response:
    return web.Response(body=call.gateway.documents["asyncapi"], content_type="application/json")


ROUTES = (
    Route(
        method="GET",
        path="/v1/projects/{project}/queue",
        operation="listQueue",
        noun="training",
        summary="Trainings that wait, in the order in which they will be admitted",
        handle=_queue,
        scope="read",
        query=Paging,
        reply=Page[QueueEntry],
        verb=training.QUEUE,
    ),
    Route(
        method="GET",
        path="/v1/projects/{project}/usage",
        operation="getUsage",
        noun="training",
        summary="What a project holds now, and has used so far",
        handle=_usage,
        scope="read",
        reply=Usage,
        verb=training.USAGE,
    ),
    Route(
        method="GET",
        path="/v1/cluster",
        operation="getCluster",
        noun="cluster",
        summary="The machines: what they have and what is handed out",
        handle=_cluster,
        scope="read",
        reach="any",
        reply=Cluster,
        verb=training.CLUSTER,
    ),
    Route(
        method="GET",
        path="/v1/deadletters",
        operation="listDeadLetters",
        noun="dead letter",
        summary="Messages that a service gave up on",
        handle=_dead_letters,
        scope="admin",
        reach="everywhere",
        query=Paging,
        reply=Page[DeadLetter],
    ),
    Route(
        method="POST",
        path="/v1/deadletters/{sequence}/resend",
        operation="resendDeadLetter",
        noun="dead letter",
        summary="Send a message again",
        handle=_resend,
        scope="admin",
        reach="everywhere",
        body=NoBody,
        optional=True,
        statuses=(202,),
        problems=(404,),
    ),
    Route(
        method="DELETE",
        path="/v1/deadletters/{sequence}",
        operation="dropDeadLetter",
        noun="dead letter",
        summary="Forget a message",
        handle=_drop,
        scope="admin",
        reach="everywhere",
        statuses=(204,),
        problems=(404,),
    ),
    Route(
        method="GET",
        path="/healthz",
        operation="isAlive",
        noun="service",
        summary="The gateway runs",
        handle=_alive,
        scope=None,
        gives="application/json",
    ),
    Route(
        method="GET",
        path="/readyz",
        operation="isReady",
        noun="service",
        summary="The gateway can reach its database and the bus",
        handle=_ready,
        scope=None,
        gives="application/json",
        problems=(503,),
    ),
    Route(
        method="GET",
        path="/metrics",
        operation="readMetrics",
        noun="service",
        summary="Metrics of the gateway, in Prometheus' form",
        handle=_metrics,
        scope=None,
        gives="text/plain",
    ),
    Route(
        method="GET",
        path="/openapi.json",
        operation="readOpenApi",
        noun="service",
        summary="This document",
        handle=_openapi,
        scope=None,
        gives="application/json",
    ),
    Route(
        method="GET",
        path="/asyncapi.json",
        operation="readAsyncApi",
        noun="service",
        summary="The lifecycle events on NATS, as an AsyncAPI document",
        handle=_asyncapi,
        scope=None,
        gives="application/json",
    ),
)
