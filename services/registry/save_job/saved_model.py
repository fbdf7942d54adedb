"""Reads a SavedModel's description without TensorFlow."""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec
from google.protobuf.message import DecodeError

from services.registry.save_job.errors import CannotSaveError
from services.registry.save_job.proto import saved_model_pb2
from shared.contracts.model import Signature, TensorInfo

DESCRIPTION: Final = "saved_model.pb"
"""The file that makes a folder a SavedModel."""

_SERVE: Final = "serve"
_INTERNAL: Final = "__saved_model"
_SCHEMA: Final = 1
_MOST_BYTES: Final = 128 * 1024  # they travel in every event that speaks of the version

# TensorFlow's DataType numbers (types.proto).
_DTYPES: Final[Mapping[int, str]] = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    14: "bfloat16",
    15: "qint16",
    16: "quint16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    29: "int4",
    30: "uint4",
}


class Description(NamedTuple):
    """What a SavedModel says of itself."""

    framework: str
    signatures: tuple[Signature, ...]
    note: str = ""


def describe(content: bytes) -> Description:
    """Read ``saved_model.pb``: who wrote it, and the signatures of the graph that is meant for serving.

    Raises:
        CannotSaveError: it is not one.
    """
    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(content)
    except DecodeError:
        raise CannotSaveError(f"its {DESCRIPTION} can't be read: it is damaged, or not a SavedModel's") from None
    if message.saved_model_schema_version != _SCHEMA or not message.meta_graphs:
        raise CannotSaveError(f"its {DESCRIPTION} is not a SavedModel's: it holds no graph of schema version 1")
    graph = next((each for each in message.meta_graphs if _SERVE in each.meta_info_def.tags), message.meta_graphs[0])
    version = graph.meta_info_def.tensorflow_version
    signatures = tuple(
        Signature(
            name=name,
            inputs=_tensors(graph.signature_def[name].inputs),
            outputs=_tensors(graph.signature_def[name].outputs),
            method=graph.signature_def[name].method_name,
        )
        for name in sorted(graph.signature_def)
        if not name.startswith(_INTERNAL)
    )
    framework = f"tensorflow {version}".strip()
    if len(msgspec.json.encode(signatures)) > _MOST_BYTES:
        return Description(framework, (), f"its {len(signatures)} signatures are too long to be listed")
    return Description(framework, signatures)


def _tensors(infos: Mapping[str, saved_model_pb2.TensorInfo]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name=name, dtype=_dtype(infos[name].dtype), shape=_shape(infos[name].tensor_shape))
        for name in sorted(infos)
    )


def _dtype(number: int) -> str:
    return _DTYPES.get(number, f"dtype {number}")


def _shape(shape: saved_model_pb2.TensorShape) -> tuple[int, ...] | None:
    if shape.unknown_rank:
        return None
    dimensions: Iterable[saved_model_pb2.TensorShape.Dimension] = shape.dim
    return tuple(each.size for each in dimensions)
