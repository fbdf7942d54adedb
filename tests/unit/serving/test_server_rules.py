"""The model server's pure parts: configuration, signatures, traffic, TensorFlow Serving's JSON."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from services.serving.server import rest_json
from services.serving.server.config import ConfigError, load
from services.serving.server.errors import Code, InvalidArgument
from services.serving.server.signature import Shape, Signature, TensorSpec, fits, rows_of
from services.serving.server.versions import Traffic
from shared.tensor_proto import Array

FLOAT, INT32, STRING, BOOL, HALF = 1, 3, 7, 10, 19


def _signature(outputs_shape: Shape = (-1,), **inputs: tuple[int, Shape]) -> Signature:
    return Signature(
        name="s",
        method="tensorflow/serving/predict",
        inputs={name: TensorSpec(f"{name}:0", dtype, shape) for name, (dtype, shape) in inputs.items()},
        outputs={"y": TensorSpec("y:0", FLOAT, outputs_shape)},
    )


X = _signature(x=(FLOAT, (-1, 2)))
PAIR = _signature(a=(FLOAT, (-1, 2)), b=(STRING, (-1,)))


# -- configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": {}}, "unknown field `batch`"),
        ({"versions": []}, "versions"),
        ({"versions": [{"version": 0, "path": "/m"}]}, "version"),
        ({"versions": [{"version": 1, "path": "/m"}, {"version": 1, "path": "/n"}]}, "named twice"),
        ({"labels": {"champion": 3}}, "labels.champion: version 3"),
        ({"traffic": {"1": 60}}, "add up to 60"),
        ({"traffic": {"7": 100}}, "traffic: version 7"),
        ({"grpc_port": 70000}, "grpc_port"),
        ({"batching": {"max_batch_size": 0}}, "max_batch_size"),
    ],
)
def test_a_wrong_configuration_is_told_by_field(tmp_path: Path, change: dict[str, object], words: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model": "m", "versions": [{"version": 1, "path": "/m"}]} | change))
    with pytest.raises(ConfigError, match=words):
        load(file)


def test_a_missing_or_broken_configuration_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't read"):
        load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json"):
        load(tmp_path / "broken.json")


# -- signatures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signature", "batchable"),
    [
        (X, True),
        (_signature(x=(FLOAT, (3,))), False),
        (_signature(x=(FLOAT, ())), False),
        (_signature(x=(FLOAT, None)), False),
        (_signature(outputs_shape=(), x=(FLOAT, (-1,))), False),
        (_signature(), False),
    ],
)
def test_only_open_first_dimensions_are_batched(signature: Signature, batchable: bool) -> None:
    assert signature.batchable is batchable


@pytest.mark.parametrize(
    ("shape", "wanted", "expected"),
    [((3, 2), (-1, 2), True), ((3,), (-1, 2), False), ((3, 1), (-1, 2), False), ((9, 9), None, True), ((), (), True)],
)
def test_fits(shape: tuple[int, ...], wanted: Shape, expected: bool) -> None:
    assert fits(shape, wanted) is expected


def test_rows_must_agree() -> None:
    assert rows_of([np.zeros((3, 2)), np.zeros(3)]) == 3
    assert rows_of([np.zeros((3, 2)), np.zeros(2)]) is None
    assert rows_of([np.zeros(())]) is None


def test_outputs_are_selected_by_name() -> None:
    assert X.select([]) == ("y",)
    for names in (["z"], ["y", "y"]):
        with pytest.raises(InvalidArgument):
            X.select(names)


def test_codes_have_a_number_and_an_http_status() -> None:
    assert (Code.of(5), Code.NOT_FOUND.http, Code.of(99)) == (Code.NOT_FOUND, 404, Code.UNKNOWN)


# -- traffic ----------------------------------------------------------------------------------------


def test_traffic_is_spread_exactly_and_evenly() -> None:
    traffic = Traffic({1: 90, 2: 10, 3: 0})
    chosen = [traffic.next([1, 2, 3]) for _ in range(100)]
    assert Counter(chosen) == {1: 90, 2: 10}
    assert 2 in chosen[:10]


def test_traffic_goes_where_there_is_somebody() -> None:
    traffic = Traffic({1: 90, 2: 10})
    assert {traffic.next([2]) for _ in range(5)} == {2}
    assert traffic.next([7]) is None


# -- JSON -------------------------------------------------------------------------------------------


def _inputs(body: object, signature: Signature) -> dict[str, Array]:
    return rest_json.inputs_of(rest_json.parse(json.dumps(body).encode()), signature)


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [[1, 2], [3, 4.5]]},
        {"instances": [{"x": [1, 2]}, {"x": [3, 4.5]}]},
        {"inputs": [[1, 2], [3, 4.5]]},
        {"inputs": {"x": [[1, 2], [3, 4.5]]}},
    ],
)
def test_rows_and_columns_say_the_same(body: object) -> None:
    arrays = _inputs(body, X)
    assert arrays["x"].dtype == np.float32
    assert arrays["x"].tolist() == [[1, 2], [3, 4.5]]


def test_bytes_are_base64() -> None:
    arrays = _inputs({"inputs": {"a": [[1, 2]], "b": [{"b64": "/w=="}]}}, PAIR)
    assert arrays["b"].tolist() == [b"\xff"]
    assert _inputs({"instances": [{"b64": "/w=="}, "é"]}, _signature(b=(STRING, (-1,))))["b"].tolist() == [
        b"\xff",
        "é".encode(),
    ]


def test_numbers_that_json_lacks() -> None:
    body = rest_json.parse(b'{"instances": [[NaN, -Infinity]]}')
    assert np.isnan(rest_json.inputs_of(body, X)["x"][0, 0])
    assert rest_json.answer("row", {"y": np.array([np.nan, np.inf])}) == b'{"predictions": [NaN, Infinity]}'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "JSON Parse error"),
        (b'{"instances": NaN oops', "JSON Parse error"),
        (b"[]", "must be a JSON object"),
        (b"{}", "Missing 'inputs' or 'instances'"),
        (b'{"instances": [], "signature_name": ""}', "at least one"),
        (b'{"instances": [1], "inputs": [1]}', "one of them"),
        (b'{"instances": [1], "model": "m"}', "unknown key 'model'"),
        (b'{"signature_name": 1, "instances": [1]}', "must be a string"),
        (b"[" * 100_000, "JSON Parse error"),
    ],
)
def test_what_is_no_request(body: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        rest_json.parse(body)


@pytest.mark.parametrize(
    ("signature", "body", "words"),
    [
        (X, {"instances": [[1, 2], [3]]}, "different lengths"),
        (X, {"instances": [["a", "b"]]}, "expected type DT_FLOAT"),
        (X, {"instances": [[None, 1]]}, "expected type DT_FLOAT"),
        (X, {"instances": [[True, 1]]}, "boolean"),
        (X, {"instances": [[1e39, 1]]}, "too large"),
        (X, {"inputs": {"z": [[1, 2]]}}, "no input 'z'"),
        (X, {"instances": [{"x": [1, 2]}, {"z": [1, 2]}]}, r"instances\[1\]"),
        (_signature(i=(INT32, (-1,))), {"instances": [1.5]}, "expected type DT_INT32"),
        (_signature(i=(INT32, (-1,))), {"instances": [2**31]}, "out of range"),
        (_signature(i=(INT32, (-1,))), {"instances": [10**30]}, "expected type|out of range"),
        (_signature(i=(BOOL, (-1,))), {"instances": [1]}, "expected type DT_BOOL"),
        (PAIR, {"instances": [[1, 2]]}, "2 inputs"),
        (PAIR, {"inputs": {"a": [[1, 2]], "b": [1]}}, "DT_STRING"),
        (PAIR, {"inputs": {"a": [[1, 2]], "b": [["x"], "y"]}}, "different lengths"),
        (PAIR, {"inputs": {"a": [[1, 2]], "b": [{"b64": "*"}]}}, "not base64"),
    ],
)
def test_what_does_not_fit(signature: Signature, body: object, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        _inputs(body, signature)


def test_half_precision_is_read_and_written() -> None:
    arrays = _inputs({"instances": [1.5]}, _signature(h=(HALF, (-1,))))
    assert arrays["h"].dtype == np.float16
    assert rest_json.answer("row", {"h": arrays["h"]}) == b'{"predictions":[1.5]}'


@pytest.mark.parametrize(
    ("layout", "outputs", "expected"),
    [
        ("row", {"y": np.array([[1.0], [2.0]])}, {"predictions": [[1.0], [2.0]]}),
        ("row", {"y": np.array([1, 2]), "z": np.array([True, False])},
         {"predictions": [{"y": 1, "z": True}, {"y": 2, "z": False}]}),
        ("column", {"y": np.array(3)}, {"outputs": 3}),
        ("column", {"y": np.array([1]), "z": np.array([2])}, {"outputs": {"y": [1], "z": [2]}}),
        ("column", {"t": np.array([b"a", b"\xff"], object)}, {"outputs": ["a", {"b64": "/w=="}]}),
        ("column", {"t_bytes": np.array([b"a"], object)}, {"outputs": [{"b64": "YQ=="}]}),
    ],
)  # fmt: skip
def test_answers(layout: rest_json.Layout, outputs: dict[str, Array], expected: object) -> None:
    assert json.loads(rest_json.answer(layout, outputs)) == expected


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"y": np.array(1)}, "no shape information"),
        ({"y": np.zeros(2), "z": np.zeros(3)}, "inconsistent batch size: 3 expecting: 2"),
    ],
)
def test_rows_that_are_none(outputs: dict[str, Array], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        rest_json.answer("row", outputs)
