"""The model server as a process of its own, with real models, over gRPC and REST."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypedDict

import grpc
import httpx
import numpy as np
import numpy.typing as npt
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from elearn.grpc import PredictClient, PredictError

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
TOY_MODEL = ROOT / "tests/support/toy_model.py"  # run, never imported: it loads TensorFlow


class Options(TypedDict, total=False):
    version: int
    label: str
    signature: str
    outputs: list[str]


class Server:
    """A model server under test."""

    def __init__(self, folder: Path, name: str, **config: object) -> None:
        self.ready_file = folder / f"{name}-ready.json"
        file = folder / f"{name}.json"
        settings: dict[str, object] = {
            "model": "toy",
            "grpc_port": 0,
            "rest_port": 0,
            "ready_file": str(self.ready_file),
        }
        file.write_text(json.dumps(settings | config))
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.serving.server", "--config", str(file)],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def report(self) -> dict[str, Any]:
        deadline = time.monotonic() + 90
        while not self.ready_file.exists():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        report: dict[str, Any] = json.loads(self.ready_file.read_text())
        return report

    def ready(self) -> Self:
        report = self.report()
        assert report["state"] == "serving", self.log.read_text()
        self.endpoint = f"127.0.0.1:{report['grpc_port']}"
        self.rest = f"http://127.0.0.1:{report['rest_port']}/v1/models/toy"
        return self

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(TOY_MODEL), str(folder), "1", "2", "3"], check=True, timeout=120)
    (folder / "4").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    versions = [{"version": number, "path": str(models / str(number))} for number in (1, 2)]
    server = Server(
        tmp_path_factory.mktemp("server"),
        "main",
        versions=versions,
        labels={"champion": 1},
        base_path=str(models),
        max_message_bytes=1 << 20,
    )
    try:
        yield server.ready()
    finally:
        assert server.end() == 0, server.log.read_text()


@pytest.fixture
def client(server: Server) -> Iterator[PredictClient]:
    with PredictClient(server.endpoint) as client:
        yield client


def test_versions_and_labels_choose_the_model(client: PredictClient) -> None:
    x = np.array([[2, 4], [6, 8]], np.float32)
    newest = client.predict("toy", {"x": x})
    assert (newest.version, newest.signature) == (2, "serving_default")
    np.testing.assert_array_equal(newest.outputs["y"], x / 2 + 2)
    np.testing.assert_array_equal(client.predict("toy", {"x": x}, version=1).outputs["y"], x / 2 + 1)
    assert client.predict("toy", {"x": x}, label="champion").version == 1


def test_every_address_is_one_of_either_family(models: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, "both", versions=[{"version": 1, "path": str(models / "1")}], host="*").ready()
    try:
        report = server.report()
        addresses = Path("/proc/net/if_inet6")
        for host in ("127.0.0.1", "[::1]") if addresses.exists() and addresses.read_text() else ("127.0.0.1",):
            with PredictClient(f"{host}:{report['grpc_port']}") as client:
                assert client.predict("toy", {"x": np.zeros((1, 2), np.float32)}).version == 1
            assert httpx.get(f"http://{host}:{report['rest_port']}/healthz", timeout=10).status_code == 200
    finally:
        assert server.end() == 0, server.log.read_text()


def test_lists_take_the_models_types(client: PredictClient) -> None:
    pair = client.predict("toy", {"a": [[1, 2]], "b": [5]}, signature="pair")
    assert {name: array.tolist() for name, array in pair.outputs.items()} == {"total": [8.0], "twice": [10]}
    mixed: list[str | bytes] = ["é", b"b"]
    text = client.predict("toy", {"text": mixed}, signature="text", outputs=["joined"])
    assert text.outputs["joined"].tolist() == ["é!".encode(), b"b!"]
    with pytest.raises(ValueError, match="can't be made into DT_INT64"):
        client.predict("toy", {"a": [[1, 2]], "b": ["x"]}, signature="pair")


def test_typed_fields_are_filled_as_clients_of_tensorflow_serving_expect(server: Server) -> None:
    from elearn.grpc import serving_pb2

    with grpc.insecure_channel(server.endpoint) as channel:
        call = channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=serving_pb2.PredictRequest.SerializeToString,
            response_deserializer=serving_pb2.PredictResponse.FromString,
        )
        request = serving_pb2.PredictRequest()
        request.model_spec.name = "toy"
        x = request.inputs["x"]
        x.dtype = 1
        x.float_val.extend([2, 4])
        x.tensor_shape.dim.add(size=1)
        x.tensor_shape.dim.add(size=2)
        assert list(call(request, timeout=10).outputs["y"].float_val) == [3, 4]


@pytest.mark.parametrize(
    ("model", "inputs", "options", "code", "words"),
    [
        ("nope", {}, {}, "NOT_FOUND", r"Latest\(nope\)"),
        ("toy", {}, {"version": 9}, "NOT_FOUND", r"Specific\(toy, 9\)"),
        ("toy", {}, {"signature": "none"}, "NOT_FOUND", "none"),
        ("toy", {}, {"label": "none"}, "INVALID_ARGUMENT", "Unrecognized servable version label: none"),
        ("toy", {}, {}, "INVALID_ARGUMENT", "Missing but required: {x}"),
        ("toy", {"x": np.zeros((1, 3), "f4")}, {}, "INVALID_ARGUMENT", r"shape \[1, 3\].*\[\?, 2\]"),
        ("toy", {"x": np.zeros((1, 2), "f8")}, {}, "INVALID_ARGUMENT", "DT_DOUBLE.*DT_FLOAT"),
        ("toy", {"x": np.zeros((1, 2), "f4")}, {"outputs": ["z"]}, "INVALID_ARGUMENT", "not found"),
        ("toy", {"index": [7]}, {"signature": "look_up"}, "INVALID_ARGUMENT", "7 is not in"),
        ("toy", {"x": np.zeros((1 << 18, 2), "f4")}, {}, "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_errors_are_those_of_tensorflow_serving(
    client: PredictClient, model: str, inputs: dict[str, npt.ArrayLike], options: Options, code: str, words: str
) -> None:
    with pytest.raises(PredictError, match=words) as caught:
        client.predict(model, inputs, **options)
    assert caught.value.code == code


def test_metadata_and_status(client: PredictClient) -> None:
    signatures = client.signatures("toy")
    assert set(signatures) == {"serving_default", "pair", "text", "look_up", "fixed", "mean", "spin"}
    assert signatures["pair"].inputs["a"].shape == (-1, 2)
    assert signatures["pair"].inputs["b"].dtype == "DT_INT64"
    assert [(each.version, each.state) for each in client.status("toy")] == [(2, "AVAILABLE"), (1, "AVAILABLE")]


def test_health_and_reflection(server: Server) -> None:
    with grpc.insecure_channel(server.endpoint) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tensorflow.serving.PredictionService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == 1
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=10)
        names = {service.name for service in answer.list_services_response.service}
        assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"} <= names


def test_many_at_once_get_their_own_answers_and_share_runs(server: Server, client: PredictClient) -> None:
    def one(number: int) -> bool:
        if number % 10 == 0:
            with pytest.raises(PredictError, match="not in"):
                client.predict("toy", {"index": np.array([number + 3], np.int32)}, signature="look_up")
            return True
        rows = 1 + number % 3
        x = np.full((rows, 2), number, np.float32)
        return np.array_equal(client.predict("toy", {"x": x}).outputs["y"], x / 2 + 2)

    with ThreadPoolExecutor(32) as threads:
        assert all(threads.map(one, range(400)))
    lines = httpx.get(f"{server.rest.split('/v1')[0]}/metrics").text.splitlines()
    counts = {
        line.split("{")[0]: float(line.split()[-1])
        for line in lines
        if line.startswith("elearn_serving_batch_requests_")
    }
    assert counts["elearn_serving_batch_requests_sum"] > counts["elearn_serving_batch_requests_count"]


def test_rows_that_are_mixed_are_not_batched(client: PredictClient) -> None:
    def one(number: int) -> bool:
        x = np.array([number, number + 2], np.float32)
        return bool(client.predict("toy", {"x": x}, signature="mean").outputs["mean"] == number + 1)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, range(50)))


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("", {"instances": [[2, 4]]}, {"predictions": [[3, 4]]}),
        ("/versions/1", {"instances": [{"x": [2, 4]}]}, {"predictions": [[2, 3]]}),
        ("/labels/champion", {"inputs": {"x": [[2, 4]]}}, {"outputs": [[2, 3]]}),
        (
            "",
            {"signature_name": "pair", "instances": [{"a": [1, 2], "b": 3}]},
            {"predictions": [{"total": 6, "twice": 6}]},
        ),
        (
            "",
            {"signature_name": "text", "inputs": [{"b64": "aGk="}]},
            {"outputs": {"joined": ["hi!"], "raw_bytes": [{"b64": "aGn/"}]}},
        ),
        ("", {"signature_name": "fixed", "inputs": [1, 2, 3]}, {"outputs": 6}),
    ],
)
def test_rest_predicts(server: Server, path: str, body: object, expected: object) -> None:
    response = httpx.post(f"{server.rest}{path}:predict", json=body)
    assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "words"),
    [
        ("POST", ":predict", "{", 400, "JSON Parse error"),
        ("POST", ":predict", '{"instances": [[1]]}', 400, "the model takes [?, 2]"),
        ("POST", ":predict", '{"instances": [[1, 2]], "signature_name": "none"}', 404, "none"),
        ("POST", "/versions/9:predict", '{"instances": [[1, 2]]}', 404, "Specific(toy, 9)"),
        ("POST", "x:predict", '{"instances": [[1, 2]]}', 404, "Latest(toyx)"),
        ("POST", ":classify", "{}", 501, "not supported"),
        ("POST", ":predict", '{"instances": "' + "x" * (1 << 20) + '"}', 413, "too large"),
        ("GET", ":predict", "", 400, "Malformed request"),
        ("GET", "x", "", 404, "Could not find any versions"),
        ("GET", "/versions/9", "", 404, "with version 9"),
    ],
)
def test_rest_errors(server: Server, method: str, path: str, content: str, status: int, words: str) -> None:
    response = httpx.request(method, f"{server.rest}{path}", content=content)
    assert response.status_code == status
    assert words in response.json()["error"]


def test_rest_status_and_metadata(server: Server) -> None:
    status = httpx.get(server.rest).json()["model_version_status"]
    assert [(entry["version"], entry["state"]) for entry in status] == [("2", "AVAILABLE"), ("1", "AVAILABLE")]
    metadata = httpx.get(f"{server.rest}/versions/1/metadata").json()
    assert metadata["model_spec"] == {"name": "toy", "signature_name": "", "version": "1"}
    default = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert default["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert httpx.get(f"{server.rest.split('/v1')[0]}/healthz").json() == {"status": "serving"}


def test_reload_in_place(server: Server, client: PredictClient, models: Path) -> None:
    """Runs last of those that share the server: it leaves versions 1 and 2 as they were."""
    script = """
