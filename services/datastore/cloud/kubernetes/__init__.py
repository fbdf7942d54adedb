"""Datastores as claims in the namespaces of their projects."""

from services.datastore.cloud.kubernetes.driver import KubernetesStorage
from services.datastore.cloud.kubernetes.options import StorageOptions

__all__ = ["KubernetesStorage", "StorageOptions"]
