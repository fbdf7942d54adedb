"""Fixtures for every test."""

from tests.support.servers import database_url, fresh_database, nats_url, postgres_url

__all__ = ["database_url", "fresh_database", "nats_url", "postgres_url"]
