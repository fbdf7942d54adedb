"""Fixtures for every test."""

from hypothesis import settings

from tests.support.rooms import clean_nats
from tests.support.servers import database_url, fresh_database, nats_url, postgres_url

__all__ = ["clean_nats", "database_url", "fresh_database", "nats_url", "postgres_url"]

# An example may wait for a disk or for a busy machine: how long it takes says nothing of whether it holds.
settings.register_profile("elearn", deadline=None)
settings.load_profile("elearn")
