"""Code on its way to pods: kept in a real database, served over HTTP, fetched by the init container's program."""

import asyncio
import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from structlog.testing import capture_logs

from services.scheduler import code_store
from services.scheduler.cloud.kubernetes.code import CodeDelivery
from services.scheduler.cloud.kubernetes.code_server import CodeServer
from services.scheduler.cloud.kubernetes.code_tokens import CodeTokens
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.preparation import REFUSED, VARIABLE, Folder, Preparation
from services.scheduler.cloud.kubernetes.receiving import receive
from services.scheduler.cloud.port import Launch
from services.scheduler.code_store import CodeStore
from services.scheduler.store import TrainingStore
from shared.archive import pack
from shared.clock import now
from shared.errors import ElearnError, Forbidden, Invalid, NotFound, Unavailable
from shared.postgres import Database
from tests.support.trainings import record, replace, spec

ROOT = Path(__file__).parents[2]
PROJECT = "p"
SOMEBODY = 10001 if os.geteuid() == 0 else os.geteuid()


class Stage:
    """A pod's folders, open to the user that the program runs as."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("code", "workspace", "volume"):
            (root / name).mkdir()
        (root / "workspace").chmod(0o777)
        (root / "message").touch()
        (root / "message").chmod(0o666)

    async def prepare(self, asked: Preparation) -> int:
        """Run the program as an ordinary user, as the pod would."""
        program = (
            "import encodings.ascii, encodings.idna, encodings.latin_1, os, sys, pathlib\n"
            "from services.scheduler.cloud.kubernetes.prepare import Places, main\n"
            "if os.geteuid() == 0:\n"  # only now: this Python may lie where nobody else may look
            "    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))\n"
            "root = pathlib.Path(sys.argv[1])\n"
            "places = Places(code=root / 'code', workspace=root / 'workspace', message=root / 'message')\n"
            "sys.exit(main(os.environ, places))"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, str(self.root), str(SOMEBODY)),
            cwd=ROOT,
            env={VARIABLE: msgspec.json.encode(asked).decode(), "PATH": os.environ["PATH"]},
        )
        async with asyncio.timeout(30):
            return await process.wait()

    @property
    def message(self) -> str:
        return (self.root / "message").read_text()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory() as root:
        Path(root).chmod(0o755)
        yield Stage(Path(root))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[CodeStore]:
    database = Database(database_url, name="scheduler")
    await database.migrate(Path(code_store.__file__).parent / "migrations")
    await database.open()
    async with database:
        yield CodeStore(database)


@pytest.fixture
async def digest(store: CodeStore, tmp_path: Path) -> str:
    """An archive of several parts, and a training that holds compute with it."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "train.py").write_text("print('hello')")
    (tmp_path / "source" / "table.bin").write_bytes(os.urandom(1_500_000))
    packed = pack(tmp_path / "source", tmp_path / "code.tar.gz")
    data = (tmp_path / "code.tar.gz").read_bytes()
    key = (PROJECT, packed.digest, "upload")
    async with store._database.transaction() as t:
        await store.begin(t, *key, now())
        for start in range(0, len(data), 2**19):
            await store.add(t, *key, start, data[start : start + 2**19], now())
        await store.keep(t, *key, packed.size, now())
        await TrainingStore().insert(t, replace(record(code=packed.digest), attempt=2, holding=True))
    return packed.digest


async def change(store: CodeStore, **fields: object) -> None:
    async with store._database.transaction() as t:
        found = await TrainingStore().get(t, (PROJECT, "t-1"))
        await TrainingStore().save(t, replace(found, **fields))


def launch(digest: str, attempt: int = 2) -> Launch:
    return Launch(project=PROJECT, name="t-1", attempt=attempt, spec=spec(code=digest), plan=(), mounts=())


@pytest.fixture
async def served(store: CodeStore) -> AsyncIterator[str]:
    """The code server's URL; it answers."""
    port = unused_port()
    server = CodeServer(store, CodeTokens(store.signing_key), store.is_held, host="127.0.0.1", port=port)
    running = asyncio.create_task(server.run())
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(5), aiohttp.ClientSession() as client:
            while True:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with client.get(f"{url}/healthz") as answer:
                        assert await answer.text() == "ok"
                        break
        yield url
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def signed(store: CodeStore, served: str, digest: str, attempt: int = 2) -> str:
    """What the Secret says, as made by another replica."""
    options = TrainingOptions(kubernetes_code_url=served)
    delivery = CodeDelivery(options, store, CodeTokens(store.signing_key).sign)
    (content,) = await delivery.contents(launch(digest, attempt))
    return content["url"].decode()


