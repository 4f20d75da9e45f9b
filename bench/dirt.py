"""Measures what pgloader and this project make of each kind of dirt, and writes docs/DIRT.md.

Each kind has an SQLite file of its own, with good rows around the bad one, and a question to the
target with the answer that keeps the value's meaning. Both tools run with their defaults.
"""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.embedded import ADMIN, EmbeddedServer

DOCUMENT = Path("docs/DIRT.md")
_GOOD_ROWS = 50
_PASSWORD = "measured"


@dataclass(frozen=True, slots=True)
class Dirt:
    """One kind: the statements that make it, what to ask, and the answer that loses nothing.

    ``rows`` is how many rows the tables hold in SQLite; ``table`` the table that is counted.
    """

    name: str
    script: str
    question: str
    answer: str
    table: str = "t"


def _rows(columns: str, good: str, bad: str, extra: str = "") -> str:
    many = "".join(f"INSERT INTO t VALUES ({n}, {good});" for n in range(1, _GOOD_ROWS))
    return (
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, {columns}{extra}); {many} INSERT INTO t VALUES ({_GOOD_ROWS}, {bad});"
    )


def _value(name: str, declared: str, good: str, bad: str, answer: str, question: str = "v::text") -> Dirt:
    return Dirt(name, _rows(f"v {declared}", good, bad), f"SELECT {question} FROM t WHERE id = {_GOOD_ROWS}", answer)


