"""How a service finds its cluster, from the environment."""

import msgspec

from shared.kube.names import DEFAULT_INSTALLATION


class KubernetesSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Read by :func:`shared.settings.load` from ``ELEARN_<FIELD>``.

    Attributes:
        kubeconfig: the kubeconfig, or several with colons between them; not set: ``KUBECONFIG``, then
            ``~/.kube/config``, then the pod that we run in.
        kubernetes_context: a context of it; not set: its current one.
        kubernetes_namespace: where our objects go; not set: the context's, or the pod's own.
        kubernetes_installation: tells several elearns in one cluster apart; objects of others are left alone.
        kubernetes_timeout: seconds that one request to the API may take.
        kubernetes_patience: seconds after which repeating a failing request is given up.
        kubernetes_requests: how many requests may be under way at once, watches and logs not counted.
    """

    kubeconfig: str = ""
    kubernetes_context: str = ""
    kubernetes_namespace: str = ""
    kubernetes_installation: str = DEFAULT_INSTALLATION
    kubernetes_timeout: float = 15.0
    kubernetes_patience: float = 20.0
    kubernetes_requests: int = 32
