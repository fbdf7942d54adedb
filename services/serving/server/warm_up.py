"""The first run of a model is many times slower than the next: it is done before a client waits for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import structlog
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from services.serving.server.errors import FailedPrecondition, InvalidArgument, ServeError
from services.serving.server.model import LoadedModel, example_inputs
from shared.tensor_proto import TensorError, to_array

log = structlog.get_logger(__name__)

FILE: Final = Path("assets.extra") / "tf_serving_warmup_requests"
_MOST: Final = 1000


def warm_up(model: LoadedModel, path: Path) -> None:
    """Runs the model's own warm-up requests where it brings any, else every signature once on zeros.

    Raises:
        FailedPrecondition: the model's own warm-up requests are broken or fail: they are a promise.
    """
    requests = path / FILE
    if requests.is_file():
        count = 0
        try:
            for record in _records(requests):
                _replay(model, record)
                count += 1
        except (ServeError, TensorError, tf.errors.OpError, ValueError) as error:
            raise FailedPrecondition(f"warm-up request {count + 1} of {requests} failed: {error}") from error
        log.info("warmed up", requests=count)
        return
    for name, program in model.programs.items():
        try:
            program(example_inputs(program.signature))
        except (ServeError, TypeError, MemoryError) as error:
            # Zeros need not be legal input of every model; then its first client waits a little.
            log.info("not warmed up", signature=name, reason=str(error))


def _records(path: Path) -> Iterator[bytes]:
    for index, record in enumerate(tf.compat.v1.io.tf_record_iterator(str(path))):
        if index == _MOST:
            return
        yield record


def _replay(model: LoadedModel, record: bytes) -> None:
    entry: Any = prediction_log_pb2.PredictionLog.FromString(record)
    kind = entry.WhichOneof("log_type")
    if kind != "predict_log":
        raise InvalidArgument(f"a {kind or 'empty record'} can't be replayed by this server, only a predict_log")
    request = entry.predict_log.request
    program = model.program(request.model_spec.signature_name)
    inputs = {name: to_array(proto) for name, proto in request.inputs.items()}
    program(program.signature.arrange(inputs))
