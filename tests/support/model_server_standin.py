"""Looks like the model server from outside, without TensorFlow: ``--config FILE``, ready file, ports, SIGTERM.

What it does is told by what lies at its versions' paths: nothing there: it reports that it failed; a file
``crash``: it ends at once without a word; ``hang``: it never answers. Its REST port answers every request with the
versions it serves.
"""

import json
import os
import signal
import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

CONFIG = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
READY = Path(CONFIG["ready_file"])


def report(state: str, reason: str = "") -> None:
    fresh = READY.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"state": state, "pid": os.getpid(), "reason": reason}))
    fresh.replace(READY)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"versions": [each["version"] for each in CONFIG["versions"]]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    allow_reuse_port = True

    def leave(self) -> None:
        """Answers whoever has connected, then closes."""
        self.shutdown()
        self.socket.setblocking(False)
        try:
            while True:
                connection, address = self.socket.accept()
                connection.setblocking(True)
                self.process_request(connection, address)
        except BlockingIOError:
            self.server_close()


def main() -> int:
    READY.unlink(missing_ok=True)
    for version in CONFIG["versions"]:
        path = Path(version["path"])
        if (path / "crash").exists():
            return 3
        if (path / "hang").exists():
            time.sleep(600)
        if not path.exists():
            report("failed", f"there is no SavedModel in {path}")
            return 1
    # Waited for, not handled: of two signals in a row the kernel may give the second to a thread that is not the main
    # one, and Python would run its handler only when the main one does something again.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    servers = [Server((CONFIG["host"], CONFIG[port]), Handler) for port in ("grpc_port", "rest_port")]
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    report("serving")
    signal.sigwait((signal.SIGTERM,))
    report("draining")
    for server in servers:
        server.leave()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
