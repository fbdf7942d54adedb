"""``elearn training``: submit, look, follow, stop, try again."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from elearn.cli.options import Format, Labels, Output, Project, State, confirm, connected, key_values
from elearn.cli.output import age, details, show, show_list, size, table, took, words, write

if TYPE_CHECKING:
    from elearn.client.documents import Document
    from shared.contracts.training import Plan, Training

app = typer.Typer(no_args_is_help=True, help="Run a start command as a TensorFlow cluster.")

Name = Annotated[str, typer.Argument(help="The training, as `list` shows it.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Trainings, as `list` shows them.")]


@app.command()
def submit(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE|-", help="YAML, one document a training; - is standard input.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field: roles.worker.replicas=3; read as YAML; repeatable."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name; elearn adds a number.")] = None,
    command: Annotated[str | None, typer.Option(help="The start command, as in a shell.")] = None,
    code: Annotated[str | None, typer.Option(help="The folder that becomes the working directory.")] = None,
    image: Annotated[str | None, typer.Option(help="The container image, or venv:PATH.")] = None,
    mounts: Annotated[
        list[str] | None,
        typer.Option("--mount", help="DATASTORE:PATH[:ro|:own]; repeatable."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE; repeatable.")] = None,
    worker: Annotated[int | None, typer.Option(min=0, help="How many workers.")] = None,
    ps: Annotated[int | None, typer.Option(min=0, help="How many parameter servers.")] = None,
    gpu: Annotated[int | None, typer.Option(min=0, help="GPUs of the chief and of each worker.")] = None,
    save: Annotated[str | None, typer.Option(help="MODEL:PATH: save a version on success.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Show progress and logs to the end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Submit trainings. With --follow the exit status is 0 only if all of them succeed."""
    from elearn.cli import specs
    from shared.contracts.training import TrainingSpec
    from shared.errors import Invalid

    if file is None and not (name and command):
        raise Invalid("name a spec file, or give --name and --command")
    found = specs.documents(file, "training", assignments or [])
    for document in found:
        specs.put(document, "name", name)
        specs.put(document, "command", specs.split_command(command))
        specs.put(document, "image", image)
        for key, value in key_values(env, "--env").items():
            specs.put(document, f"env.{key}", value)
        if mounts:
            specs.put(document, "mounts", [specs.mount(each) for each in mounts])
        specs.put(document, "roles.worker.replicas", worker)
        specs.put(document, "roles.ps.replicas", ps)
        for role in ("chief", "worker") if gpu is not None else ():
            specs.put(document, f"roles.{role}.gpu", gpu)
        specs.put(document, "save", specs.save(save))
        document.spec("training", TrainingSpec)  # all of them, before the first is sent
    with connected(project) as client:
        if dry_run:
            plans = []
            for document in found:
                with _lines_named(document):
                    plans.append(client.trainings.plan(_absolute(document, code), code=code))
            _show_plans(output, plans)
            return
        submitted = []
        for document in found:
            with _lines_named(document):
                training = client.trainings.submit(_absolute(document, code), code=code)
            submitted.append(training)
            if output is Format.table:
                write(f"{training.name}: {training.state}{f': {training.reason}' if training.reason else ''}")
                for note in training.notes:
                    print(f"note: {note}", file=sys.stderr)
                sys.stdout.flush()
        if follow:
            from elearn.cli.follow import follow_to_end

            names = [each.name for each in submitted]
            try:
                submitted = follow_to_end(client, names, logs_out=output is Format.table)
            except KeyboardInterrupt:
                print(f"{words(names)} not ended by this: see `elearn training list`", file=sys.stderr)
                raise
        show(output, submitted if len(submitted) > 1 else submitted[0])
    if follow and any(each.state != "succeeded" for each in submitted):
        raise typer.Exit(1)


@app.command("list")
def list_(state: State = None, labels: Labels = None, project: Project = None, output: Output = Format.table) -> None:
    """Trainings, newest first."""
    with connected(project) as client:
        show_list(
            output,
            client.trainings.list(state=state, labels=key_values(labels, "--label")),
            ("name", "state", "attempt", "tasks", "took", "age", "reason"),
            lambda each: (
                each.name,
                each.state,
                each.attempt,
                len(each.tasks),
                took(each.running_at, each.finished_at),
                age(each.created_at),
                each.reason,
            ),
            "there are no trainings" + (" like that" if state or labels else ""),
        )


