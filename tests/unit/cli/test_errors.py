"""Every error is one line on standard error and an exit status that is not 0; starting costs little."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from elearn.cli.app import app
from tests.unit.cli.conftest import Command
from tests.unit.cli.gateway import TOKEN, Gateway, Reply, problem


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, each in sorted(group.commands.items()):
        if hasattr(each, "commands"):
            yield from commands(each, (*path, name))
        else:
            yield (*path, name), each


ALL = list(commands(typer.main.get_command(app)))


TREE = """
up | down | status | login | events | queue | usage | cluster
training submit | list | show | logs | stop | free | retry | board | delete
datastore create | list | show | probe | ls | cp | arrived | delete
model save | list | show | versions | download | delete | alias set | alias list | alias rm | alias history
serving create | list | show | update | scale | rollback | predict | delete
deadletters list | resend | drop
"""


def test_the_tree_is_the_one_that_is_promised() -> None:
    promised = set()
    for line in TREE.strip().splitlines():
        first, *verbs = line.split(" | ")
        noun = first.partition(" ")[0] if " " in first else ""
        promised |= {first, *(f"{noun} {verb}".strip() for verb in verbs)}
    assert {" ".join(path) for path, _ in ALL} == promised


@pytest.mark.parametrize(("path", "found"), ALL, ids=lambda each: " ".join(each) if isinstance(each, tuple) else "")
def test_every_command_takes_the_same_options_and_says_what_it_does(path: tuple[str, ...], found: Any) -> None:
    options = {name for parameter in found.params for name in parameter.opts}
    assert {"-o", "--output"} <= options
    if path[0] not in ("up", "down", "status", "login", "cluster", "deadletters"):
        assert "--project" in options
    assert found.help


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["bogus"], 2, "No such command 'bogus'; see `elearn --help`"),
        (["training", "bogus"], 2, "see `elearn training --help`"),
        (["training", "list", "--bogus"], 2, "No such option: --bogus; see `elearn training list --help`"),
        (["training", "list", "-o", "xml"], 2, "'xml'"),
        (["training", "show"], 2, "Missing argument"),
        (["model", "show", "m", "one"], 2, "'one'"),
        (["training", "submit"], 1, "name a spec file, or give --name and --command"),
        (["training", "submit", "none.yaml"], 1, "none.yaml does not exist"),
        (["training", "submit", "--name", "x", "--command", "a 'b"], 1, "--command: No closing quotation"),
        (["training", "show", "UPPER"], 1, "name: 'UPPER' is not a name"),
        (["training", "show", "gone"], 1, "there is nothing at trainings/gone"),
        (["training", "list", "-l", "team"], 1, "--label 'team': write it like key=value"),
        (["datastore", "cp", "a", "b"], 1, "one of the two must be in a datastore"),
        (["datastore", "cp", "d:a", "e:b"], 1, "one of the two must be in a datastore"),
        (["serving", "predict", "d"], 1, "give a JSON file, --json, --instances or --inputs"),
        (["serving", "predict", "d", "x.json", "--json", "{}"], 1, "and only one of them"),
        (["serving", "predict", "d", "none.json"], 1, "can't read none.json: No such file"),
        (["serving", "predict", "d", "--json", '{"rows": []}'], 1, "--json: expected"),
        (["serving", "predict", "d", "--instances", "{"], 1, "--instances is not JSON"),
        (["serving", "update", "d"], 1, "nothing to change"),
        (["serving", "create", "d", "--model", "m", "--timeout", "soon"], 1, "give either a version or an alias"),
        (["login"], 1, "name the address"),
        (["login", "localhost"], 1, "'localhost' is not an http:// or https:// address"),
    ],
)
def test_one_line(command: Command, arguments: list[str], status: int, words: str) -> None:
    ran = command(*arguments)
    assert ran.status == status
    assert ran.out == ""
    assert ran.err.startswith("elearn: ")
    assert words in ran.err
    assert ran.err.count("\n") == 1


def test_several_refused_fields_are_one_line(command: Command, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "d.yaml").write_text("name: d\ncommand: [x]\n")
    gateway.answers["POST trainings"] = problem(
        422, "invalid", "a: wrong\nand more", ("name", "is taken"), ("command", "is not found")
    )
    ran = command("training", "submit", str(tmp_path / "d.yaml"))
    assert ran.err == f"elearn: {tmp_path}/d.yaml:1: name: is taken; {tmp_path}/d.yaml:2: command: is not found\n"


def test_elearn_away_is_said_in_words(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELEARN_URL", "http://127.0.0.1:9")
    ran = command("training", "list")
    assert ran.err == "elearn: elearn is not running at http://127.0.0.1:9: start it with `elearn up`\n"
    assert ran.status == 1
    monkeypatch.delenv("ELEARN_URL")
    assert "start it with `elearn up`" in command("training", "list").err


def test_a_mistake_of_ours_is_one_line_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("elearn.client.models.Models.list", broken)
    ran = command("model", "list")
    assert ran.status == 1
    assert ran.err.startswith("elearn: this is a mistake in elearn itself: ZeroDivisionError: by zero")
    assert ran.err.count("\n") == 1


def environment(gateway: Gateway, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "ELEARN_HOME": str(tmp_path), "ELEARN_URL": gateway.url, "ELEARN_TOKEN": TOKEN}


def test_a_real_process_ends_with_the_status(gateway: Gateway, tmp_path: Path) -> None:
    gateway.answers["GET models"] = Reply({"items": [], "next": None})
    program = [str(Path(sys.executable).with_name("elearn"))]
    good = subprocess.run(
        [*program, "model", "list", "-o", "json"],
        env=environment(gateway, tmp_path),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (good.returncode, good.stdout, good.stderr) == (0, b"[]\n", b"")
    bad = subprocess.run(
        [*program, "model", "show", "none"],
        env=environment(gateway, tmp_path),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (bad.returncode, bad.stdout) == (1, b"")
    assert bad.stderr == b"elearn: there is nothing at models/none\n"


def test_a_reader_that_leaves_is_no_traceback(gateway: Gateway, tmp_path: Path) -> None:
    lines = b"line\n" * 200_000
    gateway.answers["GET trainings/d-1/logs"] = Reply(lines, content_type="text/plain")
    program = subprocess.Popen(
        [str(Path(sys.executable).with_name("elearn")), "training", "logs", "d-1"],
        env=environment(gateway, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == b"line\n"
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(30) != 0


LOADED = """
import json, sys
from elearn.cli.main import run
run(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "never"),
    [
        (["--help"], {"httpx", "msgspec", "yaml", "asyncio", "stamina", "shared.contracts.training"}),
        (
            ["model", "list", "-o", "json"],
            {"yaml", "click", "pygments", "asyncpg", "nats", "aiohttp", "tensorflow", "tarfile", "numpy"},
        ),
    ],
)
def test_a_command_loads_no_more_than_it_needs(
    gateway: Gateway, tmp_path: Path, arguments: list[str], never: set[str]
) -> None:
    gateway.answers["GET models"] = Reply({"items": [], "next": None})
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        env=environment(gateway, tmp_path),
        capture_output=True,
        timeout=30,
        check=True,
    )
    loaded = set(json.loads(ran.stdout.splitlines()[-1]))
    assert sorted(loaded & never) == []
