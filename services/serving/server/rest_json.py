"""TensorFlow Serving's JSON: request bodies to arrays, arrays to answers. Pure.

Rows (`instances` in, `predictions` out) or columns (`inputs` in, `outputs` out); bytes are
`{"b64": "…"}`. Numbers that JSON lacks (NaN, Infinity) are read and written as TensorFlow Serving does.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np

from services.serving.server.errors import InvalidArgument
from services.serving.server.signature import Signature, TensorSpec
from shared.tensor_proto import KINDS, Array, kind_name

Layout = Literal["row", "column"]

_FIELDS: Final = ("signature_name", "instances", "inputs")


class Body(NamedTuple):
    """A predict request.

    Attributes:
        values: as decoded from JSON.
        booleans: whether `true` or `false` stands anywhere in the request.
    """

    signature: str
    layout: Layout
    values: Any
    booleans: bool


def parse(body: bytes) -> Body:
    """Reads a predict request.

    Raises:
        InvalidArgument: it is not JSON, or not a predict request.
    """
    decoded = _decode(body)
    if not isinstance(decoded, dict):
        raise InvalidArgument("the request must be a JSON object with 'instances' or 'inputs'")
    for name in decoded:
        if name not in _FIELDS:
            raise InvalidArgument(f"unknown key {name!r}; a predict request takes {', '.join(_FIELDS)}")
    booleans = b"true" in body or b"false" in body
    signature = decoded.get("signature_name", "")
    if not isinstance(signature, str):
        raise InvalidArgument("'signature_name' key must be a string value.")
    if "instances" in decoded and "inputs" in decoded:
        raise InvalidArgument("Not expecting 'inputs' and 'instances' together: give one of them")
    if "instances" in decoded:
        values = decoded["instances"]
        if not isinstance(values, list) or not values:
            raise InvalidArgument("'instances' must be a list of at least one instance")
        return Body(signature, "row", values, booleans)
    if "inputs" in decoded:
        return Body(signature, "column", decoded["inputs"], booleans)
    raise InvalidArgument("Missing 'inputs' or 'instances' key")


def inputs_of(body: Body, signature: Signature) -> dict[str, Array]:
    """The arrays of a request, in the types of the signature.

    Raises:
        InvalidArgument: a value that is not of its input's type, or lists of different lengths.
    """
    columns = _columns(body, signature)
    arrays = {}
    for name, values in columns.items():
        spec = signature.inputs.get(name)
        if spec is None:
            raise InvalidArgument(
                f"there is no input {name!r}; the signature takes {', '.join(map(repr, signature.inputs))}"
            )
        arrays[name] = _array(name, values, spec)
        # NumPy takes [true, 1] for two numbers. A walk is slow, so only where there is one to find.
        if body.booleans and arrays[name].dtype.kind != "b" and not spec.is_string and _has_boolean(values):
            raise InvalidArgument(f"input {name!r}: a boolean is not of expected type {kind_name(spec.dtype)}")
    return arrays


def answer(layout: Layout, outputs: Mapping[str, Array]) -> bytes:
    """The body of the answer.

    Raises:
        InvalidArgument: outputs that have no rows were asked for by row.
    """
    listed = {name: _listed(name, array) for name, array in outputs.items()}
    single = len(listed) == 1
    if layout == "column":
        return _encode({"outputs": next(iter(listed.values())) if single else listed}, outputs.values())
    rows: int | None = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise InvalidArgument(f"Tensor name: {name} has no shape information: ask for columns ('inputs')")
        if rows not in (None, array.shape[0]):
            raise InvalidArgument(
                f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} expecting: {rows}"
            )
        rows = array.shape[0]
    predictions: Sequence[object]
    if single:
        predictions = next(iter(listed.values()))
    else:
        predictions = [dict(zip(listed, row, strict=True)) for row in zip(*listed.values(), strict=True)]
    return _encode({"predictions": predictions}, outputs.values())


def _columns(body: Body, signature: Signature) -> Mapping[str, Any]:
    values = body.values
    if body.layout == "column":
        if isinstance(values, dict) and not _is_bytes(values):
            return values
        return {_only_input(signature, "inputs"): values}
    first = values[0]
    if not isinstance(first, dict) or _is_bytes(first):
        return {_only_input(signature, "instances"): values}
    for index, instance in enumerate(values):
        if not isinstance(instance, dict) or instance.keys() != first.keys():
            raise InvalidArgument(f"instances[{index}]: every instance must have the same inputs: {', '.join(first)}")
    return {name: [instance[name] for instance in values] for name in first}


def _only_input(signature: Signature, key: str) -> str:
    if len(signature.inputs) != 1:
        raise InvalidArgument(
            f"'{key}' is a plain value, but the signature has {len(signature.inputs)} inputs: "
            f"name them ({', '.join(signature.inputs)})"
        )
    return next(iter(signature.inputs))


def _array(name: str, values: Any, spec: TensorSpec) -> Array:
    if spec.is_string:
        flat: list[bytes] = []
        shape = _strings(name, values, flat)
        array = np.empty(len(flat), object)
        array[:] = flat
        return array.reshape(shape)
    kind = KINDS.get(spec.dtype)
    if kind is None or kind.dtype.kind == "c":
        raise InvalidArgument(f"input {name!r}: its type can't be given in JSON; use gRPC")
    try:
        found = np.array(values)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"input {name!r}: lists of different lengths, or nested too deep") from error
    wanted = kind.dtype
    if found.size == 0:
        return found.astype(wanted)
    real = kind.dtype.kind not in "iub"
    if found.dtype.kind not in ("iuf" if real else "b" if wanted.kind == "b" else "iu"):
        raise InvalidArgument(f"input {name!r}: a value is not of expected type {kind.name}")
    if real:
        with np.errstate(over="ignore"):
            array = found.astype(wanted)
        if not np.array_equal(np.isinf(array), np.isinf(found)):
            raise InvalidArgument(f"input {name!r}: a number is too large for {kind.name}")
        return array
    if wanted.kind != "b":
        limits = np.iinfo(wanted)
        if int(found.min()) < limits.min or int(found.max()) > limits.max:
            raise InvalidArgument(f"input {name!r}: a number is out of range for {kind.name}")
    return found.astype(wanted)


def _has_boolean(value: Any) -> bool:
    return any(map(_has_boolean, value)) if isinstance(value, list) else isinstance(value, bool)


def _strings(name: str, value: Any, flat: list[bytes], depth: int = 0) -> tuple[int, ...]:
    """Collects the strings of nested lists; the answer is their shape."""
    if isinstance(value, str):
        flat.append(value.encode())
        return ()
    if _is_bytes(value):
        try:
            flat.append(base64.b64decode(value["b64"], validate=True))
        except (binascii.Error, ValueError, TypeError) as error:
            raise InvalidArgument(f"input {name!r}: 'b64' is not base64: {error}") from error
        return ()
    if not isinstance(value, list):
        raise InvalidArgument(f"input {name!r}: a value is not of expected type DT_STRING")
    if depth > 32:
        raise InvalidArgument(f"input {name!r}: nested too deep")
    shapes = {_strings(name, item, flat, depth + 1) for item in value}
    if len(shapes) > 1:
        raise InvalidArgument(f"input {name!r}: lists of different lengths")
    return (len(value), *(shapes.pop() if shapes else ()))


def _is_bytes(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _listed(name: str, array: Array) -> Any:
    if array.dtype.kind not in "OSU":
        return array.astype(np.float32).tolist() if array.dtype.kind == "V" else array.tolist()
    as_bytes = name.endswith("_bytes")

    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return [shown(item) for item in value]
        data = value.encode() if isinstance(value, str) else bytes(value)
        if not as_bytes:
            try:
                return data.decode()
            except UnicodeDecodeError:
                pass  # not text: told as bytes, whatever its name is
        return {"b64": base64.b64encode(data).decode()}

    return shown(array.tolist())


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as strict:
        if b"NaN" not in body and b"Infinity" not in body:
            raise InvalidArgument(f"JSON Parse error: {strict}") from strict
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"JSON Parse error: {error}") from error


def _encode(value: Any, arrays: Any) -> bytes:
    if all(array.dtype.kind != "f" or np.isfinite(array).all() for array in arrays):
        try:
            return msgspec.json.encode(value)
        except TypeError as error:
            raise InvalidArgument("an output's type can't be given in JSON; use gRPC") from error
    return json.dumps(value).encode()
