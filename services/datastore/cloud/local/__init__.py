"""Datastores as folders of this machine."""

from services.datastore.cloud.local.driver import LocalStorage

__all__ = ["LocalStorage"]
