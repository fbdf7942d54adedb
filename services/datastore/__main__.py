"""``python -m services.datastore``: the datastore service, set up from the environment."""

from services.datastore.app import compose
from services.datastore.settings import Settings
from shared.service import main

if __name__ == "__main__":
    main("datastore", Settings, compose)
