"""The house: every room has the same furniture, and what import rules can't see is kept apart too."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("api", "scheduler", "datastore", "registry", "serving")
FURNITURE = ("README.md", "__main__.py", "app.py", "settings.py", "model.py", "queries.py", "store.py", "errors.py")
SQL = re.compile(r"\b(SELECT .+ FROM|INSERT INTO|UPDATE \w+ SET|DELETE FROM|CREATE TABLE)\b", re.DOTALL)
PURE = {"asyncio", "time", "random", "logging", "structlog", "asyncpg", "nats", "aiohttp", "kubernetes_asyncio", "os"}


def sources(*folders: str) -> list[Path]:
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
    ]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_the_same_furniture(room: str) -> None:
    folder = ROOT / "services" / room
    missing = [name for name in FURNITURE if not (folder / name).is_file()]
    assert not missing
    assert list((folder / "migrations").glob("0001_*.sql"))
    if room == "api":
        assert (folder / "routes").is_dir()
    else:
        missing = [name for name in ("handlers.py", "controller.py", "cloud/port.py") if not (folder / name).is_file()]
        assert not missing
        assert (folder / "cloud" / "local.py").is_file() or (folder / "cloud" / "local").is_dir()


@pytest.mark.parametrize("room", ROOMS)
def test_the_entrance_is_short(room: str) -> None:
    assert len((ROOT / "services" / room / "__main__.py").read_text().splitlines()) <= 20


def test_sql_lives_in_stores_and_in_the_message_tables() -> None:
    allowed = {ROOT / "shared" / name for name in ("outbox.py", "inbox.py", "idempotency.py", "postgres.py")}
    strays = [
        str(path.relative_to(ROOT))
        for path in sources("services", "shared", "elearn")
        if path not in allowed
        and not path.stem.endswith("store")
        and path.parent.name != "store"
        and path != ROOT / "elearn" / "up" / "databases.py"  # makes the databases that services then own
        and SQL.search(path.read_text())
    ]
    assert not strays


@pytest.mark.parametrize("room", ROOMS)
def test_models_and_contracts_do_no_io(room: str) -> None:
    for path in [ROOT / "services" / room / "model.py", *sources("shared/contracts")]:
        assert not imports(path) & PURE, path


def test_no_file_is_too_long_to_be_read_in_one_go() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources("services", "shared", "elearn", "examples", "benchmarks")
        if (lines := len(path.read_text().splitlines())) > 450
    }
    assert not long


def test_shared_contracts_import_only_msgspec_and_the_standard_library() -> None:
    third_party = {"nats", "asyncpg", "aiohttp", "httpx", "structlog", "yaml", "grpc", "google", "tensorflow"}
    for path in sources("shared/contracts"):
        assert not imports(path) & third_party, path
