"""The embedded platform: nats-server, PostgreSQL and the five services on one machine, below ELEARN_HOME."""

from elearn.up.control import cloud, down, status, up
from elearn.up.state import Event, Failed, Progress, Ready, ServiceStatus, Status

__all__ = ["Event", "Failed", "Progress", "Ready", "ServiceStatus", "Status", "cloud", "down", "status", "up"]
