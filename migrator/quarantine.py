"""Keeps the rows that could not go in: whole, lossless, each with the reason.

While a client is loaded they are kept in a scratch SQLite file (memory does not grow with them);
at the end they go to ``rejected.jsonl`` and to the table ``migrator.rejected_rows``.
"""

import json
import math
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from migrator.convert import Rejection
from migrator.queries import load_query
from migrator.source import Row, SqliteValue, Table
from migrator.target import Connection

SCRATCH_FILE = "quarantine.db"
_FETCH = 1_000
_STORED = (
    "run_id",
    "table_name",
    "row_number",
    "verdict",
    "column_name",
    "value",
    "reason",
    "sqlstate",
    "row",
    "target_row",
)


class Verdict(StrEnum):
    """Why a row is kept here.

    ``REJECTED``: it is not in the target. ``CONFLICTING``: the target has another row with its key.
    ``NULLED``: it is in the target, but a foreign key that pointed nowhere was set to NULL.
    ``MENDED``: it was rejected once and has been loaded since by ``retry-rejected``.
    """

    REJECTED = "rejected"
    CONFLICTING = "conflicting"
    NULLED = "nulled"
    MENDED = "mended"


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept row; ``target_row`` is the other version of a conflicting one, as JSON."""

    table: str
    number: int
    verdict: Verdict
    column: str | None
    value: str
    reason: str
    sqlstate: str | None
    row: str
    target_row: str | None


def encode_value(value: SqliteValue) -> Any:
    r"""Encodes a value so that JSON and jsonb keep it whole, storage class and bits included.

    >>> encode_value("a"), encode_value(b"\x00"), encode_value("a\x00"), encode_value(0.1)
    ('a', {'blob': '00'}, {'text_bytes': '6100'}, {'real': '0.1'})
    """
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, bytes):
        return {"blob": value.hex()}
    if isinstance(value, float):
        return {"real": repr(value)}
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        return {"text_bytes": value.encode("utf-8", "surrogateescape").hex()}
    return value


def decode_value(value: Any) -> SqliteValue:
    r"""Gives back what :func:`encode_value` was given.

    >>> decode_value(encode_value("a\udcff")), decode_value({"real": "inf"})
    ('a\udcff', inf)
    """
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, dict):
        if "blob" in value:
            return bytes.fromhex(value["blob"])
        if "real" in value:
            return float(value["real"])
        return bytes.fromhex(value["text_bytes"]).decode("utf-8", "surrogateescape")
    if isinstance(value, float) and math.isfinite(value):
        return value
    return value  # type: ignore[no-any-return]


def encode_row(table: Table, row: Row) -> str:
    """Encodes a whole row as a JSON object by column name."""
    return _dump({column.name: encode_value(value) for column, value in zip(table.columns, row, strict=True)})


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


class Quarantine:
    """The kept rows of one client during one run."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SCRATCH_FILE
        self._scratch = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        self._scratch.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            CREATE TABLE entries (
                table_name TEXT NOT NULL, number INTEGER NOT NULL, verdict TEXT NOT NULL, column_name TEXT,
                value TEXT NOT NULL, reason TEXT NOT NULL, sqlstate TEXT, row TEXT NOT NULL, target_row TEXT
            );
            CREATE INDEX entries_by_row ON entries (table_name, number, verdict);
            CREATE TABLE mended (
                table_name TEXT NOT NULL, number INTEGER NOT NULL, row TEXT NOT NULL, PRIMARY KEY (table_name, number)
            );
            """
        )

    async def recall_mended(self, connection: Connection) -> None:
        """Takes up which rows ``retry-rejected`` has loaded, so that they do not count as rejected again."""
        if not await self._is_stored(connection):
            return
        async for row in connection.cursor(load_query("quarantine_mended"), prefetch=_FETCH):
            self._scratch.execute("INSERT OR REPLACE INTO mended VALUES (?, ?, ?)", tuple(row))

    def _judge(self, table: Table, rejection: Rejection, row: str) -> Verdict:
        """A row that was mended, and is in SQLite as it was then, is in the target already."""
        found = self._scratch.execute(
            "SELECT row FROM mended WHERE table_name = ? AND number = ?", (table.name, rejection.number)
        ).fetchone()
        return Verdict.MENDED if found and json.loads(found[0]) == json.loads(row) else Verdict.REJECTED

    async def _is_stored(self, connection: Connection) -> bool:
        return bool(await connection.fetchval("SELECT to_regclass('migrator.rejected_rows') IS NOT NULL"))

    def add_rejections(self, table: Table, rejections: Iterable[Rejection], sqlstate: str | None = None) -> None:
        """Keeps rows that did not convert, or that the server refused with ``sqlstate``."""
        for found in rejections:
            row = encode_row(table, found.row)
            entry = Entry(
                table=table.name,
                number=found.number,
                verdict=self._judge(table, found, row),
                column=found.column,
                value=_dump(encode_value(found.value)),
                reason=found.reason,
                sqlstate=sqlstate,
                row=row,
                target_row=None,
            )
            if entry.verdict is not Verdict.MENDED or not self._knows_mended(entry):
                self.add([entry])

    def _knows_mended(self, entry: Entry) -> bool:
        query = "SELECT 1 FROM entries WHERE table_name = ? AND number = ? AND verdict = 'mended'"
        return self._scratch.execute(query, (entry.table, entry.number)).fetchone() is not None

    def add(self, entries: Iterable[Entry]) -> None:
        """Keeps entries."""
        self._scratch.executemany(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    e.table,
                    e.number,
                    str(e.verdict),
                    e.column,
                    e.value,
                    e.reason,
                    e.sqlstate,
                    e.row,
                    e.target_row,
                )
                for e in entries
            ),
        )

    def forget(self, table: str) -> None:
        """Drops a table's entries, since the table is loaded anew; what was mended stays so."""
        self._scratch.execute("DELETE FROM entries WHERE table_name = ? AND verdict <> 'mended'", (table,))

    def count(self, table: str | None = None, verdict: Verdict = Verdict.REJECTED) -> int:
        """Counts the rows with a verdict, of one table or of all."""
        condition, arguments = "verdict = ?", [str(verdict)]
        if table is not None:
            condition += " AND table_name = ?"
            arguments.append(table)
        query = f"SELECT count(*) FROM entries WHERE {condition}"
        return int(self._scratch.execute(query, arguments).fetchone()[0])

    def read(self) -> Iterator[Entry]:
        """Gives all entries by table and row."""
        query = "SELECT * FROM entries ORDER BY table_name, number, verdict"
        for row in self._scratch.execute(query):
            yield Entry(row[0], row[1], Verdict(row[2]), *row[3:])

    def write_lines(self, path: Path) -> None:
        """Writes all entries to a file, one JSON object a line."""
        with path.open("w", encoding="utf-8") as file:
            for entry in self._read_stored():
                file.write(_dump(describe_entry(entry)) + "\n")

    def _read_stored(self) -> Iterator[Entry]:
        return (entry for entry in self.read() if entry.verdict is not Verdict.MENDED)

    async def store(self, connection: Connection, run_id: str, tables: Sequence[str]) -> None:
        """Writes the entries to ``migrator.rejected_rows`` in place of those of earlier runs.

        Args:
            connection: within the client's transaction.
            run_id: the run that found them.
            tables: the source tables that this run went through.
        """
        await connection.execute(load_query("quarantine_schema"))
        await connection.execute(
            "DELETE FROM migrator.rejected_rows WHERE table_name = ANY($1) AND resolved_at IS NULL", list(tables)
        )
        await connection.copy_records_to_table(
            "rejected_rows", schema_name="migrator", columns=_STORED, records=self._read_records(run_id)
        )

    def list_numbers(self, table: str) -> list[int]:
        """Lists the numbers of a table's rows that are not in the target."""
        query = "SELECT DISTINCT number FROM entries WHERE table_name = ? AND verdict IN ('rejected', 'conflicting')"
        return [int(row[0]) for row in self._scratch.execute(query, (table,))]

    async def update(self, connection: Connection, table: str, run_id: str) -> None:
        """Writes anew, after a retry, why rows of a table still cannot go in."""
        await connection.executemany(
            "UPDATE migrator.rejected_rows SET run_id = $3, column_name = $4, reason = $5, sqlstate = $6"
            " WHERE table_name = $1 AND row_number = $2 AND verdict = 'rejected' AND resolved_at IS NULL",
            [
                (e.table, e.number, run_id, e.column, e.reason, e.sqlstate)
                for e in self._read_stored()
                if e.table == table and e.verdict is not Verdict.NULLED
            ],
        )

    async def _read_records(self, run_id: str) -> AsyncIterator[tuple[Any, ...]]:
        for e in self._read_stored():
            yield (
                run_id,
                e.table,
                e.number,
                str(e.verdict),
                e.column,
                e.value,
                e.reason,
                e.sqlstate,
                e.row,
                e.target_row,
            )

    async def recall(self, connection: Connection, verdicts: Sequence[Verdict] = tuple(Verdict)) -> None:
        """Takes up what earlier runs stored in the database, so that a later comparison knows of it."""
        if not await self._is_stored(connection):
            return
        async for row in connection.cursor(load_query("quarantine_recall"), prefetch=_FETCH):
            if row[2] in verdicts:
                self.add([Entry(row[0], row[1], Verdict(row[2]), *row[3:])])

    def close(self) -> None:
        """Closes the scratch file; whoever made its folder removes it."""
        self._scratch.close()


def describe_entry(entry: Entry) -> dict[str, Any]:
    """Turns an entry into the object that stands in ``rejected.jsonl``."""
    return {
        "table": entry.table,
        "rowid": entry.number,
        "verdict": str(entry.verdict),
        "column": entry.column,
        "value": json.loads(entry.value),
        "reason": entry.reason,
        "sqlstate": entry.sqlstate,
        "row": json.loads(entry.row),
        "target_row": json.loads(entry.target_row) if entry.target_row else None,
    }
