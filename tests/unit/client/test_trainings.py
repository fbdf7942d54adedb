"""Submitting with code, waiting, following logs across lost connections and attempts."""

import gzip
import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import msgspec
import pytest

from elearn.client import Client, TimedOut
from elearn.client.trainings import Until
from shared.contracts.training import Role, Roles, Training, TrainingSpec, TrainingState
from shared.errors import Invalid, Unavailable
from tests.unit.client.conftest import Answer, problem, reply

ClientOf = Callable[[Answer], Client]
NOW = datetime(2026, 1, 31, tzinfo=UTC)
SPEC = TrainingSpec(name="digits", command=("python", "train.py"), roles=Roles(worker=Role(replicas=2)))


def training(state: TrainingState = "queued", attempt: int = 0, *, freed: bool = False) -> Training:
    return Training(
        project="search",
        name="digits-1",
        spec=SPEC,
        state=state,
        created_at=NOW,
        attempt=attempt,
        reason="waiting for 2 GPUs" if state == "queued" else "",
        freed_at=NOW if freed else None,
    )


class Gateway:
    """Keeps archives of code and what was submitted."""

    def __init__(self) -> None:
        self.code: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.specs: list[dict[str, object]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.method)
        path = request.url.path.removeprefix("/v1/projects/search/")
        if path.startswith("code/"):
            digest = path.removeprefix("code/")
            if request.method == "HEAD":
                return httpx.Response(200 if digest in self.code else 404)
            body = request.read()
            assert int(request.headers["Content-Length"]) == len(body)
            assert "Transfer-Encoding" not in request.headers
            assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest
            self.code[digest] = body
            return reply({}, 201)
        assert path == "trainings"
        self.specs.append(msgspec.json.decode(request.read()))
        return reply(training(), 201)


def test_code_is_packed_and_sent_once(client_of: ClientOf, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print(1)")
    gateway = Gateway()
    client = client_of(gateway)
    client.trainings.submit({"name": "digits", "command": ["x"]}, code=tmp_path)
    client.trainings.submit({"name": "digits", "command": ["x"], "code": str(tmp_path)})
    assert gateway.asked == ["HEAD", "PUT", "POST", "HEAD", "POST"]
    ((digest, archive),) = gateway.code.items()
    assert {spec["code"] for spec in gateway.specs} == {digest}
    assert b"print(1)" in gzip.decompress(archive)


def test_a_spec_is_a_struct_a_dict_or_a_file(client_of: ClientOf, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print(1)")
    (tmp_path / "digits.yaml").write_text("kind: training\nname: digits\ncommand: [x]\ncode: code\n")
    gateway = Gateway()
    client = client_of(gateway)
    client.trainings.submit(SPEC)
    client.trainings.submit({"name": "digits", "command": ["x"], "code": "sha256:" + 64 * "0"})
    client.trainings.submit(tmp_path / "digits.yaml")
    assert gateway.specs[0] == {
        "name": "digits",
        "command": ["python", "train.py"],
        "roles": {"worker": {"replicas": 2}},
    }
    assert gateway.specs[1]["code"] == "sha256:" + 64 * "0"
    assert gateway.specs[2]["code"] in gateway.code


def test_what_can_be_refused_here_is_refused_here(client_of: ClientOf, tmp_path: Path) -> None:
    def nobody(_: httpx.Request) -> httpx.Response:
        raise AssertionError("nothing should have been asked")

    client = client_of(nobody)
    with pytest.raises(Invalid, match="bogus: unknown field"):
        client.trainings.submit({"name": "digits", "command": ["x"], "bogus": 1})
    with pytest.raises(Invalid, match="is not a folder"):
        client.trainings.submit(SPEC, code=tmp_path / "none")
    (tmp_path / "two.yaml").write_text("name: a\ncommand: [x]\n---\nname: b\ncommand: [x]\n")
    with pytest.raises(Invalid, match="holds 2 documents"):
        client.trainings.submit(tmp_path / "two.yaml")


@pytest.mark.parametrize(
    ("until", "ends_with"),
    [
        ("running", training("running", 1)),
        ("ended", training("failed", 1)),
        ("freed", training("failed", 1, freed=True)),
    ],
)
def test_wait(client_of: ClientOf, until: Until, ends_with: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    story = iter(
        [
            training(),
            training("starting", 1),
            training("running", 1),
            training("failed", 1),
            training("failed", 1, freed=True),
        ]
    )
    client = client_of(lambda _: reply(next(story)))
    assert client.trainings.wait("digits-1", until=until) == ends_with


def test_waiting_for_running_ends_with_the_training(client_of: ClientOf) -> None:
    found = client_of(lambda _: reply(training("stopped", 1))).trainings.wait("digits-1", until="running")
    assert found.state == "stopped"


def test_waiting_in_vain_says_what_for(client_of: ClientOf) -> None:
    with pytest.raises(TimedOut, match=r"still queued after 0\.05 s: waiting for 2 GPUs"):
        client_of(lambda _: reply(training())).trainings.wait("digits-1", timeout=0.05)


class Logs:
    """A training of two attempts whose log breaks off in the middle of the first."""

    FIRST = b"[chief-0] one\n[ps-0] up\n[chief-0] two\n[chief-0] two\n"
    SECOND = b"[chief-0] again\n"

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.states = iter(
            [training("running", 1), training("starting", 1), training("succeeded", 2), training("succeeded", 2)]
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/logs"):
            return reply(next(self.states))
        assert request.url.params["follow"] == "true"
        self.opened.append(request.url.params["attempt"])
        if len(self.opened) == 1:
            return httpx.Response(200, content=self.broken())
        # Lines of several tasks come in another order the next time.
        again = b"[ps-0] up\n[chief-0] one\n[chief-0] two\n[chief-0] two\n[chief-0] three\n"
        return httpx.Response(200, content=again if self.opened[-1] == "1" else self.SECOND)

    def broken(self) -> Iterator[bytes]:
        yield self.FIRST
        raise httpx.ReadError("Connection reset by peer")


def test_followed_logs_go_on_after_a_lost_connection_and_into_the_next_attempt(
    client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    logs = Logs()
    assert list(client_of(logs).trainings.logs("digits-1", follow=True)) == [
        "[chief-0] one",
        "[ps-0] up",
        "[chief-0] two",
        "[chief-0] two",
        "[chief-0] three",
        "[chief-0] again",
    ]
    assert logs.opened == ["1", "1", "2"]


def test_logs_that_stand_are_read_once(client_of: ClientOf) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert dict(request.url.params) == {"task": "ps-0", "tail": "2"}
        return httpx.Response(200, content=b"a\nb")

    assert list(client_of(answer).trainings.logs("digits-1", task="ps-0", tail=2)) == ["a", "b"]


def test_a_followed_log_that_can_not_be_opened_again_is_given_up(
    client_of: ClientOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/logs"):
            return problem(503, "unavailable", "the scheduler is away")
        return reply(training("running", 1))

    with pytest.raises(Unavailable, match="the scheduler is away"):
        list(client_of(answer).trainings.logs("digits-1", follow=True))
