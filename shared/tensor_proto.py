"""NumPy arrays to and from TensorFlow's ``TensorProto``, without TensorFlow.

Works on any generated class with TensorProto's fields: the model server uses TensorFlow's own, the thin
client one that it generated itself, because both in one process would collide in protobuf's pool.
"""

import math
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STRING: Final = 7


class TensorError(ValueError):
    """A tensor that can't be read or written, and why."""


class Kind(NamedTuple):
    """How one of TensorFlow's data types lies in a TensorProto.

    Attributes:
        number: its value in ``DataType``.
        name: its name there, such as ``DT_FLOAT``.
        field: the repeated field of its values.
        raw: number of that field where its packed form is exactly the array's bytes, else None.
    """

    number: int
    name: str
    dtype: np.dtype[Any]
    field: str
    raw: int | None = None


def _kinds() -> Iterable[Kind]:
    rows: list[tuple[int, str, str, str, int | None]] = [
        (1, "DT_FLOAT", "<f4", "float_val", 5),
        (2, "DT_DOUBLE", "<f8", "double_val", 6),
        (3, "DT_INT32", "<i4", "int_val", None),
        (4, "DT_UINT8", "u1", "int_val", None),
        (5, "DT_INT16", "<i2", "int_val", None),
        (6, "DT_INT8", "i1", "int_val", None),
        (STRING, "DT_STRING", "O", "string_val", None),
        (8, "DT_COMPLEX64", "<c8", "scomplex_val", None),
        (9, "DT_INT64", "<i8", "int64_val", None),
        (10, "DT_BOOL", "?", "bool_val", None),
        (17, "DT_UINT16", "<u2", "int_val", None),
        (18, "DT_COMPLEX128", "<c16", "dcomplex_val", None),
        (19, "DT_HALF", "<f2", "half_val", None),
        (22, "DT_UINT32", "<u4", "uint32_val", None),
        (23, "DT_UINT64", "<u8", "uint64_val", None),
    ]
    for number, name, dtype, field, raw in rows:
        yield Kind(number, name, np.dtype(dtype), field, raw)
    try:
        # NumPy has no bfloat16 of its own; TensorFlow's environment always has this one.
        from ml_dtypes import bfloat16
    except ImportError:
        return
    yield Kind(14, "DT_BFLOAT16", np.dtype(bfloat16), "half_val")


KINDS: Final[dict[int, Kind]] = {kind.number: kind for kind in _kinds()}
_BY_DTYPE: Final[dict[np.dtype[Any], Kind]] = {kind.dtype: kind for kind in KINDS.values()}
_HALVES: Final = frozenset({14, 19})
_COMPLEX: Final = frozenset({8, 18})


def kind_of(array: Array) -> Kind:
    """The data type of an array.

    Raises:
        TensorError: TensorFlow has no such type.
    """
    if array.dtype.kind in "OSU":
        return KINDS[STRING]
    kind = _BY_DTYPE.get(array.dtype.newbyteorder("<"))
    if kind is None:
        raise TensorError(f"arrays of {array.dtype} can't be sent as a tensor")
    return kind


def kind_name(number: int) -> str:
    """A data type in words, for messages."""
    kind = KINDS.get(number)
    return kind.name if kind else f"data type {number}"


def to_array(proto: Any, *, max_bytes: int = 2**31 - 1) -> Array:
    """The array of a TensorProto; read-only, over the message's own bytes, where they allow it.

    As TensorFlow does, a short list of values is filled up with its last one.

    Args:
        max_bytes: the most that the array may take: a few bytes of message can ask for any size.

    Raises:
        TensorError: the message contradicts itself, is too large, or of a type that can't be read.
    """
    kind = KINDS.get(proto.dtype)
    if kind is None:
        raise TensorError(f"{kind_name(proto.dtype)} is not supported")
    if proto.tensor_shape.unknown_rank:
        raise TensorError("the shape has an unknown rank")
    shape = tuple([dim.size for dim in proto.tensor_shape.dim])
    if any(size < 0 for size in shape):
        raise TensorError(f"the shape {list(shape)} has a negative dimension")
    count = math.prod(shape)
    if count * kind.dtype.itemsize > max_bytes:
        raise TensorError(f"the shape {list(shape)} is over the limit of {max_bytes} bytes")
    content = proto.tensor_content
    if content and kind.number != STRING:
        if len(content) != count * kind.dtype.itemsize:
            raise TensorError(
                f"tensor_content has {len(content)} bytes where {kind.name} of shape {list(shape)} "
                f"takes {count * kind.dtype.itemsize}"
            )
        return np.frombuffer(content, kind.dtype).reshape(shape)
    values = getattr(proto, kind.field)
    width = 2 if kind.number in _COMPLEX else 1
    given = len(values) // width
    if given > count:
        raise TensorError(f"{kind.field} has {given} values where the shape {list(shape)} takes {count}")
    return _from_values(kind, values, given, count).reshape(shape)


def _from_values(kind: Kind, values: Any, given: int, count: int) -> Array:
    try:
        if kind.number == STRING:
            array = np.empty(given, object)
            array[:] = list(values)
        elif kind.number in _HALVES:
            array = np.array(values, np.uint16).view(kind.dtype)
        elif kind.number in _COMPLEX:
            part = np.float32 if kind.number == 8 else np.float64
            array = np.array(values, part).view(kind.dtype)
        else:
            # From a list, because NumPy lets a repeated field's whole numbers overflow silently.
            array = np.array(list(values), kind.dtype)
    except (OverflowError, ValueError) as error:
        raise TensorError(f"{kind.field} holds a value that is no {kind.name}") from error
    if given == count:
        return array
    filled = np.empty(count, kind.dtype)
    filled[:given] = array
    filled[given:] = array[-1] if given else (b"" if kind.number == STRING else 0)
    return filled


def fill(proto: Any, array: Array, *, content: bool = False) -> None:
    """Writes an array into an empty TensorProto, in place.

    Args:
        content: as raw bytes in ``tensor_content`` rather than in the field of its type. Smaller and
            quicker for whole numbers; but clients may read ``float_val`` and its like directly.

    Raises:
        TensorError: TensorFlow has no such type.
    """
    kind = kind_of(array)
    proto.dtype = kind.number
    add = proto.tensor_shape.dim.add
    for size in array.shape:
        add(size=size)
    if kind.number == STRING:
        proto.string_val.extend(
            [value.encode() if isinstance(value, str) else bytes(value) for value in array.ravel().tolist()]
        )
    elif content:
        proto.tensor_content = _bytes(kind, array)
    elif kind.raw is not None:
        if array.size:
            data = _bytes(kind, array)
            # A packed field of floats is these very bytes behind a tag and a length: no loop over values.
            proto.MergeFromString(bytes([kind.raw << 3 | 2]) + _varint(len(data)) + data)
    elif kind.number in _HALVES:
        proto.half_val.extend(np.ascontiguousarray(array, kind.dtype).view(np.uint16).ravel().tolist())
    elif kind.number in _COMPLEX:
        part = np.float32 if kind.number == 8 else np.float64
        getattr(proto, kind.field).extend(np.ascontiguousarray(array).ravel().view(part).tolist())
    else:
        getattr(proto, kind.field).extend(array.ravel().tolist())


def _bytes(kind: Kind, array: Array) -> bytes:
    return np.ascontiguousarray(array, kind.dtype).tobytes()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
