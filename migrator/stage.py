"""Settles rows against tables that exist: what is there already, what conflicts, what breaks a rule.

The rows lie in temporary tables. Whole sets of them are flagged by SQL, one query for each rule of
the target, until nothing changes any more; then the rest is inserted. A rule that no query covers
(a domain, an exclusion constraint, a trigger's own error) is met by halving the insert in savepoints.
"""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import asyncpg

from migrator.datatypes import Kind
from migrator.errors import TargetError
from migrator.load import ROW_ERRORS, LoadOptions
from migrator.plan import ColumnPlan, Orphans, TablePlan
from migrator.quarantine import Entry, Quarantine, Verdict, encode_row, encode_value
from migrator.source import Row, Table, read_batches
from migrator.target import Connection, Reference, TargetTable, UniqueKey, quote_literal, quote_name

_FLAGS = """
CREATE TEMP TABLE migrator_flags (
    stage text NOT NULL, number bigint NOT NULL, verdict text NOT NULL, column_name text,
    reason text, sqlstate text, target_row text, PRIMARY KEY (stage, number)
) ON COMMIT DROP;
CREATE TEMP TABLE migrator_nulled (
    stage text NOT NULL, number bigint NOT NULL, column_name text NOT NULL, reason text NOT NULL
) ON COMMIT DROP;
"""
_UNIQUE, _CHECK, _FOREIGN_KEY, _INVALID_TEXT = "23505", "23514", "23503", "22P02"
_FLAGGED_BATCH = 10_000


@dataclass(frozen=True, slots=True)
class Staged:
    """A table whose rows lie on a stage; ``target`` is the target table as it is now."""

    plan: TablePlan
    stage: str
    target: TargetTable
    references: tuple[Reference, ...]
    fresh: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the loaded columns."""
        return tuple(column.name for column in self.plan.loaded)


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a staged table's rows that converted."""

    inserted: int
    present: int


async def settle_stages(
    connection: Connection,
    snapshot: sqlite3.Connection,
    stages: Sequence[Staged],
    options: LoadOptions,
    quarantine: Quarantine,
    notes: list[str],
) -> dict[str, Settled]:
    """Flags, inserts and quarantines the rows of all stages.

    Args:
        connection: within the client's transaction.
        snapshot: gives the whole rows of those that are quarantined.
        stages: in the order of loading, parents first.
        options: says what happens to orphans.
        quarantine: takes rejected and conflicting rows.
        notes: told of constraints that were changed.

    Returns:
        The outcome by the source table's name.

    Raises:
        TargetError: a trigger would fire and may not be switched off.
    """
    if not stages:
        return {}
    await connection.execute(_FLAGS)
    for staged in stages:
        await _flag_invalid(connection, staged)
        await _flag_duplicates(connection, staged)
        if not staged.fresh:
            await _flag_known(connection, staged)
        await _flag_broken_checks(connection, staged)
    orphaned = await _settle_orphans(connection, stages, options)
    async with _loading_rules(connection, stages, orphaned, notes):
        inserted = {staged.stage: await _insert(connection, staged) for staged in stages}
    settled: dict[str, Settled] = {}
    for staged in stages:
        present = await connection.fetchval(
            "SELECT count(*) FROM migrator_flags WHERE stage = $1 AND verdict = 'present'", staged.stage
        )
        settled[staged.plan.table.name] = Settled(inserted[staged.stage], present)
        await _quarantine_flagged(connection, snapshot, staged, quarantine)
    return settled


def _unflagged(staged: Staged, alias: str = "s") -> str:
    return (
        f"NOT EXISTS (SELECT FROM migrator_flags AS f WHERE f.stage = {quote_literal(staged.stage)}"
        f" AND f.number = {alias}.migrator_number)"
    )


async def _flag(connection: Connection, staged: Staged, body: str) -> int:
    """Runs an INSERT into the flags; ``body`` selects number, verdict, column, reason, sqlstate, row."""
    status = await connection.execute(
        f"INSERT INTO migrator_flags SELECT {quote_literal(staged.stage)}, q.* FROM ({body}) AS q"
        f" ON CONFLICT DO NOTHING"
    )
    return int(status.split()[-1])


