"""Carries what happened in PostgreSQL back into a copy of the SQLite file as it was at the cutover.

Which rows differ is told by the hashes of the verification. Of a changed row only the changed columns
are written, so that everything else keeps the very form in which the bot once stored it.
"""

import asyncio
import json
import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any

from migrator.datatypes import Kind
from migrator.errors import VerificationError
from migrator.plan import ColumnPlan, Plan, TablePlan, make_plan
from migrator.quarantine import Quarantine
from migrator.source import Row, SqliteValue, identify_rows, quote_sqlite, read_batches, read_rows, read_source
from migrator.target import Connection, Target, quote_name, read_target
from migrator.verify import Change, digest_source, digest_target, find_differences, list_changes

_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Carried:
    """What was carried back into one table."""

    name: str
    inserted: int
    changed: int
    deleted: int


async def carry_back(
    connection: Connection, copy: Path, zone: tzinfo, quarantine: Quarantine, notes: list[str]
) -> list[Carried]:
    """Brings an SQLite file up to what PostgreSQL holds, and verifies it.

    Args:
        connection: a repeatable-read transaction, so that all tables are of one moment.
        copy: the file to be changed, a copy of the backup; nobody else has it open.
        zone: the zone in which its moments without an offset are read.
        quarantine: the rows that never went to PostgreSQL; they stay as they are.
        notes: told of tables and columns that SQLite does not have.

    Raises:
        VerificationError: the file does not hold afterwards what PostgreSQL holds.
    """
    target = await read_target(connection)
    source = sqlite3.connect(copy, check_same_thread=False, isolation_level=None)
    try:
        plan = make_plan(read_source(source), target)
        _note_unknown(plan, target, notes)
        carried = []
        source.execute("PRAGMA foreign_keys = OFF")
        source.execute("BEGIN IMMEDIATE")
        triggers = _take_off_triggers(source)
        source.execute("COMMIT")
        for table in plan.tables:
            if table.existing is not None:
                carried.append(await _carry_table(connection, source, copy, table, zone, quarantine))
                await _carry_sequence(connection, source, table)
        for statement in triggers:
            source.execute(statement)
        await _verify(connection, copy, plan, zone, quarantine)
        return carried
    finally:
        source.close()


def _note_unknown(plan: Plan, target: Target, notes: list[str]) -> None:
    known = {table.name: table for table in plan.tables}
    for name, there in target.tables.items():
        if name not in known:
            notes.append(f"{name}: a table that SQLite does not have; it stays in PostgreSQL alone")
            continue
        columns = {column.name for column in known[name].columns}
        notes.extend(
            f"{name}.{column.name}: a column that SQLite does not have; it stays in PostgreSQL alone"
            for column in there.columns
            if column.name not in columns
        )


def _take_off_triggers(source: sqlite3.Connection) -> list[str]:
    found = source.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in found:
        source.execute(f"DROP TRIGGER {quote_sqlite(name)}")
    return [str(statement) for _, statement in found]


async def _carry_table(
    connection: Connection,
    source: sqlite3.Connection,
    copy: Path,
    table: TablePlan,
    zone: tzinfo,
    quarantine: Quarantine,
) -> Carried:
    changes = await list_changes(connection, copy, table, zone, quarantine.path)
    deleted = [c.number for c in changes if c.number is not None and c.place is None]
    changed = {c.number: c for c in changes if c.number is not None and c.place is not None}
    theirs = await _fetch_rows(connection, table, [c.place for c in changes if c.place is not None])
    ours = _read_numbers(source, table, [*deleted, *changed])
    rows: list[tuple[int | None, Row]] = []
    for change in changes:
        if change.place is None:
            continue
        there = theirs[change.place]
        if change.number is None:
            rows.append((None, there))
        else:
            rows.append((change.number, _merge(table, ours[change.number], there, change)))
    await asyncio.to_thread(_write, source, table, ours, rows)
    return Carried(table.name, sum(n is None for n, _ in rows), len(changed), len(deleted))


def _read_numbers(source: sqlite3.Connection, table: TablePlan, numbers: Sequence[int]) -> dict[int, Row]:
    found: dict[int, Row] = {}
    if numbers:
        for batch in read_rows(source, table.table, numbers):
            found.update(zip(batch.numbers, batch.rows, strict=True))
    return found


def _merge(table: TablePlan, ours: Row, theirs: Row, change: Change) -> Row:
    changed = {column.place for column in table.columns if column.name in change.columns}
    return tuple(theirs[place] if place in changed else value for place, value in enumerate(ours))


