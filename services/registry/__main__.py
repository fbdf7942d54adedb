"""``python -m services.registry``: the model registry, set up from the environment."""

from services.registry.app import compose
from services.registry.settings import Settings
from shared.service import main

if __name__ == "__main__":
    main("registry", Settings, compose)
