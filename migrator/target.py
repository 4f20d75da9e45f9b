"""The PostgreSQL side before anything is loaded: connection, lock, and what tables are there."""

import asyncio
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
import tenacity

from migrator.clients import Database
from migrator.datatypes import MOMENT_KINDS, DataType, Kind
from migrator.errors import LockedError, PasswordError, TargetError, TransientError
from migrator.logs import Logger, get_logger
from migrator.queries import load_query

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    # asyncpg has type parameters in its stubs alone.
    Connection = asyncpg.Connection

MINIMUM_SERVER = 140000
# An arbitrary constant of the project; advisory locks are per database, and so per client.
LOCK_KEY = 0x6D69_6772_6174_6521
CONNECT_ATTEMPT_SECONDS = 10.0
LOCK_POLL_SECONDS = 0.5

TRANSIENT = (
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InterfaceError,
    ConnectionError,
    TimeoutError,
)


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """A column that exists; ``sequence`` is the one that feeds it, ready for use in SQL."""

    name: str
    datatype: DataType
    not_null: bool
    has_default: bool
    identity_always: bool
    generated: bool
    sequence: str | None


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """A unique key: its parts as SQL over the table's columns; ``predicate`` if it is partial.

    ``columns`` names the columns of a key that is made of nothing but columns, else it is empty.
    """

    name: str
    primary: bool
    parts: tuple[str, ...]
    columns: tuple[str, ...]
    predicate: str | None
    nulls_equal: bool


@dataclass(frozen=True, slots=True)
class TargetCheck:
    """A CHECK constraint of the target."""

    name: str
    expression: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key between tables of the target."""

    name: str
    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    deferrable: bool
    deferred: bool
    validated: bool
    definition: str


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table that exists in the target schema."""

    name: str
    owner: str
    owned: bool
    writable: bool
    columns: tuple[TargetColumn, ...]
    keys: tuple[UniqueKey, ...]
    checks: tuple[TargetCheck, ...]
    references: tuple[Reference, ...]
    triggers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """The schema into which a client is loaded."""

    schema: str
    server_version: str
    version_number: int
    tables: Mapping[str, TargetTable]


def quote_name(name: str) -> str:
    """Quotes a name for PostgreSQL.

    >>> quote_name('a "b" c')
    '"a ""b"" c"'
    """
    return '"' + name.replace('"', '""') + '"'


def quote_literal(text: str) -> str:
    r"""Quotes a string for PostgreSQL.

    >>> quote_literal("it's"), quote_literal("a\\b")
    ("'it''s'", "E'a\\\\b'")
    """
    quoted = "'" + text.replace("'", "''") + "'"
    return quoted if "\\" not in text else "E" + quoted.replace("\\", "\\\\")


@asynccontextmanager
async def connect(database: Database, *, connect_timeout: float = 60.0) -> AsyncIterator[Connection]:
    """Opens a connection; while the server starts or restarts, it tries again.

    Args:
        database: where to, and as whom.
        connect_timeout: for how long, in seconds, a server that does not answer is tried.

    Raises:
        PasswordError: the role or its password is refused; this is not tried again.
        TargetError: the server cannot be reached in time, is too old, or has no such database.
    """
    connection = await _connect_with_retry(database, connect_timeout)
    try:
        yield connection
    finally:
        try:
            await connection.close(timeout=5)
        except (*TRANSIENT, asyncpg.PostgresError):
            connection.terminate()


def log_retry(log: Logger, event: str, **facts: str) -> Callable[[tenacity.RetryCallState], None]:
    """Makes what tenacity calls before it waits: it logs which attempt failed, why, and how long the wait is."""

    def tell(state: tenacity.RetryCallState) -> None:
        outcome = state.outcome.exception() if state.outcome else None
        log.warning(
            event,
            **facts,
            attempt=state.attempt_number,
            wait_seconds=round(state.upcoming_sleep, 2),
            reason=str(outcome),
        )

    return tell


async def _connect_with_retry(database: Database, connect_timeout: float) -> Connection:
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=8),
        stop=tenacity.stop_after_delay(connect_timeout),
        before_sleep=log_retry(get_logger(), "connect_retried", address=database.address),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await _connect_once(database)
    raise AssertionError("unreachable")  # pragma: no cover


async def _connect_once(database: Database) -> Connection:
    password = database.password.get_secret_value() if database.password else None
    try:
        return await asyncpg.connect(
            host=database.host,
            port=database.port,
            user=database.role,
            database=database.name,
            password=password,
            timeout=CONNECT_ATTEMPT_SECONDS,
            statement_cache_size=0,
            server_settings={
                "application_name": "migrator",
                "timezone": "UTC",
                "datestyle": "ISO, YMD",
                "extra_float_digits": "1",
                "standard_conforming_strings": "on",
                "statement_timeout": "0",
                "idle_in_transaction_session_timeout": "0",
                "idle_session_timeout": "0",
                # A worker whose machine is gone must not keep its claim for the system's two hours.
                "tcp_keepalives_idle": "30",
                "tcp_keepalives_interval": "10",
                "tcp_keepalives_count": "3",
            },
        )
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise PasswordError(
            f"{database.address} refuses the role or its password: {error}. Check the file "
            f"{database.role.removesuffix('_user')}_password in SECRETS_DIR"
        ) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise TargetError(
            f"{database.address}: the database does not exist. "
            f"'make add-client CLIENT={database.name.removesuffix('_db')}' makes it"
        ) from error
    except (*TRANSIENT, OSError) as error:
        raise TransientError(f"{database.address} cannot be reached: {_describe(error)}") from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise TargetError(f"{database.address} cannot be entered: {error}") from error