async def _fetch_rows(connection: Connection, table: TablePlan, places: Sequence[str]) -> dict[str, Row]:
    """Reads rows by their places, as SQLite stores them, in the order of SQLite's columns."""
    columns = ", ".join(f"t.{quote_name(column.name)}{_cast(column)}" for column in table.columns)
    found: dict[str, Row] = {}
    for start in range(0, len(places), _BATCH):
        records = await connection.fetch(
            f"SELECT t.ctid::text, {columns} FROM {table.qualified} AS t WHERE t.ctid = ANY ($1::text[]::tid[])",
            list(places[start : start + _BATCH]),
        )
        for record in records:
            values: list[SqliteValue] = [None] * len(table.table.columns)
            for place, column in enumerate(table.columns, start=1):
                values[column.place] = store_value(record[place])
            found[record[0]] = tuple(values)
    return found


def _cast(column: ColumnPlan) -> str:
    return "::text" if column.type.kind in (Kind.OTHER, Kind.JSON, Kind.JSONB) else ""


def store_value(value: Any) -> SqliteValue:
    """Turns a value of PostgreSQL into the form in which the bots store it in SQLite.

    >>> store_value(time(9, 30)), store_value(datetime(2024, 5, 1, 12, tzinfo=UTC)), store_value(True)
    ('09:30', '2024-05-01 12:00:00+00:00', 1)
    """
    if value is None or isinstance(value, (str, bytes, float)):
        return value
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat(sep=" ")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, time):
        return value.isoformat("auto" if value.second or value.microsecond else "minutes")
    if isinstance(value, (Decimal, uuid.UUID)):
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _write(
    source: sqlite3.Connection,
    table: TablePlan,
    gone: dict[int, Row],
    rows: Sequence[tuple[int | None, Row]],
) -> None:
    """Removes deleted and changed rows, then puts in changed and new ones, in one transaction."""
    name = quote_sqlite(table.table.name)
    plain = [place for place, column in enumerate(table.table.columns) if column.generated is None]
    columns = ", ".join(quote_sqlite(table.table.columns[place].name) for place in plain)
    marks = ", ".join("?" * len(plain))
    identity, _ = identify_rows(table.table)
    source.execute("BEGIN IMMEDIATE")
    try:
        if identity == "NULL":
            key = " AND ".join(f"{quote_sqlite(column)} IS ?" for column in table.table.primary_key)
            places = [_find_place(table, column) for column in table.table.primary_key]
            source.executemany(f"DELETE FROM {name} WHERE {key}", [[row[p] for p in places] for row in gone.values()])
        else:
            source.executemany(f"DELETE FROM {name} WHERE {identity} = ?", [(number,) for number in gone])
        keeps_rowid = identity != "NULL" and table.table.rowid_alias is None and not table.table.virtual
        for number, row in rows:
            values = [row[place] for place in plain]
            if keeps_rowid and number is not None:
                source.execute(f"INSERT INTO {name} ({identity}, {columns}) VALUES (?, {marks})", (number, *values))
            else:
                source.execute(f"INSERT INTO {name} ({columns}) VALUES ({marks})", values)
        source.execute("COMMIT")
    except BaseException:
        source.execute("ROLLBACK")
        raise


def _find_place(table: TablePlan, name: str) -> int:
    return next(place for place, column in enumerate(table.table.columns) if column.name == name)


async def _carry_sequence(connection: Connection, source: sqlite3.Connection, table: TablePlan) -> None:
    """Raises SQLite's own counter to PostgreSQL's, so that no id is handed out twice."""
    alias = table.table.rowid_alias
    if not table.table.autoincrement or alias is None or table.existing is None:
        return
    name = table.find_column(alias).name
    sequence = next((c.sequence for c in table.existing.columns if c.name == name), None)
    if sequence is None:
        return
    last = await connection.fetchval(f"SELECT last_value FROM {sequence} WHERE is_called")
    if last is not None:
        touched = source.execute(
            "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (last, table.table.name)
        ).rowcount
        if not touched:
            source.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table.table.name, last))


async def _verify(connection: Connection, copy: Path, plan: Plan, zone: tzinfo, quarantine: Quarantine) -> None:
    for table in plan.tables:
        if table.existing is None:
            continue
        ours, theirs = await asyncio.gather(
            asyncio.to_thread(digest_source, copy, table, zone, quarantine.path), digest_target(connection, table)
        )
        if ours != theirs:
            found = await find_differences(connection, copy, table, zone, quarantine.path)
            shown = "; ".join(difference.describe() for difference in found)
            raise VerificationError(f"the SQLite file would not hold what PostgreSQL holds: {shown}")


def count_all(copy: Path) -> dict[str, int]:
    """Counts the rows of all tables of an SQLite file, which also shows that it can be read."""
    connection = sqlite3.connect(copy)
    try:
        return {
            table.name: sum(len(batch.rows) for batch in read_batches(connection, table, _BATCH))
            for table in read_source(connection).tables
        }
    finally:
        connection.close()
