"""The tree of commands. Its files import only what their help needs; the rest is imported where it is used."""

import typer

from elearn.cli import datastore, deadletters, events, machine, model, queue, serving, training

app = typer.Typer(
    name="elearn",
    help="TensorFlow as a Service: clusters, directories, model versions and serving from one start command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("up")(machine.up)
app.command("down")(machine.down)
app.command("status")(machine.status)
app.command("login")(machine.login)
app.add_typer(training.app, name="training")
app.add_typer(datastore.app, name="datastore")
app.add_typer(model.app, name="model")
app.add_typer(serving.app, name="serving")
app.command("events")(events.events)
app.command("queue")(queue.queue)
app.command("usage")(queue.usage)
app.command("cluster")(queue.cluster)
app.add_typer(deadletters.app, name="deadletters")
