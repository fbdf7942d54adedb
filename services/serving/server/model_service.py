"""`tensorflow.serving.ModelService` over gRPC: what is loaded, and loading other versions in place."""

import asyncio
from collections.abc import Callable
from typing import Any

from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2

from services.serving.server.metrics import Metrics
from services.serving.server.prediction_service import Answering, choice
from services.serving.server.reload import wanted
from services.serving.server.versions import Version, Versions, status_of


class ModelService(Answering):
    """GetModelStatus and HandleReloadConfigRequest.

    Args:
        changed: called after the versions have changed.
    """

    def __init__(
        self,
        versions: Versions,
        metrics: Metrics,
        *,
        base_path: str | None,
        changed: Callable[[], None],
    ) -> None:
        super().__init__(metrics)
        self._versions = versions
        self._base_path = base_path
        self._changed = changed

    async def GetModelStatus(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        return await self._answer("GetModelStatus", context, lambda: self._status(request))

    async def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answer("HandleReloadConfigRequest", context, lambda: self._reload(request))

    async def _status(self, request: Any) -> Any:
        spec = request.model_spec
        return status_response(self._versions.statuses(spec.name, **choice(spec)))

    async def _reload(self, request: Any) -> Any:
        plan = await asyncio.to_thread(wanted, request.config, model=self._versions.name, base_path=self._base_path)
        await self._versions.serve(plan.versions, labels=plan.labels)
        self._changed()
        return model_management_pb2.ReloadConfigResponse()


def status_response(versions: list[Version]) -> Any:
    """Versions as the message that tells their states."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version in versions:
        number, message = status_of(version)
        entry = response.model_version_status.add(version=version.number, state=int(version.state))
        entry.status.error_code = number
        entry.status.error_message = message
    return response
