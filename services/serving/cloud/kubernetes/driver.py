"""The Kubernetes serving cloud: a Deployment behind a Service for each serving, in the namespace of its project."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import structlog

from services.serving.cloud.kubernetes.forwards import Forwards, LocalPorts, Wanted
from services.serving.cloud.kubernetes.manifests import (
    ROOM_NAME,
    SERVING,
    UID,
    autoscaler_manifest,
    deployment_manifest,
    disruption_manifest,
    service_manifest,
    where_of,
)
from services.serving.cloud.kubernetes.observing import SeenService, observe
from services.serving.cloud.kubernetes.options import NO_GPU_IMAGE, ServerOptions, ServingOptions
from services.serving.cloud.kubernetes.policies import Policies
from services.serving.cloud.port import (
    Capabilities,
    Deployment,
    Gone,
    Observation,
    Seen,
    Synced,
    Work,
)
from services.serving.model import Observed, Replica
from shared.clock import now
from shared.contracts.common import parse_cpu, parse_memory
from shared.contracts.problem import FieldError
from shared.contracts.serving import ServingSpec
from shared.errors import Conflict, Forbidden, Invalid, Unavailable, Unsupported
from shared.kube.access import Right
from shared.kube.client import Cluster
from shared.kube.errors import Foreign, MissingRight, NamespaceMissing, Terminating
from shared.kube.follow import Follower
from shared.kube.merge import Mirror
from shared.kube.names import ROOM
from shared.kube.nodes import GPU, is_usable
from shared.kube.objects import Deployment as KubeDeployment
from shared.kube.objects import HasMetadata, Node, Partial, Pod
from shared.kube.projects import Projects, as_it_is, list_ours, watch_all
from shared.kube.quantities import cores, whole
from shared.kube.resources import (
    AUTOSCALERS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NAMESPACES,
    NODES,
    PODS,
    SERVICES,
    Resource,
)
from shared.kube.rights import rights_to, tell_missing
from shared.kube.settings import ProjectSettings

T = TypeVar("T", bound=HasMetadata)

_log = structlog.get_logger(__name__)

_LOOK_SELDOM: Final = 30.0
_LOOK_OFTEN: Final = 2.0
_REFUSALS: Final = (Invalid, Forbidden, Conflict, Unsupported)
"""Answers of the cluster after which asking again would not help."""
_KINDS: Final = (AUTOSCALERS, DEPLOYMENTS, DISRUPTION_BUDGETS, SERVICES)
"""In this order they go."""


class KubernetesServings:
    """Deployments in a cluster.

    Args:
        server: what holds for every replica.
        look_often: seconds between two looks while a replica is not ready.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: ProjectSettings,
        options: ServingOptions,
        server: ServerOptions,
        *,
        look_often: float = _LOOK_OFTEN,
    ) -> None:
        told = options.kubernetes_serving_access != "forward"
        if told and options.kubernetes_serving_service == "NodePort" and not options.kubernetes_serving_host:
            raise Unsupported(
                "ELEARN_KUBERNETES_SERVING_HOST: say at which name or address of the nodes clients reach servings"
            )
        self.capabilities = Capabilities(cloud="kubernetes", traffic_split=options.own_server, autoscaling=True)
        self._cluster = cluster
        self._settings = settings
        self._options = options
        self._server = server
        self._look_often = look_often
        self._projects = Projects(cluster, settings)
        self._policies = Policies(cluster, options)
        self._refused: dict[str, Replica] = {}
        self._autoscaled: set[str] = set()
        self._followers: set[Follower] = set()

    def rights(self) -> list[Right]:
        """What RBAC has to let us do."""
        places = self._settings.places
        needed = [
            *rights_to("get list watch create patch delete", DEPLOYMENTS, places=places),
            *rights_to("list watch create patch delete", SERVICES, places=places),
            *rights_to("get list create patch delete", AUTOSCALERS, places=places),
            *rights_to("list create patch delete", DISRUPTION_BUDGETS, places=places),
            *rights_to("list watch", PODS, places=places),
            *rights_to("list", NODES),
            *self._policies.rights(places),
        ]
        if self._options.forwarding(self._cluster.home):
            # Which of the two is asked for changed between releases.
            needed += rights_to("get create", PODS, places=places, subresource="portforward")
        if self._settings.kubernetes_create_namespaces:
            needed += rights_to("get create patch", NAMESPACES)
        return needed

    def work(self) -> Mapping[str, Work]:
        """See the port."""
        return {"rights in Kubernetes": lambda: tell_missing(self._cluster, self.rights())}

    async def admit(self, spec: ServingSpec) -> list[FieldError]:
        """See :class:`services.serving.cloud.port.ServingCloud`."""
        errors = []
        cpu, memory = self._server.cpu, self._server.memory
        try:
            cpu = cpu if spec.cpu is None else parse_cpu(spec.cpu)
        except ValueError as error:
            errors.append(FieldError(field="cpu", message=str(error)))
        try:
            memory = memory if spec.memory is None else parse_memory(spec.memory)
        except ValueError as error:
            errors.append(FieldError(field="memory", message=str(error)))
        if spec.gpu and not self._options.image(self._settings.kubernetes_image, gpu=True):
            errors.append(FieldError(field="gpu", message=NO_GPU_IMAGE))
        return errors or await self._too_large(cpu, memory, spec.gpu)

    async def apply(self, deployment: Deployment) -> None:
        """See the port."""
        namespace = self._projects.namespace(deployment.project)
        try:
            await self._projects.ensure(deployment.project)
            await self._policies.ensure(namespace)
            await self._apply(deployment, namespace)
        except (MissingRight, NamespaceMissing, Terminating) as error:
            self._projects.forget(namespace)
            raise Unavailable(error.detail, retry=30) from error  # an operator can help
        except Foreign:
            raise
        except _REFUSALS as error:
            reason = f"the cluster refuses it: {error.detail}"
            self._refused[deployment.uid] = Replica(revision=deployment.revision, state="failing", reason=reason)
        else:
            self._refused.pop(deployment.uid, None)
        self._ring()

    async def remove(self, uid: str) -> None:
        """See the port."""
        self._refused.pop(uid, None)
        for resource in _KINDS:
            labels = {ROOM: ROOM_NAME, UID: uid}
            found = await list_ours(self._cluster, self._settings, resource, Partial, labels)
            for each in found:
                about = each.metadata
                await self._cluster.delete(resource, about.name, namespace=about.namespace, uid=about.uid)
        self._autoscaled.discard(uid)
        self._ring()

    async def watch(self) -> AsyncGenerator[Observation, None]:
        """See the port."""
        told: dict[str, Observed] = {}
        services: Mirror[SeenService] = Mirror()
        deployments: Mirror[KubeDeployment] = Mirror()
        pods: Mirror[Pod] = Mirror()
        synced = False
        async with Forwards(self._cluster) as forwards, Follower() as follower:
            self._follow(follower, services, SERVICES, SeenService)
            self._follow(follower, deployments, DEPLOYMENTS, KubeDeployment)
            self._follow(follower, pods, PODS, Pod)
            self._followers.add(follower)
            pause = _LOOK_SELDOM
            try:
                await self._find_autoscaled()
                while True:
                    await follower.changed(pause)
                    if not follower.synced:
                        continue
                    pods_of = _by_uid(pods)
                    if self._options.forwarding(self._cluster.home):
                        await forwards.follow(_endpoints(services, pods_of))
                    seen = self._look(services, deployments, pods_of, forwards.ports)
                    unready = any(each.state != "ready" for observed in seen.values() for each in observed.replicas)
                    pause = self._look_often if unready else _LOOK_SELDOM
                    for uid in [uid for uid in told if uid not in seen]:
                        del told[uid]
                        yield Gone(uid=uid)
                    for uid, observed in seen.items():
                        if told.get(uid) != observed:
                            told[uid] = observed
                            yield Seen(uid=uid, observed=observed)
                    if not synced:
                        synced = True
                        yield Synced()
            finally:
                self._followers.discard(follower)

    # -- applying -----------------------------------------------------------------------------------------------------

    async def _apply(self, deployment: Deployment, namespace: str) -> None:
        where = where_of(deployment, installation=self._cluster.installation, namespace=namespace)
        await self._cluster.apply(service_manifest(deployment, where, self._options))
        scaled = deployment.max_replicas > deployment.replicas and deployment.replicas > 0
        replicas = deployment.replicas
        if scaled:
            self._autoscaled.add(deployment.uid)
            replicas = await self._now(deployment, where.name, namespace)
        else:
            await self._cluster.delete(AUTOSCALERS, where.name, namespace=namespace)
            self._autoscaled.discard(deployment.uid)
        manifest = deployment_manifest(
            deployment,
            where,
            replicas=replicas,
            settings=self._settings,
            options=self._options,
            server=self._server,
        )
        # By force: the autoscaler has made the number of replicas its own.
        await self._cluster.apply(manifest, force=True)
        await self._cluster.apply(disruption_manifest(deployment, where))
        if scaled:
            await self._cluster.apply(autoscaler_manifest(deployment, where))

    async def _now(self, deployment: Deployment, name: str, namespace: str) -> int:
        """As many replicas as the autoscaler wants now, within the bounds; leaving them out would reset them."""
        found = await self._cluster.get(DEPLOYMENTS, name, KubeDeployment, namespace=namespace)
        if found is None:
            return deployment.replicas
        return min(max(found.spec.replicas, deployment.replicas), deployment.max_replicas)

    # -- looking ------------------------------------------------------------------------------------------------------

    def _follow(self, follower: Follower, mirror: Mirror[T], resource: Resource, kind: type[T]) -> None:
        labels = {ROOM: ROOM_NAME}
        feed = watch_all(self._cluster, self._settings, resource, kind, project=as_it_is, labels=labels)
        follower.follow(mirror, feed)

    async def _find_autoscaled(self) -> None:
        found = await list_ours(self._cluster, self._settings, AUTOSCALERS, Partial, {ROOM: ROOM_NAME})
        self._autoscaled.update(each.metadata.labels.get(UID, "") for each in found)

    def _look(
        self,
        services: Mirror[SeenService],
        deployments: Mirror[KubeDeployment],
        pods_of: Mapping[str, Sequence[Pod]],
        ports: Mapping[str, LocalPorts],
    ) -> dict[str, Observed]:
        service_of = {each.metadata.labels.get(UID, ""): each for each in services}
        deployment_of = {each.metadata.labels.get(UID, ""): each for each in deployments}
        uids = {*service_of, *deployment_of, *pods_of, *self._refused} - {""}
        moment = now()
        return {
            uid: observe(
                service=service_of.get(uid),
                deployment=deployment_of.get(uid),
                pods=pods_of.get(uid, []),
                refused=self._refused.get(uid),
                ports=ports.get(uid),
                autoscaled=uid in self._autoscaled,
                home=self._cluster.home,
                now=moment,
                options=self._options,
                server=self._server,
            )
            for uid in sorted(uids)
        }

    async def _too_large(self, cpu: float, memory: int, gpu: int) -> list[FieldError]:
        """What no node of the cluster is large enough for."""
        try:
            nodes = await self._cluster.list(NODES, Node, ours=False)
        except MissingRight as error:
            _log.warning("can't see how large nodes are", error=error.detail)
            return []
        usable = [node.status.allocatable for node in nodes if is_usable(node, gpu=gpu > 0)]
        if not usable:
            return []  # what can't be seen may be coming: a cluster that scales itself to nothing
        most_cpu = max(cores(each.get("cpu", "0")) for each in usable)
        most_memory = max(whole(each.get("memory", "0")) for each in usable)
        most_gpu = max(whole(each.get(GPU, "0")) for each in usable)
        if gpu > most_gpu:
            return [FieldError(field="gpu", message=f"no node has {gpu} GPUs: the most is {most_gpu}")]
        if cpu > most_cpu:
            return [FieldError(field="cpu", message=f"no node has {cpu:g} CPUs: the most is {most_cpu:g}")]
        if memory > most_memory:
            words = f"no node has {memory / 2**30:.3g} GiB: the most is {most_memory / 2**30:.3g}"
            return [FieldError(field="memory", message=words)]
        return []

    def _ring(self) -> None:
        for follower in self._followers:
            follower.ring()


def _by_uid(pods: Iterable[Pod]) -> dict[str, list[Pod]]:
    found: dict[str, list[Pod]] = {}
    for pod in pods:
        found.setdefault(pod.metadata.labels.get(UID, ""), []).append(pod)
    return found


def _endpoints(services: Iterable[SeenService], pods_of: Mapping[str, Sequence[Pod]]) -> dict[str, Wanted]:
    """What has a Service that is not on its way out."""
    wanted = {}
    for service in services:
        about = service.metadata
        uid = about.labels.get(UID, "")
        if uid and about.deletion_timestamp is None:
            wanted[uid] = Wanted(
                what=about.labels.get(SERVING, uid), namespace=about.namespace, pods=pods_of.get(uid, ())
            )
    return wanted
