"""``python -m services.serving``: the serving service, set up from the environment."""

from services.serving.app import compose
from services.serving.settings import Settings
from shared.service import main

if __name__ == "__main__":
    main("serving", Settings, compose)