async def status_of(url: str) -> int:
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        body = await answer.read()
        assert answer.status == 200 or len(body.splitlines()) == 1
        return answer.status


# -- the whole way


async def test_code_comes_through_the_server_to_an_ordinary_user(
    stage: Stage, store: CodeStore, served: str, digest: str
) -> None:
    (stage.root / "volume").chmod(0o777)
    url = await signed(store, served, digest)
    (stage.root / "code" / "url").write_text(url)
    folder = Folder(datastore="runs", volume=str(stage.root / "volume"), path="t-1/out", make=True)
    asked = Preparation(code=digest, folders=(folder,), points=("data/digits",))
    with capture_logs() as logs:
        assert await stage.prepare(asked) == 0, stage.message
        assert await stage.prepare(asked) == 0, stage.message  # a pod may start its containers anew
    workspace = stage.root / "workspace"
    assert sorted(path.name for path in workspace.iterdir()) == ["data", "table.bin", "train.py"]
    made = (workspace / "train.py", workspace / "data", stage.root / "volume" / "t-1")
    assert {path.stat().st_uid for path in made} == {SOMEBODY}
    assert not logs


async def test_code_comes_in_secrets(stage: Stage, store: CodeStore, digest: str) -> None:
    delivery = CodeDelivery(TrainingOptions(), store, CodeTokens(store.signing_key).sign)
    assert await delivery.examine(PROJECT, spec(code=digest)) == []
    for content in await delivery.contents(launch(digest)):
        for key, data in content.items():
            (stage.root / "code" / key).write_bytes(data)
    assert len(list((stage.root / "code").iterdir())) == 3
    assert await stage.prepare(Preparation(code=digest)) == 0, stage.message
    assert (stage.root / "workspace" / "train.py").read_text() == "print('hello')"


async def test_a_datastore_that_others_own_says_as_whom_we_came(stage: Stage) -> None:
    (stage.root / "volume").chmod(0o555)
    folder = Folder(datastore="runs", volume=str(stage.root / "volume"), path="out", make=True)
    assert await stage.prepare(Preparation(folders=(folder,))) == REFUSED
    assert stage.message.startswith(
        f"folder 'out' of datastore 'runs': Permission denied: elearn works in it as user {SOMEBODY}"
    )


async def test_a_token_that_died_ends_the_preparation_at_once(
    stage: Stage, store: CodeStore, served: str, digest: str
) -> None:
    (stage.root / "code" / "url").write_text(await signed(store, served, digest))
    await change(store, holding=False)
    assert await stage.prepare(Preparation(code=digest)) == REFUSED
    assert "the code is not handed out" in stage.message
    assert "token=" not in stage.message


# -- what the server allows


async def test_a_token_lives_as_long_as_its_attempt(store: CodeStore, served: str, digest: str) -> None:
    url = await signed(store, served, digest)
    assert await status_of(url) == 200
    await change(store, attempt=3)
    assert await status_of(url) == 403
    assert await status_of(await signed(store, served, digest, attempt=3)) == 200
    await change(store, attempt=2, holding=False)
    assert await status_of(url) == 403


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("attempt=2", "attempt=3"),
        ("attempt=2", "attempt=%C2%B2"),
        ("attempt=2", "attempt=-2"),
        ("attempt=2", "attempt=99999999999999999999"),
        ("training=t-1", "training=t-2"),
        ("training=t-1", "training=t%00"),
        ("/code/p/", "/code/q/"),
        ("token=", "token=0"),
        ("token=", "nothing="),
        ("sha256%3A", "sha256%3A0"),
    ],
)
async def test_whoever_changes_the_url_is_sent_away(
    store: CodeStore, served: str, digest: str, old: str, new: str
) -> None:
    url = await signed(store, served, digest)
    assert old in url
    assert await status_of(url.replace(old, new)) == 403


async def test_replicas_that_begin_together_share_one_key(store: CodeStore) -> None:
    keys = await asyncio.gather(*(store.signing_key() for _ in range(5)))
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32


