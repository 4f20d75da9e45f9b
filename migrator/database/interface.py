"""What a bot sees: one interface, whichever database is behind it."""

import asyncio
import contextlib
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import tenacity

from migrator.database.errors import DatabaseError, DatabaseLost
from migrator.database.placeholders import is_repeatable
from migrator.database.rows import Row
from migrator.logs import get_logger

T = TypeVar("T")
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the database answers, how fast in seconds, and otherwise why not."""

    ok: bool
    database: str
    latency_seconds: float
    detail: str | None = None


class Connection(ABC):
    """One connection, taken from the pool for some statements."""

    @abstractmethod
    async def execute(self, statement: str, *arguments: Any) -> int:
        """Runs a statement and gives the number of rows that it touched."""

    @abstractmethod
    async def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement once for each row of arguments, all or none of them."""

    @abstractmethod
    async def fetch(self, statement: str, *arguments: Any) -> list[Row]:
        """Gives all rows of the answer."""

    async def fetchrow(self, statement: str, *arguments: Any) -> Row | None:
        """Gives the first row of the answer, or None."""
        rows = await self.fetch(statement, *arguments)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *arguments: Any, column: int = 0) -> Any:
        """Gives one value of the first row of the answer, or None."""
        row = await self.fetchrow(statement, *arguments)
        return None if row is None else row[column]

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager["Connection"]:
        """Begins a transaction, or within one a savepoint; an exception undoes it."""


class Database(ABC):
    """A pool of connections; statements outside ``transaction()`` are committed one by one."""

    kind: str

    @abstractmethod
    def acquire(self) -> AbstractAsyncContextManager[Connection]:
        """Takes a connection for a while.

        Raises:
            DatabaseBusy: none became free within ``DB_POOL_TIMEOUT``.
        """

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Takes a connection and begins a transaction on it; for a nested one, use the connection's own."""
        async with self.acquire() as connection, connection.transaction():
            yield connection

    async def execute(self, statement: str, *arguments: Any) -> int:
        """Runs a statement and gives the number of rows that it touched."""
        return await self._run(statement, lambda connection: connection.execute(statement, *arguments))

    async def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement once for each row of arguments, all or none of them."""
        async with self.acquire() as connection:
            await connection.executemany(statement, rows)

    async def fetch(self, statement: str, *arguments: Any) -> list[Row]:
        """Gives all rows of the answer."""
        return await self._run(statement, lambda connection: connection.fetch(statement, *arguments))

    async def fetchrow(self, statement: str, *arguments: Any) -> Row | None:
        """Gives the first row of the answer, or None."""
        return await self._run(statement, lambda connection: connection.fetchrow(statement, *arguments))

    async def fetchval(self, statement: str, *arguments: Any, column: int = 0) -> Any:
        """Gives one value of the first row of the answer, or None."""
        return await self._run(statement, lambda connection: connection.fetchval(statement, *arguments, column=column))

    async def _run(self, statement: str, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Runs one statement; where the connection is lost it is sent again only if it merely reads."""
        if not is_repeatable(statement):
            async with self.acquire() as connection:
                return await work(connection)
        async for attempt in _retry_lost("statement_retried"):
            with attempt:
                async with self.acquire() as connection:
                    return await work(connection)
        raise AssertionError("unreachable")  # pragma: no cover

    async def check_health(self, timeout: float = 5.0) -> Health:  # noqa: ASYNC109 - part of the answer, not a scope
        """Asks the database for an answer; it never raises."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(timeout), self.acquire() as connection:
                await connection.fetchval("SELECT 1")
        except TimeoutError:
            return Health(False, self.kind, time.monotonic() - started, f"no answer within {timeout:g} s")
        except DatabaseError as error:
            return Health(False, self.kind, time.monotonic() - started, str(error))
        return Health(True, self.kind, time.monotonic() - started)

    @abstractmethod
    async def close(self) -> None:
        """Waits for statements that run, and closes all connections."""

    async def __aenter__(self) -> "Database":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _retry_lost(event: str) -> tenacity.AsyncRetrying:
    def tell(state: tenacity.RetryCallState) -> None:
        outcome = state.outcome.exception() if state.outcome else None
        get_logger().warning(event, attempt=state.attempt_number, reason=str(outcome))

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(DatabaseLost),
        wait=tenacity.wait_random_exponential(multiplier=0.1, max=3),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        before_sleep=tell,
        reraise=True,
    )


async def run_until_stopped(database: Database, work: Callable[[Database], Awaitable[None]]) -> None:
    """Runs a bot until it ends or the process is told to (SIGTERM, SIGINT), and closes the database.

    On a signal the work is cancelled, which undoes its open transactions; then the pool is closed.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work(database))
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, _stop, task, name)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)
        await database.close()
        get_logger().info("database_closed", database=database.kind)


def _stop(task: "asyncio.Future[None]", name: signal.Signals) -> None:
    get_logger().info("shutdown_requested", signal=name.name)
    task.cancel()
