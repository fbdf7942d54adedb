"""Tensors survive the way to a message and back, and broken messages are told apart."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from elearn.grpc import generate, tensor_pb2
from shared.tensor_proto import KINDS, Array, Kind, TensorError, fill, to_array

NUMBERS = [kind for kind in KINDS.values() if kind.name != "DT_STRING"]


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("kind", NUMBERS, ids=lambda kind: kind.name)
def test_every_type_survives(kind: Kind, content: bool) -> None:
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind.dtype)
    proto = tensor_pb2.Tensor()
    fill(proto, array, content=content)
    back = to_array(tensor_pb2.Tensor.FromString(proto.SerializeToString()))
    assert proto.dtype == kind.number
    assert bool(proto.tensor_content) == content
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_floats_go_into_the_field_that_clients_read() -> None:
    proto = tensor_pb2.Tensor()
    fill(proto, np.arange(200, dtype=np.float32))
    assert list(proto.float_val) == list(range(200))


@pytest.mark.parametrize(
    "array",
    [np.array(["é", "b"]), np.array([b"\xc3\xa9", b"b"]), np.array(["é", b"b"], dtype=object)],
    ids=["text", "bytes", "mixed"],
)
def test_strings_are_bytes(array: Array) -> None:
    proto = tensor_pb2.Tensor()
    fill(proto, array)
    assert to_array(proto).tolist() == [b"\xc3\xa9", b"b"]


@pytest.mark.parametrize(
    "array", [np.float32(3), np.zeros((0, 4), np.int64), np.arange(6, dtype=">f4").reshape(2, 3).T]
)
def test_shapes_and_layouts(array: npt.ArrayLike) -> None:
    proto = tensor_pb2.Tensor()
    fill(proto, np.asarray(array), content=True)
    np.testing.assert_array_equal(to_array(proto), array)


def _tensor(
    dtype: int = 1,
    shape: tuple[int, ...] = (2,),
    *,
    tensor_content: bytes | None = None,
    float_val: Sequence[float] = (),
    int_val: Sequence[int] = (),
) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        dtype=dtype,
        tensor_shape=tensor_pb2.TensorShape(dim=[tensor_pb2.TensorShape.Dim(size=size) for size in shape]),
        tensor_content=tensor_content,
        float_val=float_val,
        int_val=int_val,
    )


def test_a_short_list_is_filled_up_with_its_last_value() -> None:
    assert to_array(_tensor(shape=(2, 2), float_val=[1, 7])).tolist() == [[1, 7], [7, 7]]
    assert to_array(_tensor(shape=(2,))).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (_tensor(dtype=21), "data type 21 is not supported"),
        (_tensor(tensor_content=b"123"), "3 bytes where DT_FLOAT"),
        (_tensor(float_val=[1, 2, 3]), "3 values where the shape"),
        (_tensor(shape=(-1,)), "negative"),
        (_tensor(shape=(1 << 20, 1 << 20), float_val=[1]), "over the limit"),
        (_tensor(shape=(1 << 40, 1 << 40), float_val=[1]), "over the limit"),
        (_tensor(dtype=6, int_val=[1000, 1]), "no DT_INT8"),
    ],
)
def test_what_contradicts_itself_is_refused(proto: tensor_pb2.Tensor, words: str) -> None:
    with pytest.raises(TensorError, match=words):
        to_array(proto)


def test_types_that_tensorflow_lacks_are_refused() -> None:
    with pytest.raises(TensorError, match="datetime64"):
        fill(tensor_pb2.Tensor(), np.array(["2020-01-01"], dtype="datetime64[D]"))


def test_the_generated_messages_are_those_of_the_proto_files() -> None:
    assert generate.drifted() == []
