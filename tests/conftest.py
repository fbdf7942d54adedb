"""Fixtures for every test."""

from tests.support.rooms import clean_nats
from tests.support.servers import database_url, fresh_database, nats_url, postgres_url

__all__ = ["clean_nats", "database_url", "fresh_database", "nats_url", "postgres_url"]
