"""Gives a new table what makes it more than columns: keys, checks, defaults, indexes, sequences.

Each is tried in a savepoint: what PostgreSQL refuses for its own reasons is noted, and a key or
check that the rows break is reported to the caller, who then loads the table through the stage.
"""

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from migrator.convert import Converter, Unfit
from migrator.datatypes import TEXT_KINDS, Kind
from migrator.declarations import Check, read_index
from migrator.load import LoadOptions
from migrator.plan import MAX_NAME_BYTES, ColumnPlan, Plan, TablePlan, resolve_parent
from migrator.source import ForeignKey, Index, IndexPart, quote_sqlite, read_tail
from migrator.target import Connection, TargetColumn, quote_literal, quote_name
from migrator.translate import translate_clock, translate_expression

VIOLATIONS = (
    asyncpg.UniqueViolationError,
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
    asyncpg.ExclusionViolationError,
)
MAX_SEQUENCE = 2**63 - 1


class KeyViolation(Exception):  # noqa: N818 - a finding about the rows, on which the caller acts
    """Rows break a key or check that SQLite did not enforce as PostgreSQL does."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A column or expression of a key, in PostgreSQL's SQL."""

    sql: str
    plain: bool


async def allow_building(connection: Connection, *, spared: int) -> None:
    """Gives the transaction memory for building indexes, and no more processes than there are processors.

    Args:
        connection: within the client's transaction.
        spared: how many processors have other work meanwhile, such as hashing SQLite's rows.

    The server mostly shares this machine. Its default is two workers beside the leader
    (https://www.postgresql.org/docs/16/runtime-config-resource.html#GUC-MAX-PARALLEL-MAINTENANCE-WORKERS);
    where two processors have three processes to run, an index takes a third longer than with two.
    """
    workers = max(0, len(os.sched_getaffinity(0)) - 1 - spared)
    await connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
    await connection.execute(
        f"SELECT set_config(name, least(reset_val::int, {workers})::text, true) FROM pg_settings"
        " WHERE name = 'max_parallel_maintenance_workers'"
    )


async def add_keys(connection: Connection, snapshot: sqlite3.Connection, plan: TablePlan, notes: list[str]) -> None:
    """Adds primary key, unique keys and checks to a new table.

    Raises:
        KeyViolation: rows of the table break one of them; nothing of this call remains then.
    """
    try:
        async with connection.transaction():
            found: list[str] = []
            await _add_primary_key(connection, plan, found)
            for index in plan.table.indexes:
                if index.unique and index.origin != "pk":
                    await _add_index(connection, plan, index, found)
            for check in plan.table.checks:
                await _add_check(connection, snapshot, plan, check, found)
    except VIOLATIONS as error:
        raise KeyViolation(str(error)) from error
    notes.extend(found)


async def _add_primary_key(connection: Connection, plan: TablePlan, notes: list[str]) -> None:
    key = plan.primary_key
    if not key:
        return
    columns = ", ".join(map(quote_name, key))
    nullable = [name for name in key if not _column(plan, name).not_null]
    kind = "UNIQUE" if nullable else "PRIMARY KEY"
    if nullable:
        notes.append(f"{plan.name}: its primary key became UNIQUE, since NULLs occur in {', '.join(nullable)}")
    await _try(connection, f"ALTER TABLE {plan.qualified} ADD {kind} ({columns})", f"{plan.name}: {kind}", notes)
    index = next((i for i in plan.table.indexes if i.origin == "pk"), None)
    if index and any(part.collation != "BINARY" for part in index.parts):
        await _add_index(connection, plan, index, notes)


def _column(plan: TablePlan, name: str) -> ColumnPlan:
    return next(column for column in plan.columns if column.name == name)


async def add_indexes(connection: Connection, plan: TablePlan, notes: list[str]) -> None:
    """Adds the indexes that are not unique."""
    for index in plan.table.indexes:
        if not index.unique:
            await _add_index(connection, plan, index, notes)


async def _add_index(connection: Connection, plan: TablePlan, index: Index, notes: list[str]) -> None:
    what = f"{plan.name}: index {index.name}"
    declared = read_index(index.sql) if index.sql else None
    names = plan.translate_names()
    parts: list[_Part] = []
    for place, part in enumerate(index.parts):
        written = declared.parts[place] if declared and place < len(declared.parts) else None
        translated = _translate_part(plan, part, written)
        if translated is None:
            notes.append(f"{what} was left out: {written or 'one of its columns'} has no counterpart")
            return
        parts.append(translated)
    where = ""
    if declared and declared.where:
        predicate = translate_expression(declared.where, names)
        if predicate is None:
            notes.append(f"{what} was left out: its WHERE ({declared.where}) has no counterpart")
            return
        where = f" WHERE {predicate}"
    elements = ", ".join(part.sql for part in parts)
    if index.origin == "u" and all(part.plain for part in parts):
        statement = f"ALTER TABLE {plan.qualified} ADD UNIQUE ({elements})"
    else:
        unique = "UNIQUE " if index.unique else ""
        name = "" if index.name.startswith("sqlite_autoindex") else quote_name(_cut_name(index.name)) + " "
        statement = f"CREATE {unique}INDEX {name}ON {plan.qualified} ({elements}){where}"
    await _try(connection, statement, what, notes)


