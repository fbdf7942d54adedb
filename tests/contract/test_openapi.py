"""The published contracts: not drifted from the code, valid by the published rules, and complete."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from openapi_spec_validator import validate

from services.api.asyncapi import BODIES
from services.api.contracts import drifted, main
from services.api.routes.everything import ROUTES
from shared.codec import decode_json
from shared.contracts.event import NOUNS

FOLDER = Path(__file__).parents[2] / "docs" / "contracts"

PROMISED = """
POST,GET datastores
GET,DELETE datastores/{name}
GET,PUT,DELETE datastores/{name}/files/{path}
POST datastores/{name}/probe
POST datastores/{name}/arrivals
POST,GET trainings
GET,DELETE trainings/{name}
POST trainings/{name}/stop
POST trainings/{name}/free
POST trainings/{name}/retry
GET trainings/{name}/tasks
GET trainings/{name}/logs
GET trainings/{name}/board/{path}
PUT,GET code/{digest}
GET models
GET,DELETE models/{name}
POST,GET models/{name}/versions
GET,DELETE models/{name}/versions/{n}
GET models/{name}/versions/{n}/archive
PUT,GET,DELETE models/{name}/aliases/{alias}
GET models/{name}/aliases/{alias}/history
POST,GET servings
GET,PATCH,DELETE servings/{name}
POST servings/{name}/rollback
POST servings/{name}:predict
GET events
GET queue
GET usage
GET /healthz
GET /readyz
GET /metrics
GET /openapi.json
GET /asyncapi.json
POST,GET /v1/projects
GET,DELETE /v1/projects/{project}
POST,GET /v1/tokens
DELETE /v1/tokens/{name}
GET /v1/cluster
GET /v1/deadletters
"""


def document(name: str) -> Any:
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes())


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values())) if value else own
    return set().union(*map(references, value)) if isinstance(value, list) and value else set()


def found(root: Any, reference: str) -> bool:
    for part in reference.removeprefix("#/").split("/"):
        if not isinstance(root, dict) or part not in root:
            return False
        root = root[part]
    return True


def test_the_documents_are_what_the_code_says() -> None:
    assert drifted(FOLDER) == [], "run `python -m services.api.contracts` and commit"


def test_a_drift_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    (tmp_path / "openapi.json").write_text("{}")
    assert main([str(tmp_path), "--check"]) == 1
    assert "openapi.json" in capsys.readouterr().err


def test_openapi_is_valid() -> None:
    validate(document("openapi"))


def test_every_promised_path_is_there() -> None:
    paths = document("openapi")["paths"]
    for line in PROMISED.split("\n"):
        methods, _, path = line.partition(" ")
        full = path if path.startswith("/") else f"/v1/projects/{{project}}/{path}"
        for method in filter(None, methods.split(",")):
            assert method.lower() in paths.get(full, {}), line


@pytest.mark.parametrize("name", ["openapi", "asyncapi"])
def test_every_reference_leads_somewhere(name: str) -> None:
    whole = document(name)
    assert not {each for each in references(whole) if not found(whole, each)}


@pytest.mark.parametrize("name", ["openapi", "asyncapi"])
def test_every_schema_is_one(name: str) -> None:
    for schema in document(name)["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_examples_fit_their_schema_and_their_struct() -> None:
    whole = document("openapi")
    examples = 0
    for route in ROUTES:
        if route.example is None or route.body is None:
            continue
        examples += 1
        decode_json(route.body, msgspec.json.encode(route.example))
        content = whole["paths"][route.path][route.method.lower()]["requestBody"]["content"]["application/json"]
        schema = {**content["schema"], "components": whole["components"]}
        jsonschema.validate(content["example"], schema, cls=jsonschema.Draft202012Validator)
    assert examples > 8


def test_schemas_refuse_what_the_structs_refuse() -> None:
    schema = document("openapi")["components"]["schemas"]["TrainingSpec"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["env"]["additionalProperties"] == {"type": "string"}
    assert "wall time" in schema["properties"]["deadline"]["description"]


def test_asyncapi_tells_of_every_event() -> None:
    whole = document("asyncapi")
    assert whole["asyncapi"] == "3.0.0"
    assert set(BODIES) == set(NOUNS)
    addresses = {channel["address"] for channel in whole["channels"].values()}
    assert addresses == {
        f"elearn.v1.{noun}.{event}.{{project}}.{{name}}" for noun, events in NOUNS.items() for event in events
    }
    for channel in whole["channels"].values():
        assert set(re.findall(r"\{(\w+)\}", channel["address"])) == set(channel["parameters"])
    for operation in whole["operations"].values():
        assert operation["action"] in ("send", "receive")
