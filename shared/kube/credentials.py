"""Who we are to the API server: tokens from files, plugins that make them, client certificates.

A credential is asked before each request and answers from what it remembers; tokens in files are read again every
minute, as Kubernetes replaces them long before they end, and plugins are run again shortly before theirs ends.
"""

import asyncio
import base64
import os
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

import msgspec

from shared import clock
from shared.kube.errors import CredentialsRefused

_FILE_SECONDS: Final = 60.0
_PLUGIN_SECONDS: Final = 60.0  # a plugin that asks a person never answers: it is ended
_EARLY: Final = timedelta(seconds=30)


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with a request.

    Attributes:
        authorization: the header's value, or "" for none.
        certificate, key: a client certificate in PEM, or "" for none.
    """

    authorization: str = ""
    certificate: str = ""
    key: str = ""

    def __repr__(self) -> str:
        return f"Grant(certificate={bool(self.certificate)}, authorization={bool(self.authorization)})"


class Credential(Protocol):
    """A source of grants."""

    async def grant(self) -> Grant:
        """The grant for a request that is made now.

        Raises:
            CredentialsRefused: there is none, and what to do.
        """


class Fixed:
    """A grant that stays as it is until the kubeconfig is read again."""

    def __init__(self, grant: Grant) -> None:
        self._grant = grant

    async def grant(self) -> Grant:
        return self._grant


class TokenFile:
    """A bearer token in a file that somebody replaces now and then: a pod's service account."""

    def __init__(self, path: Path, rest: Grant | None = None, *, seconds: float = _FILE_SECONDS) -> None:
        self._path = path
        self._rest = rest or Grant()
        self._seconds = seconds
        self._read_at = -seconds
        self._grant = self._rest

    async def grant(self) -> Grant:
        if time.monotonic() - self._read_at >= self._seconds:
            try:
                token = (await asyncio.to_thread(self._path.read_text)).strip()
            except OSError as error:
                raise CredentialsRefused(f"the token for Kubernetes can't be read: {error}", retry=10) from None
            if not token:
                raise CredentialsRefused(f"the token for Kubernetes in {self._path} is empty", retry=10)
            self._grant = msgspec.structs.replace(self._rest, authorization=f"Bearer {token}")
            self._read_at = time.monotonic()
        return self._grant


class ExecSpec(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """``user.exec`` of a kubeconfig: a command that prints an ExecCredential."""

    command: str
    api_version: str = "client.authentication.k8s.io/v1"
    args: tuple[str, ...] | None = None
    env: tuple[dict[str, str], ...] | None = None
    install_hint: str = ""
    interactive_mode: str = "IfAvailable"
    provide_cluster_info: bool = False


class _ExecStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _ExecCredential(msgspec.Struct, frozen=True, kw_only=True):
    status: _ExecStatus


class Plugin:
    """A credential plugin (``aws``, ``gke-gcloud-auth-plugin``, ``kubelogin``).

    Args:
        spec: what to run.
        cluster: the cluster's description, handed over where the plugin asks for it.
        folder: where a relative command lies.
    """

    def __init__(self, spec: ExecSpec, cluster: Mapping[str, object], folder: Path) -> None:
        self._spec = spec
        self._cluster = cluster
        self._folder = folder
        self._running = asyncio.Lock()
        self._status: _ExecStatus | None = None

    async def grant(self) -> Grant:
        async with self._running:
            status = self._status
            if status is None or (
                status.expiration_timestamp is not None and status.expiration_timestamp - _EARLY <= clock.now()
            ):
                status = self._status = await self._run()
        return Grant(
            authorization=f"Bearer {status.token}" if status.token else "",
            certificate=status.client_certificate_data,
            key=status.client_key_data,
        )

    async def _run(self) -> _ExecStatus:
        spec = self._spec
        info: dict[str, object] = {"interactive": False}
        if spec.provide_cluster_info:
            info["cluster"] = dict(self._cluster)
        environment = {
            **os.environ,
            **{pair["name"]: pair.get("value", "") for pair in spec.env or ()},
            "KUBERNETES_EXEC_INFO": msgspec.json.encode(
                {"apiVersion": spec.api_version, "kind": "ExecCredential", "spec": info}
            ).decode(),
        }
        command = str(self._folder / spec.command) if "/" in spec.command else spec.command
        try:
            process = await asyncio.create_subprocess_exec(
                command,
                *(spec.args or ()),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            hint = f" ({spec.install_hint.strip()})" if spec.install_hint else ""
            raise CredentialsRefused(f"the kubeconfig's plugin can't be run: {error}{hint}", retry=30) from None
        try:
            async with asyncio.timeout(_PLUGIN_SECONDS):
                out, err = await process.communicate()
        except BaseException as error:
            process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                raise CredentialsRefused(f"the kubeconfig's plugin {spec.command} did not answer", retry=30) from None
            raise
        if process.returncode:
            words = err.decode(errors="replace").strip()[-300:]
            raise CredentialsRefused(
                f"the kubeconfig's plugin {spec.command} ended with {process.returncode}: {words}", retry=30
            )
        try:
            return msgspec.json.decode(out, type=_ExecCredential).status
        except msgspec.DecodeError as error:
            raise CredentialsRefused(f"the kubeconfig's plugin {spec.command}: {error}", retry=30) from None


def basic(username: str, password: str) -> str:
    """The Authorization header of a user and a password."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
