"""``elearn model``: save versions, look at them, take them away, move aliases."""

from pathlib import Path
from typing import Annotated

import typer

from elearn.cli.options import (
    Format,
    Labels,
    Output,
    Project,
    State,
    Sure,
    Timeout,
    Wait,
    confirm,
    connected,
    key_values,
    seconds,
)
from elearn.cli.output import age, details, show, show_list, size, table, words, write
from elearn.cli.progress import Bar, Steps

app = typer.Typer(no_args_is_help=True, help="Trained models as numbered versions.")
aliases = typer.Typer(no_args_is_help=True, help="Movable pointers to versions, such as `champion`.")
app.add_typer(aliases, name="alias")

Model = Annotated[str, typer.Argument(help="The model.")]
Number = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="Its number.")]
Alias = Annotated[str, typer.Argument(help="The alias.")]


@app.command()
def save(
    model: Model,
    path: Annotated[str, typer.Option(help="The SavedModel's folder: as the training sees it, or in the datastore.")],
    training: Annotated[str | None, typer.Option(help="The training that wrote it.")] = None,
    datastore: Annotated[str | None, typer.Option(help="The datastore that it is in.")] = None,
    labels: Annotated[list[str] | None, typer.Option("-l", "--label", help="key=value; repeatable.")] = None,
    wait: Wait = True,
    timeout: Timeout = "30m",
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Save a SavedModel as the next version."""
    with connected(project) as client, Steps() as steps:
        version = client.models.save(
            model, path, training=training, datastore=datastore, labels=key_values(labels, "--label")
        )
        if wait and version.state == "saving":
            steps.say(f"saving {model} version {version.number}")
            version = client.models.wait(model, version.number, timeout=seconds(timeout))
    if not show(output, version):
        kept = f", {size(version.size)} in {version.files} files" if version.state == "ready" else ""
        write(f"{model} version {version.number}: {version.state}{kept}")


@app.command("list")
def list_(project: Project = None, output: Output = Format.table) -> None:
    """Models."""
    with connected(project) as client:
        show_list(
            output,
            client.models.list(),
            ("name", "versions", "latest", "aliases", "age"),
            lambda each: (each.name, each.versions, each.latest, each.aliases, age(each.created_at)),
            "there are no models",
        )


@app.command("show")
def show_(
    model: Model,
    number: Annotated[int | None, typer.Argument(metavar="[VERSION]", min=1, help="One version of it.")] = None,
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """One model, or one version: where it comes from, what it takes and gives."""
    if number is not None:
        _show_version(model, number, project, output)
        return
    with connected(project) as client:
        found = client.models.get(model)
    if not show(output, found):
        details(
            (
                ("Model", f"{found.project}/{found.name}"),
                ("Versions", found.versions),
                ("Latest", found.latest),
                ("Aliases", found.aliases),
                ("Created", found.created_at),
            )
        )


def _show_version(model: str, number: int, project: str | None, output: Format) -> None:
    with connected(project) as client:
        found = client.models.version(model, number)
    if show(output, found):
        return
    lineage = found.lineage
    details(
        (
            ("Version", f"{found.project}/{found.model} {found.number}"),
            ("State", found.state),
            ("Reason", found.reason),
            ("Aliases", found.aliases),
            ("Served by", found.served_by),
            ("Size", f"{size(found.size)} in {found.files} files" if found.files else None),
            ("Digest", found.digest),
            ("Framework", found.framework),
            ("Training", lineage.training and f"{lineage.training}, attempt {lineage.attempt}"),
            ("Command", " ".join(lineage.command)),
            ("Code", lineage.code),
            ("Datastore", lineage.datastore and f"{lineage.datastore}:{lineage.path}"),
            ("Labels", found.labels),
            ("Created", f"{words(found.created_at)} by {lineage.created_by or 'nobody'}"),
            ("Ready", found.ready_at),
        )
    )
    rows = [
        (signature.name, way, tensor.name, tensor.dtype, "?" if tensor.shape is None else list(tensor.shape))
        for signature in found.signatures
        for way, tensors in (("takes", signature.inputs), ("gives", signature.outputs))
        for tensor in tensors
    ]
    if rows:
        write("")
        table(("signature", "", "tensor", "type", "shape"), rows)


@app.command()
def versions(
    model: Model,
    state: State = None,
    labels: Labels = None,
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """The versions of a model, newest first."""
    with connected(project) as client:
        show_list(
            output,
            client.models.versions(model, state=state, labels=key_values(labels, "--label")),
            ("version", "state", "size", "training", "aliases", "served by", "age", "reason"),
            lambda each: (
                each.number,
                each.state,
                size(each.size) if each.size else "-",
                each.lineage.training,
                each.aliases,
                each.served_by,
                age(each.created_at),
                each.reason,
            ),
            f"{model} has no versions" + (" like that" if state or labels else ""),
        )


@app.command()
def download(
    model: Model,
    number: Annotated[
        int | None, typer.Argument(metavar="[VERSION]", min=1, help="By default the latest that is ready.")
    ] = None,
    alias: Annotated[str | None, typer.Option(help="The version that this alias points to.")] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="The folder that it becomes; by default MODEL-VERSION.")
    ] = None,
    tar: Annotated[bool, typer.Option("--tar", help="Keep it as a tar file.")] = False,
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Download a version; what was interrupted goes on where it was. The digest is checked."""
    from shared.errors import Conflict, Invalid

    with connected(project) as client:
        if alias is not None:
            if number is not None:
                raise Invalid("give either a version or --alias")
            number = client.models.alias(model, alias).version
        if number is None:
            number = client.models.get(model).latest
            if number is None:
                raise Conflict(f"model {model} has no version that is ready")
        target = to or Path(f"{model}-{number}.tar" if tar else f"{model}-{number}")
        with Bar(f"{model} {number}") as bar:
            path = client.models.download(model, number, target, unpack=not tar, progress=bar)
    if not show(output, {"model": model, "version": number, "path": str(path)}):
        write(str(path))


@app.command()
def delete(
    model: Model,
    number: Annotated[int | None, typer.Argument(metavar="[VERSION]", min=1, help="Only this version.")] = None,
    yes: Sure = False,
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Delete one version, or a model with all of them."""
    what = f"{model} with all its versions" if number is None else f"{model} version {number}"
    confirm(f"Delete {what}?", yes)
    with connected(project) as client:
        if number is None:
            client.models.delete(model)
        else:
            client.models.delete_version(model, number)
    if not show(output, {"deleted": what}):
        write(f"deleted: {what}")


@aliases.command("set")
def set_alias(
    model: Model, alias: Alias, number: Number, project: Project = None, output: Output = Format.table
) -> None:
    """Point an alias to a version; servings that follow it change over."""
    with connected(project) as client:
        moved = client.models.set_alias(model, alias, number)
    if not show(output, moved):
        write(f"{model} {alias}: version {moved.version}")


@aliases.command("list")
def list_aliases(model: Model, project: Project = None, output: Output = Format.table) -> None:
    """The aliases of a model."""
    with connected(project) as client:
        show_list(
            output,
            client.models.aliases(model),
            ("alias", "version", "moved", "by"),
            lambda each: (each.name, each.version, each.moved_at, each.moved_by),
            f"{model} has no aliases",
        )


@aliases.command("rm")
def remove_alias(model: Model, alias: Alias, project: Project = None, output: Output = Format.table) -> None:
    """Delete an alias; the version stays."""
    with connected(project) as client:
        client.models.delete_alias(model, alias)
    if not show(output, {"deleted": alias}):
        write(f"deleted: {model} {alias}")


@aliases.command()
def history(model: Model, alias: Alias, project: Project = None, output: Output = Format.table) -> None:
    """Where an alias has pointed, newest first."""
    with connected(project) as client:
        show_list(
            output,
            client.models.alias_history(model, alias),
            ("moved", "version", "before", "by"),
            lambda each: (each.moved_at, each.version, each.previous, each.moved_by),
            f"{model} {alias} has no history",
        )
