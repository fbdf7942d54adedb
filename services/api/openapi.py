"""The table of routes as an OpenAPI 3.1 document. Pure."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from services.api.parameters import PATH_PARAMETERS, names_in
from services.api.schemas import Schema, schemas_of, told_of
from services.api.table import AnyRoute
from shared.contracts.problem import Problem

_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_ALWAYS: Final = (500, 503)
_WORDS: Final = {
    400: "The body can't be read: not JSON, not an archive.",
    401: "No token, or one that is not good.",
    403: "The token may not do this.",
    404: "There is no such thing, or no such project.",
    405: "The path has no such method; `Allow` names those it has.",
    409: "The state of the thing forbids it.",
    413: "The body is over the limit.",
    416: "The range lies outside; `Content-Range` tells the size.",
    422: "A field or query parameter can't be accepted; `errors` names each.",
    500: "The gateway's or a service's own fault.",
    501: "This cloud or release can't do it, and says why.",
    503: "A service, its database or the bus is away; `Retry-After` tells when to try again.",
    507: "There is no room to keep it.",
}
_SUCCESS: Final = {
    200: "Done.",
    201: "Made.",
    202: "Accepted; it goes on behind the answer.",
    204: "Done; there is nothing to say.",
    206: "The part that was asked for.",
    303: "Go on without the token in the address.",
    304: "It has not changed.",
    308: "It is one slash further.",
}
_PATH_WORDS: Final = {
    "project": "The project; `default` always exists.",
    "name": "The name of the thing.",
    "alias": "The alias, such as `champion`.",
    "n": "The version's number.",
    "sequence": "The letter's place in the stream of dead letters.",
    "digest": "SHA-256 of the archive's bytes.",
    "path": "A path, slashes included.",
}
_HEADERS: Final[dict[str, str]] = {
    "Retry-After": "Seconds until another try makes sense.",
    "WWW-Authenticate": "How to authenticate.",
    "Allow": "The methods that the path has.",
    "Content-Range": "The size of the whole.",
}
_HEADER_OF: Final = {401: "WWW-Authenticate", 405: "Allow", 416: "Content-Range", 503: "Retry-After"}


def openapi(routes: Sequence[AnyRoute], version: str) -> Schema:
    """The document.

    Args:
        version: of elearn.
    """
    told = [route for route in routes if route.documented]
    types: list[Any] = [Problem]
    for route in told:
        types += [route.body] if route.body is not None else []
        types += [route.reply] if route.reply is not None else []
        types += [route.or_else] if route.or_else is not None else []
        types += [*route.replies.values(), route.query]
    references, components = schemas_of(types)
    by_type = dict(zip(map(str, types), references, strict=True))
    queries = {route.query.__name__ for route in told}
    paths: dict[str, Schema] = {}
    for route in told:
        query = components[_component(by_type[str(route.query)])]
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, by_type, query)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "elearn",
            "version": version,
            "description": "TensorFlow as a Service: clusters, directories, model versions and serving.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The gateway that this document was fetched from."}],
        "security": [{"token": []}],
        "tags": [{"name": noun} for noun in dict.fromkeys(route.noun for route in told)],
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in components.items() if name not in queries},
            "responses": {_response_name(status): _problem(status) for status in sorted(_WORDS)},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Made with POST /v1/tokens; that of `elearn up` lies in $ELEARN_HOME/token.",
                }
            },
        },
    }


def _operation(route: AnyRoute, by_type: dict[str, Schema], query: Schema) -> Schema:
    operation: Schema = {
        "operationId": route.operation,
        "tags": [route.noun],
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route, query), *_header_parameters(route)],
        "responses": {
            **{str(status): _success(route, status, by_type) for status in route.statuses},
            **{
                str(status): {"$ref": f"#/components/responses/{_response_name(status)}"}
                for status in sorted(_problems(route))
            },
        },
    }
    if route.scope is None:
        operation["security"] = []
    else:
        operation["x-elearn-scope"] = route.scope
    if route.verb is not None:
        operation["x-elearn-verb"] = f"{route.verb.service}.{route.verb.name}"
    content = _request_content(route, by_type)
    if content is not None:
        operation["requestBody"] = {"required": not route.optional, "content": content}
    return operation


def _request_content(route: AnyRoute, by_type: dict[str, Schema]) -> Schema | None:
    example = {} if route.example is None else {"example": route.example}
    if route.body is not None:
        return {"application/json": {"schema": by_type[str(route.body)], **example}}
    if route.takes is not None:
        schema: Schema = {"type": "object"} if route.takes == "application/json" else {}
        return {route.takes: {"schema": schema, **example}}
    return None


def _path_parameters(route: AnyRoute) -> list[Schema]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_WORDS[name],
            "schema": PATH_PARAMETERS[name].schema,
        }
        for name in names_in(route.path)
    ]


def _query_parameters(route: AnyRoute, query: Schema) -> list[Schema]:
    _, words = told_of(route.query)
    parameters = []
    for name, schema in query.get("properties", {}).items():
        bare = {key: value for key, value in schema.items() if key not in ("description", "default")}
        shown = [each for each in bare.get("anyOf", []) if each != {"type": "null"}]
        final: Schema = shown[0] if len(shown) == 1 else bare
        if schema.get("default") not in (None, [], ""):
            final = {**final, "default": schema["default"]}
        parameter: Schema = {"name": name, "in": "query", "description": words.get(name, ""), "schema": final}
        if final.get("type") == "array":
            parameter |= {"style": "form", "explode": True}
        parameters.append(parameter)
    if route.raw_query:
        parameters.append(
            {
                "name": "token",
                "in": "query",
                "description": "A token, exchanged at once for a cookie of this board.",
                "schema": {"type": "string"},
            }
        )
    return parameters


def _header_parameters(route: AnyRoute) -> list[Schema]:
    heeded = dict(route.reads)
    if route.changes and route.method == "POST":
        heeded["Idempotency-Key"] = "The same request again under the same key takes effect once."
    return [
        {"name": name, "in": "header", "description": words, "schema": {"type": "string"}}
        for name, words in heeded.items()
    ]


def _success(route: AnyRoute, status: int, by_type: dict[str, Schema]) -> Schema:
    response: Schema = {"description": _SUCCESS[status]}
    headers = {name: _header(words) for name, words in route.sets.items()}
    if status in (201, 202, 303, 308) and route.method in ("POST", "PUT", "GET"):
        headers["Location"] = _header("Where the thing is.")
    if status == 206:
        headers["Content-Range"] = _header("Which bytes these are, and the size of the whole.")
    if headers:
        response["headers"] = headers
    if status in (204, 303, 304, 308):
        return response
    content: Schema = {}
    if route.reply is not None and route.gives != "text/event-stream" and status != 206:
        reply = route.replies.get(status, route.reply)
        shown: Schema = by_type[str(reply)]
        if route.or_else is not None:
            shown = {"anyOf": [shown, by_type[str(route.or_else)]]}
        content["application/json"] = {"schema": shown}
    if route.gives is not None:
        schema: Schema = {"type": "string"} if route.gives.startswith("text/") else {}
        if route.reply is not None and route.gives == "text/event-stream":
            schema["description"] = "`id:` is the sequence, `data:` an Event in JSON."
        content[route.gives] = {"schema": schema}
    if content:
        response["content"] = content
    return response


def _problems(route: AnyRoute) -> set[int]:
    statuses = {*_ALWAYS, *route.problems}
    if route.scope is not None:
        statuses |= {401, 403}
    if "project" in names_in(route.path):
        statuses.add(404)
    if route.body is not None:
        statuses |= {400, 413, 422}
    if route.takes is not None:
        statuses |= {400, 413, 422, 507}
    if msgspec.structs.fields(route.query) or route.new:
        statuses.add(422)
    return statuses


def _problem(status: int) -> Schema:
    response: Schema = {"description": _WORDS[status], "content": _PROBLEM}
    header = _HEADER_OF.get(status)
    if header is not None:
        response["headers"] = {header: _header(_HEADERS[header])}
    return response


def _header(words: str) -> Schema:
    return {"description": words, "schema": {"type": "string"}}


def _response_name(status: int) -> str:
    return f"Problem{status}"


def _component(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]
