"""SQLite behind the interface, through aiosqlite: WAL, one writer at a time, the rest wait."""

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
from typing_extensions import override

from migrator.database.errors import DatabaseBusy, StatementError, StatementTimeout, translate_sqlite
from migrator.database.interface import Connection, Database
from migrator.database.placeholders import is_repeatable, to_sqlite
from migrator.database.rows import Row, SqliteTypes, encode_sqlite
from migrator.database.settings import DatabaseSettings
from migrator.logs import get_logger

T = TypeVar("T")
_CHANGES_SCHEMA = re.compile(r"\s*(CREATE|ALTER|DROP)\b", re.IGNORECASE)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise translate_sqlite(error) from error
    except (TypeError, ValueError, OverflowError) as error:
        raise StatementError(str(error)) from error


class SqliteConnection(Connection):
    """One of the pool's connections."""

    def __init__(self, raw: aiosqlite.Connection, database: "SqliteDatabase") -> None:
        self._raw = raw
        self._database = database
        self._depth = 0

    @override
    async def execute(self, statement: str, *arguments: Any) -> int:
        async with self._writing(statement):
            cursor = await self._limit(self._raw.execute(to_sqlite(statement), _encode(arguments)))
            touched = cursor.rowcount
            await cursor.close()
        if _CHANGES_SCHEMA.match(statement):
            await self._database.read_types()
        return max(touched, 0)

    @override
    async def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        async with self.transaction():
            await self._limit(self._raw.executemany(to_sqlite(statement), [_encode(row) for row in rows]))

    @override
    async def fetch(self, statement: str, *arguments: Any) -> list[Row]:
        async with self._writing(statement):
            cursor = await self._limit(self._raw.execute(to_sqlite(statement), _encode(arguments)))
            rows = list(await self._limit(cursor.fetchall()))
            names = [column[0] for column in cursor.description or ()]
            await cursor.close()
        return self._database.types.decode(statement, names, rows)

    @override
    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        if self._depth:
            async with self._nested():
                yield self
            return
        async with self._database.writer():
            await self._limit(self._raw.execute("BEGIN IMMEDIATE"))
            self._depth = 1
            try:
                yield self
            except BaseException:
                await self._roll_back()
                raise
            else:
                await self._commit()
            finally:
                self._depth = 0

    async def _commit(self) -> None:
        try:
            await self._limit(self._raw.execute("COMMIT"))
        except BaseException:
            await self._roll_back()
            raise

    async def _roll_back(self) -> None:
        # SQLite has undone the whole transaction by itself after some errors.
        with contextlib.suppress(sqlite3.Error):
            if self._raw.in_transaction:
                await asyncio.shield(self._raw.execute("ROLLBACK"))

    @asynccontextmanager
    async def _nested(self) -> AsyncIterator[None]:
        name = f"level_{self._depth}"
        await self._limit(self._raw.execute(f"SAVEPOINT {name}"))
        self._depth += 1
        try:
            yield
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                await asyncio.shield(self._raw.execute(f"ROLLBACK TO {name}"))
                await asyncio.shield(self._raw.execute(f"RELEASE {name}"))
            raise
        else:
            await self._limit(self._raw.execute(f"RELEASE {name}"))
        finally:
            self._depth -= 1

    @asynccontextmanager
    async def _writing(self, statement: str) -> AsyncIterator[None]:
        """Lets one writer of this process in at a time, so that they do not meet at the file's lock."""
        if self._depth or is_repeatable(statement):
            yield
        else:
            async with self._database.writer():
                yield

    async def _limit(self, work: Awaitable[T]) -> T:
        """Runs a call of the driver; one that takes too long is interrupted."""
        limit = self._database.settings.db_command_timeout
        task = asyncio.ensure_future(_await(work))
        try:
            with _translated():
                return await asyncio.wait_for(asyncio.shield(task), limit)
        except TimeoutError:
            await self._stop(task)
            raise StatementTimeout(f"the statement took longer than {limit:g} s (DB_COMMAND_TIMEOUT)") from None
        except asyncio.CancelledError:
            await self._stop(task)
            raise

    async def _stop(self, task: "asyncio.Task[T]") -> None:
        with contextlib.suppress(sqlite3.Error, ValueError):
            await self._raw.interrupt()
        # The connection's thread is busy until the statement has stopped.
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()


def _read_types(path: Path, timeout: float) -> SqliteTypes:
    connection = sqlite3.connect(path, timeout=timeout)
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchone()
        return SqliteTypes.read(connection)
    finally:
        connection.close()


async def _await(work: Awaitable[T]) -> T:
    return await work


def _encode(arguments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(map(encode_sqlite, arguments))


class SqliteDatabase(Database):
    """A pool of connections to one SQLite file."""

    kind = "sqlite"

    def __init__(self, settings: DatabaseSettings) -> None:
        self.settings = settings
        self.types = SqliteTypes({})
        self._free: list[aiosqlite.Connection] = []
        self._all: list[aiosqlite.Connection] = []
        self._slots = asyncio.Semaphore(settings.db_pool_max_size)
        self._write_lock = asyncio.Lock()

    @classmethod
    async def open(cls, settings: DatabaseSettings) -> "SqliteDatabase":
        """Opens the pool with its least number of connections and puts the file into WAL mode.

        Raises:
            DatabaseLost: the file cannot be opened or is no database.
        """
        database = cls(settings)
        await database.read_types()
        try:
            for _ in range(settings.db_pool_min_size):
                database._free.append(await database._connect())
        except BaseException:
            await database.close()
            raise
        get_logger().info(
            f"✅ SQLite pool created: {settings.db_pool_min_size}-{settings.db_pool_max_size} connections"
        )
        return database

    @property
    def _path(self) -> Path:
        if self.settings.database_path is None:
            raise AssertionError("checked by the settings")
        return self.settings.database_path

    async def _connect(self) -> aiosqlite.Connection:
        with _translated():
            raw = await aiosqlite.connect(self._path, isolation_level=None, timeout=self.settings.db_pool_timeout)
            self._all.append(raw)
            await raw.execute(f"PRAGMA foreign_keys = {int(self.settings.db_sqlite_foreign_keys)}")
        return raw

    async def read_types(self) -> None:
        """Puts the file into WAL mode and learns anew which columns there are."""
        with _translated():
            self.types = await asyncio.to_thread(_read_types, self._path, self.settings.db_pool_timeout)

    @override
    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        await self._take(self._slots, f"all {self.settings.db_pool_max_size} connections are in use (DB_POOL_MAX_SIZE)")
        try:
            raw = self._free.pop() if self._free else await self._connect()
            try:
                yield SqliteConnection(raw, self)
            finally:
                self._free.append(raw)
        finally:
            self._slots.release()

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[None]:
        """Lets one writer in."""
        await self._take(self._write_lock, "another writer of this process is at work")
        try:
            yield
        finally:
            self._write_lock.release()

    async def _take(self, gate: asyncio.Semaphore | asyncio.Lock, reason: str) -> None:
        try:
            await asyncio.wait_for(gate.acquire(), self.settings.db_pool_timeout)
        except TimeoutError:
            raise DatabaseBusy(f"waited {self.settings.db_pool_timeout:g} s: {reason}") from None

    @override
    async def close(self) -> None:
        for raw in self._all:
            with contextlib.suppress(sqlite3.Error, ValueError):
                await raw.close()
        self._all.clear()
        self._free.clear()
