"""Agents: pods of elearn's own image that work on files where the files are, started when asked and ended when idle.

They are reached through the API server (``create`` on ``pods/proxy``), so that a control plane outside the cluster
works as one inside. Not through ``exec``: that would allow any command in any pod. An agent knows only a digest of its
token; what tokens are made of is one Secret in elearn's own namespace, which no pod of a project can mount.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import secrets
from collections import OrderedDict
from typing import Final, TypeVar

import msgspec

from shared.agent import Answered, digest_of
from shared.agent import Asked as Envelope
from shared.errors import Internal, NotFound, Unavailable, from_problem
from shared.kube.changes import Deleted, Synced
from shared.kube.client import Cluster
from shared.kube.errors import AlreadyExists, Asked
from shared.kube.names import ROOM, object_name
from shared.kube.objects import Job, Pod, Secret, is_true
from shared.kube.own_pods import OwnJob, own_job
from shared.kube.resources import JOBS, PODS, SECRETS
from shared.kube.said import last_words
from shared.kube.sending import decode
from shared.kube.settings import ProjectSettings
from shared.kube.states import is_over, is_ready, trouble
from shared.kube.watch import watch

T = TypeVar("T")

AGENT: Final = "elearn.dev/agent"
PORT: Final = 8472
_KNOWN: Final = 1000


class NotUp(Unavailable):
    """An agent does not run yet.

    Attributes:
        trouble: why it won't, as far as can be told; "" while it may just be starting.
    """

    def __init__(self, trouble: str) -> None:
        words = trouble or "it is starting"
        super().__init__(f"these files are reached through a pod that is not up yet: {words}; try again", retry=3)
        self.trouble = trouble


class Agents:
    """The agents of one room.

    Args:
        patience: seconds that a call waits for an agent to come up; then it says what the agent waits for.
        idle: seconds without a question after which an agent ends.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: ProjectSettings,
        *,
        room: str,
        patience: float = 8.0,
        idle: float = 300.0,
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._room = room
        self._patience = patience
        self._idle = idle
        self._secret = b""
        self._pods: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._starting: dict[tuple[str, str], asyncio.Lock] = {}

    async def call(self, job: OwnJob, ask: object, kind: type[T]) -> T:
        """Ask an agent, starting it if it does not run.

        Args:
            job: what runs it; port, labels and environment are completed here.

        Raises:
            NotUp: it does not run yet; the sentence says why.
            Unavailable: it does not answer.
            ElearnError: what the agent answered.
        """
        key = (job.namespace, job.name)
        body = await self._envelope(job, ask)
        for again in (True, False):
            pod = self._pods.get(key) or await self._up(job)
            try:
                return await self._ask(job.namespace, pod, body, kind)
            except (_Away, _NoPod):
                self._pods.pop(key, None)  # it idled away, or its node did
                if not again:
                    raise
        raise Internal("unreachable")

    async def call_running(self, job: OwnJob, ask: object, kind: type[T]) -> T | None:
        """Ask an agent that has answered this process; None where there is none, or not any more.

        Raises:
            ElearnError: what the agent answered.
        """
        key = (job.namespace, job.name)
        if (pod := self._pods.get(key)) is None:
            return None
        try:
            return await self._ask(job.namespace, pod, await self._envelope(job, ask), kind)
        except (_Away, _NoPod):
            self._pods.pop(key, None)
            return None

    async def end(self, namespace: str, name: str) -> None:
        """End an agent; that there is none is success."""
        self._pods.pop((namespace, name), None)
        await self._cluster.delete(JOBS, name, namespace=namespace)

    async def _ask(self, namespace: str, pod: str, body: bytes, kind: type[T]) -> T:
        asked = Asked(verb="call", plural="pods/proxy", namespace=namespace, name=pod)
        try:
            answer = await self._cluster.send(
                "POST",
                PODS.path(namespace, f"{pod}:{PORT}", "proxy") + "/",
                asked,
                body=body,
                repeatable=False,
                patience=self._patience,
            )
        except NotFound as error:
            raise _NoPod(error.detail) from error
        except Unavailable as error:
            raise _Away(f"the pod that works on these files does not answer: {error.detail}", retry=2) from error
        answered = decode(answer.body, Answered, asked)
        if answered.problem is not None:
            raise from_problem(answered.problem)
        return decode(answered.value, kind, asked)

    async def _envelope(self, job: OwnJob, ask: object) -> bytes:
        return msgspec.json.encode(Envelope(token=await self._token(job), ask=msgspec.Raw(msgspec.json.encode(ask))))

    async def _up(self, job: OwnJob) -> str:
        """The name of the agent's pod, which answers."""
        key = (job.namespace, job.name)
        lock = self._starting.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                if pod := self._pods.get(key):
                    return pod
                await self._start(job)
                pod = await self._ready(job)
                self._pods[key] = pod
                while len(self._pods) > _KNOWN:
                    self._pods.popitem(last=False)
                return pod
        finally:
            if not lock.locked():
                self._starting.pop(key, None)

    async def _start(self, job: OwnJob) -> None:
        found = await self._cluster.get(JOBS, job.name, Job, namespace=job.namespace)
        if found is not None and found.metadata.deletion_timestamp is None:
            over = any(is_true(found.status.conditions, kind) for kind in ("Complete", "Failed"))
            if not over:
                return
            await self._cluster.delete(JOBS, job.name, namespace=job.namespace, uid=found.metadata.uid)
        full = msgspec.structs.replace(
            job,
            port=PORT,
            labels={**job.labels, ROOM: self._room, AGENT: job.name},
            env={
                **job.env,
                "ELEARN_AGENT_PORT": str(PORT),
                "ELEARN_AGENT_TOKEN_DIGEST": digest_of(await self._token(job)),
                "ELEARN_AGENT_IDLE_SECONDS": f"{self._idle:g}",
            },
            keep_seconds=60,
            replaceable=False,
        )
        with contextlib.suppress(AlreadyExists):  # by another replica, or the one before is still on its way out
            await self._cluster.create(own_job(full, self._settings))

    async def _ready(self, job: OwnJob) -> str:
        pod: Pod | None = None
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(self._patience),
                contextlib.aclosing(
                    watch(self._cluster, PODS, Pod, namespace=job.namespace, labels={AGENT: job.name})
                ) as told,
            ):
                async for each in told:
                    if isinstance(each, Synced | Deleted):
                        continue
                    if is_over(each.object) or each.object.metadata.deletion_timestamp is not None:
                        continue
                    pod = each.object
                    if is_ready(pod):
                        return pod.metadata.name
        if pod is None:
            raise NotUp(await last_words(self._cluster, JOBS, job.name, job.namespace))
        said = trouble(pod) or await last_words(self._cluster, PODS, pod.metadata.name, job.namespace)
        raise NotUp(said)

    async def _token(self, job: OwnJob) -> str:
        if not self._secret:
            self._secret = await self._shared_secret()
        return hmac.new(self._secret, f"{job.namespace}/{job.name}".encode(), hashlib.sha256).hexdigest()

    async def _shared_secret(self) -> bytes:
        """What every replica of this room makes tokens of."""
        name = object_name(self._cluster.installation, self._room, "agents")
        found = await self._cluster.get(SECRETS, name, Secret)
        if found is None:
            manifest = {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "Opaque",
                "metadata": {"name": name, "namespace": self._cluster.namespace, "labels": {ROOM: self._room}},
                "data": {"key": base64.b64encode(secrets.token_hex(32).encode()).decode()},
            }
            with contextlib.suppress(AlreadyExists):  # another replica was quicker
                await self._cluster.create(manifest)
            found = await self._cluster.get(SECRETS, name, Secret)
        key = found.data.get("key", b"") if found is not None else b""
        if len(key) < 32:
            raise Internal(f"Secret {name} in namespace {self._cluster.namespace} holds no key: delete it")
        return key


class _Away(Unavailable):
    """The agent's pod does not answer."""


class _NoPod(NotFound):
    """The agent's pod is gone."""
