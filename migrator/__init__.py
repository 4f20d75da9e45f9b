"""Moves SQLite databases into PostgreSQL and proves that no row was lost."""

__version__ = "0.1.0"
