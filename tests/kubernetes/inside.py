"""elearn installed in the cluster by its chart, with nothing but elearn's own image, and the way to its gateway."""

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import yaml

from shared.kube import Cluster
from shared.kube.forwarding import ReadyPods, forwarded
from shared.kube.objects import Deployment, Job, Pod
from shared.kube.resources import DEPLOYMENTS, JOBS, PODS
from shared.kube.states import is_ready, trouble
from tests.kubernetes.live import IMAGE, STORAGE_CLASS, LiveCluster, until
from tests.support.chart import ROOT, Manifest, documents, run_helm

GATEWAY_PORT = 8470
SERVICES = ("api", "scheduler", "datastore", "registry", "serving")
_LABELS = {"app.kubernetes.io/name": "elearn"}


class Inside:
    """What the chart made, in a namespace of its own.

    Attributes:
        live: projects and everything in them lie in namespaces of this run.
        namespace: of the control plane.
    """

    def __init__(self, kubeconfig: str) -> None:
        self.live = LiveCluster(kubeconfig)
        self.namespace = f"{self.live.installation}-control"
        self.token = ""

    def install(self) -> None:
        """Everything of the chart, as `kubectl create` would, and wait until it is ready."""
        secret = yaml.safe_load(subprocess.check_output([ROOT / "deploy" / "kubernetes" / "make-secret"], text=True))
        secret["metadata"]["namespace"] = self.namespace
        self.token = secret["stringData"]["admin-token"]
        space: Manifest = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": self.namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
        ran = run_helm(*self._values(), namespace=self.namespace)
        assert ran.returncode == 0, ran.stderr

        async def make(cluster: Cluster) -> None:
            for document in (space, secret, *documents(ran.stdout)):
                await cluster.create(document)

        self.live.call(make)
        until(self.ready, "the control plane is ready", 300, every=1.0)
        (migrations,) = self.live.call(
            lambda cluster: cluster.list(JOBS, Job, namespace=self.namespace, ours=False, labels=_LABELS)
        )
        assert migrations.status.succeeded == 1

    def ready(self) -> bool:
        """Whether each Deployment has the pods that it wants."""
        found = self.live.call(
            lambda cluster: cluster.list(DEPLOYMENTS, Deployment, namespace=self.namespace, ours=False)
        )
        return len(found) == len(SERVICES) and all(each.status.ready_replicas == each.spec.replicas for each in found)

    def delete_pods(self, component: str) -> None:
        """All of a part at once, as a lost node would take them."""
        labels = {"app.kubernetes.io/component": component}
        found = self.live.call(
            lambda cluster: cluster.list(PODS, Pod, namespace=self.namespace, ours=False, labels=labels)
        )
        assert found
        for pod in found:
            self.live.delete_pod(pod)

    def troubles(self) -> dict[str, str]:
        """Why pods are not ready, by name."""
        found = self.live.call(lambda cluster: cluster.list(PODS, Pod, namespace=self.namespace, ours=False))
        return {pod.metadata.name: trouble(pod) or pod.status.phase for pod in found if not is_ready(pod)}

    @contextmanager
    def gateway(self) -> Iterator[str]:
        """Its address on this machine."""
        opened: Future[tuple[str, Callable[[], object]]] = Future()

        async def forward() -> None:
            leave = asyncio.Event()
            async with Cluster(self.live.settings) as cluster:
                pods = ReadyPods("the gateway", patience=30.0)
                labels = {"app.kubernetes.io/component": "api"}
                pods.show(await cluster.list(PODS, Pod, namespace=self.namespace, ours=False, labels=labels))
                async with forwarded(cluster, pods, GATEWAY_PORT, namespace=self.namespace) as (host, port):
                    loop = asyncio.get_running_loop()
                    opened.set_result((f"http://{host}:{port}", lambda: loop.call_soon_threadsafe(leave.set)))
                    await leave.wait()

        thread = threading.Thread(target=asyncio.run, args=(forward(),), name="way to the gateway")
        thread.start()
        url, leave = opened.result(30)
        try:
            yield url
        finally:
            leave()
            thread.join(30)

    def remove(self) -> None:
        """Everything of it, and of what it made."""
        self.live.clean_up()

    def _values(self) -> list[str]:
        live = self.live
        chosen = {
            "image": IMAGE,
            "installation": live.installation,
            "systemNamespace": live.system,
            "projects.namespace": live.namespace("{project}"),
            "nats.image": "",
            "nats.storage": "",
            "postgres.image": "",
            "postgres.storage": "",
            "env.ELEARN_SERVING_CPU": "0.1",
            "env.ELEARN_KUBERNETES_SERVING_SERVER": "elearn",
            "env.ELEARN_KUBERNETES_SAVE_CPU": "100m",
        }
        if STORAGE_CLASS:
            chosen |= {"modelStore": "claim:models", "singleNodeClasses": f"{{{STORAGE_CLASS}}}"}
        else:
            chosen |= {
                "modelStore": f"host:{live.folder}/models",
                "env.ELEARN_KUBERNETES_HOST_ROOTS": live.root,
            }
        # A comma would end a value; braces are lists, but for the one of a project's name.
        return [f"{key}={value}".replace("{project}", r"\{project\}") for key, value in chosen.items()]
