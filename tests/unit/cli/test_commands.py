"""What commands send, print and answer with."""

import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import yaml
from msgspec.structs import replace

from shared.contracts.common import Page
from shared.contracts.model import Version, VersionState
from shared.contracts.serving import Endpoint, Serving, ServingSpec
from shared.contracts.training import (
    Lineage,
    Plan,
    PlannedTask,
    Save,
    SecretKey,
    Task,
    Training,
    TrainingSpec,
    TrainingState,
)
from tests.unit.cli.conftest import Command
from tests.unit.cli.gateway import Asked, Gateway, Reply, problem

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SPEC = "kind: training\nname: digits\ncommand: [python, train.py]\n"


def training(state: TrainingState = "queued", number: int = 1, reason: str = "") -> Training:
    over = state in ("succeeded", "failed", "stopped")
    return Training(
        project="default",
        name=f"digits-{number}",
        spec=TrainingSpec(name="digits", command=("python", "train.py")),
        state=state,
        created_at=NOW,
        reason=reason,
        attempt=0 if state == "queued" else 1,
        started_at=NOW,
        running_at=NOW,
        finished_at=NOW + timedelta(seconds=30) if over else None,
        freed_at=NOW + timedelta(seconds=31) if over else None,
        tasks=(Task(name="chief-0", role="chief", index=0, state="running"),),
    )


def serving(state: str = "ready", **fields: object) -> Serving:
    known: dict[str, object] = {
        "project": "default",
        "name": "digits",
        "spec": ServingSpec(name="digits", model="digits", version=1, replicas=2),
        "state": state,
        "created_at": NOW,
        "replicas": 2,
        "ready_replicas": 2,
        "version": 1,
        "endpoint": Endpoint(grpc="127.0.0.1:1", rest="http://127.0.0.1:2/v1/models/digits"),
    }
    return msgspec.convert({**known, **fields}, Serving, from_attributes=True)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "digits.yaml"
    path.write_text(SPEC)
    return path


# -- lists and formats --------------------------------------------------------------------------------


def test_a_list_is_a_table_json_or_yaml(command: Command, gateway: Gateway) -> None:
    gateway.answers["GET trainings"] = Reply(
        {"items": [training("running", 2), training("failed", 1, "chief-0 ended with exit code 1")], "next": None}
    )
    head, *rows = command("training", "list").out.splitlines()
    assert head.split() == ["NAME", "STATE", "ATTEMPT", "TASKS", "TOOK", "AGE", "REASON"]
    assert [row.split()[:2] for row in rows] == [["digits-2", "running"], ["digits-1", "failed"]]
    assert rows[1].endswith("chief-0 ended with exit code 1")
    as_json = json.loads(command("training", "list", "-o", "json").out)
    as_yaml = yaml.safe_load(command("training", "list", "-o", "yaml").out)
    assert [each["name"] for each in as_json] == [each["name"] for each in as_yaml] == ["digits-2", "digits-1"]


def test_an_empty_list_says_so_beside_the_output(command: Command, gateway: Gateway) -> None:
    gateway.answers["GET trainings"] = Reply({"items": [], "next": None})
    ran = command("training", "list", "--state", "failed", "-l", "team=search")
    assert (ran.status, ran.out, ran.err) == (0, "", "there are no trainings like that\n")
    assert gateway.asked[-1].query == {"state": "failed", "label": "team=search"}
    assert command("training", "list", "-o", "json").out == "[]\n"


def test_the_project_is_an_option(command: Command, gateway: Gateway) -> None:
    gateway.answers["GET /v1/projects/ads/models"] = Reply({"items": [], "next": None})
    assert command("model", "list", "--project", "ads").status == 0


# -- submitting --------------------------------------------------------------------------------------


def test_submit_sends_the_file_with_what_was_set(command: Command, gateway: Gateway, spec: Path) -> None:
    gateway.answers["POST trainings"] = Reply(training(), 201)
    ran = command("training", "submit", str(spec), "--set", "roles.worker.replicas=3", "--set", "labels.team=search")
    assert ran.out == "digits-1: queued\n"
    assert gateway.asked[-1].body == {
        "kind": "training",
        "name": "digits",
        "command": ["python", "train.py"],
        "roles": {"worker": {"replicas": 3}},
        "labels": {"team": "search"},
    }


