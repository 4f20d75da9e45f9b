"""What can go wrong with a statement, the same on both databases.

Each function turns the driver's exception into one of these; the driver's own is its ``__cause__``.
"""

import asyncio
import sqlite3

import asyncpg


class DatabaseError(Exception):
    """Base of all errors of the adapter."""


class StatementError(DatabaseError):
    """The statement is wrong: its syntax, a name, the number or type of its arguments."""


class IntegrityError(DatabaseError):
    """A rule of the schema was broken; ``constraint`` is its name or columns where the server tells."""

    def __init__(self, message: str, constraint: str | None = None) -> None:
        super().__init__(message)
        self.constraint = constraint


class UniqueViolation(IntegrityError):  # noqa: N818 - named as in the SQL standard's conditions
    """A unique key is taken."""


class ForeignKeyViolation(IntegrityError):  # noqa: N818
    """A foreign key points nowhere, or something still points here."""


class NotNullViolation(IntegrityError):  # noqa: N818
    """NULL in a column that is NOT NULL."""


class CheckViolation(IntegrityError):  # noqa: N818
    """A CHECK does not hold."""


class DatabaseBusy(DatabaseError):  # noqa: N818
    """Others kept the database, a row or all connections for too long; trying again may succeed."""


class DatabaseLost(DatabaseError):  # noqa: N818
    """The database cannot be reached, went away, or its file is unusable."""


class StatementTimeout(DatabaseError):  # noqa: N818
    """The statement took longer than ``DB_COMMAND_TIMEOUT``."""


_SQLITE_CONSTRAINTS: dict[str, type[IntegrityError]] = {
    "SQLITE_CONSTRAINT_UNIQUE": UniqueViolation,
    "SQLITE_CONSTRAINT_PRIMARYKEY": UniqueViolation,
    "SQLITE_CONSTRAINT_ROWID": UniqueViolation,
    "SQLITE_CONSTRAINT_FOREIGNKEY": ForeignKeyViolation,
    "SQLITE_CONSTRAINT_NOTNULL": NotNullViolation,
    "SQLITE_CONSTRAINT_CHECK": CheckViolation,
}
_SQLITE_LOST = ("SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FULL", "SQLITE_READONLY")
_POSTGRES_CONSTRAINTS: tuple[tuple[type[asyncpg.PostgresError], type[IntegrityError]], ...] = (
    (asyncpg.UniqueViolationError, UniqueViolation),
    (asyncpg.ExclusionViolationError, UniqueViolation),
    (asyncpg.ForeignKeyViolationError, ForeignKeyViolation),
    (asyncpg.RestrictViolationError, ForeignKeyViolation),
    (asyncpg.NotNullViolationError, NotNullViolation),
    (asyncpg.CheckViolationError, CheckViolation),
)
_POSTGRES_BUSY = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.TooManyConnectionsError,
)
POSTGRES_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    ConnectionError,
    OSError,
)


def translate_sqlite(error: sqlite3.Error) -> DatabaseError:
    """Turns an exception of sqlite3 into one of the adapter's."""
    name = getattr(error, "sqlite_errorname", None) or ""
    text = str(error)
    if name in _SQLITE_CONSTRAINTS:
        return _SQLITE_CONSTRAINTS[name](text, text.partition("failed: ")[2] or None)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return DatabaseBusy(text)
    if name == "SQLITE_INTERRUPT":
        return StatementTimeout(text)
    if name.startswith(_SQLITE_LOST):
        return DatabaseLost(text)
    return StatementError(text)


def translate_postgres(error: Exception) -> DatabaseError:
    """Turns an exception of asyncpg into one of the adapter's."""
    text = str(error) or type(error).__name__
    for theirs, ours in _POSTGRES_CONSTRAINTS:
        if isinstance(error, theirs):
            return ours(text, getattr(error, "constraint_name", None))
    if isinstance(error, (asyncio.TimeoutError, asyncpg.QueryCanceledError)):
        return StatementTimeout(text)
    if isinstance(error, _POSTGRES_BUSY):
        return DatabaseBusy(text)
    if isinstance(error, POSTGRES_LOST) or (isinstance(error, asyncpg.InterfaceError) and "closed" in text):
        return DatabaseLost(text)
    return StatementError(text)
