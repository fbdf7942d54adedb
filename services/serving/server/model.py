"""A SavedModel in memory. The one file that calls TensorFlow.

The graph is run through a session, as TensorFlow Serving itself does. Two things make a small model's run
cost 20 µs rather than 300: a callable made once, so that no names are looked up in a run, and running the
operations in the calling thread, so that nothing is handed over between threads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from tensorflow.python.tools import saved_model_utils

from services.serving.server.batching import Arrays
from services.serving.server.errors import Code, FailedPrecondition, ModelError, NotFound
from services.serving.server.signature import DEFAULT_SIGNATURE, Shape, Signature, TensorSpec
from shared.tensor_proto import STRING, Array

_INLINE: Final = -1
_METHODS_BESIDES_PREDICT: Final = ("__saved_model_init_op", "__saved_model_train_op")


class Program:
    """One signature of a loaded model, ready to run. Safe to call from several threads."""

    def __init__(self, session: Any, signature: Signature, *, inline: bool) -> None:
        self.signature = signature
        options = tf.compat.v1.RunOptions(inter_op_thread_pool=_INLINE) if inline else None
        callable_options = _callable_options(signature, options)
        # Private, but what session.make_callable itself is made of; the public one can't fix its run
        # options beforehand, which costs six times as much. The lock file pins TensorFlow.
        self._call = session._make_callable_from_options(callable_options)

    def __call__(self, inputs: Arrays) -> Sequence[Array]:
        """Outputs in the signature's order.

        Raises:
            ModelError: TensorFlow refused; with its code and the first line of its words.
        """
        try:
            outputs: Sequence[Array] = self._call(*inputs)
        except tf.errors.OpError as error:
            raise model_error(error) from error
        return outputs


class LoadedModel:
    """A version's SavedModel, with its variables, in a graph and session of its own.

    Args:
        path: the SavedModel's directory.

    Raises:
        FailedPrecondition: there is no SavedModel, or none for serving.
        ModelError: TensorFlow can't load it.
    """

    def __init__(self, path: Path, *, inter_op_threads: int = 0, intra_op_threads: int = 0) -> None:
        tags = _serving_tags(path)
        config = tf.compat.v1.ConfigProto(
            inter_op_parallelism_threads=inter_op_threads, intra_op_parallelism_threads=intra_op_threads
        )
        # Two replicas may share a GPU: each takes what it needs rather than all there is.
        config.gpu_options.allow_growth = True
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default():
                meta_graph = tf.compat.v1.saved_model.load(self._session, tags, str(path))
            self.signature_defs: Mapping[str, Any] = {
                name: definition
                for name, definition in meta_graph.signature_def.items()
                if name not in _METHODS_BESIDES_PREDICT
            }
            self._programs = {
                name: Program(self._session, read_signature(name, definition), inline=inter_op_threads == 0)
                for name, definition in self.signature_defs.items()
                if _runnable(definition)
            }
        except tf.errors.OpError as error:
            self.close()
            raise model_error(error) from error
        except (ValueError, OSError, RuntimeError) as error:
            self.close()
            raise FailedPrecondition(f"can't load {path}: {first_line(str(error))}") from error

    @property
    def programs(self) -> Mapping[str, Program]:
        """By signature name."""
        return self._programs

    def program(self, signature: str) -> Program:
        """The program of a signature; the empty name is the default one.

        Raises:
            NotFound: there is no such signature.
        """
        name = signature or DEFAULT_SIGNATURE
        program = self._programs.get(name)
        if program is None:
            raise NotFound(f'Serving signature key "{name}" not found.')
        return program

    def close(self) -> None:
        """Frees the memory; no run may be under way."""
        self._programs = {}
        self._session.close()


def read_signature(name: str, definition: Any) -> Signature:
    """A SignatureDef in our own words."""
    return Signature(
        name=name,
        method=definition.method_name,
        inputs={key: _spec(definition.inputs[key]) for key in sorted(definition.inputs)},
        outputs={key: _spec(definition.outputs[key]) for key in sorted(definition.outputs)},
    )


def example_inputs(signature: Signature) -> Arrays:
    """Zeros (or empty strings) that fit a signature, one where a size is open: to warm it up with."""
    arrays = []
    for spec in signature.inputs.values():
        shape = tuple(1 if size < 0 else size for size in spec.shape or ())
        if spec.dtype == STRING:
            array = np.empty(shape, object)
            array[...] = b""
        else:
            array = np.zeros(shape, tf.dtypes.as_dtype(spec.dtype).as_numpy_dtype)
        arrays.append(array)
    return tuple(arrays)


def model_error(error: Any) -> ModelError:
    """One of TensorFlow's errors, in one line and with its own code."""
    return ModelError(first_line(error.message or str(error)), Code.of(error.error_code))


def first_line(text: str) -> str:
    """What a traceback or a graph dump begins with."""
    return text.strip().splitlines()[0] if text.strip() else "no reason given"


def _callable_options(signature: Signature, run_options: Any) -> Any:
    from tensorflow.core.protobuf import config_pb2

    options = config_pb2.CallableOptions(
        feed=[spec.tensor for spec in signature.inputs.values()],
        fetch=[spec.tensor for spec in signature.outputs.values()],
    )
    if run_options is not None:
        options.run_options.CopyFrom(run_options)
    return options


def _runnable(definition: Any) -> bool:
    """True for signatures of dense tensors alone: sparse and composite ones have no single tensor to feed."""
    tensors = [*definition.inputs.values(), *definition.outputs.values()]
    return bool(definition.outputs) and all(tensor.WhichOneof("encoding") == "name" for tensor in tensors)


def _spec(info: Any) -> TensorSpec:
    shape: Shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple(dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(tensor=info.name, dtype=info.dtype, shape=shape)


def _serving_tags(path: Path) -> list[str]:
    if not any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        raise FailedPrecondition(f"there is no SavedModel in {path}: saved_model.pb is missing")
    try:
        tag_sets: list[list[str]] = saved_model_utils.get_saved_model_tag_sets(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise FailedPrecondition(f"can't read the SavedModel in {path}: {first_line(str(error))}") from error
    serving = sorted((tags for tags in tag_sets if "serve" in tags), key=len)
    if not serving:
        raise FailedPrecondition(
            f"the SavedModel in {path} has no graph tagged 'serve'; it has "
            + (", ".join("+".join(tags) for tags in tag_sets) or "none")
        )
    return serving[0]
