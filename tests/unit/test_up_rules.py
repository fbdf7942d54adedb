"""The rules of the embedded platform that need no process."""

import errno
import fcntl
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from elearn.up import backoff, binaries, logfiles, nats, ports, postgres, services
from elearn.up.errors import AccountError, AlreadyRunningError, HomeError, PortTakenError
from elearn.up.files import read_struct, write_atomically
from elearn.up.home import Home, Secrets, unusable
from elearn.up.identity import Account, Identity, choose
from elearn.up.state import Ports

ROOT = Account(name="root", uid=0, gid=0)
DAEMON = Account(name="daemon", uid=1, gid=1)
NOBODY = Account(name="nobody", uid=65534, gid=65534)
PORTS = Ports(api=8470, nats=20001, postgres=20002, health=dict.fromkeys(services.SERVICES, 20003))


def allowed(identity: Identity) -> bool:
    return True


def refused(identity: Identity) -> bool:
    return False


@pytest.mark.parametrize(
    ("uid", "table", "namespaces", "kind", "runs_as"),
    [
        (1, [ROOT, DAEMON], refused, "self", 1),
        (0, [NOBODY, ROOT, DAEMON], allowed, "namespace", 65534),
        (0, [ROOT, DAEMON], allowed, "namespace", 1),
        (0, [NOBODY, ROOT], refused, "account", 65534),
        (4242, [NOBODY, ROOT], allowed, "namespace", 65534),
    ],
)
def test_who_runs_postgres(
    uid: int, table: list[Account], namespaces: Callable[[Identity], bool], kind: str, runs_as: int
) -> None:
    chosen = choose(uid, uid, table, namespaces)
    assert (chosen.kind, chosen.uid) == (kind, runs_as)


@pytest.mark.parametrize(("uid", "table"), [(0, [ROOT]), (4242, [ROOT, NOBODY])])
def test_nobody_can_run_postgres(uid: int, table: list[Account]) -> None:
    with pytest.raises(AccountError, match="account"):
        choose(uid, uid, table, refused)


def test_pauses_grow_from_quick_to_bounded_and_begin_again_after_a_steady_life() -> None:
    pauses = [backoff.pause(ends) for ends in range(1, 20)]
    assert pauses[0] < 0.1
    assert pauses == sorted(pauses)
    assert pauses[-1] == backoff.LONGEST
    assert backoff.ends_in_a_row(7, backoff.STEADY - 1) == 8
    assert backoff.ends_in_a_row(7, backoff.STEADY) == 1


def test_ports_are_kept_distinct_and_off_the_ephemeral_range() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chosen = ports.choose(0, None, services.SERVICES, 8470)
    everything = [chosen.api, chosen.nats, chosen.postgres, *chosen.health.values()]
    assert len(set(everything)) == len(everything)
    assert lowest < 12000 or max(everything) < lowest
    assert ports.choose(0, chosen, services.SERVICES, 8470) == chosen
    assert ports.choose(None, chosen, services.SERVICES, 8470) == chosen


def test_a_taken_port_is_refused_for_the_gateway_and_replaced_inside() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {taken} .*--port"):
            ports.choose(taken, None, services.SERVICES, 8470)
        known = msgspec.structs.replace(PORTS, nats=taken)
        assert ports.choose(0, known, services.SERVICES, 8470).nats != taken


def subject_allows(pattern: str, subject: str) -> bool:
    words = [re.escape(word) for word in pattern.split(".")]
    words = ["[^.]+" if word == re.escape("*") else ".+" if word == re.escape(">") else word for word in words]
    return re.fullmatch(r"\.".join(words), subject) is not None


def may(user: str, verb: str, subject: str) -> bool:
    permissions = nats.permissions(services.SERVICES)[user]
    if verb == "subscribe":
        return any(subject_allows(each, subject) for each in permissions.subscribe)
    return any(subject_allows(each, subject) for each in permissions.publish) and not any(
        subject_allows(each, subject) for each in permissions.publish_never
    )


