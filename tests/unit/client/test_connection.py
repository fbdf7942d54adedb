"""Where the client finds elearn, and what it refuses to talk to."""

import json
import stat
from pathlib import Path

import pytest

from elearn.client.connection import (
    Connection,
    Login,
    NotConnected,
    checked_name,
    checked_url,
    connect,
    forget_login,
    read_login,
    write_login,
)
from shared.errors import Invalid, Unauthenticated


def _up(home: Path, *, running: bool = True) -> None:
    home.mkdir(exist_ok=True)
    supervisor = {"pid": 1, "started": 2, "boot": "x"} if running else None
    state = {"ports": {"api": 4321, "nats": 1, "postgres": 2, "health": {}}, "supervisor": supervisor}
    (home / "state.json").write_text(json.dumps(state))
    (home / "token").write_text("local\n")


def test_what_runs_here_is_found_with_its_token(tmp_path: Path) -> None:
    _up(tmp_path)
    found = connect(environ={"ELEARN_HOME": str(tmp_path)})
    assert (found.url, found.token, found.project) == ("http://127.0.0.1:4321", "local", "default")


def test_what_was_taken_down_is_not_running(tmp_path: Path) -> None:
    _up(tmp_path, running=False)
    with pytest.raises(NotConnected, match="elearn up"):
        connect(environ={"ELEARN_HOME": str(tmp_path)})


def test_a_login_goes_before_what_runs_here(tmp_path: Path) -> None:
    _up(tmp_path)
    write_login(tmp_path, Login(url="https://far.example", token="far"))
    found = connect(environ={"ELEARN_HOME": str(tmp_path)})
    assert (found.url, found.token) == ("https://far.example", "far")
    assert forget_login(tmp_path)
    assert not forget_login(tmp_path)
    assert connect(environ={"ELEARN_HOME": str(tmp_path)}).token == "local"


def test_the_environment_goes_before_a_login_and_arguments_before_both(tmp_path: Path) -> None:
    write_login(tmp_path, Login(url="https://far.example", token="far"))
    environ = {
        "ELEARN_HOME": str(tmp_path),
        "ELEARN_URL": "http://env:1/",
        "ELEARN_TOKEN": "env",
        "ELEARN_PROJECT": "search",
    }
    found = connect(environ=environ)
    assert (found.url, found.token, found.project) == ("http://env:1", "env", "search")
    found = connect("http://given", "given", "ads", environ=environ)
    assert (found.url, found.token, found.project) == ("http://given", "given", "ads")


def test_a_token_is_never_sent_to_another_address_than_its_own(tmp_path: Path) -> None:
    _up(tmp_path)
    write_login(tmp_path, Login(url="https://far.example", token="far"))
    for url in ("https://far.example.evil", "http://far.example", "http://127.0.0.1:4322"):
        with pytest.raises(Unauthenticated, match="no token for"):
            connect(url, environ={"ELEARN_HOME": str(tmp_path)})
    assert connect("http://127.0.0.1:4321/", environ={"ELEARN_HOME": str(tmp_path)}).token == "local"


def test_a_login_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "new"
    path = write_login(home, Login(url="https://far.example", token="far"))
    write_login(home, Login(url="https://far.example", token="further"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_login(home) == Login(url="https://far.example", token="further")
    assert [each.name for each in home.iterdir()] == ["login.json"]


def test_a_damaged_login_is_named(tmp_path: Path) -> None:
    (tmp_path / "login.json").write_text("{")
    with pytest.raises(Invalid, match=r"login\.json"):
        connect(environ={"ELEARN_HOME": str(tmp_path)})


def test_the_token_is_not_in_what_a_connection_prints() -> None:
    assert "hidden" not in repr(Connection(url="http://x", token="hidden"))


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8470", "ftp://x", "http://", "http://x:99999", "http://u:p@x", "http://x/?a=b", "http://x/#a"],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(Invalid):
        checked_url(url)


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a" * 41, "-a", "a-", "a\n", "a%2fb"])
def test_names_that_would_lead_elsewhere(name: str) -> None:
    with pytest.raises(Invalid):
        checked_name(name)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://127.example.org", False),
        ("http://10.0.0.1", False),
    ],
)
def test_loopback(url: str, loopback: bool) -> None:
    assert Connection(url=url, token="t").loopback is loopback
