"""Servings as Deployments in the namespaces of their projects."""

from services.serving.cloud.kubernetes.driver import KubernetesServings
from services.serving.cloud.kubernetes.options import ServerOptions, ServingOptions

__all__ = ["KubernetesServings", "ServerOptions", "ServingOptions"]
