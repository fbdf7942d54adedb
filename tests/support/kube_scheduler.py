"""The scheduler of an emulated cluster: which node a pod gets, or why it gets none."""

from typing import Any

from shared.kube.quantities import quantity
from shared.kube.resources import NODES, PODS
from tests.support.kube_affinity import may_be_near, wishes_met
from tests.support.kube_fields import Document
from tests.support.kube_store import KubeStore


class PodScheduler:
    """Gives pods nodes that have room for them and the pods that they must be near, the emptiest of several."""

    def __init__(self, store: KubeStore) -> None:
        self._store = store
        self._unplaced: dict[tuple[str, str], None] = {}

    def schedule(self, pod: Document) -> None:
        """Place a pod, or note in a condition why it can't be placed; without any node it goes to one called n1."""
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        if pod["spec"].get("nodeName"):
            return
        wanted = _requests(pod)
        nodes = self._store.all(NODES)
        if not nodes:
            self._store.change(PODS, name, namespace, spec={"nodeName": "n1"})
            return
        on_node: dict[str, list[Document]] = {node["metadata"]["name"]: [] for node in nodes}
        for other in self._store.all(PODS):
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
            self._store.change(PODS, name, namespace, spec={"nodeName": best})
            return
        self._unplaced[namespace, name] = None
        why = [f"{full} Insufficient resources"] if full else []
        why += [f"{apart} node(s) didn't match pod affinity rules"] if apart else []
        words = f"0/{len(nodes)} nodes are available: {', '.join(why)}."
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        self._store.change(PODS, name, namespace, status={"conditions": [condition]})

    def place_the_rest(self) -> None:
        """There is room again."""
        for namespace, name in tuple(self._unplaced):
            pod = self._store.find(PODS, name, namespace)
            if pod is None or pod["status"]["phase"] != "Pending" or pod["spec"].get("nodeName"):
                del self._unplaced[namespace, name]
            else:
                self.schedule(pod)


def _requests(pod: Document) -> dict[str, Any]:
    total: dict[str, Any] = {"pods": quantity(1)}
    for container in pod["spec"]["containers"]:
        resources = container.get("resources", {})
        for resource, size in {**resources.get("limits", {}), **resources.get("requests", {})}.items():
            total[resource] = total.get(resource, quantity(0)) + quantity(size)
    return total
