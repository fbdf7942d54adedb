"""``python -m services.scheduler``: trainings."""

from services.scheduler.app import compose
from services.scheduler.settings import Settings
from shared.service import main

if __name__ == "__main__":
    main("scheduler", Settings, compose)