def test_submit_takes_flags_in_place_of_a_file(command: Command, gateway: Gateway) -> None:
    gateway.answers["POST trainings"] = Reply(training(), 201)
    ran = command(
        *("training", "submit", "--name", "digits", "--command", "python train.py --note 'a b'"),
        *("--mount", "digits:data:ro", "--mount", "runs:out:own", "--env", "A=b=c", "--worker", "2", "--ps", "1"),
        *("--gpu", "1", "--save", "digits:out/export"),
    )
    assert ran.status == 0
    assert gateway.asked[-1].body == {
        "name": "digits",
        "command": ["python", "train.py", "--note", "a b"],
        "mounts": [
            {"datastore": "digits", "path": "data", "read_only": True},
            {"datastore": "runs", "path": "out", "own": True},
        ],
        "env": {"A": "b=c"},
        "roles": {"worker": {"replicas": 2, "gpu": 1}, "ps": {"replicas": 1}, "chief": {"gpu": 1}},
        "save": {"model": "digits", "path": "out/export"},
    }


def test_code_lies_beside_the_file(
    command: Command, gateway: Gateway, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec.write_text(SPEC + "code: .\n")
    gateway.answers["POST trainings"] = Reply(training(), 201)
    digests: list[str] = []

    def put(asked: Asked) -> Reply:
        digests.append(asked.path.removeprefix("code/"))
        return Reply({}, 201)

    real = gateway.answer

    def answer(asked: Asked) -> Reply:
        return put(asked) if asked.method == "PUT" else real(asked)

    monkeypatch.setattr(gateway, "answer", answer)
    assert command("training", "submit", str(spec)).status == 0
    body = gateway.asked[-1].body
    assert isinstance(body, dict)
    assert [body["code"]] == digests


def test_every_document_is_checked_before_the_first_is_sent(command: Command, gateway: Gateway, spec: Path) -> None:
    spec.write_text(f"{SPEC}---\n{SPEC}bogus: 1\n")
    ran = command("training", "submit", str(spec))
    assert ran.status == 1
    assert ran.err == f"elearn: {spec}:8: bogus: unknown field\n"
    spec.write_text(f"{SPEC}---\nkind: datastore\nname: d\n")
    assert command("training", "submit", str(spec)).err == (
        f"elearn: {spec}:5: kind: expected training, got datastore\n"
    )
    assert gateway.asked == []


def test_what_the_gateway_refuses_is_told_with_its_line(command: Command, gateway: Gateway, spec: Path) -> None:
    spec.write_text(SPEC + "roles:\n  worker:\n    replicas: 2\n    gpu: 9\n")
    gateway.answers["POST trainings"] = problem(
        422, "invalid", "too much", ("roles.worker.gpu", "9 is more than any machine has; the most is 8")
    )
    ran = command("training", "submit", str(spec))
    assert ran.status == 1
    assert ran.err == f"elearn: {spec}:7: roles.worker.gpu: 9 is more than any machine has; the most is 8\n"


def test_what_is_shown_tells_where_secrets_are_and_nothing_of_them(command: Command, gateway: Gateway) -> None:
    found = training("running")
    secrets = {"API_TOKEN": SecretKey(name="team", key="token")}
    gateway.answers["GET trainings/digits-1"] = Reply(replace(found, spec=replace(found.spec, secrets=secrets)))
    shown = command("training", "show", "digits-1").out
    assert "API_TOKEN from token of team" in shown


def test_a_dry_run_shows_the_plan(command: Command, gateway: Gateway, spec: Path) -> None:
    task = PlannedTask(
        name="chief-0", role="chief", index=0, cpu=1.0, memory=2**31, gpu=0, command=("python", "train.py")
    )
    gateway.answers["POST trainings"] = Reply(
        Plan(
            project="default",
            name="digits-1",
            spec=training().spec,
            tasks=(task,),
            cpu=1.0,
            memory=2**31,
            gpu=0,
            fits_now=False,
            reason="waiting for 1 CPU",
        )
    )
    ran = command("training", "submit", str(spec), "--dry-run")
    assert gateway.asked[-1].query == {"dry_run": "true"}
    assert ran.out.splitlines()[1].split() == ["chief-0", "1", "2Gi", "0", "python", "train.py"]
    assert ran.out.splitlines()[2].endswith("it would wait: waiting for 1 CPU")
    assert json.loads(command("training", "submit", str(spec), "--dry-run", "-o", "json").out)["name"] == "digits-1"


@pytest.mark.parametrize(("state", "status"), [("succeeded", 0), ("failed", 1), ("stopped", 1)])
def test_following_ends_as_the_training_does(
    command: Command, gateway: Gateway, spec: Path, state: TrainingState, status: int
) -> None:
    gateway.answers["POST trainings"] = Reply(training(), 201)
    story = iter([training("running", reason="4 tasks running"), training("running")])
    gateway.answers["GET trainings/digits-1"] = lambda _: Reply(next(story, training(state, reason="so it ended")))
    gateway.answers["GET trainings/digits-1/logs"] = Reply(b"[chief-0] step 1\n[ps-0] up\n", content_type="text/plain")
    ran = command("training", "submit", str(spec), "--follow")
    assert ran.status == status
    assert ran.out == "digits-1: queued\n[chief-0] step 1\n[ps-0] up\n"
    assert f"digits-1 {state}: so it ended" in ran.err
    assert ran.err.splitlines()[-1] == f"digits-1 {state} after 30s; compute freed 1.00 s later"
    document = command("training", "submit", str(spec), "--follow", "-o", "json")
    assert json.loads(document.out)["state"] == state
    assert "[chief-0] step 1" in document.err


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("ready", "", "saved as version 3 of model digits"),
        ("failed", "the disk is full", "saving digits version 3 failed: the disk is full"),
    ],
)
def test_following_ends_when_the_model_is_saved(
    command: Command, gateway: Gateway, spec: Path, state: VersionState, reason: str, words: str
) -> None:
    over = training("succeeded")
    over = replace(over, spec=replace(over.spec, save=Save(model="digits", path="out/export")))
    gateway.answers["POST trainings"] = Reply(training(), 201)
    gateway.answers["GET trainings/digits-1"] = Reply(over)
    gateway.answers["GET trainings/digits-1/logs"] = Reply(b"", content_type="text/plain")
    saving = Version(
        project="default",
        model="digits",
        number=3,
        state="saving",
        created_at=NOW,
        lineage=Lineage(training="digits-1"),
    )
    gateway.answers["GET models/digits/versions"] = Reply(Page(items=(saving,)))
    story = iter([saving])
    ended = replace(saving, state=state, reason=reason)
    gateway.answers["GET models/digits/versions/3"] = lambda _: Reply(next(story, ended))
    ran = command("training", "submit", str(spec), "--follow")
    assert (ran.status, ran.err.splitlines()[-1]) == (0, words)


