"""A gateway on real NATS and PostgreSQL, with stand-ins for the other rooms that answer its verbs."""

import asyncio
import contextlib
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from elearn.up import ports
from services.api.app import compose
from services.api.settings import Settings
from shared import context
from shared.bus import Bus
from shared.contracts import datastore, model, serving, training
from shared.contracts.common import CHUNK_BYTES, Chunk, Done, ListRequest, Named, Page
from shared.contracts.datastore import (
    CreateDatastore,
    Datastore,
    FileEntry,
    FileRequest,
    ListFiles,
    Probe,
    ReadFile,
    WriteFile,
    datastore_errors,
)
from shared.contracts.model import (
    Alias,
    AliasRequest,
    ListVersions,
    ReadArchive,
    SaveVersion,
    SetAlias,
    Version,
    VersionRequest,
)
from shared.contracts.rpc import AnyVerb
from shared.contracts.serving import CreateServing, Endpoint, Serving, ServingSpec
from shared.contracts.training import (
    CodeArchive,
    CodeChunk,
    CodeRequest,
    Lineage,
    Plan,
    ReadCode,
    ReadLog,
    SubmitTraining,
    Task,
    Training,
)
from shared.errors import Conflict, Invalid, NotFound
from tests.support.rooms import answering, running_room

ADMIN = "an-operator-token-of-tests"
MOMENT = datetime(2026, 1, 31, 12, tzinfo=UTC)
Handler = Callable[[Any], Awaitable[Any]]


