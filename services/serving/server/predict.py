"""One prediction, however it was asked for: both APIs meet here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.serving.server.batching import Batcher
from services.serving.server.signature import Signature, rows_of
from services.serving.server.versions import Version
from shared.tensor_proto import Array


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model's answer.

    Attributes:
        signature: name of the signature that was run.
    """

    version: int
    signature: str
    outputs: Mapping[str, Array]


class Predictor:
    """Checks inputs against a signature, and has them run."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    async def predict(
        self,
        version: Version,
        signature: Signature,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] = (),
    ) -> Prediction:
        """Runs a signature of a version that the caller keeps in use.

        Args:
            outputs: those that are wanted; all where none is named.

        Raises:
            ServeError: the inputs do not fit, the queue is full, or the model failed.
        """
        wanted = signature.select(outputs)
        arrays = signature.arrange(inputs)
        rows = rows_of(arrays) if signature.batchable else None
        program = version.loaded.program(signature.name)
        values = dict(zip(signature.outputs, await self._batcher.run(program, arrays, rows=rows), strict=True))
        return Prediction(version.number, signature.name, {name: values[name] for name in wanted})
