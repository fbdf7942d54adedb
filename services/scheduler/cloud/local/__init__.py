"""The local cloud: trainings as processes of this machine."""

from services.scheduler.cloud.local.driver import LocalCloud

__all__ = ["LocalCloud"]
