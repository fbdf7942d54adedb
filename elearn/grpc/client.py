"""The client: one channel, three calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar, cast

import grpc

from elearn.grpc import serving_pb2, tensor_pb2
from elearn.grpc.errors import PredictError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    TensorLike = npt.ArrayLike

_SERVICE: Final = "/tensorflow.serving"
_STATES: Final = {10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_UNLIMITED: Final = -1
# A replica that leaves may refuse a call that was just on its way. Predicting again changes nothing.
_RETRIES: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

R = TypeVar("R", covariant=True)


class _Call(Protocol[R]):
    def __call__(self, request: Any, *, timeout: float, metadata: Any) -> R: ...


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer.

    Attributes:
        version: the version that answered.
        signature: the signature that was run.
    """

    model: str
    version: int
    signature: str
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class InputInfo:
    """One input or output of a signature.

    Attributes:
        dtype: such as ``DT_FLOAT``.
        shape: -1 where any size will do; None where even the rank is open.
    """

    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """One way to call a model."""

    method: str
    inputs: Mapping[str, InputInfo]
    outputs: Mapping[str, InputInfo]


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version of a model on the server.

    Attributes:
        state: ``AVAILABLE`` where it answers; else ``START``, ``LOADING``, ``UNLOADING`` or ``END``.
        error: why it ended, or empty.
    """

    version: int
    state: str
    error: str = ""


class PredictClient:
    """Calls the servings at one endpoint. Safe to use from several threads.

    Args:
        endpoint: ``host:port``, as ``endpoint.grpc`` of a serving has it.
        channels: connections to spread calls over. Replicas that share a port are told apart by
            connection, so one connection reaches one replica.
        metadata: sent with every call, such as an authorization header.
    """

    def __init__(self, endpoint: str, *, channels: int = 1, metadata: Sequence[tuple[str, str]] = ()) -> None:
        if channels < 1:
            raise ValueError("channels must be at least 1")
        options = [
            ("grpc.max_send_message_length", _UNLIMITED),
            ("grpc.max_receive_message_length", _UNLIMITED),
            # Channels of one process share connections unless told not to.
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.service_config", _RETRIES),
            ("grpc.initial_reconnect_backoff_ms", 100),
        ]
        self._endpoint = endpoint
        self._metadata = tuple(metadata)
        self._channels = [grpc.insecure_channel(endpoint, options=options) for _ in range(channels)]
        self._turn = 0
        self._predict = self._calls("PredictionService/Predict", serving_pb2.PredictResponse)
        self._describe = self._calls("PredictionService/GetModelMetadata", serving_pb2.GetModelMetadataResponse)
        self._status = self._calls("ModelService/GetModelStatus", serving_pb2.GetModelStatusResponse)
        self._dtypes: dict[tuple[str, int | str | None, str], Mapping[str, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        for channel in self._channels:
            channel.close()

    def predict(
        self,
        model: str,
        inputs: Mapping[str, TensorLike],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str = "",
        outputs: Sequence[str] = (),
        timeout: float = 10.0,
    ) -> Prediction:
        """Runs the model.

        An array goes out as it is, so its type must be the model's. Anything else (lists, numbers,
        strings) is made into the type that the model's signature names, which is asked for once.

        Args:
            version, label: which version; the server's default without either.
            signature: empty for ``serving_default``.
            outputs: only these; all where none is named.
            timeout: seconds.

        Raises:
            PredictError: the server refused, or was not reached in time.
            ValueError: inputs that are no tensors, or both a version and a label.
            ImportError: NumPy is not installed.
        """
        from shared.tensor_proto import TensorError, fill, to_array

        spec = _spec(model, version, label, signature)
        request = serving_pb2.PredictRequest(model_spec=spec, output_filter=outputs)
        for name, value in inputs.items():
            try:
                fill(request.inputs[name], self._array(name, value, spec, timeout), content=True)
            except TensorError as error:
                raise ValueError(f"input {name!r}: {error}") from error
        response = self._call(self._predict, request, timeout)
        return Prediction(
            model=response.model_spec.name or model,
            version=response.model_spec.version.value,
            signature=response.model_spec.signature_name,
            outputs={name: to_array(proto) for name, proto in response.outputs.items()},
        )

    def signatures(
        self, model: str, *, version: int | None = None, label: str | None = None, timeout: float = 10.0
    ) -> Mapping[str, ModelSignature]:
        """What can be called, by signature name.

        Raises:
            PredictError: the server refused, or was not reached in time.
        """
        from shared.tensor_proto import kind_name

        def info(entry: tensor_pb2.TensorInfo) -> InputInfo:
            shape = entry.tensor_shape
            sizes = None if shape.unknown_rank else tuple(dim.size for dim in shape.dim)
            return InputInfo(kind_name(entry.dtype), sizes)

        return {
            name: ModelSignature(
                method=found.method_name,
                inputs={key: info(entry) for key, entry in found.inputs.items()},
                outputs={key: info(entry) for key, entry in found.outputs.items()},
            )
            for name, found in self._signatures(_spec(model, version, label, ""), timeout).items()
        }

    def status(self, model: str, *, version: int | None = None, timeout: float = 10.0) -> list[VersionStatus]:
        """The versions of a model that the server knows, highest first.

        Raises:
            PredictError: the server refused, or was not reached in time.
        """
        request = serving_pb2.GetModelStatusRequest(model_spec=_spec(model, version, None, ""))
        response = self._call(self._status, request, timeout)
        return [
            VersionStatus(entry.version, _STATES.get(entry.state, "UNKNOWN"), entry.status.error_message)
            for entry in response.model_version_status
        ]

    def _calls(self, path: str, response: Any) -> list[_Call[Any]]:
        return [
            channel.unary_unary(
                f"{_SERVICE}.{path}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=response.FromString,
            )
            for channel in self._channels
        ]

    def _call(self, calls: list[_Call[R]], request: Any, timeout: float) -> R:
        self._turn = (self._turn + 1) % len(calls)
        try:
            return calls[self._turn](request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            failed = cast("grpc.Call", error)
            code, words = failed.code().name, failed.details() or ""
            if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                words = f"{self._endpoint}: {words}"
            raise PredictError(code, words) from error

    def _array(self, name: str, value: TensorLike, spec: serving_pb2.ModelSpec, timeout: float) -> Array:
        import numpy as np

        from shared.tensor_proto import KINDS, STRING

        if isinstance(value, np.ndarray):
            return value
        number = self._dtypes_of(spec, timeout).get(name)
        kind = KINDS.get(number) if number is not None else None
        if kind is None:
            return np.asarray(value)  # the server knows best what is wrong with it
        try:
            if kind.number == STRING:
                return _strings(np, value)
            return np.asarray(value, kind.dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"input {name!r} can't be made into {kind.name}: {error}") from error

    def _dtypes_of(self, spec: serving_pb2.ModelSpec, timeout: float) -> Mapping[str, int]:
        chosen = spec.version.value if spec.HasField("version") else spec.version_label or None
        key = (spec.name, chosen, spec.signature_name)
        known = self._dtypes.get(key)
        if known is None:
            found = self._signatures(spec, timeout).get(spec.signature_name or "serving_default")
            known = {name: entry.dtype for name, entry in found.inputs.items()} if found else {}
            self._dtypes[key] = known
        return known

    def _signatures(self, spec: serving_pb2.ModelSpec, timeout: float) -> Mapping[str, tensor_pb2.SignatureDef]:
        request = serving_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = self._call(self._describe, request, timeout)
        message = tensor_pb2.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        return dict(message.signature_def)


def _spec(model: str, version: int | None, label: str | None, signature: str) -> serving_pb2.ModelSpec:
    if version is not None and label is not None:
        raise ValueError("give a version or a label, not both")
    spec = serving_pb2.ModelSpec(name=model, signature_name=signature)
    if version is not None:
        spec.version.value = version
    if label is not None:
        spec.version_label = label
    return spec


def _strings(numpy: Any, value: TensorLike) -> Array:
    array: Array = numpy.array(value, dtype=object)
    for index, item in numpy.ndenumerate(array):
        if not isinstance(item, str | bytes):
            raise ValueError(f"{item!r} is neither text nor bytes")
        array[index] = item.encode() if isinstance(item, str) else item
    return array
