"""Stand-ins for the five services, so that what supervises them can be tested alone.

``supervisor HOME [PORT]`` is the real supervisor with these in place of the services; ``service NAME`` is one. What a
service does is said by the file NAME.does in the home: ``refuse`` makes it end at once with a complaint,
``unready`` has it answer that it lacks something.
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


def serve(name: str) -> None:
    home = Path(os.environ["ELEARN_HOME"])
    orders = home / f"{name}.does"

    def order() -> str:
        return orders.read_text() if orders.exists() else ""

    if order() == "refuse":
        sys.exit("ELEARN_NONSENSE is not set")

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            unready = order() == "unready"
            self.send_response(503 if unready else 200)
            self.end_headers()
            self.wfile.write(b"the database is away" if unready else b"ready")

        def log_message(self, format: str, *args: object) -> None:
            sys.stderr.write("asked\n")

    HTTPServer(("127.0.0.1", int(os.environ["ELEARN_HEALTH_PORT"])), Health).serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "service":
        serve(sys.argv[2])
    else:
        from elearn.up.__main__ import main

        sys.exit(main(sys.argv[2:], lambda name: (sys.executable, "-I", __file__, "service", name)))