@pytest.mark.parametrize(
    ("user", "verb", "subject", "answer"),
    [
        ("scheduler", "publish", "elearn.v1.training.running.default.digits-1", True),
        ("scheduler", "publish", "elearn.rpc.datastore.get", True),
        ("scheduler", "subscribe", "elearn.rpc.scheduler.submit", True),
        ("scheduler", "subscribe", "elearn.rpc.registry.save", False),
        ("scheduler", "subscribe", "_INBOX_scheduler.abc.1", True),
        ("scheduler", "subscribe", "_INBOX_api.abc.1", False),
        ("scheduler", "subscribe", "$SRV.PING.registry", False),
        ("scheduler", "publish", "_INBOX_api.abc.1", True),
        ("api", "publish", "$SYS.REQ.SERVER.PING", False),
        ("elearn", "publish", "elearn.v1.data.arrived.default.digits", True),
        ("elearn", "publish", "elearn.v1.training.succeeded.default.digits-1", False),
        ("elearn", "publish", "elearn.rpc.scheduler.submit", False),
        ("elearn", "publish", "$JS.API.STREAM.DELETE.ELEARN", False),
        ("elearn", "publish", "$JS.API.STREAM.PURGE.ELEARN", False),
        ("elearn", "publish", "$JS.API.CONSUMER.CREATE.ELEARN.mine.elearn.v1.>", True),
        ("elearn", "publish", "$JS.API.CONSUMER.MSG.NEXT.ELEARN.mine", True),
        ("elearn", "publish", "$JS.API.CONSUMER.MSG.NEXT.ELEARN.registry-trainings", False),
        ("elearn", "publish", "$JS.API.CONSUMER.DELETE.ELEARN.serving-models", False),
        ("elearn", "publish", "$JS.ACK.ELEARN.serving-models.1.2.3.4.5", False),
        ("elearn", "subscribe", "elearn.v1.training.failed.search.ctr-41", True),
        ("elearn", "subscribe", "_INBOX.abc", True),
        ("elearn", "subscribe", "_INBOX_api.abc", False),
    ],
)
def test_what_a_bus_user_may(user: str, verb: str, subject: str, answer: bool) -> None:
    assert may(user, verb, subject) is answer


def test_every_durable_consumer_of_a_service_is_out_of_a_pipelines_reach() -> None:
    rooms = Path(__file__).parents[2] / "services"
    found = {name for file in rooms.rglob("*.py") for name in re.findall(r'durable="([^"]+)"', file.read_text())}
    assert found == set(nats.DURABLES), "name the durable consumers of the rooms in elearn.up.nats.DURABLES"


def test_a_service_gets_its_own_addresses_and_what_the_user_set() -> None:
    home = Home(Path("/srv/home of elearn"))
    secrets = Secrets(
        nats={name: f"nats-{name}" for name in services.SERVICES},
        postgres={name: f"postgres-{name}" for name in services.SERVICES},
        installation="up-1234abcd",
    )
    inherited = {"PATH": "/bin", "ELEARN_CPUS": "3", "ELEARN_TOKEN": "mine", "ELEARN_NATS_URL": "theirs"}
    found = services.environment("registry", home, PORTS, secrets, inherited, Path("/home/ada"))
    assert found["ELEARN_POSTGRES_URL"] == "postgresql://registry:postgres-registry@127.0.0.1:20002/registry"
    assert found["ELEARN_NATS_URL"] == "nats://registry:nats-registry@127.0.0.1:20001"
    assert found["ELEARN_LOCAL_ROOTS"] == "/home/ada:/srv/home of elearn"
    assert found["ELEARN_CPUS"] == "3"
    assert found["ELEARN_CLOUD"] == "local"
    assert found["ELEARN_KUBERNETES_INSTALLATION"] == "up-1234abcd"
    chosen = {**inherited, "ELEARN_KUBERNETES_INSTALLATION": "mine"}
    mine = services.environment("registry", home, PORTS, secrets, chosen, None)
    assert mine["ELEARN_KUBERNETES_INSTALLATION"] == "mine"
    assert "ELEARN_TOKEN" not in found
    assert "ELEARN_ADMIN_TOKEN_FILE" not in found
    gateway = services.environment("api", home, PORTS, secrets, inherited, Path("/home/ada"))
    assert gateway["ELEARN_LISTEN"] == "127.0.0.1:8470"
    assert gateway["ELEARN_ADMIN_TOKEN_FILE"] == "/srv/home of elearn/token"
    assert not any("postgres-" in word or "nats-" in word for word in services.command("api"))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "no right to use"),
        (errno.EROFS, "no right to use"),
        (errno.ENOTDIR, "not a folder"),
        (errno.EIO, "can't use"),
    ],
)
def test_trouble_with_the_home_in_words(number: int, words: str) -> None:
    error = unusable(Path("/home"), OSError(number, os.strerror(number), "/home/elearn/token"))
    assert words in error.detail
    assert "\n" not in error.detail


def test_a_home_that_is_only_looked_at_can_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    home.lock.touch()
    with home.lock.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        with home.locked():
            assert home.is_locked()
            with pytest.raises(AlreadyRunningError), home.locked():
                pass
    assert not home.is_locked()


