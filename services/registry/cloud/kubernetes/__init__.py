"""Save jobs as Jobs in the namespaces of their projects, the model store as a claim in each."""

from services.registry.cloud.kubernetes.driver import KubernetesJobs
from services.registry.cloud.kubernetes.options import JobOptions

__all__ = ["JobOptions", "KubernetesJobs"]
