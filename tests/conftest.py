"""A real PostgreSQL for the whole session, and a database of its own for each test."""

import asyncio
import itertools
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from bench.embedded import EmbeddedServer
from migrator.clients import Client, Database
from migrator.comparison import verify_client
from migrator.load import LoadOptions
from migrator.logs import configure_logs
from migrator.migration import migrate_client
from migrator.report import Report
from migrator.run import JobOptions

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    with (
        tempfile.TemporaryDirectory(prefix="migrator-tests-") as folder,
        EmbeddedServer(Path(folder)) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def _logs() -> None:
    configure_logs()


class Lab:
    """One client: a SQLite file that the test fills, and an empty database that its role may use."""

    def __init__(self, server: EmbeddedServer, folder: Path) -> None:
        number = next(_NUMBERS)
        name = f"lab_{number}"
        server.run_sql(f"CREATE ROLE {name}_user LOGIN PASSWORD 'secret'")
        server.run_sql(f"CREATE DATABASE {name}_db ENCODING 'UTF8' TEMPLATE template0")
        server.run_sql(f"GRANT CREATE ON DATABASE {name}_db TO {name}_user")
        server.run_sql(f"GRANT ALL ON SCHEMA public TO {name}_user", database=f"{name}_db")
        self.server = server
        self.folder = folder
        self.database = Database("127.0.0.1", server.port, f"{name}_db", f"{name}_user", SecretStr("secret"))
        self.client = Client(name, folder / "bookings.db", self.database)
        self.options = JobOptions(
            load=LoadOptions(),
            work_dir=folder / "work",
            reports_dir=folder / "reports",
            connect_timeout=5,
        )

    def fill(self, script: str, *rows: tuple[str, list[tuple[Any, ...]]]) -> Path:
        """Runs a script in the SQLite file, then statements with their rows."""
        connection = sqlite3.connect(self.client.sqlite_path)
        connection.executescript(script)
        for statement, values in rows:
            connection.executemany(statement, values)
        connection.commit()
        connection.close()
        return self.client.sqlite_path

    def set_load(self, **changes: Any) -> None:
        """Changes how the next run loads."""
        self.options = replace(self.options, load=replace(self.options.load, **changes))

    def migrate(self, **changes: Any) -> Report:
        """Migrates and checks what holds of every report: no row left the accounting."""
        report = asyncio.run(migrate_client(self.client, replace(self.options, **changes)))
        for table in report.tables:
            assert table.adds_up, table
        return report

    def verify(self) -> Report:
        return asyncio.run(verify_client(self.client, self.options))

    def run(self, work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Runs a coroutine function with a connection as the client's role."""

        async def connected() -> Any:
            connection = await asyncpg.connect(
                host="127.0.0.1",
                port=self.server.port,
                user=self.database.role,
                password="secret",
                database=self.database.name,
            )
            try:
                return await work(connection)
            finally:
                await connection.close()

        return asyncio.run(connected())

    def fetch(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        async def work(connection: Any) -> Any:
            return [tuple(row) for row in await connection.fetch(query, *arguments)]

        rows: list[tuple[Any, ...]] = self.run(work)
        return rows

    def execute(self, script: str) -> None:
        async def work(connection: Any) -> None:
            await connection.execute(script)

        self.run(work)

    def list_tables(self) -> list[str]:
        return [row[0] for row in self.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]

    def columns(self, table: str) -> dict[str, str]:
        """Gives a target table's columns and their types."""
        return dict(
            self.fetch(
                "SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute"
                " WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                f'public."{table}"',
            )
        )

    def rejected(self) -> list[tuple[Any, ...]]:
        return self.fetch(
            "SELECT table_name, row_number, verdict, column_name, sqlstate FROM migrator.rejected_rows"
            " ORDER BY table_name, row_number, verdict"
        )


@pytest.fixture
def lab(server: EmbeddedServer, tmp_path: Path) -> Lab:
    return Lab(server, tmp_path)


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gives the command that runs the project as its users do, with none of its settings set."""
    for name in (
        "CLIENTS_DIR",
        "REPORTS_DIR",
        "BACKUPS_DIR",
        "SECRETS_DIR",
        "POSTGRES_HOST",
        "POSTGRES_PORT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    return [sys.executable, "-m", "migrator"]
