"""What goes on in a cluster: controllers that make pods, and stories of what becomes of pods, told by a test.

    life = ClusterLife(server.store)
    life.node("n1", gpus=8)
    ...                                    the driver applies Jobs; their pods appear, scheduled, Pending
    life.run("train-worker")               every pod of that Job runs
    life.exit("train-chief", 0, code=137)  the pod of index 0 ends; the Job's status follows

Jobs, Deployments and claims are followed by themselves; pods do only what a story says.
"""

from collections import deque
from typing import Any
from uuid import uuid4

from shared.kube.names import digest
from shared.kube.quantities import quantity
from shared.kube.resources import (
    DEPLOYMENTS,
    EVENTS,
    JOBS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    REPLICA_SETS,
    Resource,
)
from tests.support.kube_affinity import may_be_near, wishes_met
from tests.support.kube_fields import Document
from tests.support.kube_store import KubeStore
from tests.support.kube_volumes import VolumeBinder

INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = "batch.kubernetes.io/job-index-failure-count"
JOB_NAME = "batch.kubernetes.io/job-name"


class ClusterLife:
    """Controllers, the scheduler and kubelets of an emulated cluster.

    Args:
        scheduling: pods get a node that has room and the pods that they must be near, the emptiest of several; else
            a condition that says why not.
        binding: claims are bound as soon as they are made.
        deploying: pods of Deployments run and are ready at once.

    Attributes:
        refusing: why pods of Jobs may not be made; "": they may. :meth:`permit` takes it back.
    """

    def __init__(
        self, store: KubeStore, *, scheduling: bool = True, binding: bool = True, deploying: bool = True
    ) -> None:
        self.store = store
        self.scheduling = scheduling
        self.binding = binding
        self.deploying = deploying
        self.refusing = ""
        self._news: deque[tuple[Resource, Document | None, Document | None]] = deque()
        self._working = False
        self._of_job: dict[tuple[str, str], set[str]] = {}
        self._deleted: dict[str, dict[str, int]] = {}
        self._unplaced: dict[tuple[str, str], None] = {}
        self._volumes = VolumeBinder(store, self._of_claim)
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
                self._disrupt(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
                self.store.finish(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])

    def silence_node(self, name: str, *, since: str) -> None:
        """A node has not been heard of since then; its pods are as it told of them last, but for being ready."""
        ready = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": since}
        self.store.change(NODES, name, status={"conditions": [ready]})
        for pod in self.store.all(PODS):
            if pod["spec"].get("nodeName") == name and pod["status"]["phase"] == "Running":
                kinds = {"Ready": "False", "ContainersReady": "True"}
                told = [{"type": kind, "status": status} for kind, status in kinds.items()]
                self._status(pod, {**pod["status"], "conditions": told})

    def event(self, resource: Resource, name: str, reason: str, message: str, *, namespace: str = "default") -> None:
        """The cluster says something of an object."""
        involved = {"kind": resource.kind, "name": name, "namespace": namespace}
        if found := self.store.find(resource, name, namespace):
            involved["uid"] = found["metadata"]["uid"]
        self.store.add(
            EVENTS,
            {
                "metadata": {"name": f"{name}.{uuid4().hex[:8]}"},
                "type": "Warning",
                "reason": reason,
                "message": message,
                "involvedObject": involved,
            },
            namespace,
        )

    def _of_claim(self, claim: str, reason: str, message: str, namespace: str) -> None:
        self.event(PERSISTENT_VOLUME_CLAIMS, claim, reason, message, namespace=namespace)

    # -- stories of pods ----------------------------------------------------------------------------------------------

    def pods(self, job: str, *, namespace: str = "default") -> list[Document]:
        """The pods of a Job that have not been deleted, by index."""
        names = self._of_job.get((namespace, job), ())
        found = [pod for name in names if (pod := self.store.find(PODS, name, namespace)) is not None]
        return sorted(found, key=lambda pod: int(pod["metadata"].get("labels", {}).get(INDEX, 0)))

    def pod(self, job: str, index: int = 0, *, namespace: str = "default") -> Document:
        """The newest pod of a Job's index."""
        found = [
            pod
            for pod in self.pods(job, namespace=namespace)
            if pod["metadata"]["labels"].get(INDEX, "0") == str(index)
        ]
        assert found, f"Job {job} has no pod of index {index}"
        return max(found, key=lambda pod: int(pod["metadata"]["resourceVersion"]))

    def run(self, job: str, index: int | None = None, *, ready: bool = True, namespace: str = "default") -> None:
        """Pods of a Job run: all of them, or one."""
        for pod in self.pods(job, namespace=namespace):
            if index in (None, int(pod["metadata"]["labels"].get(INDEX, 0))) and pod["status"]["phase"] == "Pending":
                self.running(pod, ready=ready)

    def running(self, pod: Document, *, ready: bool = True) -> None:
        """A pod runs."""
        number = digest(pod["metadata"]["uid"])
        at = sum(ord(letter) for letter in number)
        self._status(
            pod,
            {
                "phase": "Running",
                "podIP": f"10.244.{at % 250}.{at // 250 + 2}",
                "startTime": self._now(),
                "conditions": [
                    {"type": "PodScheduled", "status": "True"},
                    {"type": "Ready", "status": "True" if ready else "False"},
                ],
                "containerStatuses": self._containers(pod, {"running": {"startedAt": self._now()}}, ready=ready),
            },
        )

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
        terminated = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "message": message,
            "startedAt": self._now(),
            "finishedAt": self._now(),
        }
        self._status(
            pod,
            {
                "phase": phase or ("Succeeded" if code == 0 else "Failed"),
                "conditions": [{"type": "Ready", "status": "False", "reason": "PodCompleted"}],
                "containerStatuses": self._containers(pod, {"terminated": terminated}, ready=False),
            },
        )

    def out_of_memory(self, job: str, index: int = 0, *, namespace: str = "default") -> None:
        self.exit(job, index, code=137, reason="OOMKilled", namespace=namespace)

    def image_missing(self, job: str, index: int = 0, *, message: str = "", namespace: str = "default") -> None:
        """The image can't be pulled; the kubelet tries again for ever."""
        pod = self.pod(job, index, namespace=namespace)
        image = pod["spec"]["containers"][0].get("image", "")
        words = message or f'Back-off pulling image "{image}": not found'
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": words}}
        self._status(pod, {"phase": "Pending", "containerStatuses": self._containers(pod, waiting, ready=False)})

    def unschedulable(self, job: str, index: int = 0, *, message: str, namespace: str = "default") -> None:
        pod = self.pod(job, index, namespace=namespace)
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
        self._status(pod, {"phase": "Pending", "conditions": [condition]})

    def evict(self, job: str, index: int = 0, *, namespace: str = "default") -> None:
        """The kubelet evicts a pod as its node runs out of memory or disk."""
        pod = self.pod(job, index, namespace=namespace)
        words = "The node was low on resource: memory."
        status = {"phase": "Failed", "reason": "Evicted", "message": words}
        self._disrupt(pod, "TerminationByKubelet", words, **status)

    def preempt(self, job: str, index: int = 0, *, namespace: str = "default") -> None:
        """The scheduler takes a pod's place for one of higher priority: it is deleted."""
        pod = self.pod(job, index, namespace=namespace)
        self._disrupt(pod, "PreemptionByScheduler", "preempting to accommodate a higher priority pod", phase="Failed")
        self.store.finish(PODS, pod["metadata"]["name"], namespace)

    def _disrupt(self, pod: Document, why: str, words: str, **status: Any) -> None:
        condition = {"type": "DisruptionTarget", "status": "True", "reason": why, "message": words}
        terminated = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": self._now()}}
        change: Document = {"conditions": [condition], **status}
        if status.get("phase") == "Failed":
            change["containerStatuses"] = self._containers(pod, terminated, ready=False)
        self._status(pod, change)

    def permit(self) -> None:
        """Pods may be made again; Jobs try again."""
        self.refusing = ""
        for job in self.store.all(JOBS):
            self._follow_job(job)

    # -- stories of other things --------------------------------------------------------------------------------------

    def deadline(self, job: str, *, namespace: str = "default") -> None:
        """A Job's activeDeadlineSeconds are over."""
        self._fail_job(self.store.need(JOBS, job, namespace), "DeadlineExceeded", "Job was active longer than deadline")

    def bind(self, claim: str, *, namespace: str = "default", volume: str = "") -> None:
        """A claim gets its volume, if that is not another's."""
        self._volumes.bind(claim, namespace, volume)

    def deployed(self, name: str, *, ready: int | None = None, namespace: str = "default") -> None:
        """A Deployment's newest pods are ready: all, or that many."""
        self._deploy(self.store.need(DEPLOYMENTS, name, namespace), ready)

    # -- controllers --------------------------------------------------------------------------------------------------

    def _written(self, resource: Resource, before: Document | None, after: Document | None) -> None:
        """One after the other, as controllers work, though all at once for whoever wrote."""
        if resource == PODS:
            self._index(before, after)
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
            self._follow_job(after)
        elif resource == PODS:
            if after is not None and before is None and self.scheduling:
                self._schedule(after)
            elif self._unplaced and (after is None or after["status"]["phase"] in ("Succeeded", "Failed")):
                self._place_the_rest()
            self._follow_pod(before, after)
        elif resource == PERSISTENT_VOLUME_CLAIMS and before is None and after is not None and self.binding:
            self.bind(after["metadata"]["name"], namespace=after["metadata"]["namespace"])
        elif resource == PERSISTENT_VOLUME_CLAIMS and before is not None and after is None:
            self._volumes.released(before)
        elif resource == PERSISTENT_VOLUMES and after is not None and self.binding:
            self._volumes.freed(after)
        elif resource == DEPLOYMENTS and after is not None and (not before or before["spec"] != after["spec"]):
            self._deploy(after, None if self.deploying else 0)

    def _index(self, before: Document | None, after: Document | None) -> None:
        metadata = (after or before or {})["metadata"]
        if job := metadata.get("labels", {}).get(JOB_NAME):
            names = self._of_job.setdefault((metadata["namespace"], job), set())
            (names.add if after is not None else names.discard)(metadata["name"])

    def _follow_job(self, job: Document) -> None:
        metadata, spec = job["metadata"], job["spec"]
        if metadata.get("deletionTimestamp") or self._over(job):
            return
        name, namespace = metadata["name"], metadata["namespace"]
        pods = self.pods(name, namespace=namespace)
        if spec.get("suspend"):
            self._end_pods(pods)
            return
        if not job.get("status", {}).get("startTime"):
            self.store.change(JOBS, name, namespace, status={"startTime": self._now()})
            return  # this very change is heard, and goes on
        have = {pod["metadata"]["labels"].get(INDEX, "0") for pod in pods}
        for index in range(spec.get("completions", 1)):
            if str(index) not in have:
                self._make_pod(job, index)

    def _end_pods(self, pods: list[Document]) -> None:
        """As the Job controller deletes them: with their grace, where the store knows of any."""
        for pod in pods:
            about = pod["metadata"]
            if pod["status"]["phase"] in ("Pending", "Running") and "deletionTimestamp" not in about:
                self.store.delete(PODS, about["namespace"], about["name"])

    def _make_pod(self, job: Document, index: int, *, failures: int = 0) -> None:
        metadata, spec = job["metadata"], job["spec"]
        if spec.get("suspend"):
            return
        if self.refusing:
            self.event(JOBS, metadata["name"], "FailedCreate", self.refusing, namespace=metadata["namespace"])
            return
        template = spec["template"]
        name = metadata["name"]
        indexed = spec.get("completionMode") == "Indexed"
        about = template.get("metadata", {})
        labels = {**about.get("labels", {}), JOB_NAME: name, "batch.kubernetes.io/controller-uid": metadata["uid"]}
        pod_spec = dict(template["spec"])
        annotations = dict(about.get("annotations", {}))
        if indexed:
            labels[INDEX] = annotations[INDEX] = str(index)
            if "backoffLimitPerIndex" in spec:
                annotations[FAILURES] = str(failures)
            pod_spec["hostname"] = f"{name}-{index}"
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": name,
            "uid": metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        self.store.add(
            PODS,
            {
                "metadata": {
                    "name": f"{f'{name}-{index}' if indexed else name}-{uuid4().hex[:5]}",
                    "labels": labels,
                    "annotations": annotations,
                    "ownerReferences": [owner],
                },
                "spec": pod_spec,
                "status": {"phase": "Pending"},
            },
            metadata["namespace"],
        )

    def _follow_pod(self, before: Document | None, after: Document | None) -> None:
        pod = after or before
        assert pod is not None
        name, namespace = pod["metadata"].get("labels", {}).get(JOB_NAME), pod["metadata"]["namespace"]
        job = self.store.find(JOBS, name, namespace) if name else None
        if job is None or self._over(job) or job["metadata"].get("deletionTimestamp"):
            return
        if after is None and pod["status"]["phase"] in ("Pending", "Running") and not job["spec"].get("suspend"):
            if "podFailurePolicy" not in job["spec"]:
                # Counted as a failure, unless the Job replaces only pods that have failed.
                counted = self._deleted.setdefault(job["metadata"]["uid"], {})
                index = pod["metadata"]["labels"].get(INDEX, "0")
                counted[index] = counted.get(index, 0) + 1
                self._count(job)
                return
            self._follow_job(job)  # made anew
            return
        self._count(job)

    def _count(self, job: Document) -> None:
        spec = job["spec"]
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        pods = self.pods(name, namespace=namespace)
        done = {pod["metadata"]["labels"].get(INDEX, "0") for pod in pods if pod["status"]["phase"] == "Succeeded"}
        failed = dict(self._deleted.get(job["metadata"]["uid"], {}))
        for pod in pods:
            if pod["status"]["phase"] != "Failed":
                continue
            index = pod["metadata"]["labels"].get(INDEX, "0")
            action = self._action(job, pod)
            if action == "FailJob":
                self._fail_job(job, "PodFailurePolicy", f"Container of pod {pod['metadata']['name']} failed")
                return
            if action == "Ignore":
                self.store.finish(PODS, pod["metadata"]["name"], namespace)
                self._make_pod(job, int(index))
                return
            failed[index] = failed.get(index, 0) + 1
        limit = spec.get("backoffLimitPerIndex", spec.get("backoffLimit", 6))
        lost = {index for index, times in failed.items() if times > limit}
        for index in set(failed) - lost - done:
            live = [pod for pod in pods if pod["metadata"]["labels"].get(INDEX, "0") == index]
            if all(pod["status"]["phase"] == "Failed" for pod in live):
                self._make_pod(job, int(index), failures=failed[index])
                return
        active = sum(pod["status"]["phase"] in ("Pending", "Running") for pod in pods)
        ready = sum(pod["status"]["phase"] == "Running" for pod in pods)
        status: Document = {
            "active": active,
            "ready": ready,
            "succeeded": len(done),
            "failed": sum(failed.values()),
            "completedIndexes": ",".join(sorted(done, key=int)),
            "failedIndexes": ",".join(sorted(lost, key=int)),
        }
        if lost and ("backoffLimitPerIndex" not in spec or len(lost) + len(done) == spec.get("completions", 1)):
            reason = "FailedIndexes" if "backoffLimitPerIndex" in spec else "BackoffLimitExceeded"
            status["conditions"] = [{"type": "Failed", "status": "True", "reason": reason}]
        elif len(done) == spec.get("completions", 1):
            status["completionTime"] = self._now()
            status["conditions"] = [{"type": "Complete", "status": "True"}]
        self.store.change(JOBS, name, namespace, status=status)

    @staticmethod
    def _action(job: Document, pod: Document) -> str:
        conditions = {each["type"] for each in pod["status"].get("conditions", ()) if each["status"] == "True"}
        for rule in job["spec"].get("podFailurePolicy", {}).get("rules", ()):
            wanted = {each["type"] for each in rule.get("onPodConditions") or ()}
            if wanted & conditions:
                return str(rule["action"])
            codes = rule.get("onExitCodes")
            if codes is None:
                continue
            for container in pod["status"].get("containerStatuses", ()):
                code = container["state"].get("terminated", {}).get("exitCode")
                if code and (code in codes["values"]) == (codes["operator"] == "In"):
                    return str(rule["action"])
        return "Count"

    def _fail_job(self, job: Document, reason: str, message: str) -> None:
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
        self.store.change(JOBS, name, namespace, status={"active": 0, "conditions": [condition]})
        self._end_pods(self.pods(name, namespace=namespace))

    @staticmethod
    def _over(job: Document) -> bool:
        conditions = job.get("status", {}).get("conditions", ())
        return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)

    def _schedule(self, pod: Document) -> None:
        """The emptiest of the nodes that have room for the pod's requests, and the pods that it must be near."""
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        if pod["spec"].get("nodeName"):
            return
        wanted = _requests(pod)
        nodes = self.store.all(NODES)
        if not nodes:
            self.store.change(PODS, name, namespace, spec={"nodeName": "n1"})
            return
        on_node: dict[str, list[Document]] = {node["metadata"]["name"]: [] for node in nodes}
        for other in self.store.all(PODS):
            place = other["spec"].get("nodeName", "")
            if place in on_node and other["status"]["phase"] in ("Pending", "Running"):
                on_node[place].append(other)
        full = apart = 0
        fitting: list[str] = []
        for node in nodes:
            place = node["metadata"]["name"]
            free = {resource: quantity(size) for resource, size in node["status"]["allocatable"].items()}
            for other in on_node[place]:
                for resource, size in _requests(other).items():
                    free[resource] = free.get(resource, quantity(0)) - size
            if any(free.get(resource, quantity(0)) < size for resource, size in wanted.items()):
                full += 1
            elif place not in may_be_near(pod, on_node):
                apart += 1
            else:
                fitting.append(place)
        if fitting:
            self._unplaced.pop((namespace, name), None)
            wishes = {place: wishes_met(pod, on_node[place]) for place in fitting}
            best = min(fitting, key=lambda place: (-wishes[place], len(on_node[place])))
            self.store.change(PODS, name, namespace, spec={"nodeName": best})
            return
        self._unplaced[namespace, name] = None
        why = [f"{full} Insufficient resources"] if full else []
        why += [f"{apart} node(s) didn't match pod affinity rules"] if apart else []
        words = f"0/{len(nodes)} nodes are available: {', '.join(why)}."
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        self.store.change(PODS, name, namespace, status={"conditions": [condition]})

    def _place_the_rest(self) -> None:
        """There is room again."""
        for namespace, name in tuple(self._unplaced):
            pod = self.store.find(PODS, name, namespace)
            if pod is None or pod["status"]["phase"] != "Pending" or pod["spec"].get("nodeName"):
                del self._unplaced[namespace, name]
            else:
                self._schedule(pod)

    def _deploy(self, deployment: Document, ready: int | None) -> None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        name, namespace, wanted = metadata["name"], metadata["namespace"], spec.get("replicas", 1)
        revision = digest(metadata["uid"], str(spec["template"]))
        owner = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": name,
            "uid": metadata["uid"],
            "controller": True,
        }
        if self.store.find(REPLICA_SETS, f"{name}-{revision}", namespace) is None:
            made = {"metadata": {"name": f"{name}-{revision}", "ownerReferences": [owner]}, "spec": {}}
            self.store.add(REPLICA_SETS, made, namespace)
        replica_set = self.store.need(REPLICA_SETS, f"{name}-{revision}", namespace)
        parent = {**owner, "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{name}-{revision}"}
        parent["uid"] = replica_set["metadata"]["uid"]
        labels = {**spec["template"].get("metadata", {}).get("labels", {}), "pod-template-hash": revision}
        mine = [
            pod
            for pod in self.store.all(PODS, namespace)
            if pod["metadata"].get("labels", {}).get("pod-template-hash") == revision
        ]
        for _ in range(len(mine), wanted):
            about = {"name": f"{name}-{revision}-{uuid4().hex[:5]}", "labels": labels, "ownerReferences": [parent]}
            pod = self.store.add(PODS, {"metadata": about, "spec": dict(spec["template"]["spec"])}, namespace)
            if self.scheduling:
                self._schedule(pod)
        mine = [
            pod
            for pod in self.store.all(PODS, namespace)
            if pod["metadata"].get("labels", {}).get("pod-template-hash") == revision
        ]
        placed = [pod for pod in mine if pod["spec"].get("nodeName") or not self.scheduling]
        count = min(wanted if ready is None else ready, len(placed))
        for pod in placed[:count]:
            self.running(pod)
        for pod in mine[wanted:]:
            self.store.finish(PODS, pod["metadata"]["name"], namespace)
        if count == wanted:  # the old ones go only now
            for other in self.store.all(REPLICA_SETS, namespace):
                owners = [each["uid"] for each in other["metadata"].get("ownerReferences", ())]
                if metadata["uid"] in owners and other["metadata"]["name"] != f"{name}-{revision}":
                    self.store.finish(REPLICA_SETS, other["metadata"]["name"], namespace)
        available = {"type": "Available", "status": "True" if count else "False"}
        progressing = {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}
        self.store.change(
            DEPLOYMENTS,
            name,
            namespace,
            status={
                "observedGeneration": metadata.get("generation", 1),
                "replicas": wanted,
                "updatedReplicas": wanted,
                "readyReplicas": count,
                "availableReplicas": count,
                "unavailableReplicas": wanted - count,
                "conditions": [available, progressing],
            },
        )

    # -- small things -------------------------------------------------------------------------------------------------

    def _status(self, pod: Document, status: Document) -> None:
        self.store.change(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"], status=status)

    @staticmethod
    def _containers(pod: Document, state: Document, *, ready: bool) -> list[Document]:
        return [
            {"name": each["name"], "ready": ready, "restartCount": 0, "image": each.get("image", ""), "state": state}
            for each in pod["spec"]["containers"]
        ]

    def _now(self) -> str:
        return self.store.clock().strftime("%Y-%m-%dT%H:%M:%SZ")


def _requests(pod: Document) -> dict[str, Any]:
    total: dict[str, Any] = {"pods": quantity(1)}
    for container in pod["spec"]["containers"]:
        resources = container.get("resources", {})
        for resource, size in {**resources.get("limits", {}), **resources.get("requests", {})}.items():
            total[resource] = total.get(resource, quantity(0)) + quantity(size)
    return total
