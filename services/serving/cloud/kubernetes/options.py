"""How the operator wants models to be served. Pure."""

from typing import Final, Literal

import msgspec

TENSORFLOW_SERVING: Final = "tensorflow-serving"
ELEARN: Final = "elearn"
_IMAGE: Final = "tensorflow/serving"
_GPU_IMAGE: Final = "tensorflow/serving:latest-gpu"
NO_GPU_IMAGE: Final = (
    "elearn's own model server computes on the CPU: an operator can name an image with TensorFlow for GPUs in"
    " ELEARN_KUBERNETES_SERVING_GPU_IMAGE"
)


class ServingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Read from ``ELEARN_<FIELD>``.

    Attributes:
        kubernetes_serving_server: which server answers: TensorFlow Serving, or elearn's own, which can also spread
            requests over versions.
        kubernetes_serving_image: its image, for servings without GPUs; not set: ``tensorflow/serving``, or elearn's
            own.
        kubernetes_serving_gpu_image: its image, for servings with GPUs, whatever holds for the others; not set:
            ``tensorflow/serving:latest-gpu``. elearn's own image computes on the CPU: where its server answers,
            servings with GPUs are refused until an image is named here.
        kubernetes_serving_access: which endpoint is told: that of the Service (``service``), or ports of this machine
            that lead to the replicas through the API server (``forward``); not set: the latter where elearn runs
            outside the cluster and the Service is of type ``ClusterIP``. With it, one serving service runs, beside
            those who ask: nobody else reaches its ports.
        kubernetes_serving_service: the type of Services: ``ClusterIP`` is reached from inside the cluster alone,
            ``NodePort`` at ports of the nodes, ``LoadBalancer`` at an address that the cluster's provider gives.
        kubernetes_serving_host: with ``NodePort``, a name or address of the nodes that clients reach.
        kubernetes_cluster_domain: what names in the cluster end with.
        kubernetes_serving_image_seconds: a replica whose image can't be had for so long has failed, in seconds.
        kubernetes_serving_stop_seconds: how long a replica that is ended goes on, so that nobody is sent to it any
            more when it stops, in seconds.
    """

    kubernetes_serving_server: Literal["tensorflow-serving", "elearn"] = "tensorflow-serving"
    kubernetes_serving_image: str = ""
    kubernetes_serving_gpu_image: str = ""
    kubernetes_serving_access: Literal["", "service", "forward"] = ""
    kubernetes_serving_service: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    kubernetes_serving_host: str = ""
    kubernetes_cluster_domain: str = "cluster.local"
    kubernetes_serving_image_seconds: float = 60.0
    kubernetes_serving_stop_seconds: int = 10

    def forwarding(self, home: str) -> bool:
        """Whether servings are reached by ports of this machine.

        Args:
            home: the namespace of the pod that elearn runs in; "": it runs outside the cluster.
        """
        if self.kubernetes_serving_access:
            return self.kubernetes_serving_access == "forward"
        return not home and self.kubernetes_serving_service == "ClusterIP"

    def open_to_all(self, home: str) -> bool:
        """Whether servings are called from where no namespace can be named.

        Args:
            home: as above.
        """
        if self.kubernetes_serving_service != "ClusterIP":
            return True
        return self.kubernetes_serving_access == "service" and not home

    def image(self, elearn: str, *, gpu: bool) -> str:
        """What replicas run; "": there is nothing that would use their GPUs.

        Args:
            elearn: elearn's own image.
            gpu: they have GPUs.
        """
        if gpu:
            return self.kubernetes_serving_gpu_image or ("" if self.own_server else _GPU_IMAGE)
        return self.kubernetes_serving_image or (elearn if self.own_server else _IMAGE)

    @property
    def own_server(self) -> bool:
        """Whether elearn's own server answers."""
        return self.kubernetes_serving_server == ELEARN


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for every replica, in any cloud: from the service's own settings.

    Attributes:
        cpu, memory: cores and bytes where a serving names none.
        start_seconds: a replica that does not answer so long after its start has failed.
        grace_seconds: how long a replica that is ended may take to answer what it has begun.
        max_batch, batch_micros: of elearn's own server.
    """

    cpu: float
    memory: int
    start_seconds: float
    grace_seconds: float
    max_batch: int
    batch_micros: int
