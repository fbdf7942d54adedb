"""Models: save versions, list them, download them, move aliases."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from elearn.client.connection import checked_name
from elearn.client.download import Progress, download_archive
from elearn.client.errors import TimedOut
from elearn.client.transport import Transport, label_query
from elearn.client.waiting import pauses
from shared.contracts.common import Done, Labels, Page
from shared.contracts.model import Alias, AliasMove, Model, SaveRequest, Version
from shared.errors import Conflict, Invalid, NotFound


class Models:
    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._base = f"{base}/models"

    def save(
        self,
        model: str,
        path: str,
        *,
        training: str | None = None,
        datastore: str | None = None,
        labels: Labels | None = None,
    ) -> Version:
        """Save a SavedModel as the next version; it is ``saving`` until its files are copied: see :meth:`wait`.

        Args:
            path: its folder: as the training's command sees it, or relative to the datastore.
            training, datastore: where it lies; exactly one of the two.

        Raises:
            Invalid: a field can't be accepted.
        """
        if (training is None) == (datastore is None):
            raise Invalid.field("training", "give either a training or a datastore")
        request = SaveRequest(path=path, training=training, datastore=datastore, labels=labels or {})
        return self._transport.call("POST", f"{self._at(model)}/versions", Version, body=request)

    def list(self) -> Iterator[Model]:
        """Every model."""
        return self._transport.pages(self._base, Page[Model])

    def get(self, model: str) -> Model:
        return self._transport.call("GET", self._at(model), Model)

    def delete(self, model: str) -> None:
        """Delete a model with all its versions."""
        self._transport.call("DELETE", self._at(model), Done)

    def versions(
        self, model: str, *, state: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Iterator[Version]:
        """Every version of a model, newest first."""
        query = {"state": state, "label": label_query(labels)}
        return self._transport.pages(f"{self._at(model)}/versions", Page[Version], query=query)

    def version(self, model: str, number: int) -> Version:
        return self._transport.call("GET", self._version(model, number), Version)

    def delete_version(self, model: str, number: int) -> None:
        """Delete one version and its files."""
        self._transport.call("DELETE", self._version(model, number), Done)

    def wait(self, model: str, number: int, *, timeout: float | None = None) -> Version:
        """Wait until a version is ready.

        Args:
            timeout: seconds.

        Raises:
            Conflict: saving it failed; the message says why.
            TimedOut: it is still being saved.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in pauses(deadline):
            version = self.version(model, number)
            if version.state == "ready":
                return version
            if version.state == "failed":
                raise Conflict(f"saving {model} version {number} failed: {version.reason or 'no reason given'}")
            if pause is None:
                raise TimedOut(f"{model} version {number} is still being saved after {timeout:g} s")
            time.sleep(pause)
        raise AssertionError("unreachable")

    def wait_saved(self, model: str, training: str, *, timeout: float | None = None) -> Version:
        """Wait for the version that a training's ``save:`` makes, and until it is ready.

        Raises:
            Conflict: saving it failed.
            TimedOut: there is none yet, or it is still being saved.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in pauses(deadline):
            try:
                found = next((each for each in self.versions(model) if each.lineage.training == training), None)
            except NotFound:  # its first version makes the model
                found = None
            if found is not None:
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                return self.wait(model, found.number, timeout=left)
            if pause is None:
                raise TimedOut(f"no version of {model} by training {training} after {timeout:g} s")
            time.sleep(pause)
        raise AssertionError("unreachable")

    def download(
        self, model: str, number: int, to: str | Path, *, unpack: bool = True, progress: Progress | None = None
    ) -> Path:
        """Download a version; an interrupted download goes on where it was when it is started again.

        Args:
            to: the folder that becomes the SavedModel, which must not be there yet; without ``unpack``,
                the tar file.
            progress: called with the bytes that are there and the bytes in all.

        Raises:
            Invalid: ``to`` is there already, or can't be written.
            Conflict: the version is not ready.
            Damaged: what arrived does not have the version's digest; nothing is kept of it.
            StorageFull: no space is left here.
        """
        version = self.version(model, number)
        if version.state != "ready":
            words = version.reason or "it can be downloaded once it is ready"
            raise Conflict(f"{model} version {number} is {version.state}: {words}")
        return download_archive(
            self._transport,
            f"{self._version(model, number)}/archive",
            version,
            Path(to),
            unpack=unpack,
            progress=progress or (lambda there, total: None),
        )

    def aliases(self, model: str) -> Iterator[Alias]:
        """Every alias of a model."""
        return self._transport.pages(f"{self._at(model)}/aliases", Page[Alias])

    def alias(self, model: str, alias: str) -> Alias:
        return self._transport.call("GET", self._alias(model, alias), Alias)

    def set_alias(self, model: str, alias: str, version: int) -> Alias:
        """Make an alias, or move it; servings that follow it change over."""
        return self._transport.call("PUT", self._alias(model, alias), Alias, body={"version": version})

    def delete_alias(self, model: str, alias: str) -> None:
        self._transport.call("DELETE", self._alias(model, alias), Done)

    def alias_history(self, model: str, alias: str) -> Iterator[AliasMove]:
        """Where an alias has pointed, newest first."""
        return self._transport.pages(f"{self._alias(model, alias)}/history", Page[AliasMove])

    def _at(self, model: str) -> str:
        return f"{self._base}/{checked_name(model, 'model')}"

    def _version(self, model: str, number: int) -> str:
        return f"{self._at(model)}/versions/{number:d}"

    def _alias(self, model: str, alias: str) -> str:
        return f"{self._at(model)}/aliases/{checked_name(alias, 'alias')}"