@app.command("show")
def show_(name: Name, project: Project = None, output: Output = Format.table) -> None:
    """One training: its state and why, its tasks, its attempts."""
    with connected(project) as client:
        training = client.trainings.get(name)
    if show(output, training):
        return
    spec = training.spec
    not_yet = f"not yet: {training.unfreed}" if training.unfreed else "not yet"
    details(
        (
            ("Training", f"{training.project}/{training.name}"),
            ("State", training.state),
            ("Reason", training.reason),
            ("Attempt", str(training.attempt) if training.attempt else None),
            ("Retries", f"{spec.retries}; an interruption that is not the training's own costs none"),
            ("Command", " ".join(spec.command)),
            ("Image", spec.image),
            ("Code", spec.code),
            ("Mounts", [f"{each.datastore} at {each.path}" for each in spec.mounts]),
            ("Secrets", [f"{name} from {each.key} of {each.name}" for name, each in spec.secrets.items()]),
            ("Labels", spec.labels),
            ("Save", f"{spec.save.path} as {spec.save.model}" if spec.save else None),
            ("Submitted", f"{words(training.created_at)} by {training.created_by or 'nobody'}"),
            ("Started", training.started_at),
            ("Running", training.running_at),
            ("Finished", training.finished_at),
            ("Freed", training.freed_at or (not_yet if training.tasks else None)),
            ("Cause", training.cause),
        )
    )
    for note in training.notes:
        write(f"note: {note}")
    if training.tasks:
        write("")
        _show_tasks(training)


@app.command()
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the end.")] = False,
    task: Annotated[str | None, typer.Option(help="Only this one: worker-1.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="By default the current one.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Begin with the last so many lines.")] = None,
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """What the tasks wrote: all of them, each line with its task before it, or one of them."""
    from elearn.cli.follow import print_line

    with connected(project) as client:
        lines = client.trainings.logs(name, task=task, attempt=attempt, follow=follow, tail=tail)
        if output is not Format.table:
            show(output, list(lines))
            return
        for line in lines:
            print_line(line, sys.stdout)


@app.command()
def stop(
    names: Names,
    reason: Annotated[str, typer.Option(help="Kept with the training.")] = "",
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """End trainings before their time; compute is freed, records and logs stay."""
    with connected(project) as client:
        _tell(output, [client.trainings.stop(name, reason) for name in names])


@app.command()
def free(names: Names, project: Project = None, output: Output = Format.table) -> None:
    """Free compute that ended trainings still hold."""
    with connected(project) as client:
        _tell(output, [client.trainings.free(name) for name in names])


@app.command()
def retry(names: Names, project: Project = None, output: Output = Format.table) -> None:
    """Start another attempt of trainings that have ended."""
    with connected(project) as client:
        _tell(output, [client.trainings.retry(name) for name in names])


@app.command()
def delete(
    names: Names,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask; scripts are never asked.")] = False,
    project: Project = None,
    output: Output = Format.table,
) -> None:
    """Delete the records and logs of trainings that have ended."""
    confirm(f"Delete {words(names)} with all logs?", yes)
    with connected(project) as client:
        for name in names:
            client.trainings.delete(name)
    if not show(output, {"deleted": names}):
        write(f"deleted: {words(names)}")


@app.command()
def board(name: Name, project: Project = None, output: Output = Format.table) -> None:
    """Open a training's TensorBoard and print its address."""
    with connected(project) as client:
        url = client.trainings.board(name)
    if not show(output, {"url": url}):
        write(url)
        print("a browser shows its token once: add ?token=<your token> to the address", file=sys.stderr)


def _absolute(document: "Document", code: str | None) -> dict[str, object]:
    """The document's fields, with the folder of code named so that it is found from anywhere."""
    from pathlib import Path

    data = dict(document.data)
    folder = data.get("code")
    if code is None and isinstance(folder, str) and not folder.startswith("sha256:"):
        data["code"] = str(document.folder / Path(folder).expanduser())
    return data


@contextmanager
def _lines_named(document: "Document") -> Iterator[None]:
    """Refused fields are named with their lines in the file."""
    from shared.errors import Invalid

    try:
        yield
    except Invalid as error:
        raise document.explain(error) from None


def _show_plans(output: Format, plans: "list[Plan]") -> None:
    if show(output, plans if len(plans) > 1 else plans[0]):
        return
    for plan in plans:
        table(
            ("task", "cpu", "memory", "gpu", "command"),
            [(each.name, each.cpu, size(each.memory), each.gpu, " ".join(each.command)) for each in plan.tasks],
        )
        held = f"{plan.cpu:g} CPU, {size(plan.memory)} memory, {plan.gpu} GPU"
        when = "it would start at once" if plan.fits_now else f"it would wait: {plan.reason}"
        write(f"{plan.project}/{plan.name}: {len(plan.tasks)} tasks, {held}; {when}")
        for note in plan.notes:
            print(f"note: {note}", file=sys.stderr)


def _show_tasks(training: "Training") -> None:
    table(
        ("task", "state", "address", "node", "gpus", "restarts", "exit", "took", "reason"),
        [
            (
                each.name,
                each.state,
                each.address,
                each.node,
                each.gpus,
                each.restarts or "",
                f"signal {each.signal}" if each.signal is not None else each.exit_code,
                took(each.started_at, each.finished_at),
                each.reason,
            )
            for each in training.tasks
        ],
    )


def _tell(output: Format, trainings: "list[Training]") -> None:
    """What trainings are now, after something was asked of them."""
    if show(output, trainings if len(trainings) > 1 else trainings[0]):
        return
    for each in trainings:
        write(f"{each.name}: {each.state}{f': {each.reason}' if each.reason else ''}")
