"""The controller that keeps Jobs in an emulated cluster: makes their pods, counts how those end, and ends with them."""

from uuid import uuid4

from shared.kube.resources import JOBS, PODS
from tests.support.kube_fields import Document
from tests.support.kube_store import KubeStore

INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = "batch.kubernetes.io/job-index-failure-count"
JOB_NAME = "batch.kubernetes.io/job-name"


class JobController:
    """Follows Jobs and their pods, when it is told of them."""

    def __init__(self, store: KubeStore) -> None:
        self._store = store
        self._of_job: dict[tuple[str, str], set[str]] = {}
        self._deleted: dict[str, dict[str, int]] = {}

    def index(self, before: Document | None, after: Document | None) -> None:
        """A pod was written: know of which Job it is."""
        metadata = (after or before or {})["metadata"]
        if job := metadata.get("labels", {}).get(JOB_NAME):
            names = self._of_job.setdefault((metadata["namespace"], job), set())
            (names.add if after is not None else names.discard)(metadata["name"])

    def pods(self, job: str, namespace: str) -> list[Document]:
        """The pods of a Job that have not been deleted, by index."""
        names = self._of_job.get((namespace, job), ())
        found = [pod for name in names if (pod := self._store.find(PODS, name, namespace)) is not None]
        return sorted(found, key=lambda pod: int(pod["metadata"].get("labels", {}).get(INDEX, 0)))

    def pod(self, job: str, index: int, namespace: str) -> Document:
        """The newest pod of a Job's index."""
        found = [pod for pod in self.pods(job, namespace) if pod["metadata"]["labels"].get(INDEX, "0") == str(index)]
        assert found, f"Job {job} has no pod of index {index}"
        return max(found, key=lambda pod: int(pod["metadata"]["resourceVersion"]))

    def follow(self, job: Document) -> None:
        """Make the pods that a Job lacks; end those of one that is suspended."""
        metadata, spec = job["metadata"], job["spec"]
        if metadata.get("deletionTimestamp") or _over(job):
            return
        name, namespace = metadata["name"], metadata["namespace"]
        pods = self.pods(name, namespace)
        if spec.get("suspend"):
            self._end_pods(pods)
            return
        if not job.get("status", {}).get("startTime"):
            self._store.change(JOBS, name, namespace, status={"startTime": self._store.stamp()})
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
                self._store.delete(PODS, about["namespace"], about["name"])

    def _make_pod(self, job: Document, index: int, *, failures: int = 0) -> None:
        metadata, spec = job["metadata"], job["spec"]
        if spec.get("suspend"):
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
        self._store.add(
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

    def follow_pod(self, before: Document | None, after: Document | None) -> None:
        """A pod was written: its Job counts it, or makes it anew."""
        pod = after or before
        assert pod is not None
        name, namespace = pod["metadata"].get("labels", {}).get(JOB_NAME), pod["metadata"]["namespace"]
        job = self._store.find(JOBS, name, namespace) if name else None
        if job is None or _over(job) or job["metadata"].get("deletionTimestamp"):
            return
        if after is None and pod["status"]["phase"] in ("Pending", "Running") and not job["spec"].get("suspend"):
            if "podFailurePolicy" not in job["spec"]:
                # Counted as a failure, unless the Job replaces only pods that have failed.
                counted = self._deleted.setdefault(job["metadata"]["uid"], {})
                index = pod["metadata"]["labels"].get(INDEX, "0")
                counted[index] = counted.get(index, 0) + 1
                self._count(job)
                return
            self.follow(job)  # made anew
            return
        self._count(job)

    def _count(self, job: Document) -> None:
        spec = job["spec"]
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        pods = self.pods(name, namespace)
        done = {pod["metadata"]["labels"].get(INDEX, "0") for pod in pods if pod["status"]["phase"] == "Succeeded"}
        failed = dict(self._deleted.get(job["metadata"]["uid"], {}))
        for pod in pods:
            if pod["status"]["phase"] != "Failed":
                continue
            index = pod["metadata"]["labels"].get(INDEX, "0")
            action = _action(job, pod)
            if action == "FailJob":
                self.fail(job, "PodFailurePolicy", f"Container of pod {pod['metadata']['name']} failed")
                return
            if action == "Ignore":
                self._store.finish(PODS, pod["metadata"]["name"], namespace)
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
            status["completionTime"] = self._store.stamp()
            status["conditions"] = [{"type": "Complete", "status": "True"}]
        self._store.change(JOBS, name, namespace, status=status)

    def fail(self, job: Document, reason: str, message: str) -> None:
        """A Job has failed for good; its pods end."""
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
        self._store.change(JOBS, name, namespace, status={"active": 0, "conditions": [condition]})
        self._end_pods(self.pods(name, namespace))


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


def _over(job: Document) -> bool:
    conditions = job.get("status", {}).get("conditions", ())
    return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)
