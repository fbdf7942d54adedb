"""Exits with 0 when this container's service is ready: a health check that costs no import of elearn."""

import os
import socket
import sys


def main() -> int:
    """Ask ``/readyz`` of ELEARN_HEALTH_HOST and ELEARN_HEALTH_PORT; what is missing goes to the standard output."""
    host = os.environ.get("ELEARN_HEALTH_HOST", "127.0.0.1")
    address = ("127.0.0.1" if host in ("0.0.0.0", "*") else host, int(os.environ["ELEARN_HEALTH_PORT"]))  # noqa: S104
    try:
        with socket.create_connection(address, timeout=4) as connection:
            connection.sendall(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
    except OSError as problem:
        sys.stdout.write(f"{address[0]}:{address[1]}: {problem}\n")
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    sys.stdout.write(body.decode("utf-8", "replace") + "\n")
    return 0 if b" 200 " in head.partition(b"\r\n")[0] else 1


if __name__ == "__main__":
    sys.exit(main())
