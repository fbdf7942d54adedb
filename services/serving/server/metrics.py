"""What the model server counts, in Prometheus' terms."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from services.serving.server.errors import Code, ServeError

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """One server's metrics, in a registry of their own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, model: str) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "elearn_serving_requests",
            "Requests answered, by API, method and gRPC status code.",
            ["model", "api", "method", "code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "elearn_serving_request_seconds",
            "From a request's arrival to its answer.",
            ["model", "api", "method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch_rows = Histogram(
            "elearn_serving_batch_rows",
            "Rows in one run of the model.",
            ["model"],
            buckets=_ROWS,
            registry=self.registry,
        ).labels(model)
        self._batch_requests = Histogram(
            "elearn_serving_batch_requests",
            "Requests in one run of the model.",
            ["model"],
            buckets=_ROWS,
            registry=self.registry,
        ).labels(model)
        self.inside = Gauge(
            "elearn_serving_requests_inside",
            "Requests that wait or run.",
            ["model"],
            registry=self.registry,
        ).labels(model)
        self.version_available = Gauge(
            "elearn_serving_version_available",
            "1 for every version that answers.",
            ["model", "version"],
            registry=self.registry,
        )
        self._model = model

    def batch(self, requests: int, rows: int) -> None:
        """A batch is run."""
        self._batch_requests.observe(requests)
        self._batch_rows.observe(rows)

    def versions(self, available: list[int]) -> None:
        """Which versions answer now."""
        self.version_available.clear()
        for number in available:
            self.version_available.labels(self._model, str(number)).set(1)

    @contextmanager
    def request(self, api: str, method: str) -> Iterator[None]:
        """Counts and times the request handled inside."""
        started = time.perf_counter()
        code = Code.UNKNOWN.name
        try:
            yield
            code = "OK"
        except ServeError as error:
            code = error.code.name
            raise
        except asyncio.CancelledError:
            code = Code.CANCELLED.name
            raise
        finally:
            self._requests.labels(self._model, api, method, code).inc()
            self._seconds.labels(self._model, api, method).observe(time.perf_counter() - started)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