def test_token_and_secrets_are_made_once_for_their_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.prepare()
    home.ensure_token()
    token = home.token.read_text()
    first = home.ensure_secrets(["api"], ["api"])
    second = home.ensure_secrets(["api", "scheduler"], ["api"])
    home.ensure_token()
    assert home.token.read_text() == token
    assert second.nats["api"] == first.nats["api"]
    assert second.installation == first.installation
    other = Home(tmp_path / "other")
    other.prepare()
    assert other.ensure_secrets([], []).installation != first.installation != ""
    assert "scheduler" in second.nats
    assert [path.stat().st_mode & 0o777 for path in (home.token, home.secrets)] == [0o600, 0o600]
    assert home.root.stat().st_mode & 0o777 == 0o700


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("{half")
    with pytest.raises(HomeError, match=r"state\.json is damaged"):
        read_struct(path, Ports)


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    write_atomically(path, b"old")
    path.chmod(0o600)
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_log_is_turned_over_under_the_hands_of_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "api.log"
    descriptor = logfiles.open_log(path)
    for round in range(5):
        os.write(descriptor, f"round {round}\n".encode() * 10)
        assert logfiles.turn_over(path, largest=50, kept=2)
    os.write(descriptor, b"\nthe last\n\n")
    os.close(descriptor)
    assert not logfiles.turn_over(path, largest=50, kept=2)
    assert logfiles.last_line(path) == "the last"
    path.write_text('{"event": "stopped", "error": "ELEARN_LISTEN: not host:port", "level": "error"}\n')
    assert logfiles.last_line(path) == "stopped: ELEARN_LISTEN: not host:port"
    path.write_text('{"event": "stopped"}\n')
    assert logfiles.last_line(path) == "stopped"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["api.log", "api.log.1", "api.log.2"]
    assert path.with_name("api.log.1").read_text() == "round 4\n" * 10
    assert path.with_name("api.log.2").read_text() == "round 3\n" * 10
    assert {each.stat().st_mode & 0o777 for each in tmp_path.iterdir()} == {0o600}


def test_postgres_shares_no_memory_or_sockets_with_its_neighbours() -> None:
    assert postgres.SETTINGS["listen_addresses"] == "127.0.0.1"
    assert postgres.SETTINGS["unix_socket_directories"] == ""


def test_the_configuration_for_other_servers_is_up_to_date() -> None:
    committed = Path(__file__).parents[2] / "deploy" / "nats" / "nats.conf"
    assert committed.read_text() == nats.template(services.SERVICES)


def test_the_configuration_for_other_servers_is_valid_and_takes_passwords_from_the_environment() -> None:
    committed = Path(__file__).parents[2] / "deploy" / "nats" / "nats.conf"
    users = [*services.SERVICES, nats.OPERATIONS]
    passwords = {f"ELEARN_NATS_PASSWORD_{user.upper()}": f"secret-of-{user}" for user in users}
    check = [str(binaries.nats_server()), "--config", str(committed), "-t"]
    assert subprocess.run(check, env=passwords, capture_output=True, check=False).returncode == 0
    passwords.popitem()
    said = subprocess.run(check, env=passwords, capture_output=True, check=False, text=True)
    assert said.returncode != 0
    assert "ELEARN_NATS_PASSWORD_ELEARN" in said.stdout + said.stderr


def test_a_home_without_room_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[4] = 40 * 2**20 // real.f_frsize  # f_bavail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    with pytest.raises(HomeError, match=r"only 40 MiB are free .*256 are needed"):
        Home(tmp_path / "home").prepare()


def test_a_home_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(HomeError, match="run elearn as its owner"):
        Home(tmp_path).prepare()


def test_a_user_without_a_home_is_told_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(HomeError, match="--home"):
        Home(Path("~/.elearn"))


def test_a_nats_server_that_stores_nothing_any_more_says_so_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "nats.log"
    assert nats.ailment(log, 7) is None
    stamp = "2026/11/24 04:53:20.922335"
    well = f"[7] {stamp} [INF] Server is ready\n"
    ill = (
        f"{stamp} [ERR] JetStream failed to store a msg on stream '$G > ELEARN': write 1.blk: no space left on device\n"
    )
    log.write_text(f"[6] {ill}{well}")
    assert nats.ailment(log, 7) is None, "its predecessor was ill"
    log.write_text(f"{well * 5000}[7] {ill}{well}")
    said = nats.ailment(log, 7)
    assert said == "JetStream failed to store a msg on stream '$G > ELEARN': write 1.blk: no space left on device"
