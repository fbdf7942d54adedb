"""`python -m services.serving.server --config FILE`."""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import structlog

from services.serving.server.config import ConfigError, ServerConfig, load
from services.serving.server.errors import ServeError
from shared import logs


async def serve(config: ServerConfig) -> None:
    """Serves until SIGTERM or SIGINT; after SIGUSR1 these hand over to others on the same ports.

    Raises:
        ServeError, ConfigError: it can't come up; the ready file says why.
    """
    # Late, because it brings TensorFlow with it: a wrong configuration is told at once.
    from services.serving.server.app import ModelServer

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hand_over = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, hand_over.set)
    server = ModelServer(config)
    starting = asyncio.create_task(server.start(), name="start")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping
        starting.cancel()
    except (ServeError, ConfigError) as error:
        server.failed(str(error))
        raise
    finally:
        stopping.cancel()
        await server.close(hand_over=hand_over.is_set())
        # All is done: a second signal must not make a failure of it once the loop minds signals no more.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def main() -> int:
    """The process' exit code: 0 after a signal, 1 where it could not come up, 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(prog="services.serving.server", description="Serves one model.")
    parser.add_argument("--config", required=True, type=Path, help="JSON file; see config.py beside this one")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logs.configure("model-server", os.environ.get("ELEARN_LOG_LEVEL", "info"), "json")
    if config.ready_file is not None:
        Path(config.ready_file).unlink(missing_ok=True)
    try:
        asyncio.run(serve(config))
    except (ServeError, ConfigError) as error:
        structlog.get_logger(__name__).error("can't serve", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is closed. Taking TensorFlow apart as well would keep the next replica waiting for a second.
    os._exit(code)
