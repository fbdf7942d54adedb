"""``elearn serving``: serve a model's version or alias, change it, ask it."""

from typing import TYPE_CHECKING, Annotated

import typer

from elearn.cli import specs
from elearn.cli.options import (
    Format,
    Labels,
    Output,
    Project,
    State,
    Timeout,
    Wait,
    connected,
    key_values,
    seconds,
)
from elearn.cli.output import age, details, show, show_list, table, took, words, write
from elearn.cli.progress import Steps

if TYPE_CHECKING:
    from elearn.client import Client
    from shared.contracts.serving import Serving

app = typer.Typer(no_args_is_help=True, help="Stable endpoints that serve a model's version or alias.")

Name = Annotated[str, typer.Argument(help="The serving.")]
Version = Annotated[int | None, typer.Option(min=1, help="Serve this version.")]
Alias = Annotated[str | None, typer.Option(help="Follow this alias.")]


@app.command()
def create(
    what: Annotated[str | None, typer.Argument(metavar="NAME|FILE|-", help="A name, or YAML.")] = None,
    name: Annotated[str | None, typer.Option(help="Its name, where it is not the argument.")] = None,
    file: Annotated[str | None, typer.Option("-f", "--file", help="YAML, where it is not the argument.")] = None,
    model: Annotated[str | None, typer.Option(help="The model.")] = None,
    version: Version = None,
    alias: Alias = None,
    replicas: Annotated[int | None, typer.Option(min=0, help="How many servers.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field: cpu=2; read as YAML; repeatable.")
    ] = None,
    wait: Wait = True,
    timeout: Timeout = "5m",
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Serve a model."""
    from shared.contracts.serving import ServingSpec, serving_errors
    from shared.errors import Invalid

    if what is not None:
        if specs.is_name(what):
            name = name or what
        else:
            file = file or what
    found = specs.documents(file, "serving", assignments or [])
    for document in found:
        for field, value in (("name", name), ("model", model), ("replicas", replicas)):
            specs.put(document, field, value)
        specs.put(document, "version", version)
        specs.put(document, "alias", alias)
        if errors := serving_errors(document.spec("serving", ServingSpec)):
            raise document.explain(Invalid.of(errors))
    with connected(project) as client, Steps() as steps:
        made = []
        for document in found:
            try:
                serving = client.servings.create(document.data)
            except Invalid as error:
                raise document.explain(error) from None
            made.append(_settled(client, steps, serving, wait, timeout))
    if not show(output, made if len(made) > 1 else made[0]):
        for serving in made:
            _tell(serving)


@app.command("list")
def list_(state: State = None, labels: Labels = None, project: Project = None, output: Output = Format.table) -> None:
    """Servings."""
    with connected(project) as client:
        show_list(
            output,
            client.servings.list(state=state, labels=key_values(labels, "--label")),
            ("name", "model", "version", "state", "replicas", "grpc", "age", "reason"),
            lambda each: (
                each.name,
                each.spec.model + (f"@{each.spec.alias}" if each.spec.alias else ""),
                each.version,
                each.state,
                f"{each.ready_replicas} of {each.replicas}",
                each.endpoint.grpc if each.endpoint else None,
                age(each.created_at),
                each.reason,
            ),
            "there are no servings" + (" like that" if state or labels else ""),
        )


@app.command("show")
def show_(name: Name, project: Project = None, output: Output = Format.table) -> None:
    """One serving: where it is reached, what it serves, its revisions."""
    with connected(project) as client:
        found = client.servings.get(name)
    if show(output, found):
        return
    details(
        (
            ("Serving", f"{found.project}/{found.name}"),
            ("State", found.state),
            ("Reason", found.reason),
            ("Model", found.spec.model + (f"@{found.spec.alias}" if found.spec.alias else "")),
            ("Version", found.version),
            ("Replicas", f"{found.ready_replicas} of {found.replicas} ready"),
            ("gRPC", found.endpoint.grpc if found.endpoint else None),
            ("REST", found.endpoint.rest if found.endpoint else None),
            ("Labels", found.spec.labels),
            ("Created", f"{words(found.created_at)} by {found.created_by or 'nobody'}"),
        )
    )
    if found.revisions:
        write("")
        table(
            ("revision", "version", "state", "took", "age", "cause", "reason"),
            [
                (
                    each.number,
                    each.version,
                    each.state,
                    took(each.created_at, each.ready_at),
                    age(each.created_at),
                    each.cause,
                    each.reason,
                )
                for each in found.revisions
            ],
        )


@app.command()
def update(
    name: Name,
    version: Version = None,
    alias: Alias = None,
    replicas: Annotated[int | None, typer.Option(min=0, help="How many servers.")] = None,
    traffic: Annotated[
        list[str] | None, typer.Option("--traffic", help="VERSION=PERCENT; repeatable; together 100.")
    ] = None,
    wait: Wait = True,
    timeout: Timeout = "5m",
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Change what is served, without a request lost."""
    with connected(project) as client, Steps() as steps:
        changed = client.servings.update(
            name, version=version, alias=alias, replicas=replicas, traffic=specs.shares(traffic)
        )
        changed = _settled(client, steps, changed, wait, timeout)
    if not show(output, changed):
        _tell(changed)


@app.command()
def scale(
    name: Name,
    replicas: Annotated[int | None, typer.Argument(min=0, help="How many servers.")] = None,
    number: Annotated[int | None, typer.Option("--replicas", min=0, help="The same, as an option.")] = None,
    most: Annotated[
        int | None, typer.Option("--max", min=0, help="Follow the load up to so many; 0: no longer.")
    ] = None,
    wait: Wait = True,
    timeout: Timeout = "5m",
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Serve with more or fewer replicas, or with as many as the load wants."""
    from shared.errors import Invalid

    wanted = replicas if replicas is not None else number
    if wanted is None and most is None:
        raise Invalid("say how many replicas: elearn serving scale NAME 3")
    with connected(project) as client, Steps() as steps:
        changed = client.servings.update(name, replicas=wanted, max_replicas=most)
        changed = _settled(client, steps, changed, wait, timeout)
    if not show(output, changed):
        _tell(changed)


@app.command()
def rollback(
    name: Name,
    revision: Annotated[
        int | None, typer.Option(min=1, help="By default the last good one before the current.")
    ] = None,
    wait: Wait = True,
    timeout: Timeout = "5m",
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Go back to what was served before."""
    with connected(project) as client, Steps() as steps:
        changed = _settled(client, steps, client.servings.rollback(name, revision), wait, timeout)
    if not show(output, changed):
        _tell(changed)


@app.command()
def predict(
    name: Name,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE|-", help="JSON: {instances: […]} or {inputs: …}, or a list.")
    ] = None,
    body: Annotated[
        str | None, typer.Option("--json", help="The same as a file holds, right here: '{\"instances\": […]}'.")
    ] = None,
    instances: Annotated[str | None, typer.Option(help="JSON, a list with one entry per example.")] = None,
    inputs: Annotated[str | None, typer.Option(help="JSON, the tensors by name.")] = None,
    signature: Annotated[str | None, typer.Option(help="By default the model's own.")] = None,
    project: Project = None,
    output: Output = Format.json,
) -> None:
    """Ask for predictions over REST."""
    from shared.errors import Invalid

    request = specs.prediction(file, body, instances, inputs)
    with connected(project) as client:
        if (signature is not None) and "signature_name" in request:
            raise Invalid("the signature is named twice")
        answer = client.servings.predict(
            name,
            instances=request.get("instances"),
            inputs=request.get("inputs"),
            signature=signature or request.get("signature_name"),
        )
    if answer.predictions is not None:
        shown: object = {"predictions": answer.predictions}
    else:
        shown = {"outputs": answer.outputs}
    if not show(output, shown):
        rows = answer.predictions if answer.predictions is not None else [answer.outputs]
        table(("#", "prediction"), [(number, words(row)) for number, row in enumerate(rows)])


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Servings.")],
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """End servings; the models stay."""
    with connected(project) as client:
        for name in names:
            client.servings.delete(name)
    if not show(output, {"deleted": names}):
        write(f"deleted: {words(names)}")


def _settled(client: "Client", steps: Steps, serving: "Serving", wait: bool, timeout: str | None) -> "Serving":
    """The serving once it is ready, where that is to be waited for."""
    if not wait:
        return serving
    steps.say(f"serving {serving.name} {serving.state}{f': {serving.reason}' if serving.reason else ''}")
    return client.servings.wait(
        serving.name,
        timeout=seconds(timeout),
        told=lambda now: steps.say(f"serving {now.name} {now.state}{f': {now.reason}' if now.reason else ''}"),
    )


def _tell(serving: "Serving") -> None:
    served = f"version {serving.version}, " if serving.version is not None else ""
    write(f"serving {serving.name}: {serving.state}, {served}{serving.ready_replicas} of {serving.replicas} replicas")
    if serving.endpoint is not None:
        details((("gRPC", serving.endpoint.grpc), ("REST", f"{serving.endpoint.rest}:predict")))
