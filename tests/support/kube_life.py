"""What goes on in a cluster: controllers that make pods, and stories of what becomes of pods, told by a test.

    life = ClusterLife(server.store)
    life.node("n1", gpus=8)
    ...                                    the driver applies Jobs; their pods appear, scheduled, Pending
    life.run("train-worker")               every pod of that Job runs
    life.exit("train-chief", 0, code=137)  the pod of index 0 ends; the Job's status follows

Jobs, Deployments and claims are followed by themselves; pods do only what a story says.
"""

from collections import deque

from shared.kube.resources import (
    DEPLOYMENTS,
    JOBS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    Resource,
)
from tests.support.kube_deployments import DeploymentController
from tests.support.kube_events import record_event
from tests.support.kube_fields import Document
from tests.support.kube_jobs import INDEX, JobController
from tests.support.kube_pod_status import PodStatus
from tests.support.kube_scheduler import PodScheduler
from tests.support.kube_store import KubeStore
from tests.support.kube_volumes import VolumeBinder


class ClusterLife:
    """Controllers, the scheduler and kubelets of an emulated cluster.

    Args:
        scheduling: pods get a node that has room and the pods that they must be near, the emptiest of several; else
            a condition that says why not.
        binding: claims are bound as soon as they are made.
        deploying: pods of Deployments run and are ready at once.
    """

    def __init__(
        self, store: KubeStore, *, scheduling: bool = True, binding: bool = True, deploying: bool = True
    ) -> None:
        self.store = store
        self.binding = binding
        self.deploying = deploying
        self._jobs = JobController(store)
        self._status = PodStatus(store)
        self._scheduler = PodScheduler(store) if scheduling else None
        self._deployments = DeploymentController(store, self._status, self._scheduler)
        self._volumes = VolumeBinder(store, self._of_claim)
        self._news: deque[tuple[Resource, Document | None, Document | None]] = deque()
        self._working = False
        store.on_write.append(self._written)

    # -- the cluster --------------------------------------------------------------------------------------------------

    def node(
        self, name: str = "n1", *, cpu: str = "16", memory: str = "64Gi", gpus: int = 0, **labels: str
    ) -> Document:
        """A node that is ready."""
        allocatable = {"cpu": cpu, "memory": memory, "pods": "110"}
        if gpus:
            allocatable["nvidia.com/gpu"] = str(gpus)
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        return self.store.add(
            NODES,
            {
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
                "spec": {},
                "status": {"capacity": allocatable, "allocatable": allocatable, "conditions": [ready]},
            },
        )

    def lose_node(self, name: str) -> None:
        """A node stops answering: it is not ready, and its pods are taken for lost and deleted."""
        ready = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
        self.store.change(NODES, name, status={"conditions": [ready]})
        for pod in self.store.all(PODS):
            if pod["spec"].get("nodeName") == name and pod["status"]["phase"] in ("Pending", "Running"):
                self._status.disrupted(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
                self.store.finish(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])

    def silence_node(self, name: str, *, since: str) -> None:
        """A node has not been heard of since then; its pods are as it told of them last, but for being ready."""
        ready = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": since}
        self.store.change(NODES, name, status={"conditions": [ready]})
        for pod in self.store.all(PODS):
            if pod["spec"].get("nodeName") == name and pod["status"]["phase"] == "Running":
                self._status.silent(pod)

    def event(self, resource: Resource, name: str, reason: str, message: str, *, namespace: str = "default") -> None:
        """The cluster says something of an object."""
        record_event(self.store, resource, name, reason, message, namespace=namespace)

    def _of_claim(self, claim: str, reason: str, message: str, namespace: str) -> None:
        record_event(self.store, PERSISTENT_VOLUME_CLAIMS, claim, reason, message, namespace=namespace)

    # -- stories of pods ----------------------------------------------------------------------------------------------

    def pods(self, job: str, *, namespace: str = "default") -> list[Document]:
        """The pods of a Job that have not been deleted, by index."""
        return self._jobs.pods(job, namespace)

    def pod(self, job: str, index: int = 0, *, namespace: str = "default") -> Document:
        """The newest pod of a Job's index."""
        return self._jobs.pod(job, index, namespace)

    def run(self, job: str, index: int | None = None, *, ready: bool = True, namespace: str = "default") -> None:
        """Pods of a Job run: all of them, or one."""
        for pod in self.pods(job, namespace=namespace):
            if index in (None, int(pod["metadata"]["labels"].get(INDEX, 0))) and pod["status"]["phase"] == "Pending":
                self.running(pod, ready=ready)

    def running(self, pod: Document, *, ready: bool = True) -> None:
        """A pod runs."""
        self._status.running(pod, ready=ready)

    def exit(
        self,
        job: str,
        index: int = 0,
        *,
        code: int = 0,
        reason: str = "",
        message: str = "",
        namespace: str = "default",
    ) -> None:
        """A pod's processes end by themselves; 137 with OOMKilled is running out of memory."""
        self.ended(self.pod(job, index, namespace=namespace), code=code, reason=reason, message=message)

    def ended(self, pod: Document, *, code: int = 0, reason: str = "", message: str = "", phase: str = "") -> None:
        """A pod's processes have ended; ``phase``: what its node says of it meanwhile."""
        self._status.ended(pod, code=code, reason=reason, message=message, phase=phase)

    def out_of_memory(self, job: str, index: int = 0, *, namespace: str = "default") -> None:
        self.exit(job, index, code=137, reason="OOMKilled", namespace=namespace)

    def image_missing(self, job: str, index: int = 0, *, message: str = "", namespace: str = "default") -> None:
        """The image can't be pulled; the kubelet tries again for ever."""
        pod = self.pod(job, index, namespace=namespace)
        image = pod["spec"]["containers"][0].get("image", "")
        words = message or f'Back-off pulling image "{image}": not found'
        self._status.waiting(pod, "ImagePullBackOff", words)

    def evict(self, job: str, index: int = 0, *, namespace: str = "default") -> None:
        """The kubelet evicts a pod as its node runs out of memory or disk."""
        pod = self.pod(job, index, namespace=namespace)
        words = "The node was low on resource: memory."
        status = {"phase": "Failed", "reason": "Evicted", "message": words}
        self._status.disrupted(pod, "TerminationByKubelet", words, **status)

    def preempt(self, job: str, index: int = 0, *, namespace: str = "default") -> None:
        """The scheduler takes a pod's place for one of higher priority: it is deleted."""
        pod = self.pod(job, index, namespace=namespace)
        self._status.disrupted(
            pod, "PreemptionByScheduler", "preempting to accommodate a higher priority pod", phase="Failed"
        )
        self.store.finish(PODS, pod["metadata"]["name"], namespace)

    # -- stories of other things --------------------------------------------------------------------------------------

    def bind(self, claim: str, *, namespace: str = "default", volume: str = "") -> None:
        """A claim gets its volume, if that is not another's."""
        self._volumes.bind(claim, namespace, volume)

    def deployed(self, name: str, *, ready: int | None = None, namespace: str = "default") -> None:
        """A Deployment's newest pods are ready: all, or that many."""
        self._deployments.deploy(self.store.need(DEPLOYMENTS, name, namespace), ready)

    # -- controllers --------------------------------------------------------------------------------------------------

    def _written(self, resource: Resource, before: Document | None, after: Document | None) -> None:
        """One after the other, as controllers work, though all at once for whoever wrote."""
        if resource == PODS:
            self._jobs.index(before, after)
        self._news.append((resource, before, after))
        if self._working:
            return
        self._working = True
        try:
            while self._news:
                self._react(*self._news.popleft())
        finally:
            self._working = False

    def _react(self, resource: Resource, before: Document | None, after: Document | None) -> None:
        about = (after or before or {})["metadata"]
        if after is not None and self.store.find(resource, about["name"], about.get("namespace", "")) is not after:
            return  # there is newer news of it
        if resource == JOBS and after is not None:
            self._jobs.follow(after)
        elif resource == PODS:
            if self._scheduler is not None:
                if after is not None and before is None:
                    self._scheduler.schedule(after)
                elif after is None or after["status"]["phase"] in ("Succeeded", "Failed"):
                    self._scheduler.place_the_rest()
            self._jobs.follow_pod(before, after)
        elif resource == PERSISTENT_VOLUME_CLAIMS and before is None and after is not None and self.binding:
            self.bind(after["metadata"]["name"], namespace=after["metadata"]["namespace"])
        elif resource == PERSISTENT_VOLUME_CLAIMS and before is not None and after is None:
            self._volumes.released(before)
        elif resource == PERSISTENT_VOLUMES and after is not None and self.binding:
            self._volumes.freed(after)
        elif resource == DEPLOYMENTS and after is not None and (not before or before["spec"] != after["spec"]):
            self._deployments.deploy(after, None if self.deploying else 0)