import sys, grpc
from tensorflow_serving.apis import model_management_pb2 as m, model_service_pb2_grpc as g
from tensorflow_serving.config import model_server_config_pb2 as c

stub = g.ModelServiceStub(grpc.insecure_channel(sys.argv[1]))
for base, *numbers in (line.split() for line in sys.stdin):
    request = m.ReloadConfigRequest()
    entry = request.config.model_config_list.config.add(name="toy", base_path=base, model_platform="tensorflow")
    entry.model_version_policy.specific.versions.extend(map(int, numbers))
    entry.version_labels["champion"] = int(numbers[0])
    try:
        stub.HandleReloadConfigRequest(request, timeout=60)
        print("OK", flush=True)
    except grpc.RpcError as error:
        print(error.code().name, error.details(), flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, server.endpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    asks, answers = process.stdin, process.stdout
    assert asks is not None
    assert answers is not None

    def reload(line: str) -> str:
        asks.write(line + "\n")
        asks.flush()
        return answers.readline().strip()

    with process:
        try:
            assert reload(f"{models} 2 3") == "OK"
            assert client.predict("toy", {"x": [[0, 0]]}).outputs["y"].tolist() == [[3, 3]]
            assert client.predict("toy", {"x": [[0, 0]]}, label="champion").version == 2
            states = {each.version: each.state for each in client.status("toy")}
            assert states == {3: "AVAILABLE", 2: "AVAILABLE", 1: "END"}
            assert reload(f"{models} 3 4").startswith("FAILED_PRECONDITION there is no SavedModel")
            assert reload(f"{models} 3 7").startswith("NOT_FOUND version 7")
            assert reload(f"{models.parent} 1").startswith("INVALID_ARGUMENT base_path must lie in")
            assert client.predict("toy", {"x": [[0, 0]]}).version == 3
            assert reload(f"{models} 1 2") == "OK"
        finally:
            asks.close()


def test_replicas_share_a_port_split_traffic_and_drain_without_loss(models: Path, tmp_path: Path) -> None:
    """Two servers on one pair of ports; one is ended in the middle of a request, and answers it."""
    versions = [{"version": number, "path": str(models / str(number))} for number in (1, 2)]
    first = Server(tmp_path, "first", versions=versions, traffic={"1": 75, "2": 25})
    try:
        first.ready()
        report = first.report()
        ports = {"grpc_port": report["grpc_port"], "rest_port": report["rest_port"]}
        watched = grpc.insecure_channel(first.endpoint)
        watch = health_pb2_grpc.HealthStub(watched).Watch(health_pb2.HealthCheckRequest(), timeout=120)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        second = Server(tmp_path, "second", versions=versions[:1], **ports)
        try:
            with PredictClient(first.endpoint) as client, ThreadPoolExecutor(1) as threads:
                chosen = [client.predict("toy", {"x": [[0, 0]]}).version for _ in range(8)]
                assert sorted(chosen) == [1, 1, 1, 1, 1, 1, 2, 2]
                second.ready()
                slow = threads.submit(client.predict, "toy", {"turns": np.int32(300_000)}, signature="spin", timeout=60)
                metrics = f"{first.rest.split('/v1')[0]}/metrics"
                while not _busy(metrics) and not slow.done():
                    pass
                assert not slow.done()
                first.process.send_signal(signal.SIGTERM)
                assert slow.result(60).outputs["turns"] == 300_000
                assert [told.status for told in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]
                watched.close()
                assert first.process.wait(30) == 0
                assert json.loads(first.ready_file.read_text())["state"] == "draining"
                assert client.predict("toy", {"x": [[0, 0]]}).version == 1
        finally:
            assert second.end() == 0
    finally:
        assert first.end() == 0


def _busy(metrics: str) -> bool:
    """Whether the replica that this connection reaches has a request inside."""
    return any(
        line.startswith("elearn_serving_requests_inside") and not line.endswith(" 0.0")
        for line in httpx.get(metrics).text.splitlines()
    )


def test_a_model_that_cannot_be_loaded_leaves_its_reason(models: Path, tmp_path: Path) -> None:
    path = models / "broken"
    path.mkdir()
    (path / "saved_model.pb").write_bytes(os.urandom(100))
    server = Server(tmp_path, "bad", versions=[{"version": 1, "path": str(path)}])
    assert server.process.wait(90) == 1
    report = json.loads(server.ready_file.read_text())
    assert report["state"] == "failed"
    assert report["reason"].startswith("can't read the SavedModel in")
