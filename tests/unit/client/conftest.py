"""A client whose requests are answered here."""

from collections.abc import Callable, Iterator

import httpx
import msgspec
import pytest
import stamina
import stamina.instrumentation

from elearn.client import Client
from elearn.client.connection import Connection

Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Retries follow each other at once, and are few."""
    stamina.instrumentation.set_on_retry_hooks(())
    with stamina.set_testing(True, attempts=4, cap=True):
        yield
    stamina.instrumentation.set_on_retry_hooks(None)


@pytest.fixture
def client_of() -> Iterator[Callable[[Answer], Client]]:
    """Makes a client of a function that answers its requests."""
    made: list[Client] = []

    def make(answer: Answer) -> Client:
        connection = Connection(url="http://127.0.0.1:1", token="secret", project="search")
        client = Client.at(connection, transport=httpx.MockTransport(answer))
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


def reply(value: object, status: int = 200, headers: dict[str, str] | None = None) -> httpx.Response:
    """A struct as an answer."""
    return httpx.Response(
        status, content=msgspec.json.encode(value), headers={"Content-Type": "application/json", **(headers or {})}
    )


def problem(status: int, kind: str, detail: str, **headers: str) -> httpx.Response:
    """A problem as an answer."""
    body = {"type": f"urn:elearn:problem:{kind}", "title": kind, "status": status, "detail": detail}
    return httpx.Response(
        status,
        content=msgspec.json.encode(body),
        headers={"Content-Type": "application/problem+json", **headers},
    )
