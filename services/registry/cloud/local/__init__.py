"""Save jobs as processes of this machine, the model store as one of its folders."""

from services.registry.cloud.local.driver import LocalJobs

__all__ = ["LocalJobs"]
