"""Servings as processes of this machine."""

from services.serving.cloud.local.driver import LocalServings

__all__ = ["LocalServings"]
