"""``python -m services.api``: the HTTP gateway."""

from services.api.app import compose
from services.api.settings import Settings
from shared.service import main

if __name__ == "__main__":
    main("api", Settings, compose)
