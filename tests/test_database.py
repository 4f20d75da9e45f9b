"""The adapter's parts: placeholders, settings, its imports, its end on a signal, its health command."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from migrator.database.placeholders import is_repeatable, to_sqlite
from migrator.database.rows import SqliteTypes
from migrator.database.settings import load_database_settings
from migrator.errors import ConfigurationError


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT $1", "SELECT ?1"),
        ("VALUES ($2, $10, $1, $2)", "VALUES (?2, ?10, ?1, ?2)"),
        ("SELECT 'it''s $1', \"$1\", $1", "SELECT 'it''s $1', \"$1\", ?1"),
        ("SELECT 1 -- $1\n, $1 /* $2 */", "SELECT 1 -- $1\n, ?1 /* $2 */"),
        ("SELECT $tag$ $1 it's $tag$, $1", "SELECT ' $1 it''s ', ?1"),
        ("SELECT $$a$$", "SELECT 'a'"),
        ("SELECT E'a\\'b\\n$1', $1", "SELECT 'a''b\n$1', ?1"),
        ("SELECT $1::int", "SELECT CAST(?1 AS INTEGER)"),
        ("SELECT $1::timestamp with time zone, $2", "SELECT ?1, ?2"),
        ("SELECT a::varchar(20), b.c :: numeric(5, 2)", "SELECT CAST(a AS TEXT), CAST(b.c AS NUMERIC)"),
        ("SELECT count(a + $1)::bigint::text", "SELECT CAST(CAST(count(a + ?1) AS INTEGER) AS TEXT)"),
        ("SELECT '5'::int + 'a::b'", "SELECT CAST('5' AS INTEGER) + 'a::b'"),
        ("SELECT a$1, b FROM t$2", "SELECT a$1, b FROM t$2"),
        ("UPDATE t SET a=$2 WHERE b=$1", "UPDATE t SET a=?2 WHERE b=?1"),
    ],
)
def test_placeholders(statement: str, expected: str) -> None:
    assert to_sqlite(statement) == expected


def test_placeholders_are_bound_as_written() -> None:
    connection = sqlite3.connect(":memory:")
    query = to_sqlite("SELECT $2::int + 1, $1, $2, 'x$1'")
    assert connection.execute(query, ("a", "5")).fetchone() == (6, "a", "5", "x$1")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES (1)",
        "WITH x AS (UPDATE t SET a = 1 RETURNING a) SELECT * FROM x",
        "SELECT * FROM t FOR UPDATE",
        "SELECT nextval('s')",
        "SELECT pg_advisory_lock(1)",
        "SELECT a INTO b FROM t",
        "",
    ],
)
def test_what_may_not_be_sent_twice(statement: str) -> None:
    assert not is_repeatable(statement)


def test_types_of_an_answer_come_from_the_tables_that_are_named() -> None:
    types = SqliteTypes({"a": {"date": "TEXT", "value": "BOOLEAN"}, "b": {"value": "TEXT"}})
    (row,) = types.decode("SELECT date, value FROM a", ["date", "value"], [("2024-01-01", 1)])
    assert repr(row.values()) == "[datetime.date(2024, 1, 1), True]"
    (row,) = types.decode("SELECT value FROM a JOIN b", ["value"], [(1,)])
    assert row[0] == 1 and row[0] is not True
    (row,) = types.decode("SELECT date FROM a", ["date"], [("no date",)])
    assert row[0] == "no date"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DB_TYPE": "oracle"}, "DB_TYPE='oracle' cannot be used. DB_TYPE takes: sqlite or postgresql"),
        ({"DB_TYPE": "sqlite"}, "DATABASE_PATH is not set, and DB_TYPE is sqlite"),
        ({"DB_TYPE": "postgresql"}, "DATABASE_URL is not set, and DB_TYPE is postgresql"),
        ({"DB_TYPE": "postgresql", "DATABASE_URL": "mysql://a:hidden@b/c"}, "DATABASE_URL does not look like"),
        ({"DATABASE_PATH": "x", "DB_POOL_MIN_SIZE": "0"}, "DB_POOL_MIN_SIZE='0' cannot be used"),
        ({"DATABASE_PATH": "x", "DB_POOL_MIN_SIZE": "9", "DB_POOL_MAX_SIZE": "3"}, "is more than DB_POOL_MAX_SIZE=3"),
        ({"DATABASE_PATH": "x", "DB_POOL_TIMEOUT": "soon"}, "DB_POOL_TIMEOUT='soon' cannot be used"),
        ({"DATABASE_PATH": "x", "DB_COMMAND_TIMEOUT": "-1"}, "DB_COMMAND_TIMEOUT='-1' cannot be used"),
    ],
)
def test_setting_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_database_settings()
    assert message in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_settings_are_logged_without_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DB_TYPE", "postgresql")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hidden@host:5432/db")
    settings = load_database_settings()
    assert (settings.db_pool_min_size, settings.db_pool_max_size) == (5, 20)
    assert (settings.db_pool_timeout, settings.db_command_timeout) == (30, 60)
    printed = capsys.readouterr().out
    assert "postgresql://me:***@host:5432/db" in printed
    assert "hidden" not in printed + repr(settings)


def test_import_brings_neither_docker_nor_the_stages() -> None:
    script = (
        "import sys, migrator.database;"
        "print([n for n in sys.modules if n == 'docker' or n in ('click', 'sqlglot')"
        " or n.startswith('migrator.') and n.split('.')[1] not in ('database', 'datatypes', 'errors', 'logs')])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


BOT = """
import asyncio, sys
from migrator.database import load_database_settings, open_database, run_until_stopped

async def work(database):
    await database.execute("CREATE TABLE IF NOT EXISTS t (a INT)")
    async with database.transaction() as connection:
        await connection.execute("INSERT INTO t VALUES (1)")
        print("ready", flush=True)
        await asyncio.sleep(60)

async def main():
    await run_until_stopped(await open_database(), work)

asyncio.run(main())
"""


def test_sigterm_undoes_what_is_open_and_closes(tmp_path: Path) -> None:
    path = tmp_path / "bookings.db"
    bot = subprocess.Popen(
        [sys.executable, "-c", BOT], stdout=subprocess.PIPE, text=True, env={**os.environ, "DATABASE_PATH": str(path)}
    )
    assert bot.stdout is not None
    while "ready" not in bot.stdout.readline():
        assert bot.poll() is None
    started = time.monotonic()
    bot.send_signal(signal.SIGTERM)
    output, _ = bot.communicate(timeout=30)
    assert bot.returncode == 0
    assert time.monotonic() - started < 20
    assert "shutdown_requested" in output and "database_closed" in output
    assert not path.with_name("bookings.db-wal").exists()
    assert sqlite3.connect(path).execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_health_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "migrator.database"]
    good = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "DATABASE_PATH": str(tmp_path / "a.db")},
    )
    assert (good.returncode, good.stderr) == (0, "healthy: sqlite\n")
    bad = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "DATABASE_PATH": str(tmp_path / "no" / "a.db")},
    )
    assert bad.returncode == 1
    assert "unhealthy: unable to open database file" in bad.stderr
