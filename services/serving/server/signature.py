"""Signatures of a model: which inputs fit, and which requests may be run together. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.serving.server.errors import InvalidArgument
from shared.tensor_proto import STRING, Array, kind_name, kind_of

DEFAULT_SIGNATURE: Final = "serving_default"

Shape = tuple[int, ...] | None
"""Sizes, -1 where any will do; None where even the rank is open."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        tensor: its name in the graph.
        dtype: number of its TensorFlow data type.
    """

    tensor: str
    dtype: int
    shape: Shape

    @property
    def is_string(self) -> bool:
        return self.dtype == STRING


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call a model.

    Attributes:
        method: its method name, such as `tensorflow/serving/predict`.
        inputs, outputs: by the names that clients use, in a fixed order.
    """

    name: str
    method: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @property
    def batchable(self) -> bool:
        """True where the first dimension of everything is open: then, and only then, it counts rows."""
        specs = [*self.inputs.values(), *self.outputs.values()]
        return bool(self.inputs) and all(_open(spec.shape) for spec in specs)

    def arrange(self, given: Mapping[str, Array]) -> tuple[Array, ...]:
        """The inputs in the signature's order, once every one of them is there and fits.

        Raises:
            InvalidArgument: one is missing, unknown, or of the wrong type or shape.
        """
        if given.keys() != self.inputs.keys():
            raise InvalidArgument(_mismatch(given.keys(), self.inputs.keys()))
        arrays = []
        for name, spec in self.inputs.items():
            array = given[name]
            kind = kind_of(array)
            if kind.number != spec.dtype:
                raise InvalidArgument(f"input {name!r} is {kind.name}; the model takes {kind_name(spec.dtype)}")
            if not fits(array.shape, spec.shape):
                raise InvalidArgument(
                    f"input {name!r} has shape {list(array.shape)}; the model takes {words(spec.shape)}"
                )
            arrays.append(array)
        return tuple(arrays)

    def select(self, names: Sequence[str]) -> tuple[str, ...]:
        """The outputs that a request wants: those of `names`, or all.

        Raises:
            InvalidArgument: there is no such output, or it is named twice.
        """
        if not names:
            return tuple(self.outputs)
        for name in names:
            if name not in self.outputs:
                raise InvalidArgument(
                    f"output tensor alias not found in signature: {name} "
                    f"Outputs expected to be in the set {{{','.join(self.outputs)}}}."
                )
        if len(set(names)) != len(names):
            raise InvalidArgument(f"output_filter names an output twice: {', '.join(names)}")
        return tuple(names)


def rows_of(arrays: Sequence[Array]) -> int | None:
    """How many rows a request has, or None where its inputs do not agree on it."""
    rows = {array.shape[0] if array.ndim else None for array in arrays}
    return rows.pop() if len(rows) == 1 else None


def fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    """True where a shape is one of those that are wanted."""
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(want in (-1, size) for size, want in zip(shape, wanted, strict=True))


def words(shape: Shape) -> str:
    """A shape for messages: `[?, 784]`."""
    if shape is None:
        return "any shape"
    return "[" + ", ".join("?" if size < 0 else str(size) for size in shape) + "]"


def _open(shape: Shape) -> bool:
    return shape is not None and len(shape) > 0 and shape[0] == -1


def _mismatch(given: Iterable[str], wanted: Iterable[str]) -> str:
    sent, needed = set(given), set(wanted)
    return (
        f"input size does not match signature: {len(sent)}!={len(needed)} "
        f"len({{{','.join(sorted(sent))}}}) != len({{{','.join(sorted(needed))}}}). "
        f"Sent extra: {{{','.join(sorted(sent - needed))}}}. "
        f"Missing but required: {{{','.join(sorted(needed - sent))}}}."
    )