# -- other nouns -------------------------------------------------------------------------------------


def test_a_datastore_is_made_of_flags_or_of_a_file(command: Command, gateway: Gateway, tmp_path: Path) -> None:
    def made(asked: Asked) -> Reply:
        assert isinstance(asked.body, dict)
        return Reply(
            {
                "project": "default",
                "name": asked.body["name"],
                "backend": "local",
                "spec": asked.body,
                "state": "ready",
                "read_only": False,
                "created_at": NOW,
            },
            201,
        )

    gateway.answers["POST datastores"] = made
    (tmp_path / "two.yaml").write_text("name: a\nlocal: {path: /a}\n---\nkind: datastore\nname: b\nlocal: {path: /b}\n")
    assert command("datastore", "create", "digits", "--local", "/d", "-l", "team=x").out == "datastore digits: ready\n"
    assert gateway.asked[-1].body == {"name": "digits", "local": {"path": "/d"}, "labels": {"team": "x"}}
    assert command("datastore", "create", "--name", "n", "--local", "rel").status == 0
    assert gateway.asked[-1].body == {"name": "n", "local": {"path": str(Path.cwd() / "rel")}}
    assert command("datastore", "create", str(tmp_path / "two.yaml")).out.count("ready") == 2
    ran = command("datastore", "create", "digits")
    assert (ran.status, ran.err) == (
        1,
        "elearn: the flags:1: local: name one backend: local, nfs, s3, glusterfs or claim\n",
    )


def test_a_serving_is_waited_for(command: Command, gateway: Gateway) -> None:
    gateway.answers["POST servings"] = Reply(serving("deploying", ready_replicas=0, version=None), 202)
    story = iter([serving("deploying", reason="1 of 2 replicas is ready"), serving()])
    gateway.answers["GET servings/digits"] = lambda _: Reply(next(story))
    ran = command("serving", "create", "digits", "--model", "digits", "--version", "1", "--replicas", "2")
    assert ran.out.splitlines()[0] == "serving digits: ready, version 1, 2 of 2 replicas"
    assert "serving digits deploying: 1 of 2 replicas is ready" in ran.err
    assert gateway.asked[0].body == {"name": "digits", "model": "digits", "version": 1, "replicas": 2}
    gateway.answers["GET servings/digits"] = Reply(serving("failed", reason="version 1 is no SavedModel"))
    ran = command("serving", "scale", "digits", "3")
    assert ran.status == 1  # nothing answers PATCH
    gateway.answers["PATCH servings/digits"] = Reply(serving("deploying"))
    ran = command("serving", "scale", "digits", "3")
    assert (ran.status, ran.err.splitlines()[-1]) == (1, "elearn: serving digits failed: version 1 is no SavedModel")
    assert gateway.asked[-2].body == {"replicas": 3}


