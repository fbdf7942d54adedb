"""The lifecycle events as an AsyncAPI 3 document. Pure."""

from typing import Any, Final

import msgspec

from services.api.schemas import Schema, schemas_of
from shared.contracts.common import NAME_PATTERN
from shared.contracts.datastore import ArrivalEvent, DatastoreEvent
from shared.contracts.event import NOUNS, PREFIX, STREAM
from shared.contracts.identity import ProjectEvent
from shared.contracts.model import AliasEvent, ModelEvent, VersionEvent
from shared.contracts.serving import ServingEvent
from shared.contracts.training import TaskEvent, TrainingEvent

BODIES: Final[dict[str, type[msgspec.Struct]]] = {
    "training": TrainingEvent,
    "task": TaskEvent,
    "datastore": DatastoreEvent,
    "data": ArrivalEvent,
    "version": VersionEvent,
    "alias": AliasEvent,
    "model": ModelEvent,
    "serving": ServingEvent,
    "project": ProjectEvent,
}
"""What the body of each noun's events is."""

_NAMED_BY: Final = {
    "training": "the training",
    "task": "the training that the task belongs to",
    "datastore": "the datastore",
    "data": "the datastore in which the data lies",
    "version": "the model",
    "alias": "the model",
    "model": "the model",
    "serving": "the serving",
    "project": "the project, once more",
}
_HEADERS: Final[Schema] = {
    "type": "object",
    "required": ["ce-id", "ce-source", "ce-type", "ce-time", "ce-specversion"],
    "properties": {
        "ce-specversion": {"const": "1.0"},
        "ce-id": {"type": "string", "description": "The event's id; the same if it is published again."},
        "ce-source": {"type": "string", "description": "The service that says so, such as `elearn/scheduler`."},
        "ce-type": {"type": "string", "description": f"`{PREFIX}.<noun>.<event>`."},
        "ce-time": {"type": "string", "format": "date-time"},
        "Nats-Msg-Id": {"type": "string", "description": "The event's id, for JetStream's own deduplication."},
        "traceparent": {"type": "string", "description": "W3C trace context of what led to the event."},
        "elearn-causation": {"type": "string", "description": "The id of the event that led to this one."},
        "elearn-actor": {"type": "string", "description": "The token, or the service, that asked for it."},
    },
}


def asyncapi(version: str) -> Schema:
    """The document.

    Args:
        version: of elearn.
    """
    references, components = schemas_of(BODIES.values())
    payloads = dict(zip(BODIES, references, strict=True))
    channels: dict[str, Schema] = {}
    operations: dict[str, Schema] = {}
    for noun, events in NOUNS.items():
        for event in events:
            key = f"{noun}.{event}"
            channels[key] = _channel(noun, event)
            operations[f"publish.{key}"] = _operation("send", key, noun)
            if noun == "data":
                operations[f"consume.{key}"] = _operation("receive", key, noun)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "elearn lifecycle events",
            "version": version,
            "description": (
                f"Everything that happens, on NATS JetStream (stream `{STREAM}`), as CloudEvents 1.0 in binary "
                f"form: attributes in headers, the body as JSON. `{PREFIX}.training.failed.>` is an alarm, "
                f"`{PREFIX}.*.*.search.>` the feed of project `search`."
            ),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "ELEARN_NATS_URL"}},
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": {noun: _message(noun, payloads[noun]) for noun in BODIES},
            "parameters": {
                "project": {"description": f"The project; matches `{NAME_PATTERN}`."},
                **{noun: {"description": f"The name of {words}."} for noun, words in _NAMED_BY.items()},
            },
            "schemas": components,
        },
    }


def _channel(noun: str, event: str) -> Schema:
    return {
        "address": f"{PREFIX}.{noun}.{event}.{{project}}.{{name}}",
        "title": f"{noun} {event}",
        "servers": [{"$ref": "#/servers/nats"}],
        "parameters": {
            "project": {"$ref": "#/components/parameters/project"},
            "name": {"$ref": f"#/components/parameters/{noun}"},
        },
        "messages": {noun: {"$ref": f"#/components/messages/{noun}"}},
    }


def _operation(action: str, channel: str, noun: str) -> Schema:
    place = f"#/channels/{channel}"
    words: dict[str, Any] = (
        {"summary": "Data pipelines publish this; plain JSON without headers will do."} if action == "receive" else {}
    )
    return {
        "action": action,
        "channel": {"$ref": place},
        "messages": [{"$ref": f"{place}/messages/{noun}"}],
        **words,
    }


def _message(noun: str, payload: Schema) -> Schema:
    return {
        "name": noun,
        "title": f"What happened to a {noun}" if noun != "data" else "Data has arrived",
        "contentType": "application/json",
        "headers": _HEADERS,
        "payload": payload,
    }
