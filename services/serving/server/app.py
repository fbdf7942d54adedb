"""The model server put together, started and ended."""

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import msgspec
import structlog
import tensorflow as tf
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from services.serving.server import handover
from services.serving.server.batching import Batcher
from services.serving.server.config import ConfigError, Report, ServerConfig
from services.serving.server.errors import ServeError
from services.serving.server.health import Health
from services.serving.server.listening import bound, usable, written
from services.serving.server.metrics import Metrics
from services.serving.server.model import LoadedModel
from services.serving.server.model_service import ModelService
from services.serving.server.predict import Predictor
from services.serving.server.prediction_service import PredictionService
from services.serving.server.rest import RestApi
from services.serving.server.versions import Versions
from services.serving.server.warm_up import warm_up

log = structlog.get_logger(__name__)

_SERVICES: Final = (
    prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
)
_FAREWELL: Final = 0.25
"""Seconds in which a REST client that stays connected is told to go, with its next answer."""

_BACKLOG: Final = 1024

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING


class ModelServer:
    """One process' server: `start`, and `stop` when told to.

    Must be built on a running event loop.
    """

    def __init__(self, config: ServerConfig) -> None:
        tf.get_logger().setLevel("ERROR")
        self._config = config
        self._metrics = Metrics(config.model)
        threads = config.batching.threads or len(os.sched_getaffinity(0))
        self._batcher = Batcher(config.batching, threads=threads, observe=self._metrics.batch)
        self._versions = Versions(
            config.model,
            load=self._load,
            labels=config.labels,
            traffic=config.traffic,
            grace=config.grace_seconds,
        )
        self._health = Health()
        self._grpc: Any = None
        self._rest: web.AppRunner | None = None
        self._site: web.SockSite | None = None
        self._listener: socket.socket | None = None
        self._ready = False
        self.grpc_port: int | None = None
        self.rest_port: int | None = None

    async def start(self) -> None:
        """Loads every version, opens the ports, and says so: not a moment earlier.

        Raises:
            ServeError: a version can't be loaded.
            ConfigError: a port can't be had.
        """
        config = self._config
        await self._versions.serve(
            {entry.version: Path(entry.path) for entry in config.versions},
            labels=config.labels,
            traffic=config.traffic,
        )
        predictor = Predictor(self._batcher)
        self._ready = True
        await self._start_rest(predictor)
        await self._start_grpc(predictor)
        self._changed()
        log.info("serving", model=config.model, grpc_port=self.grpc_port, rest_port=self.rest_port)

    async def close(self, *, hand_over: bool = False) -> None:
        """Takes no new requests, lets those in flight end within the grace time, and unloads.

        Args:
            hand_over: other servers listen on the same ports: leave so that no client notices, which
                takes as long as a connection may grow old.
        """
        if self._ready:
            self._ready = False
            self._report("draining")
        stopping = []
        if self._grpc is not None:
            stopping.append(self._stop_grpc(hand_over))
        if self._rest is not None:
            stopping.append(self._stop_rest(self._rest, hand_over))
        await asyncio.gather(*stopping)
        self._batcher.close()
        await self._versions.close()
        log.info("stopped")

    def failed(self, reason: str) -> None:
        """Leaves word of why the server never came up."""
        self._report("failed", reason)

    def _load(self, path: Path) -> LoadedModel:
        model = LoadedModel(
            path,
            inter_op_threads=self._config.inter_op_threads,
            intra_op_threads=self._config.intra_op_threads,
        )
        if self._config.warm_up:
            try:
                warm_up(model, path)
            except ServeError:
                model.close()
                raise
        return model

    async def _start_grpc(self, predictor: Predictor) -> None:
        config = self._config
        options: Sequence[tuple[str, int]] = [
            ("grpc.so_reuseport", int(config.reuse_port)),
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_connection_age_ms", int(config.connection_age_seconds * 1000)),
        ]
        server = self._grpc = grpc.aio.server(options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(
                self._versions,
                predictor,
                self._metrics,
                tensor_content=config.tensor_content,
                max_tensor_bytes=config.max_message_bytes,
            ),
            server,
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(
                self._versions,
                self._metrics,
                base_path=config.base_path,
                changed=self._changed,
            ),
            server,
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*_SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        address = written(usable(config.host), config.grpc_port)
        try:
            self.grpc_port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"can't listen on {address}: {error}") from error
        for name in ("", *names):
            await self._health.set(name, _SERVING)
        await server.start()

    async def _stop_grpc(self, hand_over: bool) -> None:
        await self._health.enter_graceful_shutdown()
        # One client that watches the server's health would use up all of the grace.
        await self._health.end_watches()
        if hand_over and self.grpc_port is not None:
            await handover.give_up(self.grpc_port)
            await handover.emptied(self.grpc_port, within=self._patience)
        await self._grpc.stop(self._config.grace_seconds)

    async def _start_rest(self, predictor: Predictor) -> None:
        config = self._config
        if config.rest_port is None:
            return
        api = RestApi(
            self._versions,
            predictor,
            self._metrics,
            ready=lambda: self._ready,
            inside=lambda: self._batcher.inside,
            max_body_bytes=config.max_message_bytes,
        )
        runner = self._rest = web.AppRunner(
            api.application, access_log=None, shutdown_timeout=config.grace_seconds, handle_signals=False
        )
        await runner.setup()
        host = usable(config.host)
        try:
            self._listener = listener = bound(host, config.rest_port, reuse_port=config.reuse_port)
        except OSError as error:
            raise ConfigError(f"can't listen on {written(host, config.rest_port)}: {error.strerror}") from error
        self._site = web.SockSite(runner, listener, backlog=_BACKLOG)
        await self._site.start()
        self.rest_port = listener.getsockname()[1]

    async def _stop_rest(self, runner: web.AppRunner, hand_over: bool) -> None:
        """Closes the port, and answers everybody who had connected before.

        Connections that the kernel has queued for this process die with its listening socket, though other
        replicas listen on the same port. So they are accepted to the last one, and closing follows at once.
        """
        accepted: list[socket.socket] = []
        if self._site is not None and self._listener is not None:
            try:
                while True:
                    accepted.append(self._listener.accept()[0])
            except BlockingIOError:
                await self._site.stop()
        loop = asyncio.get_running_loop()
        for connection in accepted:
            if runner.server is not None:
                await loop.connect_accepted_socket(runner.server, connection)
        if self.rest_port is not None:
            await handover.emptied(self.rest_port, within=self._patience if hand_over else _FAREWELL)
        await runner.cleanup()

    @property
    def _patience(self) -> float:
        """Seconds after which every gRPC connection has grown old; gRPC itself adds up to a tenth."""
        return self._config.connection_age_seconds * 1.1 + 0.5

    def _changed(self) -> None:
        self._metrics.versions(self._versions.available)
        self._report("serving")

    def _report(self, state: str, reason: str = "") -> None:
        if self._config.ready_file is None:
            return
        path = Path(self._config.ready_file)
        report = Report(
            state=state,
            pid=os.getpid(),
            model=self._config.model,
            versions=self._versions.available,
            grpc_port=self.grpc_port,
            rest_port=self.rest_port,
            reason=reason,
        )
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_bytes(msgspec.json.encode(report))
        fresh.replace(path)