async def _flag_invalid(connection: Connection, staged: Staged) -> None:
    """Turns text into types that only the server knows, and flags what it refuses or changes."""
    others = [column for column in staged.plan.loaded if column.type.kind is Kind.OTHER]
    for column in others:
        invalid = await _find_invalid(connection, staged, column)
        await connection.executemany(
            "INSERT INTO migrator_flags VALUES ($1, $2, 'rejected', $3, $4, $5, NULL) ON CONFLICT DO NOTHING",
            [(staged.stage, number, column.name, reason, state) for number, reason, state in invalid],
        )
        name = quote_name(column.name)
        await _flag(
            connection,
            staged,
            f"SELECT s.migrator_number, 'rejected', {quote_literal(column.name)},"
            f" {quote_literal(f'{column.type.sql} does not keep this text as it is')}, '{_INVALID_TEXT}', NULL"
            f" FROM (SELECT * FROM {quote_name(staged.stage)} AS s WHERE {_unflagged(staged)} OFFSET 0) AS s"
            f" WHERE format('%s', CAST(s.{name} AS {column.type.sql})) <> s.{name}",
        )
    if not others:
        return
    # An invalid text would stop the change of type; its row is whole in SQLite.
    stage = quote_name(staged.stage)
    for column in others:
        name = quote_name(column.name)
        await connection.execute(f"UPDATE {stage} AS s SET {name} = NULL WHERE NOT {_unflagged(staged)}")
    await connection.execute(
        f"ALTER TABLE {stage} "
        + ", ".join(
            f"ALTER COLUMN {quote_name(c.name)} TYPE {c.type.sql} USING {quote_name(c.name)}::{c.type.sql}"
            for c in others
        )
    )


async def _find_invalid(
    connection: Connection, staged: Staged, column: ColumnPlan
) -> list[tuple[int, str, str | None]]:
    """Finds by halving the rows whose text the type's own input function refuses."""
    stage, name = quote_name(staged.stage), quote_name(column.name)
    invalid: list[tuple[int, str, str | None]] = []
    bounds = await connection.fetchrow(f"SELECT min(migrator_number), max(migrator_number) FROM {stage}")
    ranges = [(bounds[0], bounds[1])] if bounds and bounds[0] is not None else []
    while ranges:
        low, high = ranges.pop()
        try:
            async with connection.transaction():
                await connection.execute(
                    f"SELECT count(CAST({name} AS {column.type.sql})) FROM {stage}"
                    f" WHERE migrator_number BETWEEN {low} AND {high}"
                )
        except ROW_ERRORS as error:
            middle = await _find_middle(connection, stage, low, high, "true")
            if middle is None:
                invalid.append((low, str(error), getattr(error, "sqlstate", None)))
            else:
                ranges += [(low, middle[0]), (middle[1], high)]
    return invalid


async def _find_middle(
    connection: Connection, stage: str, low: int, high: int, condition: str
) -> tuple[int, int] | None:
    """Finds the two neighbouring rows between which a range is halved; None for a single row."""
    where = f"s.migrator_number BETWEEN {low} AND {high} AND {condition}"
    count = await connection.fetchval(f"SELECT count(*) FROM {stage} AS s WHERE {where}")
    if count < 2:
        return None
    rows = await connection.fetch(
        f"SELECT s.migrator_number FROM {stage} AS s WHERE {where} ORDER BY 1 LIMIT 2 OFFSET {count // 2 - 1}"
    )
    return rows[0][0], rows[1][0]


def _key_condition(key: UniqueKey) -> str:
    conditions = [] if key.nulls_equal else [f"({part}) IS NOT NULL" for part in key.parts]
    if key.predicate:
        conditions.append(f"({key.predicate})")
    return " AND ".join(conditions) or "true"


async def _can_run(connection: Connection, staged: Staged, expression: str) -> bool:
    """Tells whether an expression over the target's columns can be read over the stage's."""
    try:
        async with connection.transaction():
            await connection.execute(f"SELECT {expression} FROM {quote_name(staged.stage)} LIMIT 0")
    except asyncpg.UndefinedColumnError:
        return False
    return True