KINDS = (
    _value("U+0000 in a text", "TEXT", "'x'", "'a' || char(0) || 'b'", "-"),
    _value("bytes that are no UTF-8 in a text", "TEXT", "'x'", "CAST(x'61ff62' AS TEXT)", "-"),
    _value("text in an INTEGER column", "INTEGER", "1", "'many'", "-"),
    _value("empty string in a DATE column", "DATE", "'2024-01-01'", "''", "-"),
    _value("a day that does not exist (2025-02-30)", "DATE", "'2024-01-01'", "'2025-02-30'", "-"),
    _value("a moment with an offset (+03:00)", "TIMESTAMP", "'2024-01-01 10:00:00'", "'2024-01-01T10:00:00+03:00'",
           "1704092400", "extract(epoch FROM v)::bigint"),
    _value("epoch seconds in a TIMESTAMP column", "TIMESTAMP", "'2024-01-01 10:00:00'", "1700000000", "1700000000",
           "extract(epoch FROM v)::bigint"),
    _value("a Julian day in a DATETIME column", "DATETIME", "'2024-01-01 10:00:00'", "2460000.5", "1677283200",
           "extract(epoch FROM v)::bigint"),
    _value("a 64-bit integer", "INTEGER", "1", "9223372036854775807", "9223372036854775807"),
    _value("2 in a BOOLEAN column", "BOOLEAN", "1", "2", "-"),
    _value("'yes' in a BOOLEAN column", "BOOLEAN", "1", "'yes'", "true"),
    _value("infinity in a REAL column", "REAL", "1.5", "9e999", "Infinity"),
    _value("a double to its last bit (0.1 + 0.2)", "REAL", "1.5", "0.1 + 0.2", "0.30000000000000004", "v::float8::text"),
    _value("a blob in a TEXT column", "TEXT", "'x'", "x'00ff'", "-"),
    _value("a type that no tool knows (\"number\")", "number", "1.5", "2.25", "2.25", "v::float8::text"),
    _value("ten letters in a VARCHAR(5)", "VARCHAR(5)", "'x'", "'abcdefghij'", "-"),
    _value("JSON that is broken", "JSON", "'{}'", "'{broken'", "-"),
    _value("a large number in a DECIMAL(5,2)", "DECIMAL(5,2)", "1.25", "123456.789", "-"),
    Dirt("a row whose foreign key points nowhere",
         "CREATE TABLE p (id INTEGER PRIMARY KEY); INSERT INTO p VALUES (1);"
         "CREATE TABLE t (id INTEGER PRIMARY KEY, p_id INTEGER REFERENCES p(id)); INSERT INTO t VALUES (1, 1), (2, 99);",
         "SELECT p_id FROM t WHERE id = 2", "99"),
    Dirt("that foreign key itself",
         "CREATE TABLE p (id INTEGER PRIMARY KEY); INSERT INTO p VALUES (1);"
         "CREATE TABLE t (id INTEGER PRIMARY KEY, p_id INTEGER REFERENCES p(id)); INSERT INTO t VALUES (1, 1), (2, 99);",
         "SELECT count(*) FROM pg_constraint WHERE contype = 'f'", "1"),
    Dirt("a foreign key to a column that does not exist",
         "CREATE TABLE p (pid INTEGER PRIMARY KEY); CREATE TABLE t (id INTEGER PRIMARY KEY, x INTEGER REFERENCES p(id));"
         "INSERT INTO t VALUES (1, 7);", "SELECT x FROM t", "7"),
    Dirt("NULL in a TEXT PRIMARY KEY",
         "CREATE TABLE t (k TEXT PRIMARY KEY, v INT);" + "".join(f"INSERT INTO t VALUES ('k{n}', {n});" for n in range(40))
         + "INSERT INTO t VALUES (NULL, 99);", "SELECT count(*) FROM t WHERE v = 99", "-"),
    Dirt("a table WITHOUT ROWID", "CREATE TABLE t (a TEXT, b INT, PRIMARY KEY (b, a)) WITHOUT ROWID; INSERT INTO t VALUES ('x', 1);",
         "SELECT a FROM t", "x"),
    Dirt("a generated column", "CREATE TABLE t (a INT, b INT GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO t (a) VALUES (4);",
         "SELECT b FROM t", "8"),
    Dirt("a CHECK constraint", "CREATE TABLE t (a INT CHECK (a > 0)); INSERT INTO t VALUES (1);",
         "SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace", "1"),
    Dirt("a unique key that ignores case", "CREATE TABLE t (a TEXT COLLATE NOCASE UNIQUE); INSERT INTO t VALUES ('a');",
         "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = indrelid WHERE relname = 't' AND indisunique"
         " AND pg_get_indexdef(indexrelid) LIKE '%lower(%'", "1"),
    Dirt("a partial index", "CREATE TABLE t (a INT, b INT); CREATE INDEX i ON t (a) WHERE b > 5; INSERT INTO t VALUES (1, 2);",
         "SELECT count(*) FROM pg_index WHERE indpred IS NOT NULL AND indrelid = 't'::regclass", "1"),
    Dirt("ids of deleted rows (AUTOINCREMENT)",
         "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a INT); INSERT INTO t VALUES (90, 1); DELETE FROM t; INSERT INTO t VALUES (3, 1);",
         "INSERT INTO t (a) VALUES (2) RETURNING id", "91"),
    Dirt("DEFAULT CURRENT_TIMESTAMP", "CREATE TABLE t (a INT, at TIMESTAMP DEFAULT CURRENT_TIMESTAMP); INSERT INTO t (a) VALUES (1);",
         "INSERT INTO t (a) VALUES (2) RETURNING at IS NOT NULL", "t"),
    Dirt("upper case, spaces and quotes in names",
         'CREATE TABLE "T t" ("A ""b""" TEXT); INSERT INTO "T t" VALUES (\'x\');', 'SELECT "A ""b""" FROM "T t"', "x", '"T t"'),
    Dirt("a full-text table (FTS5)", "CREATE VIRTUAL TABLE t USING fts5(title); INSERT INTO t (title) VALUES ('x');",
         "SELECT title FROM t", "x"),
)  # fmt: skip


def main() -> int:
    """Measures all kinds and writes the document.

    Returns:
        0, or 2 where pgloader is not installed.
    """
    if shutil.which("pgloader") is None:
        print("pgloader is not installed: apt-get install pgloader")
        return 2
    version = subprocess.run(["pgloader", "--version"], check=True, capture_output=True, text=True).stdout
    with (
        tempfile.TemporaryDirectory(prefix="dirt-") as scratch,
        EmbeddedServer(Path(scratch) / "postgres", auth="md5") as server,
    ):
        lines = [_measure(server, Path(scratch), number, kind) for number, kind in enumerate(KINDS)]
    found = re.search(r'"(.*?)"', version)
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(_render(lines, found[1] if found else "?"), encoding="utf-8")
    print(f"wrote {DOCUMENT}")
    return 0