def test_a_version_is_waited_for(command: Command, gateway: Gateway) -> None:
    version = Version(
        project="default", model="m", number=1, state="saving", created_at=NOW, lineage=Lineage(training="digits-1")
    )
    gateway.answers["POST models/m/versions"] = Reply(version, 202)
    ready = msgspec.structs.replace(version, state="ready", size=2048, files=3)
    gateway.answers["GET models/m/versions/1"] = Reply(ready)
    ran = command("model", "save", "m", "--training", "digits-1", "--path", "out/export")
    assert ran.out == "m version 1: ready, 2Ki in 3 files\n"
    assert (
        command("model", "save", "m", "--path", "x").err == "elearn: training: give either a training or a datastore\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        (["--instances", "[[1, 2]]"], {"instances": [[1, 2]]}),
        (["--inputs", '{"x": 1}', "--signature", "s"], {"inputs": {"x": 1}, "signature_name": "s"}),
        (["--json", '{"inputs": [1]}'], {"inputs": [1]}),
        (["--json", "[1]"], {"instances": [1]}),
        (["{file}"], {"instances": [3], "signature_name": "f"}),
    ],
)
def test_predictions(command: Command, gateway: Gateway, tmp_path: Path, arguments: list[str], sent: object) -> None:
    (tmp_path / "ask.json").write_text('{"instances": [3], "signature_name": "f"}')
    gateway.answers["POST servings/digits:predict"] = Reply({"predictions": [{"digit": 3}]})
    ran = command(
        "serving",
        "predict",
        "digits",
        *(each.format(file=tmp_path / "ask.json") if "{f" in each else each for each in arguments),
    )
    assert json.loads(ran.out) == {"predictions": [{"digit": 3}]}
    assert gateway.asked[-1].body == sent


def test_events_in_lines_and_as_json(command: Command, gateway: Gateway) -> None:
    event = {
        "id": "e1",
        "source": "scheduler",
        "type": "elearn.v1.training.failed",
        "subject": "elearn.v1.training.failed.default.digits-1",
        "time": "2026-01-31T12:00:00Z",
        "sequence": 7,
        "data": {"training": {"reason": "chief-0 ended with exit code 1"}},
    }
    end = {"type": "urn:elearn:problem:forbidden", "title": "t", "status": 403, "detail": "that is all"}
    body = f"id: 7\ndata: {json.dumps(event)}\n\nevent: error\ndata: {json.dumps(end)}\n\n".encode()
    gateway.answers["GET events"] = Reply(body, content_type="text/event-stream")
    ran = command("events", "-f", "--since", "10m", "--subject", "elearn.v1.training.>")
    assert gateway.asked[-1].query == {"since": "10m", "subject": "elearn.v1.training.>"}
    assert ran.out.split()[2:] == [
        "7",
        "training",
        "failed",
        "digits-1",
        "chief-0",
        "ended",
        "with",
        "exit",
        "code",
        "1",
    ]
    assert json.loads(command("events", "-f", "-o", "json").out) == event
    assert yaml.safe_load(command("events", "-f", "-o", "yaml").out)["data"] == event["data"]
    assert ran.err == "elearn: that is all\n"


def test_dead_letters(command: Command, gateway: Gateway) -> None:
    letter = {
        "sequence": 3,
        "subject": "elearn.v1.training.failed.default.x",
        "consumer": "registry-trainings",
        "error": "boom",
        "deliveries": 5,
        "time": NOW,
    }
    gateway.answers["GET /v1/deadletters"] = Reply({"items": [letter], "next": None})
    gateway.answers["POST /v1/deadletters/3/resend"] = Reply({})
    gateway.answers["DELETE /v1/deadletters/3"] = Reply(None, 204)
    assert "boom" in command("deadletters", "list").out
    assert command("deadletters", "resend", "3").out == "sent again: 3\n"
    assert command("deadletters", "drop", "3").out == "dropped: 3\n"


# -- logging in --------------------------------------------------------------------------------------


def test_a_login_is_tried_and_kept_for_its_owner_alone(
    command: Command, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import io

    gateway.answers["GET /v1/cluster"] = Reply({"cloud": "local", "nodes": []})
    gateway.answers["GET models"] = Reply({"items": [], "next": None})
    monkeypatch.delenv("ELEARN_URL")
    monkeypatch.delenv("ELEARN_TOKEN")
    monkeypatch.setattr("sys.stdin", io.StringIO("wrong\n"))
    ran = command("login", gateway.url, "--token-stdin")
    assert (ran.status, ran.err) == (1, "elearn: the token is not good; get another\n")
    assert not (tmp_path / "home").exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("the-token\n"))
    ran = command("login", gateway.url + "/", "--token-stdin")
    assert ran.status == 0
    assert "the-token" not in ran.out + ran.err
    assert stat.S_IMODE((tmp_path / "home" / "login.json").stat().st_mode) == 0o600
    assert command("model", "list").status == 0
    assert command("login", "--forget").status == 0
    assert command("model", "list").status == 1
