"""``/v1/projects/{project}/datastores``: make, look at, probe and delete; announce arrived data."""

import asyncio

from services.api.routes.listing import Datastores, list_request
from services.api.table import Answer, Call, NoBody, NoQuery, Route
from shared.contracts import datastore
from shared.contracts.common import Named, Page
from shared.contracts.datastore import Arrival, Arrived, CreateDatastore, Datastore, DatastoreSpec, Probe
from shared.errors import NotFound, Unavailable

BASE = "/v1/projects/{project}/datastores"
_PROBE_SECONDS = 30.0
_READY_SECONDS = 1.0
_LOOK_AGAIN_SECONDS = 0.02


def _location(made: Datastore) -> str:
    return f"/v1/projects/{made.project}/datastores/{made.name}"


async def _create(call: Call[DatastoreSpec, NoQuery]) -> Answer:
    """Make a datastore; what is ready in a moment is waited for, so that it can be used at once."""
    bus = call.gateway.bus
    made = await bus.call(datastore.CREATE, CreateDatastore(project=call.project, spec=call.body))
    loop = asyncio.get_running_loop()
    until = loop.time() + _READY_SECONDS
    while made.state == "provisioning" and loop.time() < until:
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        try:
            made = await bus.call(datastore.GET, Named(project=made.project, name=made.name))
        except (NotFound, Unavailable):
            break  # it was made; what became of it since is for the next request to tell
    return Answer(body=made, status=202 if made.state == "provisioning" else 201, location=_location(made))


async def _list(call: Call[None, Datastores]) -> Answer:
    return Answer(body=await call.gateway.bus.call(datastore.LIST, list_request(call.project, call.query)))


async def _get(call: Call[None, NoQuery]) -> Answer:
    return Answer(body=await call.gateway.bus.call(datastore.GET, Named(project=call.project, name=call.name)))


async def _delete(call: Call[None, NoQuery]) -> Answer:
    await call.gateway.bus.call(datastore.DELETE, Named(project=call.project, name=call.name))
    return Answer(status=204)


async def _probe(call: Call[NoBody, NoQuery]) -> Answer:
    request = Named(project=call.project, name=call.name)
    return Answer(body=await call.gateway.bus.call(datastore.PROBE, request, timeout=_PROBE_SECONDS))


async def _arrived(call: Call[Arrival, NoQuery]) -> Answer:
    request = Arrived(project=call.project, name=call.name, arrival=call.body)
    await call.gateway.bus.call(datastore.ARRIVED, request)
    return Answer(status=202)


ROUTES = (
    Route(
        method="POST",
        path=BASE,
        operation="createDatastore",
        noun="datastore",
        summary="Name a directory over some storage backend",
        handle=_create,
        scope="write",
        body=DatastoreSpec,
        reply=Datastore,
        statuses=(201, 202),
        problems=(409,),
        verb=datastore.CREATE,
        example={"name": "digits", "local": {"path": "/srv/data/digits"}},
    ),
    Route(
        method="GET",
        path=BASE,
        operation="listDatastores",
        noun="datastore",
        summary="List datastores",
        handle=_list,
        scope="read",
        query=Datastores,
        reply=Page[Datastore],
        verb=datastore.LIST,
    ),
    Route(
        method="GET",
        path=BASE + "/{name}",
        operation="getDatastore",
        noun="datastore",
        summary="Look at a datastore",
        handle=_get,
        scope="read",
        reply=Datastore,
        problems=(404,),
        verb=datastore.GET,
    ),
    Route(
        method="DELETE",
        path=BASE + "/{name}",
        operation="deleteDatastore",
        noun="datastore",
        summary="Forget a datastore that no training mounts",
        handle=_delete,
        scope="write",
        statuses=(204,),
        problems=(404, 409),
        verb=datastore.DELETE,
    ),
    Route(
        method="POST",
        path=BASE + "/{name}/probe",
        operation="probeDatastore",
        noun="datastore",
        summary="Try whether a datastore can be read and written now",
        handle=_probe,
        scope="write",
        body=NoBody,
        optional=True,
        audited=False,
        reply=Probe,
        problems=(404,),
        verb=datastore.PROBE,
    ),
    Route(
        method="POST",
        path=BASE + "/{name}/arrivals",
        operation="announceArrival",
        noun="datastore",
        summary="Say that data has arrived: publishes elearn.v1.data.arrived",
        handle=_arrived,
        scope="write",
        body=Arrival,
        optional=True,
        statuses=(202,),
        problems=(404,),
        verb=datastore.ARRIVED,
        example={"path": "2026-01-31", "version": "7"},
    ),
)