class Slow:
    """Archives that come when the test says so, from a database that may go away."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.failures = 0

    async def size(self, project: str, digest: str) -> int:
        return 8

    async def parts(self, project: str, digest: str) -> AsyncGenerator[bytes, None]:
        yield b"half"
        await self.go_on.wait()
        if self.failures:
            self.failures -= 1
            raise Unavailable("the database is away; try again")
        yield b"half"


async def _key() -> bytes:
    return b"k"


async def _held(project: str, digest: str, training: str, attempt: int) -> bool:
    return True


@contextlib.asynccontextmanager
async def slow_server(source: Slow, **bounds: int) -> AsyncIterator[str]:
    """A server over such archives; yields a URL with a token."""
    tokens = CodeTokens(_key)
    server = TestServer(CodeServer(source, tokens, _held, host="", port=0, **bounds).application())
    async with server:
        options = TrainingOptions(kubernetes_code_url=str(server.make_url("/")))
        (content,) = await CodeDelivery(options, source, tokens.sign).contents(launch("sha256:0"))
        yield content["url"].decode()


async def test_who_finds_no_room_is_told_to_come_again() -> None:
    source = Slow()
    async with slow_server(source, at_once=1, waiting=0) as url, aiohttp.ClientSession() as client:
        async with client.get(url) as first:
            assert first.status == 200
            async with client.get(url) as second:
                assert (second.status, second.headers["Retry-After"]) == (503, "2")
            source.go_on.set()
            assert await first.read() == b"halfhalf"
        async with client.get(url) as third:
            assert await third.read() == b"halfhalf"


async def test_others_wait_for_their_turn() -> None:
    source = Slow()
    async with slow_server(source, at_once=1, waiting=2) as url, aiohttp.ClientSession() as client:

        async def fetch() -> bytes:
            async with client.get(url) as answer:
                return await answer.read()

        fetching = [asyncio.create_task(fetch()) for _ in range(3)]
        source.go_on.set()
        assert await asyncio.gather(*fetching) == [b"halfhalf"] * 3


async def test_code_that_breaks_off_is_fetched_again(tmp_path: Path) -> None:
    source = Slow()
    source.go_on.set()
    source.failures = 1
    said: list[str] = []
    async with slow_server(source) as url:
        (tmp_path / "url").write_text(url)
        with capture_logs() as logs:
            archive = await fetched(tmp_path, said.append, "halfhalf")
    assert archive == b"halfhalf"
    assert [log["event"] for log in logs] == ["code was not sent whole"]
    assert "token" not in repr(logs)
    assert len(said) == 1
    assert "broke after 4 of 8 bytes" in said[0] or "reset" in said[0].lower()
    assert "token" not in said[0]


# -- what the program makes of a server


async def fetched(source: Path, say: Callable[[str], None], content: str = "", *, patience: float = 20) -> bytes:
    digest = f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
    scratch = source / "scratch"
    scratch.mkdir()
    path = await asyncio.to_thread(receive, source, digest, scratch, say=say, patience=patience, pause=0.01)
    return path.read_bytes()


@contextlib.asynccontextmanager
async def answering(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/code", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/code?token=secret"))


@pytest.mark.parametrize(
    ("status", "headers", "kind", "words"),
    [
        (403, {}, Forbidden, "the code is not handed out: .* answers 403 Forbidden, no way$"),
        (404, {}, NotFound, "the code is not there any more"),
        (302, {"Location": "/code?token=other"}, Forbidden, "sends us elsewhere .*ELEARN_KUBERNETES_CODE_URL"),
        (200, {}, Invalid, "its digest is another"),
    ],
)
async def test_an_answer_that_would_come_again_is_final(
    tmp_path: Path, status: int, headers: dict[str, str], kind: type[ElearnError], words: str
) -> None:
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=status, text="no\nway", headers=headers)

    async with answering(answer) as url:
        (tmp_path / "url").write_text(url)
        with pytest.raises(kind, match=words) as refused:
            await fetched(tmp_path, lambda _: None)
    assert "secret" not in refused.value.detail
    assert len(asked) == 1


async def test_a_server_that_is_away_is_asked_again_until_patience_ends(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "url").write_text(f"http://127.0.0.1:{unused_port()}/code?token=secret")
    with pytest.raises(Unavailable, match=r"^the code can't be fetched from http://127\.0\.0\.1:\d+: .*refused"):
        await fetched(tmp_path, said.append, patience=0.1)
    assert said
    assert "secret" not in "".join(said)


async def test_a_server_that_is_busy_is_asked_again(tmp_path: Path) -> None:
    statuses = [500, 503, 429, 200]

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=statuses.pop(0), text="code")

    async with answering(answer) as url:
        (tmp_path / "url").write_text(url)
        assert await fetched(tmp_path, lambda _: None, "code") == b"code"
    assert not statuses
