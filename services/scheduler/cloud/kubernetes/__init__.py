"""Trainings as Jobs in the namespaces of their projects."""

from services.scheduler.cloud.kubernetes.driver import KubernetesTrainings
from services.scheduler.cloud.kubernetes.manifests import Setting
from services.scheduler.cloud.kubernetes.options import TrainingOptions

__all__ = ["KubernetesTrainings", "Setting", "TrainingOptions"]
