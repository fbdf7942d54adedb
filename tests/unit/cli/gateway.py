"""A gateway that answers what a test told it to, over real HTTP, and keeps what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec

TOKEN = "the-token"


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: object


class Reply(NamedTuple):
    body: object = None
    status: int = 200
    content_type: str = "application/json"


Answer = Reply | Callable[[Asked], Reply]


class Gateway:
    """Attributes:
    answers: by ``METHOD path``; the path below the project where it is in one.
    asked: every request, in order.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.url = ""

    def answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        found = self.answers.get(f"{asked.method} {asked.path}")
        if found is None:
            return problem(404, "not-found", f"there is nothing at {asked.path}")
        return found if isinstance(found, Reply) else found(asked)

    def paths(self) -> list[str]:
        """What was asked, as the answers are named."""
        return [f"{each.method} {each.path}" for each in self.asked]


def problem(status: int, kind: str, detail: str, *fields: tuple[str, str]) -> Reply:
    """A refusal."""
    body = {
        "type": f"urn:elearn:problem:{kind}",
        "title": kind,
        "status": status,
        "detail": detail,
        "errors": [{"field": field, "message": message} for field, message in fields],
    }
    return Reply(body, status, "application/problem+json")


@contextmanager
def running_gateway() -> Iterator[Gateway]:
    """A gateway on a free port of this machine."""
    gateway = Gateway()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            is_json = self.headers.get("Content-Type") == "application/json"
            path = parts.path.removeprefix("/v1/projects/default/")
            asked = Asked(self.command, path, dict(parse_qsl(parts.query)), json.loads(raw) if is_json else raw)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                reply = problem(401, "unauthenticated", "the token is not good; get another")
            else:
                reply = gateway.answer(asked)
            body = reply.body if isinstance(reply.body, bytes) else msgspec.json.encode(reply.body)
            body = b"" if self.command == "HEAD" or reply.status == 204 else body
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_any)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="gateway")
    thread.start()
    gateway.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield gateway
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