def _translate_part(plan: TablePlan, part: IndexPart, written: str | None) -> _Part | None:
    """Translates one part of an index; SQLite's NOCASE folds the 26 ASCII letters alone.

    Source: https://www.sqlite.org/datatype3.html#collating_sequences. PostgreSQL's lower() does the
    same under the collation "C".
    """
    direction = " DESC" if part.descending else ""
    is_text = True
    if part.column is None:
        expression = translate_expression(written, plan.translate_names()) if written else None
        if expression is None:
            return None
        sql = f"({expression})"
    else:
        column = plan.find_column(part.column)
        is_text = column.type.kind in TEXT_KINDS
        sql = quote_name(column.name)
    if part.collation == "NOCASE" and is_text:
        return _Part(f'(lower({sql} COLLATE "C")){direction}', plain=False)
    if part.collation == "RTRIM" and is_text:
        return _Part(f"(rtrim({sql}, ' ')){direction}", plain=False)
    return _Part(sql + direction, plain=part.column is not None and not part.descending)


def _cut_name(name: str) -> str:
    return name.encode("utf-8")[:MAX_NAME_BYTES].decode("utf-8", "ignore")


async def _add_check(
    connection: Connection, snapshot: sqlite3.Connection, plan: TablePlan, check: Check, notes: list[str]
) -> None:
    what = f"{plan.name}: CHECK ({check.expression})"
    expression = translate_expression(check.expression, plan.translate_names())
    if expression is None:
        notes.append(f"{what} was left out: it has no counterpart in PostgreSQL")
        return
    name = f"CONSTRAINT {quote_name(_cut_name(check.name))} " if check.name else ""
    statement = f"ALTER TABLE {plan.qualified} ADD {name}CHECK ({expression})"
    try:
        async with connection.transaction():
            await connection.execute(statement)
    except asyncpg.CheckViolationError:
        if _count_broken(snapshot, plan, check) > 0:
            raise
        notes.append(f"{what} was left out: PostgreSQL judges rows by it that SQLite accepts")
    except asyncpg.PostgresError as error:
        notes.append(f"{what} was left out: {error}")


def _count_broken(snapshot: sqlite3.Connection, plan: TablePlan, check: Check) -> int:
    query = f"SELECT count(*) FROM {quote_sqlite(plan.table.name)} WHERE NOT ({check.expression})"
    try:
        return int(snapshot.execute(query).fetchone()[0])
    except sqlite3.DatabaseError:
        return 0


async def add_defaults(connection: Connection, plan: TablePlan, options: LoadOptions, notes: list[str]) -> None:
    """Adds the columns' defaults, each in the column's own type."""
    for column in plan.columns:
        default = column.source.default
        if default is None or column.identity or column.computed:
            continue
        what = f"{plan.name}.{column.name}: DEFAULT {default}"
        translated = translate_default(column, default, options)
        if translated is None:
            notes.append(f"{what} was left out: it has no counterpart in PostgreSQL")
        elif translated != "NULL":
            statement = f"ALTER TABLE {plan.qualified} ALTER COLUMN {quote_name(column.name)} SET DEFAULT {translated}"
            await _try(connection, statement, what, notes)


def translate_default(column: ColumnPlan, default: str, options: LoadOptions) -> str | None:
    """Translates a default: a literal goes through the column's own converter.

    Returns:
        PostgreSQL's SQL, or None where there is no counterpart.
    """
    clock = translate_clock(default, column.type)
    if clock is not None:
        return clock
    try:
        # Only SQLite itself knows what its literals mean; the expression sees no table.
        scratch = sqlite3.connect(":memory:")
        value = scratch.execute(f"SELECT {default}").fetchone()[0]
        scratch.close()
    except sqlite3.Error:
        value = default
    if value is None:
        return "NULL"
    if not _is_literal(default):
        return translate_expression(default, {})
    try:
        converter = Converter(column.name, column.type, not_null=False, zone=options.zone)
        converted = converter.convert(value)
    except Unfit:
        return None
    if isinstance(converted, bytes):
        return f"'\\x{converted.hex()}'::bytea"
    if isinstance(converted, bool):
        return "true" if converted else "false"
    if isinstance(converted, int):
        return str(converted)
    return f"{quote_literal(str(converted))}::{column.type.sql}"


