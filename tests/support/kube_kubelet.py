"""Runs elearn's own pods in an emulated cluster: the real code, in this process, on folders that stand for claims.

Agents become servers that the emulated API's pod proxy leads to; other pods run a function to their end.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from shared.agent import Agent, Handle
from shared.kube.agents import AGENT
from shared.kube.client import Cluster
from shared.kube.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, Resource
from shared.kube.settings import KubernetesSettings
from tests.support.kube_fields import Document
from tests.support.kube_life import ClusterLife
from tests.support.kube_server import KubeServer

Serve = Callable[[Path], Handle]
Run = Callable[[Mapping[str, str], Callable[[str], str]], tuple[int, str]]


class Kubelet:
    """The node's side.

    Attributes:
        serve: module of an agent to what makes its handler, given the folder that it has mounted.
        run: module of a job to what it does, given its environment and a function from its paths to real ones; it
            answers exit code and termination message.
        holding: pods are left as they are, for a test to tell their story.
        mounts: of each agent's pod, as Kubernetes was asked.
    """

    def __init__(self, server: "PodServer", life: ClusterLife, folder: Path) -> None:
        self.server, self.life, self.folder = server, life, folder
        self.serve: dict[str, Serve] = {}
        self.run: dict[str, Run] = {}
        self.holding = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        server.store.on_write.append(self._written)

    def folder_of(self, claim: str, namespace: str) -> Path:
        """What a claim's volume holds."""
        found = self.server.store.need(PERSISTENT_VOLUME_CLAIMS, claim, namespace)
        volume = self.server.store.find(PERSISTENT_VOLUMES, found["spec"].get("volumeName", ""))
        host = (volume or {}).get("spec", {}).get("hostPath", {}).get("path")
        folder = Path(host) if host else self.folder / namespace / claim
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def paths(self, pod: Document) -> dict[str, Path]:
        """Where a pod's claims are mounted, and what lies there."""
        spec, namespace = pod["spec"], pod["metadata"]["namespace"]
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        found = {
            mount["mountPath"]: self.folder_of(claims[mount["name"]], namespace) / mount.get("subPath", "")
            for mount in spec["containers"][0]["volumeMounts"]
            if mount["name"] in claims
        }
        for folder in found.values():
            folder.mkdir(parents=True, exist_ok=True)
        return found

    def start(self, pod: Document) -> None:
        """Run a pod that was held."""
        uid = pod["metadata"]["uid"]
        module = pod["spec"]["containers"][0]["command"][-1]
        if module in self.serve or module in self.run:
            self._tasks[uid] = asyncio.get_running_loop().create_task(self._live(pod, module), name=module)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _written(self, resource: Resource, before: Document | None, after: Document | None) -> None:
        if resource != PODS:
            return
        if after is None and before is not None:
            task = self._tasks.pop(before["metadata"]["uid"], None)
            if task is not None:
                task.cancel()
        elif before is None and after is not None and not self.holding and "command" in after["spec"]["containers"][0]:
            self.start(after)

    async def _live(self, pod: Document, module: str) -> None:
        env = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
        paths = self.paths(pod)
        if module in self.run:
            self.life.running(pod)

            def real(path: str) -> str:
                found = next(((where, folder) for where, folder in paths.items() if path.startswith(where)), None)
                return path if found is None else str(found[1]) + path.removeprefix(found[0])

            code, message = await asyncio.to_thread(self.run[module], env, real)
            self.life.ended(
                self.server.store.need(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"]),
                code=code,
                message=message,
            )
            return
        assert pod["metadata"]["labels"][AGENT]
        (root,) = paths.values()
        agent = Agent(
            self.serve[module](root),
            token_digest=env["ELEARN_AGENT_TOKEN_DIGEST"],
            idle_seconds=float(env["ELEARN_AGENT_IDLE_SECONDS"]),
        )
        runner = web.AppRunner(agent.application(), access_log=None)
        await runner.setup()
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.server.pod_ports[key] = runner.addresses[0][1]
            self.life.running(pod)
            await agent.until_idle()
            self.life.ended(self.server.store.need(PODS, key[1], key[0]))
        finally:
            self.server.pod_ports.pop(key, None)
            await runner.cleanup()


class PodServer(KubeServer):
    """The emulated API, with the way to pods' ports through it.

    Attributes:
        pod_ports: where pods answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pod_ports: dict[tuple[str, str], int] = {}

    async def _route(self, request: web.Request) -> Any:
        parts = [part for part in request.path.split("/") if part]
        if len(parts) < 7 or parts[4] != "pods" or parts[6] != "proxy":
            return await super()._route(request)
        namespace, (name, _, _) = parts[3], parts[5].partition(":")
        self._allow("create", PODS, namespace, "proxy")
        self.store.need(PODS, name, namespace)
        port = self.pod_ports.get((namespace, name))
        if port is None:
            status = {"kind": "Status", "code": 503, "message": "error trying to reach service: connection refused"}
            return web.json_response(status, status=503)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://127.0.0.1:{port}/", data=await request.read()) as answer,
        ):
            return web.Response(body=await answer.read(), status=answer.status, content_type="application/json")


@contextlib.asynccontextmanager
async def emulated(folder: Path, **life: bool) -> AsyncIterator[tuple[PodServer, ClusterLife, Kubelet, Cluster]]:
    """A cluster with one node whose kubelet runs elearn's own pods."""
    async with PodServer() as server:
        controllers = ClusterLife(server.store, **life)
        controllers.node("n1")
        kubelet = Kubelet(server, controllers, folder)
        async with Cluster(
            KubernetesSettings(kubernetes_timeout=5.0, kubernetes_patience=1.0), find=server.access, first_pause=0.01
        ) as cluster:
            try:
                yield server, controllers, kubelet, cluster
            finally:
                await kubelet.close()
