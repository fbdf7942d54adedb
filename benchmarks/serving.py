"""The model server against a bare grpc.aio echo of the same bytes, in the same run on the same machine.

    python -m benchmarks.serving [--seconds 3]

One JSON line for each number of requests in flight: `ratio` is the server's requests a second over the
echo's (1.0 would be a model for free), `server_cpu_us` what a request costs the server process.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np

from benchmarks.report import report
from elearn.grpc import serving_pb2
from shared.tensor_proto import fill

ROOT = Path(__file__).parents[1]
PREDICT = "/tensorflow.serving.PredictionService/Predict"

EXPORT = """
import sys, numpy, tensorflow as tf
random = numpy.random.default_rng(0)
first, second = (tf.Variable(random.normal(size=size).astype("f4") * 0.05) for size in ((784, 128), (128, 10)))
model = tf.Module()
model.variables_kept = [first, second]
@tf.function(input_signature=[tf.TensorSpec([None, 784], tf.float32, name="x")])
def run(x):
    return {"y": tf.nn.softmax(tf.nn.relu(x @ first) @ second)}
model.run = run
tf.saved_model.save(model, sys.argv[1], signatures=run)
"""

ECHO = """
import asyncio, grpc, sys
async def echo(request, context):
    return request
async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench", {"Echo": handler})])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def measure(port: int, method: str, request: bytes, in_flight: int, seconds: float) -> float:
    """Requests a second with so many in flight, over four connections."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(min(4, in_flight))]
    calls = [channel.unary_unary(method) for channel in channels]
    done = 0

    async def client(number: int, until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await calls[number % len(calls)](request)
            done += 1

    async def all_of_them(seconds: float) -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(client(number, until) for number in range(in_flight)))

    await all_of_them(0.5)
    done, started = 0, time.perf_counter()
    await all_of_them(seconds)
    rate = done / (time.perf_counter() - started)
    for channel in channels:
        await channel.close()
    return rate


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A model server with a 784-128-10 network, and its gRPC port."""
    model, ready, config = folder / "1", folder / "ready.json", folder / "config.json"
    subprocess.run([sys.executable, "-c", EXPORT, str(model)], check=True, stderr=subprocess.DEVNULL)
    config.write_text(
        json.dumps(
            {
                "model": "mlp",
                "versions": [{"version": 1, "path": str(model)}],
                "grpc_port": 0,
                "rest_port": None,
                "ready_file": str(ready),
            }
        )
    )
    command = [sys.executable, "-m", "services.serving.server", "--config", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not ready.exists():
        if process.poll() is not None:
            raise RuntimeError("the model server did not come up")
        time.sleep(0.05)
    return process, json.loads(ready.read_text())["grpc_port"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    request = serving_pb2.PredictRequest()
    request.model_spec.name = "mlp"
    fill(request.inputs["x"], np.random.default_rng(0).random((1, 784), np.float32), content=True)
    payload = request.SerializeToString()
    echo = subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
    server = None
    try:
        assert echo.stdout is not None
        echo_port = int(echo.stdout.readline())
        with tempfile.TemporaryDirectory() as folder:
            server, port = start_server(Path(folder))
            for in_flight in (1, 8, 64):
                baseline = asyncio.run(measure(echo_port, "/bench/Echo", payload, in_flight, seconds))
                before = cpu_seconds(server.pid)
                rate = asyncio.run(measure(port, PREDICT, payload, in_flight, seconds))
                spent = cpu_seconds(server.pid) - before
                report(
                    "serving.predict",
                    wanted="near 1: the model and batching cost little beside gRPC itself",
                    in_flight=in_flight,
                    ratio=round(rate / baseline, 3),
                    requests_per_second=round(rate),
                    baseline_echo_per_second=round(baseline),
                    server_cpu_us=round(spent / (rate * (seconds + 0.5)) * 1e6),
                )
    finally:
        for process in (echo, server):
            if process is not None:
                process.terminate()
                process.wait(30)


if __name__ == "__main__":
    main()
