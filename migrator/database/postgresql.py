"""PostgreSQL behind the interface, through asyncpg's pool."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import time
from typing import Any

import asyncpg
from typing_extensions import override

from migrator.database.errors import DatabaseBusy, translate_postgres
from migrator.database.interface import Connection, Database
from migrator.database.rows import (
    Row,
    decode_boolean,
    decode_date,
    decode_moment,
    encode_boolean,
    encode_json,
    encode_text,
)
from migrator.database.settings import DatabaseSettings
from migrator.logs import get_logger

_DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, asyncio.TimeoutError)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _DRIVER_ERRORS as error:
        raise translate_postgres(error) from error
    except (TypeError, ValueError, OverflowError) as error:
        # asyncpg says so of an argument that does not fit its parameter.
        raise translate_postgres(error) from error


class PostgresConnection(Connection):
    """One of the pool's connections."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    @override
    async def execute(self, statement: str, *arguments: Any) -> int:
        with _translated():
            status = await self._raw.execute(statement, *arguments)
        last = str(status).rpartition(" ")[2]
        return int(last) if last.isdigit() else 0

    @override
    async def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        with _translated():
            await self._raw.executemany(statement, rows)

    @override
    async def fetch(self, statement: str, *arguments: Any) -> list[Row]:
        with _translated():
            records = await self._raw.fetch(statement, *arguments)
        if not records:
            return []
        names = list(records[0].keys())
        return [Row(names, tuple(record)) for record in records]

    @override
    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        transaction = self._raw.transaction()
        with _translated():
            await transaction.start()
        try:
            yield self
        except BaseException:
            with contextlib.suppress(*_DRIVER_ERRORS):
                await transaction.rollback()
            raise
        with _translated():
            await transaction.commit()


class PostgresDatabase(Database):
    """A pool of connections to one PostgreSQL database."""

    kind = "postgresql"

    def __init__(self, pool: Any, settings: DatabaseSettings) -> None:
        self._pool = pool
        self._settings = settings

    @classmethod
    async def open(cls, settings: DatabaseSettings) -> "PostgresDatabase":
        """Opens the pool with its least number of connections.

        Raises:
            DatabaseLost: the server cannot be reached or refuses the role.
        """
        if settings.database_url is None:
            raise AssertionError("checked by the settings")
        with _translated():
            pool = await asyncpg.create_pool(
                settings.database_url.get_secret_value(),
                min_size=settings.db_pool_min_size,
                max_size=settings.db_pool_max_size,
                command_timeout=settings.db_command_timeout,
                timeout=settings.db_pool_timeout,
                init=_prepare,
                server_settings={"application_name": "booking-bot", "timezone": "UTC", "datestyle": "ISO, YMD"},
            )
        get_logger().info(
            f"✅ PostgreSQL pool created: {settings.db_pool_min_size}-{settings.db_pool_max_size} connections"
        )
        return cls(pool, settings)

    @override
    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        try:
            with _translated():
                raw = await asyncio.wait_for(self._pool.acquire(), self._settings.db_pool_timeout)
        except Exception as error:
            if isinstance(error.__cause__, TimeoutError):
                raise DatabaseBusy(
                    f"no connection became free within {self._settings.db_pool_timeout:g} s: all "
                    f"{self._settings.db_pool_max_size} are in use (DB_POOL_MAX_SIZE)"
                ) from error.__cause__
            raise
        try:
            yield PostgresConnection(raw)
        finally:
            with contextlib.suppress(*_DRIVER_ERRORS):
                await self._pool.release(raw)

    @override
    async def close(self) -> None:
        try:
            await asyncio.wait_for(self._pool.close(), self._settings.db_command_timeout)
        except TimeoutError:
            self._pool.terminate()


async def _prepare(raw: Any) -> None:
    """Gives a connection the types that the interface promises on both databases."""
    codecs: dict[str, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
        "date": (encode_text, decode_date),
        "time": (encode_text, time.fromisoformat),
        "timestamp": (encode_text, decode_moment),
        "timestamptz": (encode_text, decode_moment),
        "bool": (encode_boolean, decode_boolean),
        "json": (encode_json, json.loads),
        "jsonb": (encode_json, json.loads),
    }
    for name, (encoder, decoder) in codecs.items():
        await raw.set_type_codec(name, schema="pg_catalog", encoder=encoder, decoder=decoder, format="text")
