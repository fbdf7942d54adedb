"""Servings: create, wait, change, go back, ask."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from elearn.client.connection import checked_name
from elearn.client.errors import TimedOut
from elearn.client.transport import Transport, label_query
from elearn.client.waiting import pauses
from shared.codec import convert
from shared.contracts.common import Done, Page
from shared.contracts.serving import Serving, ServingPatch, ServingSpec, serving_errors
from shared.errors import Conflict, Invalid


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """TensorFlow Serving's answer: ``predictions`` to ``instances``, ``outputs`` to ``inputs``.

    What is in them is the model's own choice: numbers and words, nested as its tensors are.
    """

    predictions: list[Any] | None = None
    outputs: Any = None


class Servings:
    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._base = f"{base}/servings"

    def create(self, spec: ServingSpec | Mapping[str, object]) -> Serving:
        """Create a serving; it is ``deploying`` until its replicas answer: see :meth:`wait`.

        Raises:
            Invalid: a field can't be accepted.
            Conflict: there is one of that name.
        """
        if not isinstance(spec, ServingSpec):
            spec = convert(ServingSpec, dict(spec))
        if errors := serving_errors(spec):
            raise Invalid.of(errors)
        return self._transport.call("POST", self._base, Serving, body=spec)

    def list(self, *, state: str | None = None, labels: Mapping[str, str] | None = None) -> Iterator[Serving]:
        """Every serving, newest first, or those in a state that carry all of these labels."""
        query = {"state": state, "label": label_query(labels)}
        return self._transport.pages(self._base, Page[Serving], query=query)

    def get(self, name: str) -> Serving:
        return self._transport.call("GET", self._at(name), Serving)

    def wait(
        self, name: str, *, timeout: float | None = None, told: Callable[[Serving], None] | None = None
    ) -> Serving:
        """Wait until it is ready with all of its replicas and the version that is wanted.

        Args:
            timeout: seconds.
            told: called with the serving at every look that finds it on its way.

        Raises:
            Conflict: it failed; the message says why.
            TimedOut: it was not ready in time; the message says what it waited for.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in pauses(deadline):
            serving = self.get(name)
            if serving.state == "ready":
                return serving
            if serving.state == "failed":
                raise Conflict(f"serving {name} failed: {serving.reason or 'no reason was given'}")
            if told is not None:
                told(serving)
            if pause is None:
                raise TimedOut(
                    f"serving {name} is still {serving.state} after {timeout:g} s: {serving.reason or 'no reason'}"
                )
            time.sleep(pause)
        raise AssertionError("unreachable")

    def update(
        self,
        name: str,
        *,
        version: int | None = None,
        alias: str | None = None,
        replicas: int | None = None,
        max_replicas: int | None = None,
        traffic: Mapping[int, int] | None = None,
    ) -> Serving:
        """Change what is served, or by how many replicas; None leaves a field as it is.

        Args:
            max_replicas: let the number of replicas follow the load up to this one; 0: no longer.
            traffic: per cent of requests by version number.
        """
        patch = ServingPatch(
            version=version,
            alias=alias,
            replicas=replicas,
            max_replicas=max_replicas,
            traffic=None if traffic is None else {str(number): share for number, share in traffic.items()},
        )
        given = {field: value for field, value in msgspec.structs.asdict(patch).items() if value is not None}
        if not given:
            raise Invalid("nothing to change: give version, alias, replicas, max_replicas or traffic")
        return self._transport.call("PATCH", self._at(name), Serving, body=given)

    def rollback(self, name: str, revision: int | None = None) -> Serving:
        """Go back to a revision; None: the last good one before the current."""
        body = {} if revision is None else {"revision": revision}
        return self._transport.call("POST", f"{self._at(name)}/rollback", Serving, body=body)

    def predict(
        self,
        name: str,
        *,
        instances: Sequence[object] | None = None,
        inputs: object = None,
        signature: str | None = None,
    ) -> Prediction:
        """Predict over REST, in TensorFlow Serving's row form (``instances``) or column form (``inputs``).

        For many predictions use the serving's gRPC endpoint: :mod:`elearn.grpc`.
        """
        if (instances is None) == (inputs is None):
            raise Invalid("give either instances or inputs")
        body: dict[str, object] = {"signature_name": signature} if signature else {}
        body.update({"instances": instances} if instances is not None else {"inputs": inputs})
        return self._transport.call("POST", f"{self._at(name)}:predict", Prediction, body=body)

    def delete(self, name: str) -> None:
        """End its replicas and forget it."""
        self._transport.call("DELETE", self._at(name), Done)

    def _at(self, name: str) -> str:
        return f"{self._base}/{checked_name(name)}"