def _describe(error: BaseException | None) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_ATTEMPT_SECONDS:g} s"
    if isinstance(error, socket.gaierror):
        return f"the host's name is unknown ({error.strerror})"
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "connection refused; is the server running ('make up')?"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason})"
    return str(error) or type(error).__name__


async def lock_client(connection: Connection, client: str, *, lock_timeout: float) -> None:
    """Takes the client's lock, which the server gives back when the connection ends, however it ends.

    Raises:
        LockedError: another run still holds it after ``lock_timeout`` seconds.
    """
    deadline = asyncio.get_running_loop().time() + lock_timeout
    waiting = False
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
        holder = await connection.fetchrow(load_query("lock_holder"), LOCK_KEY)
        if asyncio.get_running_loop().time() >= deadline:
            raise LockedError(
                f"{client}: another run is at work on this client{_describe_holder(holder)}. Wait for it to end"
            )
        if not waiting:
            get_logger().info("lock_awaited", holder_pid=holder["pid"] if holder else None)
            waiting = True
        await asyncio.sleep(LOCK_POLL_SECONDS)


def _describe_holder(holder: asyncpg.Record | None) -> str:
    if holder is None:
        return ""
    seconds = (datetime.now(UTC) - holder["backend_start"]).total_seconds()
    return f" (server process {holder['pid']}, from {holder['address'] or 'this machine'}, for {seconds:.0f} s)"


async def read_target(connection: Connection) -> Target:
    """Reads which tables the connection's current schema holds.

    Raises:
        TargetError: the server is too old, the database is not UTF-8, or there is no schema.
    """
    number = int(await connection.fetchval("SHOW server_version_num"))
    version = str(await connection.fetchval("SHOW server_version"))
    if number < MINIMUM_SERVER:
        raise TargetError(f"the server is PostgreSQL {version}; 14 or newer is needed")
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise TargetError(
            f"the database's encoding is {encoding}; make it with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    schema = await connection.fetchval("SELECT current_schema()")
    if schema is None:
        raise TargetError("the role's search_path names no schema that exists and that it may use")
    tables = await _read_tables(connection, schema)
    return Target(schema=schema, server_version=version, version_number=number, tables=tables)


async def _read_tables(connection: Connection, schema: str) -> dict[str, TargetTable]:
    columns: dict[str, list[TargetColumn]] = defaultdict(list)
    for row in await connection.fetch(load_query("target_columns"), schema):
        columns[row["table_name"]].append(_make_column(row))
    keys: dict[str, list[UniqueKey]] = defaultdict(list)
    for row in await connection.fetch(load_query("target_keys"), schema):
        keys[row["table_name"]].append(
            UniqueKey(
                name=row["key_name"],
                primary=row["is_primary"],
                parts=tuple(row["parts"]),
                columns=tuple(row["columns"]) if row["plain"] else (),
                predicate=row["predicate"],
                nulls_equal=row["nulls_equal"],
            )
        )
    checks: dict[str, list[TargetCheck]] = defaultdict(list)
    references: dict[str, list[Reference]] = defaultdict(list)
    for row in await connection.fetch(load_query("target_constraints"), schema):
        if row["kind"] == b"c":
            checks[row["table_name"]].append(TargetCheck(row["constraint_name"], row["expression"]))
        elif row["parent_schema"] == schema:
            references[row["table_name"]].append(_make_reference(row))
    return {
        row["table_name"]: TargetTable(
            name=row["table_name"],
            owner=row["owner"],
            owned=row["owned"],
            writable=row["writable"],
            columns=tuple(columns[row["table_name"]]),
            keys=tuple(keys[row["table_name"]]),
            checks=tuple(checks[row["table_name"]]),
            references=tuple(references[row["table_name"]]),
            triggers=tuple((text[:-2], text[-1]) for text in row["triggers"]),
        )
        for row in await connection.fetch(load_query("target_tables"), schema)
    }


def _make_column(row: asyncpg.Record) -> TargetColumn:
    default = row["default_sql"] or ""
    sequence = row["owned_sequence"]
    if sequence is None and default.startswith("nextval('"):
        sequence = default.removeprefix("nextval('").split("'::")[0]
    return TargetColumn(
        name=row["column_name"],
        datatype=_make_datatype(row["type_name"], row["type_sql"], row["type_modifier"]),
        not_null=row["not_null"],
        has_default=row["has_default"],
        identity_always=row["identity"] == b"a",
        generated=row["generated"],
        sequence=sequence,
    )


def _make_reference(row: asyncpg.Record) -> Reference:
    return Reference(
        name=row["constraint_name"],
        columns=tuple(row["columns"]),
        parent=row["parent_name"],
        parent_columns=tuple(row["parent_columns"]),
        deferrable=row["deferrable"],
        deferred=row["deferred"],
        validated=row["validated"],
        definition=row["definition"],
    )


def _make_datatype(name: str, sql: str, modifier: int) -> DataType:
    """Reads a type modifier as ``format_type`` does (src/backend/utils/adt of PostgreSQL)."""
    try:
        kind = Kind(name)
    except ValueError:
        return DataType(Kind.OTHER, sql)
    if modifier < 0:
        return DataType(kind, sql, length=1 if kind is Kind.CHAR else None)
    if kind in (Kind.VARCHAR, Kind.CHAR):
        return DataType(kind, sql, length=modifier - 4)
    if kind is Kind.NUMERIC:
        precision = ((modifier - 4) >> 16) & 0xFFFF
        scale = (((modifier - 4) & 0x7FF) ^ 1024) - 1024
        return DataType(kind, sql, precision=precision, scale=scale)
    if kind in MOMENT_KINDS or kind is Kind.TIME:
        return DataType(kind, sql, scale=modifier)
    return DataType(kind, sql)
