"""``elearn datastore``: name directories, look into them, move files in and out."""

from pathlib import Path
from typing import Annotated

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
from elearn.cli.output import age, details, show, show_list, size, words, write
from elearn.cli.progress import Steps

app = typer.Typer(no_args_is_help=True, help="Named directories over some storage backend.")

Name = Annotated[str, typer.Argument(help="The datastore.")]


@app.command()
def create(
    what: Annotated[str | None, typer.Argument(metavar="NAME|FILE|-", help="A name, or YAML.")] = None,
    name: Annotated[str | None, typer.Option(help="Its name, where it is not the argument.")] = None,
    file: Annotated[str | None, typer.Option("-f", "--file", help="YAML, where it is not the argument.")] = None,
    local: Annotated[str | None, typer.Option(metavar="PATH", help="A folder of this machine.")] = None,
    nfs: Annotated[str | None, typer.Option(metavar="SERVER:PATH", help="A share of an NFS server.")] = None,
    claim: Annotated[str | None, typer.Option(help="A claim that exists in the cluster.")] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="No mount of it may write.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field: s3.bucket=data; read as YAML; repeatable.")
    ] = None,
    labels: Annotated[list[str] | None, typer.Option("-l", "--label", help="key=value; repeatable.")] = None,
    wait: Wait = True,
    timeout: Timeout = "2m",
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Name a directory. Keys of a store belong into a file, not into arguments that others can read."""
    from shared.contracts.datastore import DatastoreSpec, datastore_errors
    from shared.errors import Invalid

    if what is not None:
        if specs.is_name(what):
            name = name or what
        else:
            file = file or what
    found = specs.documents(file, "datastore", assignments or [])
    for document in found:
        specs.put(document, "name", name)
        specs.put(document, "local", None if local is None else {"path": str(Path(local).expanduser().absolute())})
        specs.put(document, "nfs", specs.nfs(nfs))
        specs.put(document, "claim", None if claim is None else {"name": claim})
        specs.put(document, "read_only", read_only or None)
        for key, value in key_values(labels, "--label").items():
            specs.put(document, f"labels.{key}", value)
        if errors := datastore_errors(document.spec("datastore", DatastoreSpec)):
            raise document.explain(Invalid.of(errors))
    made = []
    with connected(project) as client, Steps() as steps:
        for document in found:
            try:
                datastore = client.datastores.create(document.data)
            except Invalid as error:
                raise document.explain(error) from None
            if wait and datastore.state != "ready":
                steps.say(f"datastore {datastore.name} {datastore.state}")
                datastore = client.datastores.wait(datastore.name, timeout=seconds(timeout))
            made.append(datastore)
    if not show(output, made if len(made) > 1 else made[0]):
        for datastore in made:
            write(f"datastore {datastore.name}: {datastore.state}")


@app.command("list")
def list_(state: State = None, labels: Labels = None, project: Project = None, output: Output = Format.table) -> None:
    """Datastores."""
    with connected(project) as client:
        show_list(
            output,
            client.datastores.list(state=state, labels=key_values(labels, "--label")),
            ("name", "backend", "state", "read only", "used by", "age", "reason"),
            lambda each: (
                each.name,
                each.backend,
                each.state,
                each.read_only,
                each.used_by,
                age(each.created_at),
                each.reason,
            ),
            "there are no datastores" + (" like that" if state or labels else ""),
        )


@app.command("show")
def show_(name: Name, project: Project = None, output: Output = Format.table) -> None:
    """One datastore."""
    import msgspec

    with connected(project) as client:
        found = client.datastores.get(name)
    if not show(output, found):
        backend = msgspec.to_builtins(getattr(found.spec, found.backend))
        details(
            (
                ("Datastore", f"{found.project}/{found.name}"),
                ("State", found.state),
                ("Reason", found.reason),
                ("Backend", f"{found.backend}: {words(backend)}"),
                ("Read only", found.read_only),
                ("Used by", found.used_by),
                ("Labels", found.spec.labels),
                ("Created", f"{words(found.created_at)} by {found.created_by or 'nobody'}"),
                ("Ready", found.ready_at),
            )
        )


@app.command()
def probe(name: Name, project: Project = None, output: Output = Format.table) -> None:
    """Try now whether it can be read and written; the exit status tells."""
    with connected(project) as client, Steps() as steps:
        steps.say(f"probing {name}")
        found = client.datastores.probe(name)
    if not show(output, found):
        details(
            (
                ("Works", found.ok),
                ("Found", found.message),
                ("Writable", found.writable),
                ("Free", size(found.free_bytes)),
                ("Took", f"{found.seconds * 1000:.0f} ms"),
            )
        )
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def ls(
    where: Annotated[str, typer.Argument(metavar="NAME[:PATH]", help="A datastore, or a folder in it.")],
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="The folder.")] = "",
    recursive: Annotated[bool, typer.Option("-R", "--recursive", help="And all below.")] = False,
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """List a folder."""
    name, _, inside = where.partition(":")
    path = path or inside
    with connected(project) as client:
        listed = client.datastores.walk(name, path) if recursive else client.datastores.ls(name, path)
        show_list(
            output,
            listed,
            ("size", "modified", "path"),
            lambda each: (
                size(each.size) if each.kind == "file" else "-",
                each.modified_at,
                each.path
                + ("/" if each.kind == "directory" else f" -> {each.target}" if each.kind == "symlink" else ""),
            ),
            "it is empty",
        )


@app.command()
def cp(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A file or folder here, or NAME:PATH.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="NAME:PATH, or a file or folder here.")],
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Copy files or whole folders: from here into a datastore, or out of one. One side is NAME:PATH."""
    from shared.errors import Invalid

    here, there = specs.in_datastore(source), specs.in_datastore(target)
    if (here is None) == (there is None):
        raise Invalid("one of the two must be in a datastore, like digits:2026/train.npz")
    total = 0
    with connected(project) as client, Steps() as steps:

        def moved(path: str, size: int) -> None:
            nonlocal total
            total += size
            steps.say(path)

        if there is not None:
            count = client.datastores.upload(there[0], Path(source), there[1], moved=moved)
        elif here is not None:
            count = client.datastores.download(here[0], here[1], Path(target), moved=moved)
    if not show(output, {"files": count, "bytes": total}):
        write(f"{count} file{'' if count == 1 else 's'}, {size(total)}")


@app.command()
def arrived(
    name: Name,
    path: Annotated[str, typer.Option(help="Where in the datastore.")] = "",
    version: Annotated[str, typer.Option(help="Of the data.")] = "",
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Say that data has arrived, as a pipeline does."""
    with connected(project) as client:
        client.datastores.arrived(name, path, version)
    if not show(output, {"datastore": name, "path": path, "version": version}):
        write(f"told: data arrived in {name}")


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Datastores.")],
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Forget datastores; their files stay where they are."""
    with connected(project) as client:
        for name in names:
            client.datastores.delete(name)
    if not show(output, {"deleted": names}):
        write(f"deleted: {words(names)}")
