"""`tensorflow.serving.PredictionService` over gRPC."""

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import structlog
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from services.serving.server.errors import Code, InvalidArgument, ServeError, Unimplemented
from services.serving.server.metrics import Metrics
from services.serving.server.predict import Predictor
from services.serving.server.versions import Versions
from shared.tensor_proto import Array, TensorError, fill, to_array

log = structlog.get_logger(__name__)

_CODES = {code: getattr(grpc.StatusCode, code.name) for code in Code}


class Answering:
    """What both gRPC services share: every error becomes its status, and everything is counted."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def _answer(self, method: str, context: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            with self._metrics.request("grpc", method):
                return await work()
        except ServeError as error:
            await context.abort(_CODES[error.code], error.message)
        except Exception:
            log.exception("request failed", method=method)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log says more")


class PredictionService(Answering):
    """Predict and GetModelMetadata; the calls on `tf.Example` lists are refused in words."""

    def __init__(
        self,
        versions: Versions,
        predictor: Predictor,
        metrics: Metrics,
        *,
        tensor_content: bool,
        max_tensor_bytes: int,
    ) -> None:
        super().__init__(metrics)
        self._versions = versions
        self._predictor = predictor
        self._tensor_content = tensor_content
        self._max_tensor_bytes = max_tensor_bytes

    async def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return await self._answer("Predict", context, lambda: self._predict(request))

    async def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("GetModelMetadata", context, lambda: self._metadata(request))

    async def Classify(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("Classify", context, lambda: self._refuse("Classify"))

    async def Regress(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("Regress", context, lambda: self._refuse("Regress"))

    async def MultiInference(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("MultiInference", context, lambda: self._refuse("MultiInference"))

    async def _predict(self, request: Any) -> Any:
        spec = request.model_spec
        with self._versions.use(spec.name, **choice(spec)) as version:
            program = version.loaded.program(spec.signature_name)
            inputs: dict[str, Array] = {}
            for name, proto in request.inputs.items():
                try:
                    inputs[name] = to_array(proto, max_bytes=self._max_tensor_bytes)
                except TensorError as error:
                    raise InvalidArgument(f"tensor parsing error: {name}: {error}") from error
            prediction = await self._predictor.predict(version, program.signature, inputs, request.output_filter)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = prediction.version
        response.model_spec.signature_name = prediction.signature
        for name, array in prediction.outputs.items():
            fill(response.outputs[name], array, content=self._tensor_content)
        return response

    async def _metadata(self, request: Any) -> Any:
        fields = set(request.metadata_field)
        if not fields:
            raise InvalidArgument("GetModelMetadataRequest must specify at least one metadata_field")
        if unknown := fields - {"signature_def"}:
            raise InvalidArgument(f"Metadata field {sorted(unknown)[0]} is not supported")
        spec = request.model_spec
        version = self._versions.find(spec.name, **choice(spec))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = spec.name
        response.model_spec.version.value = version.number
        response.metadata["signature_def"].Pack(signature_map(version.loaded.signature_defs))
        return response

    async def _refuse(self, method: str) -> NoReturn:
        raise Unimplemented(f"{method} on lists of tf.Example is not supported by this server; use Predict")


def choice(spec: Any) -> dict[str, Any]:
    """The version that a ModelSpec chooses: by number, by label, or neither."""
    chosen = spec.WhichOneof("version_choice")
    return {
        "version": spec.version.value if chosen == "version" else None,
        "label": spec.version_label if chosen == "version_label" else None,
    }


def signature_map(definitions: Any) -> Any:
    """A model's signatures as the message of metadata answers."""
    message = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in definitions.items():
        message.signature_def[name].CopyFrom(definition)
    return message