async def _usable_keys(connection: Connection, staged: Staged) -> list[UniqueKey]:
    return [
        key
        for key in staged.target.keys
        if await _can_run(connection, staged, f"({', '.join(key.parts)}, {_key_condition(key)})")
    ]


async def _flag_duplicates(connection: Connection, staged: Staged) -> None:
    """Of rows that are alike in a unique key, the first stays and the others are flagged."""
    for key in await _usable_keys(connection, staged):
        parts = ", ".join(f"({part})" for part in key.parts)
        reason = f"the key {key.name} ({', '.join(key.parts)}) is that of row "
        await _flag(
            connection,
            staged,
            f"SELECT number, 'rejected', NULL, {quote_literal(reason)} || first, '{_UNIQUE}', NULL FROM ("
            f" SELECT migrator_number AS number, first_value(migrator_number) OVER same AS first,"
            f" row_number() OVER same AS place FROM {quote_name(staged.stage)} AS s"
            f" WHERE {_unflagged(staged)} AND {_key_condition(key)}"
            f" WINDOW same AS (PARTITION BY {parts} ORDER BY migrator_number)) AS d WHERE place > 1",
        )


async def _flag_known(connection: Connection, staged: Staged) -> None:
    """Flags rows that the target holds already, and rows whose key another row of it has."""
    keys = await _usable_keys(connection, staged)
    identity = choose_identity(staged)
    if identity is None:
        await _flag_known_without_key(connection, staged)
    for key in sorted(keys, key=lambda key: key is not identity):
        await _flag_known_by_key(connection, staged, key, is_identity=key is identity)


def choose_identity(staged: Staged) -> UniqueKey | None:
    """Chooses the key by which a row is known again: plain, whole, and never NULL."""
    filled = {column.name for column in staged.target.columns if column.not_null} & set(staged.names)
    for key in staged.target.keys:
        if key.columns and key.predicate is None and set(key.columns) <= filled:
            return key
    return None


def _compare_rows(staged: Staged) -> str:
    parts = []
    for column in staged.plan.loaded:
        name = quote_name(column.name)
        cast = "::text" if column.type.kind in (Kind.JSON, Kind.OTHER) else ""
        parts.append(f"s.{name}{cast} IS NOT DISTINCT FROM t.{name}{cast}")
    return " AND ".join(parts)


async def _flag_known_by_key(connection: Connection, staged: Staged, key: UniqueKey, *, is_identity: bool) -> None:
    stage, target = quote_name(staged.stage), staged.plan.qualified
    parts = ", ".join(f"({part}) AS migrator_key_{place}" for place, part in enumerate(key.parts))
    equals = "IS NOT DISTINCT FROM" if key.nulls_equal else "="
    join = " AND ".join(f"s.migrator_key_{place} {equals} t.migrator_key_{place}" for place in range(len(key.parts)))
    same = _compare_rows(staged)
    reason = f"the target holds another row with the key {key.name} ({', '.join(key.parts)})"
    verdict = f"CASE WHEN {same} THEN 'present' ELSE 'conflicting' END" if is_identity else "'conflicting'"
    whole = f"CASE WHEN {same} THEN NULL ELSE to_jsonb(t.whole)::text END" if is_identity else "to_jsonb(t.whole)::text"
    await _flag(
        connection,
        staged,
        f"SELECT DISTINCT ON (s.migrator_number) s.migrator_number, {verdict}, NULL, {quote_literal(reason)},"
        f" '{_UNIQUE}', {whole}"
        f" FROM (SELECT *, {parts} FROM {stage} AS s WHERE {_unflagged(staged)} AND {_key_condition(key)}) AS s"
        f" JOIN (SELECT *, w AS whole, {parts} FROM {target} AS w WHERE {_key_condition(key)}) AS t ON {join}",
    )