def _is_literal(default: str) -> bool:
    text = default.strip()
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    if text.upper() in ("TRUE", "FALSE", "NULL"):
        return True
    if text[:1] in "'\"" or text[:2].upper() == "X'":
        return text.count(text[0] if text[0] in "'\"" else "'") % 2 == 0 and "||" not in text and "(" not in text
    return text.lstrip("+-").replace(".", "", 1).replace("e", "", 1).isdigit() or text.lower().startswith("0x")


async def add_foreign_key(
    connection: Connection, plan: Plan, child: TablePlan, key: ForeignKey, notes: list[str]
) -> None:
    """Adds a foreign key to a new table; where rows break it, it is added NOT VALID.

    A NOT VALID key holds for every row written from now on, and leaves those that are there.
    Source: https://www.postgresql.org/docs/16/sql-altertable.html (ADD table_constraint NOT VALID).
    """
    written = f"{child.name}: FOREIGN KEY ({', '.join(key.columns)}) REFERENCES {key.parent}"
    if key.parent_columns:
        written += f"({', '.join(key.parent_columns)})"
    found = resolve_parent(key, plan)
    if found is None:
        notes.append(f"{written} was left out: what it points at does not exist in SQLite")
        return
    statement = render_foreign_key(child, key, found[0], found[1])
    try:
        async with connection.transaction():
            await connection.execute(statement)
    except asyncpg.ForeignKeyViolationError as error:
        await connection.execute(statement + " NOT VALID")
        notes.append(
            f"{written} was added NOT VALID: rows from SQLite point at no row ({error.detail}); "
            f"rows written from now on are checked"
        )
    except asyncpg.PostgresError as error:
        notes.append(f"{written} was left out: {error}")


def render_foreign_key(child: TablePlan, key: ForeignKey, parent: TablePlan, parent_columns: Sequence[str]) -> str:
    """Writes the statement that adds a foreign key."""
    columns = ", ".join(quote_name(child.find_column(name).name) for name in key.columns)
    targets = ", ".join(map(quote_name, parent_columns))
    statement = (
        f"ALTER TABLE {child.qualified} ADD FOREIGN KEY ({columns}) REFERENCES {parent.qualified} ({targets})"
        f" ON DELETE {key.on_delete} ON UPDATE {key.on_update}"
    )
    return statement + (" DEFERRABLE INITIALLY DEFERRED" if key.deferred else "")


async def set_sequences(
    connection: Connection,
    snapshot: sqlite3.Connection,
    plan: TablePlan,
    columns: Sequence[TargetColumn],
    notes: list[str],
) -> None:
    """Sets a table's sequences above every id that SQLite ever gave out.

    Args:
        connection: within the client's transaction.
        snapshot: holds the greatest id and ``sqlite_sequence``.
        plan: the table.
        columns: the table's columns in the target, as they are now.
        notes: told each sequence's next value.
    """
    sequences = {column.name: column.sequence for column in columns if column.sequence}
    for column in plan.columns:
        sequence = sequences.get(column.name)
        if sequence is None or column.type.kind not in (Kind.BIGINT, Kind.INTEGER, Kind.SMALLINT):
            continue
        greatest = read_tail(snapshot, plan.table, column.source.name) or 0
        if column.source.name == plan.table.rowid_alias:
            greatest = max(greatest, plan.table.sequence or 0)
        # The target may hold rows that did not come from SQLite.
        present = await connection.fetchval(f"SELECT max({quote_name(column.name)}) FROM {plan.qualified}")
        following = await connection.fetchval(f"SELECT last_value + is_called::int FROM {sequence}")
        following = max(following, greatest + 1, (present or 0) + 1, 1)
        if following > MAX_SEQUENCE:
            notes.append(
                f"{plan.name}.{column.name}: its greatest id is the greatest possible; the sequence is used up"
            )
            continue
        # ALTER SEQUENCE is undone by a rollback, setval() is not.
        await connection.execute(f"ALTER SEQUENCE {sequence} RESTART WITH {following}")
        notes.append(f"{plan.name}.{column.name}: its sequence's next value is {following}")


async def _try(connection: Connection, statement: str, what: str, notes: list[str]) -> None:
    try:
        async with connection.transaction():
            await connection.execute(statement)
    except VIOLATIONS:
        raise
    except asyncpg.PostgresError as error:
        notes.append(f"{what} was left out: {error}")