class Rooms:
    """What the other rooms would know; every request that came is in ``asked`` with its cause."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, context.Cause]] = []
        self.answers_instead: dict[str, Handler] = {}
        self.datastores: dict[str, Datastore] = {}
        self.trainings: dict[str, Training] = {}
        self.files: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.code: dict[str, bytes] = {}
        self.archive = b""
        self.logs: dict[str, bytes] = {}
        self.ended: set[str] = set()
        self.more_log = asyncio.Event()
        self.board = ""
        self.endpoint: Endpoint | None = None
        self.servings: dict[str, Serving] = {}

    def handlers(self, service: str) -> dict[AnyVerb, Handler]:
        answers: dict[AnyVerb, Handler] = {
            datastore.CREATE: self.create_datastore,
            datastore.GET: self.get_datastore,
            datastore.LIST: self.list_datastores,
            datastore.DELETE: self.done,
            datastore.PROBE: self.probe,
            datastore.ARRIVED: self.done,
            datastore.STAT_FILE: self.stat_file,
            datastore.LIST_FILES: self.list_files,
            datastore.READ_FILE: self.read_file,
            datastore.WRITE_FILE: self.write_file,
            datastore.DELETE_FILE: self.delete_file,
            training.SUBMIT: self.submit,
            training.PLAN: self.plan,
            training.GET: self.get_training,
            training.LIST: self.list_trainings,
            training.STOP: self.get_training,
            training.FREE: self.get_training,
            training.RETRY: self.get_training,
            training.DELETE: self.done,
            training.READ_LOG: self.read_log,
            training.OPEN_BOARD: self.open_board,
            training.STAT_CODE: self.stat_code,
            training.PUT_CODE: self.put_code,
            training.READ_CODE: self.read_code,
            model.LIST_MODELS: self.nothing,
            model.SAVE: self.save,
            model.GET_VERSION: self.get_version,
            model.LIST_VERSIONS: self.list_versions,
            model.READ_ARCHIVE: self.read_archive,
            model.SET_ALIAS: self.set_alias,
            model.GET_ALIAS: self.get_alias,
            model.DELETE_ALIAS: self.done,
            serving.CREATE: self.create_serving,
            serving.GET: self.get_serving,
            serving.LIST: self.nothing,
            serving.DELETE: self.done,
        }
        return {verb: self._noting(verb, answer) for verb, answer in answers.items() if verb.service == service}

    def _noting(self, verb: AnyVerb, answer: Handler) -> Handler:
        async def handle(request: Any) -> Any:
            name = f"{verb.service}.{verb.name}"
            self.asked.append((name, request, context.current()))
            return await self.answers_instead.get(name, answer)(request)

        return handle

    def verbs(self) -> list[str]:
        return [verb for verb, _, _ in self.asked]

    async def done(self, _: Any) -> Done:
        return Done()

    async def nothing(self, _: ListRequest) -> Page[Any]:
        return Page(items=())

    async def create_datastore(self, request: CreateDatastore) -> Datastore:
        errors = datastore_errors(request.spec)
        if errors:
            raise Invalid.of(errors)
        if request.spec.name in self.datastores:
            raise Conflict(f"datastore {request.spec.name!r} exists already")
        made = Datastore(
            project=request.project,
            name=request.spec.name,
            backend=request.spec.backend(),
            spec=request.spec,
            state="ready",
            read_only=False,
            created_at=MOMENT,
            created_by=context.current().actor,
        )
        self.datastores[made.name] = made
        return made

    async def get_datastore(self, request: Named) -> Datastore:
        if request.name not in self.datastores:
            raise NotFound(f"there is no datastore {request.name!r}")
        return self.datastores[request.name]

    async def list_datastores(self, request: ListRequest) -> Page[Datastore]:
        return Page(items=tuple(each for each in self.datastores.values() if each.project == request.project))

    async def probe(self, _: Named) -> Probe:
        return Probe(ok=True, message="fine", seconds=0.1, writable=True)

    async def stat_file(self, request: FileRequest) -> FileEntry:
        if request.path in self.files:
            size = len(self.files[request.path])
            return FileEntry(path=request.path, kind="file", size=size, modified_at=MOMENT)
        if request.path == "" or any(path.startswith(request.path + "/") for path in self.files):
            return FileEntry(path=request.path, kind="directory", size=0, modified_at=MOMENT)
        raise NotFound(f"there is no file {request.path!r}")

    async def list_files(self, request: ListFiles) -> Page[FileEntry]:
        return Page(
            items=tuple(
                FileEntry(path=path, kind="file", size=len(data), modified_at=MOMENT)
                for path, data in sorted(self.files.items())
            )[: request.limit]
        )

    async def read_file(self, request: ReadFile) -> Chunk:
        data = self.files[request.path]
        part = data[request.offset : request.offset + min(request.length, CHUNK_BYTES)]
        return Chunk(data=part, offset=request.offset, total=len(data))

    async def write_file(self, request: WriteFile) -> Done:
        held = self.uploads.get(request.upload, b"")
        if len(held) != request.offset:
            raise Conflict("a part is missing")
        self.uploads[request.upload] = held + request.data
        if request.end:
            self.files[request.path] = self.uploads.pop(request.upload)
        return Done()

    async def delete_file(self, request: FileRequest) -> Done:
        if self.files.pop(request.path, None) is None:
            raise NotFound(f"there is no file {request.path!r}")
        return Done()

    async def submit(self, request: SubmitTraining) -> Training:
        for mount in request.spec.mounts:
            if mount.datastore not in self.datastores:
                raise Invalid.field("mounts.0.datastore", f"there is no datastore {mount.datastore!r}")
        name = f"{request.spec.name}-{len(self.trainings) + 1}"
        made = Training(project=request.project, name=name, spec=request.spec, state="queued", created_at=MOMENT)
        self.trainings[name] = made
        return made

    async def plan(self, request: SubmitTraining) -> Plan:
        return Plan(
            project=request.project,
            name=f"{request.spec.name}-1",
            spec=request.spec,
            tasks=(),
            cpu=1.0,
            memory=1,
            gpu=0,
            fits_now=True,
        )

    async def get_training(self, request: Any) -> Training:
        if request.name not in self.trainings:
            raise NotFound(f"there is no training {request.name!r}")
        return self.trainings[request.name]

    async def list_trainings(self, request: ListRequest) -> Page[Training]:
        found = [each for each in self.trainings.values() if each.project == request.project]
        return Page(items=tuple(found[: request.limit]))

    def start(self, name: str, *tasks: str) -> None:
        """Let a training run with these tasks."""
        known = self.trainings[name]
        self.trainings[name] = msgspec.structs.replace(
            known,
            state="running",
            attempt=known.attempt + 1,
            tasks=tuple(Task(name=task, role="worker", index=0, state="running") for task in tasks),
        )

    def end(self, name: str) -> None:
        """Let it end."""
        self.trainings[name] = msgspec.structs.replace(
            self.trainings[name], state="succeeded", finished_at=MOMENT, freed_at=MOMENT
        )
        self.ended |= {task.name for task in self.trainings[name].tasks}
        self.more_log.set()

    def write_log(self, task: str, text: bytes) -> None:
        self.logs[task] = self.logs.get(task, b"") + text
        self.more_log.set()

    async def read_log(self, request: ReadLog) -> Chunk:
        data = self.logs.get(request.task, b"")
        offset = max(0, len(data) + request.offset) if request.offset < 0 else request.offset
        ended = request.task in self.ended
        if offset >= len(data) and request.wait and not ended:
            self.more_log.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.more_log.wait(), request.wait)
            data, ended = self.logs.get(request.task, b""), request.task in self.ended
        part = data[offset : offset + request.length]
        end = ended and offset + len(part) >= len(data)
        return Chunk(data=part, offset=offset, total=len(data), end=end)

    async def open_board(self, _: Any) -> training.Board:
        if not self.board:
            raise NotFound("this training writes nothing for TensorBoard")
        return training.Board(url=self.board)

    async def stat_code(self, request: CodeRequest) -> CodeArchive:
        if request.digest not in self.code:
            raise NotFound("no such code")
        size = len(self.code[request.digest])
        return CodeArchive(project=request.project, digest=request.digest, size=size, created_at=MOMENT)

    async def put_code(self, request: CodeChunk) -> Done:
        held = self.uploads.get(request.upload, b"") + request.data
        self.uploads[request.upload] = held
        if request.end:
            assert f"sha256:{hashlib.sha256(held).hexdigest()}" == request.digest
            self.code[request.digest] = self.uploads.pop(request.upload)
        return Done()

    async def read_code(self, request: ReadCode) -> Chunk:
        data = self.code[request.digest]
        return Chunk(data=data[request.offset : request.offset + CHUNK_BYTES], offset=request.offset)

    async def save(self, request: SaveVersion) -> Version:
        return self.version(request.model, "saving")

    def version(self, name: str, state: Any = "ready") -> Version:
        return Version(
            project="default",
            model=name,
            number=1,
            state=state,
            created_at=MOMENT,
            lineage=Lineage(),
            digest=f"sha256:{hashlib.sha256(self.archive).hexdigest()}",
            archive_size=len(self.archive),
        )

    async def get_version(self, request: VersionRequest) -> Version:
        if request.number != 1:
            raise NotFound(f"model {request.model!r} has no version {request.number}")
        return self.version(request.model)

    async def list_versions(self, request: ListVersions) -> Page[Version]:
        return Page(items=(self.version(request.model),))

    async def read_archive(self, request: ReadArchive) -> Chunk:
        part = self.archive[request.offset : request.offset + CHUNK_BYTES]
        return Chunk(data=part, offset=request.offset, total=len(self.archive))

    async def set_alias(self, request: SetAlias) -> Alias:
        return Alias(
            project=request.project,
            model=request.model,
            name=request.alias,
            version=request.version,
            moved_at=MOMENT,
        )

    async def get_alias(self, request: AliasRequest) -> Alias:
        raise NotFound(f"there is no alias {request.alias!r}")

    async def create_serving(self, request: CreateServing) -> Serving:
        self.servings[request.spec.name] = made = self.serving(request.spec)
        return made

    def serving(self, spec: ServingSpec) -> Serving:
        return Serving(
            project="default",
            name=spec.name,
            spec=spec,
            state="ready" if self.endpoint else "deploying",
            created_at=MOMENT,
            replicas=1,
            endpoint=self.endpoint,
        )

    async def get_serving(self, request: Named) -> Serving:
        if request.name not in self.servings:
            raise NotFound(f"there is no serving {request.name!r}")
        return self.serving(self.servings[request.name].spec)


class Door:
    """The running gateway, as its callers meet it."""

    def __init__(self, url: str, client: aiohttp.ClientSession, rooms: Rooms, bus: Bus) -> None:
        self.url = url
        self.client = client
        self.rooms = rooms
        self.bus = bus

    async def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = ADMIN,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        data: object = None,
        allow_redirects: bool = True,
        expect100: bool = False,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, decoded body and headers of an answer; a refusal must be a problem."""
        sent = dict(headers or {})
        if token is not None:
            sent.setdefault("Authorization", f"Bearer {token}")
        async with self.client.request(
            method,
            self.url + path,
            headers=sent,
            json=json,
            data=data,
            allow_redirects=allow_redirects,
            expect100=expect100,
        ) as answer:
            raw = await answer.read()
            if answer.status >= 400:
                assert answer.content_type == "application/problem+json", raw
                assert b"Traceback" not in raw
            body: Any = msgspec.json.decode(raw) if raw and answer.content_type.endswith("json") else raw
            if answer.status >= 400 and method != "HEAD":
                assert body["status"] == answer.status
                assert "\n" not in body["detail"]
            return answer.status, body, answer.headers


@contextlib.asynccontextmanager
async def door(
    nats_url: str, postgres_url: str, folder: Path, environ: dict[str, str] | None = None
) -> AsyncIterator[Door]:
    """A gateway with stand-ins for all the rooms behind it."""
    token = folder / "token"
    token.write_text(ADMIN + "\n")
    port = ports.pick()
    settings = {
        "ELEARN_HOME": str(folder / "home"),
        "ELEARN_LISTEN": f"127.0.0.1:{port}",
        "ELEARN_ADMIN_TOKEN_FILE": str(token),
        **(environ or {}),
    }
    rooms = Rooms()
    async with contextlib.AsyncExitStack() as stack:
        for service in ("datastore", "scheduler", "registry", "serving"):
            await stack.enter_async_context(answering(nats_url, service, rooms.handlers(service)))
        bus = await stack.enter_async_context(running_room("api", Settings, compose, nats_url, postgres_url, settings))
        timeout = aiohttp.ClientTimeout(total=20)
        client = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        yield Door(f"http://127.0.0.1:{port}", client, rooms, bus)


def tar(**files: bytes) -> bytes:
    """A small archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