async def _flag_known_without_key(connection: Connection, staged: Staged) -> None:
    """Matches equal rows one to one, since nothing but their content identifies them."""
    columns = ", ".join(f"{quote_name(c.name)}::text" for c in staged.plan.loaded)
    same = f"md5(ROW({columns})::text)"
    await _flag(
        connection,
        staged,
        f"WITH s AS (SELECT migrator_number AS number, {same} AS content,"
        f" row_number() OVER (PARTITION BY {same} ORDER BY migrator_number) AS place"
        f" FROM {quote_name(staged.stage)} AS s WHERE {_unflagged(staged)}),"
        f" t AS (SELECT {same} AS content, count(*) AS copies FROM {staged.plan.qualified} GROUP BY 1)"
        f" SELECT s.number, 'present', NULL, NULL, NULL, NULL FROM s JOIN t USING (content) WHERE s.place <= t.copies",
    )


async def _flag_broken_checks(connection: Connection, staged: Staged) -> None:
    for check in staged.target.checks:
        if not await _can_run(connection, staged, check.expression):
            continue
        with contextlib.suppress(*ROW_ERRORS):
            # A check that itself fails on a row is left to the insert, which finds that row.
            async with connection.transaction():
                reason = f"breaks CHECK {check.name}: {check.expression}"
                await _flag(
                    connection,
                    staged,
                    f"SELECT migrator_number, 'rejected', NULL, {quote_literal(reason)}, '{_CHECK}', NULL"
                    f" FROM {quote_name(staged.stage)} AS s WHERE {_unflagged(staged)} AND NOT ({check.expression})",
                )


async def _settle_orphans(
    connection: Connection, stages: Sequence[Staged], options: LoadOptions
) -> set[tuple[str, str]]:
    """Deals with foreign keys that point nowhere, until no row becomes an orphan any more.

    Returns:
        The (table, constraint) pairs that kept orphans break.
    """
    by_name = {staged.plan.name: staged for staged in stages}
    kept: set[tuple[str, str]] = set()
    changed = True
    while changed:
        changed = False
        for staged in stages:
            for reference in staged.references:
                if not set(reference.columns) <= set(staged.names):
                    continue
                orphans = _select_orphans(staged, reference, by_name.get(reference.parent))
                if options.orphans is Orphans.KEEP:
                    if await connection.fetchval(f"SELECT EXISTS (SELECT FROM ({orphans}) AS o)"):
                        kept.add((staged.plan.name, reference.name))
                    continue
                if await _settle_reference(connection, staged, reference, orphans, options):
                    changed = True
    return kept


def _select_orphans(staged: Staged, reference: Reference, parent: Staged | None) -> str:
    own = [f"s.{quote_name(name)}" for name in reference.columns]
    others = [quote_name(name) for name in reference.parent_columns]
    match = " AND ".join(f"p.{other} = {column}" for other, column in zip(others, own, strict=True))
    table = f"{quote_name(staged.plan.schema)}.{quote_name(reference.parent)}"
    missing = f"NOT EXISTS (SELECT FROM {table} AS p WHERE {match})"
    if parent is not None and set(reference.parent_columns) <= set(parent.names):
        missing += (
            f" AND NOT EXISTS (SELECT FROM {quote_name(parent.stage)} AS p WHERE {match} AND {_unflagged(parent, 'p')})"
        )
    filled = " AND ".join(f"{column} IS NOT NULL" for column in own)
    return (
        f"SELECT s.migrator_number AS number FROM {quote_name(staged.stage)} AS s"
        f" WHERE {filled} AND {_unflagged(staged)} AND {missing}"
    )


async def _settle_reference(
    connection: Connection, staged: Staged, reference: Reference, orphans: str, options: LoadOptions
) -> int:
    columns = ", ".join(reference.columns)
    reason = f"({columns}) points at no row of {reference.parent} ({', '.join(reference.parent_columns)})"
    not_null = {column.name for column in staged.target.columns if column.not_null}
    if options.orphans is Orphans.NULL and not not_null & set(reference.columns):
        nulled = await connection.execute(
            f"INSERT INTO migrator_nulled"
            f" SELECT {quote_literal(staged.stage)}, o.number, c.name, {quote_literal(reason)}"
            f" FROM ({orphans}) AS o, unnest($1::text[]) AS c(name)",
            list(reference.columns),
        )
        settings = ", ".join(f"{quote_name(name)} = NULL" for name in reference.columns)
        await connection.execute(
            f"UPDATE {quote_name(staged.stage)} SET {settings} WHERE migrator_number IN ({orphans})"
        )
        return int(nulled.split()[-1])
    return await _flag(
        connection,
        staged,
        f"SELECT o.number, 'rejected', {quote_literal(reference.columns[0])}, {quote_literal(reason)},"
        f" '{_FOREIGN_KEY}', NULL FROM ({orphans}) AS o",
    )


