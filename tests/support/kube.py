"""Are manifests what Kubernetes publishes? Checked against the schemas of the oldest and the newest version."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012, SchemaRegistry

OLDEST = "1.28.0"
NEWEST = "1.36.0"
VERSIONS = (OLDEST, NEWEST)

_SCHEMAS = files("kubernetes_validate") / "kubernetes-json-schema"


def schema_errors(manifest: Mapping[str, Any], *versions: str) -> list[str]:
    """What is wrong with a manifest, unknown fields included: ``1.28.0: spec.replicas: 'x' is not an integer``."""
    return [
        f"{version}: {'.'.join(map(str, error.absolute_path)) or manifest.get('kind', '?')}: {error.message}"
        for version in versions or VERSIONS
        for error in _errors(manifest, version)
    ]


def assert_valid(*manifests: Mapping[str, Any]) -> None:
    """Fail with every reason why a manifest is not what every supported Kubernetes takes."""
    for manifest in manifests:
        errors = schema_errors(manifest)
        name = manifest.get("metadata", {}).get("name", "?")
        assert not errors, f"{manifest.get('kind')} {name}:\n" + "\n".join(errors)


def _errors(manifest: Mapping[str, Any], version: str) -> Iterator[jsonschema.ValidationError]:
    validator = _validator(version, str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")))
    return validator.iter_errors(json.loads(json.dumps(manifest)))


@cache
def _validator(version: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    group, _, name = api_version.rpartition("/")
    file = f"{kind.lower()}-{group.partition('.')[0]}-{name}.json" if group else f"{kind.lower()}-{name}.json"
    path = _SCHEMAS / f"v{version}-local-strict" / file
    if not path.is_file():
        raise AssertionError(f"Kubernetes {version} publishes no schema for {kind} of {api_version}")
    return jsonschema.Draft202012Validator(json.loads(path.read_text()), registry=_definitions(version))


@cache
def _definitions(version: str) -> SchemaRegistry:
    text = (_SCHEMAS / f"v{version}-local-strict" / "_definitions.json").read_text()
    resource = Resource.from_contents(json.loads(text), default_specification=DRAFT202012)
    registry: SchemaRegistry = Registry()
    return registry.with_resources([("_definitions.json", resource)]).crawl()
