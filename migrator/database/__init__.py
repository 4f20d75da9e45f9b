"""The database adapter that a bot uses: SQLite before the move, PostgreSQL after it, one interface.

::

    async with await open_database() as database:
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO users (user_id, first_seen) VALUES ($1, $2)", 7, now)
        row = await database.fetchrow("SELECT * FROM users WHERE user_id = $1", 7)

Placeholders are PostgreSQL's on both sides; rows are read by name and by position; dates, times,
moments, booleans, numerics, JSON and bytes come as the same Python types; errors are the same too.
"""

from migrator.database.errors import (
    CheckViolation,
    DatabaseBusy,
    DatabaseError,
    DatabaseLost,
    ForeignKeyViolation,
    IntegrityError,
    NotNullViolation,
    StatementError,
    StatementTimeout,
    UniqueViolation,
)
from migrator.database.interface import Connection, Database, Health, run_until_stopped
from migrator.database.postgresql import PostgresDatabase
from migrator.database.rows import Row
from migrator.database.settings import DatabaseSettings, load_database_settings
from migrator.database.sqlite import SqliteDatabase

__all__ = [
    "CheckViolation",
    "Connection",
    "Database",
    "DatabaseBusy",
    "DatabaseError",
    "DatabaseLost",
    "DatabaseSettings",
    "ForeignKeyViolation",
    "Health",
    "IntegrityError",
    "NotNullViolation",
    "Row",
    "StatementError",
    "StatementTimeout",
    "UniqueViolation",
    "load_database_settings",
    "open_database",
    "run_until_stopped",
]


async def open_database(settings: DatabaseSettings | None = None) -> Database:
    """Opens the database that the settings name.

    Args:
        settings: read from the environment where they are left out.

    Raises:
        ConfigurationError: a setting cannot be used.
        DatabaseLost: the database cannot be opened.
    """
    chosen = settings or load_database_settings()
    if chosen.db_type == "postgresql":
        return await PostgresDatabase.open(chosen)
    return await SqliteDatabase.open(chosen)
