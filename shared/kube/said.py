"""What the cluster says of an object: its events, in one line."""

from datetime import UTC, datetime
from typing import Final

from shared.errors import Forbidden
from shared.kube.client import Cluster
from shared.kube.objects import Event
from shared.kube.resources import EVENTS, Resource

_WORDS: Final = 300
_HOW: Final = "\nMounting command:"
_OUTPUT: Final = "\nOutput: "
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


async def last_words(cluster: Cluster, resource: Resource, name: str, namespace: str) -> str:
    """The last warning about an object, or ""; also where we may not read events."""
    fields = {"involvedObject.kind": resource.kind, "involvedObject.name": name}
    try:
        events = await cluster.list(EVENTS, Event, namespace=namespace, fields=fields, ours=False)
    except Forbidden:
        return ""
    warnings = [event for event in events if event.type == "Warning"]
    if not warnings:
        return ""
    last = max(warnings, key=lambda event: event.last_timestamp or event.event_time or _LONG_AGO)
    return in_a_line(last.reason or "", last.message or "")


def in_a_line(reason: str, message: str) -> str:
    """An event in one line, as much as is shown; of a mount that failed, what it said and not how it was called."""
    told, _, output = message.partition(_OUTPUT)
    if output:
        message = f"{told.partition(_HOW)[0]}: {output}"
    return " ".join(f"{reason}: {message}".split())[:_WORDS]