@contextlib.asynccontextmanager
async def _loading_rules(
    connection: Connection, stages: Sequence[Staged], orphaned: set[tuple[str, str]], notes: list[str]
) -> AsyncIterator[None]:
    """Switches off triggers and puts off foreign keys while rows go in; all within the transaction.

    The owner of a table may do this; session_replication_role would need a superuser.
    Source: https://www.postgresql.org/docs/16/sql-altertable.html (DISABLE TRIGGER, ALTER CONSTRAINT).
    """
    existing = [staged for staged in stages if not staged.fresh]
    restore: list[str] = []
    for staged in existing:
        table = staged.plan.qualified
        if staged.target.triggers and not staged.target.owned:
            raise TargetError(
                f"table {staged.plan.name} has triggers that would fire for migrated rows, and belongs to "
                f"{staged.target.owner}: only its owner can switch them off. Run: "
                f"ALTER TABLE {table} OWNER TO <role>"
            )
        for trigger, state in staged.target.triggers:
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {quote_name(trigger)}")
            enable = {"A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}.get(state, "ENABLE")
            restore.append(f"ALTER TABLE {table} {enable} TRIGGER {quote_name(trigger)}")
        for reference in staged.target.references:
            name = quote_name(reference.name)
            if (staged.plan.name, reference.name) in orphaned:
                if not staged.target.owned:
                    raise TargetError(
                        f"{staged.plan.name}: rows break the foreign key {reference.name} and the table belongs to "
                        f"{staged.target.owner}; repeat with --orphans quarantine"
                    )
                await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
                definition = reference.definition.removesuffix(" NOT VALID")
                restore.append(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition} NOT VALID")
                if reference.validated:
                    notes.append(
                        f"{staged.plan.name}: foreign key {reference.name} is now NOT VALID, since orphans were kept"
                    )
            elif not reference.deferred and staged.target.owned:
                await connection.execute(f"ALTER TABLE {table} ALTER CONSTRAINT {name} DEFERRABLE INITIALLY DEFERRED")
                state = "DEFERRABLE INITIALLY IMMEDIATE" if reference.deferrable else "NOT DEFERRABLE"
                restore.append(f"ALTER TABLE {table} ALTER CONSTRAINT {name} {state}")
    yield
    await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for statement in restore:
        await connection.execute(statement)


async def _insert(connection: Connection, staged: Staged) -> int:
    """Inserts the unflagged rows; a row that the server still refuses is found by halving."""
    stage = quote_name(staged.stage)
    columns = ", ".join(map(quote_name, staged.names))
    identity = any(c.identity_always for c in staged.target.columns if c.name in staged.names)
    overriding = " OVERRIDING SYSTEM VALUE" if identity else ""
    inserted = 0
    bounds = await connection.fetchrow(f"SELECT min(migrator_number), max(migrator_number) FROM {stage}")
    ranges = [(bounds[0], bounds[1])] if bounds and bounds[0] is not None else []
    while ranges:
        low, high = ranges.pop()
        condition = f"s.migrator_number BETWEEN {low} AND {high} AND {_unflagged(staged)}"
        try:
            async with connection.transaction():
                status = await connection.execute(
                    f"INSERT INTO {staged.plan.qualified} ({columns}){overriding}"
                    f" SELECT {columns} FROM {stage} AS s WHERE {condition} ORDER BY s.migrator_number"
                )
        except ROW_ERRORS as error:
            middle = await _find_middle(connection, stage, low, high, _unflagged(staged))
            if middle is None:
                await _flag_refused(connection, staged, condition, error)
            else:
                ranges += [(middle[1], high), (low, middle[0])]
        else:
            inserted += int(status.split()[-1])
    return inserted


async def _flag_refused(connection: Connection, staged: Staged, condition: str, error: Exception) -> None:
    column = getattr(error, "column_name", None)
    state = getattr(error, "sqlstate", None)
    await _flag(
        connection,
        staged,
        f"SELECT s.migrator_number, 'rejected', {quote_literal(column) if column else 'NULL'},"
        f" {quote_literal(str(error))}, {quote_literal(state) if state else 'NULL'}, NULL"
        f" FROM {quote_name(staged.stage)} AS s WHERE {condition}",
    )


async def _quarantine_flagged(
    connection: Connection, snapshot: sqlite3.Connection, staged: Staged, quarantine: Quarantine
) -> None:
    """Hands the flagged rows to the quarantine, whole as SQLite has them, in one pass over both."""
    query = """
        SELECT number, verdict, column_name, reason, sqlstate, target_row FROM migrator_flags
         WHERE stage = $1 AND verdict <> 'present'
        UNION ALL
        SELECT number, 'nulled', column_name, reason, NULL, NULL FROM migrator_nulled WHERE stage = $1
         ORDER BY 1
    """
    rows: Iterator[tuple[int, Row]] | None = None
    current: tuple[int, Row] | None = None
    async for flag in connection.cursor(query, staged.stage, prefetch=_FLAGGED_BATCH):
        rows = rows or _read_rows(snapshot, staged.plan.table)
        while current is None or current[0] != flag["number"]:
            current = next(rows)
        quarantine.add([_make_entry(staged, current, flag)])


def _read_rows(snapshot: sqlite3.Connection, table: Table) -> Iterator[tuple[int, Row]]:
    for batch in read_batches(snapshot, table, _FLAGGED_BATCH):
        yield from zip(batch.numbers, batch.rows, strict=True)


def _make_entry(staged: Staged, current: tuple[int, Row], flag: asyncpg.Record) -> Entry:
    column = next((c for c in staged.plan.columns if c.name == flag["column_name"]), None)
    value = current[1][column.place] if column else None
    return Entry(
        table=staged.plan.table.name,
        number=current[0],
        verdict=Verdict(flag["verdict"]),
        column=column.source.name if column else None,
        value=json.dumps(encode_value(value), ensure_ascii=False),
        reason=flag["reason"],
        sqlstate=flag["sqlstate"],
        row=encode_row(staged.plan.table, current[1]),
        target_row=flag["target_row"],
    )


def restrict_to_stage(staged: Staged) -> str:
    """Gives the SQL condition, over the target's alias ``t``, that a row came from the stage.

    Rows that were in the target before the run are not the run's to verify.
    """
    identity = choose_identity(staged)
    if identity is None:
        return _restrict_by_content(staged)
    match = " AND ".join(f"s.{name} = t.{name}" for name in map(quote_name, identity.columns))
    return f"EXISTS (SELECT FROM {quote_name(staged.stage)} AS s WHERE {match} AND {_kept(staged)})"


def _kept(staged: Staged) -> str:
    return (
        f"NOT EXISTS (SELECT FROM migrator_flags AS f WHERE f.stage = {quote_literal(staged.stage)}"
        f" AND f.number = s.migrator_number AND f.verdict <> 'present')"
    )


def _restrict_by_content(staged: Staged) -> str:
    columns = ", ".join(f"{quote_name(c.name)}::text" for c in staged.plan.loaded)
    same = f"md5(ROW({columns})::text)"
    return (
        f"t.ctid IN (SELECT h.row FROM (SELECT ctid AS row, {same} AS content,"
        f" row_number() OVER (PARTITION BY {same} ORDER BY ctid) AS place FROM {staged.plan.qualified}) AS h"
        f" JOIN (SELECT {same} AS content, count(*) AS copies FROM {quote_name(staged.stage)} AS s"
        f" WHERE {_kept(staged)} GROUP BY 1) AS w USING (content) WHERE h.place <= w.copies)"
    )