def _measure(server: EmbeddedServer, scratch: Path, number: int, kind: Dirt) -> tuple[str, str, str]:
    path = scratch / f"dirt{number}.db"
    connection = sqlite3.connect(path)
    connection.executescript(kind.script)
    total = connection.execute(f"SELECT count(*) FROM {kind.table}").fetchone()[0]
    connection.close()
    outcomes = []
    for tool in (_run_pgloader, _run_migrator):
        database = f"dirt_{number}_{tool.__name__.removeprefix('_run_')}"
        server.run_sql(f"CREATE ROLE {database} LOGIN PASSWORD '{_PASSWORD}'")
        server.run_sql(f"CREATE DATABASE {database} OWNER {database} ENCODING 'UTF8' TEMPLATE template0")
        said = tool(server, scratch, path, database)
        outcomes.append(_judge(server, database, kind, total, said))
    print(f"{kind.name}\n  pgloader: {outcomes[0]}\n  migrator: {outcomes[1]}")
    return kind.name, outcomes[0], outcomes[1]


def _run_pgloader(server: EmbeddedServer, scratch: Path, path: Path, database: str) -> str:
    url = f"postgresql://{database}:{_PASSWORD}@127.0.0.1:{server.port}/{database}"
    try:
        done = subprocess.run(
            ["pgloader", "--root-dir", str(scratch / "pgloader"), f"sqlite://{path}", url],
            check=False, capture_output=True, text=True, errors="replace", timeout=60,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "hangs"
    return "aborts" if done.returncode != 0 or "FATAL" in done.stdout + done.stderr else ""


def _run_migrator(server: EmbeddedServer, scratch: Path, path: Path, database: str) -> str:
    reports = scratch / "reports"
    environment = {
        **os.environ,
        "PGPASSWORD": _PASSWORD,
        "REPORTS_DIR": str(reports),
        "BACKUPS_DIR": str(scratch / "backups"),
    }
    url = f"postgresql://{database}@127.0.0.1:{server.port}/{database}"
    subprocess.run(
        [sys.executable, "-m", "migrator", "migrate", "--sqlite-path", str(path), "--postgres-url", url],
        check=False, capture_output=True, env=environment,
    )  # fmt: skip
    report = json.loads((reports / path.stem / "latest.json").read_text())
    if report["status"] == "failed":
        return "aborts"
    rejected = report["totals"]["rows_rejected"]
    return f"{rejected} row quarantined whole, with the reason" if rejected else ""


def _ask(server: EmbeddedServer, database: str, sql: str) -> str | None:
    try:
        return server.run_sql(sql, database=database, role=ADMIN)
    except subprocess.CalledProcessError:
        return None


def _judge(server: EmbeddedServer, database: str, kind: Dirt, total: int, said: str) -> str:
    count = _ask(server, database, f"SELECT count(*) FROM {kind.table}")
    if count is None and kind.table.startswith('"'):
        return f"{said or 'renames'}: the table has another name or is missing"
    if count is None:
        return f"**{said or 'skips'}: the table is missing**"
    there = int(count)
    if "quarantined" in said:
        return said
    lost = f"**{total - there} of {total} rows lost**" if there < total else ""
    answer = _ask(server, database, kind.question)
    if not lost and answer == kind.answer:
        return "kept"
    if not lost and answer is None:
        return "**the column is missing, or its type cannot answer**"
    shown = "NULL" if answer == "" else repr(answer)
    became = "" if lost else f"all rows are in; the value is {shown}"
    return "; ".join(part for part in (said and f"**{said}**", lost, became) if part)


def _render(lines: list[tuple[str, str, str]], version: str) -> str:
    table = "\n".join(f"| {name} | {theirs} | {ours} |" for name, theirs, ours in lines)
    return (
        "# What becomes of dirt\n\n"
        "Measured by `make dirt`, which makes one SQLite file for each kind, runs both tools with their defaults\n"
        f"into a PostgreSQL 16, and asks the target. pgloader is version {version}, from Debian.\n\n"
        "*kept* means: every row is there, and the question about the value or the rule in doubt gets the answer\n"
        "that SQLite would give. A quarantined row is in `migrator.rejected_rows` and `rejected.jsonl`, whole.\n\n"
        f"| kind of dirt | pgloader {version} | this project |\n| --- | --- | --- |\n{table}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
