"""Streams a table's rows into PostgreSQL through COPY, in batches, within the client's transaction.

A table that the target lacks is made and filled directly. Whatever the fast way cannot settle (a
table that exists already, a key that the rows break) goes through :mod:`migrator.stage`.
"""

import asyncio
import importlib
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from migrator.convert import Converted, Converter, Rejection, Value, convert_batch
from migrator.datatypes import DataType, Kind
from migrator.errors import TooManyRejectedError
from migrator.evidence import TEXT_SHARE, choose_type, describe_evidence, weigh_columns
from migrator.plan import ColumnPlan, Orphans, TablePlan
from migrator.quarantine import Quarantine
from migrator.source import Batch, count_rows, read_batches, read_range, read_rows
from migrator.target import Connection, quote_name
from migrator.translate import translate_expression
from migrator.zones import Clock

if TYPE_CHECKING:
    from migrator.batches import BatchFile
    from migrator.columnar import Encoded

# Errors that say something of a row; any other error is the server's, and ends the client's run.
ROW_ERRORS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.RaiseError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.WithCheckOptionViolationError,
)
Progress = Callable[[int], None]
Item: TypeAlias = "Encoded | tuple[Batch, Converted]"


# A file smaller than this has no table that is large enough to be loaded by columns.
COLUMNAR_BYTES = 1 << 20
# How many times a file's size must be free on the disk for its batches to be kept there.
ROOM = 4


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load.

    Attributes:
        batch_size: rows in one COPY.
        widen_above: the share of a column's values (0 to 1) above which a new column gets a wider
            type instead of its rows being quarantined.
        max_rejected: how many rejected rows a client may have; None for any number.
        orphans: what happens to rows whose foreign key points at no row.
        zone: the zone in which naive moments are read.
        columnar_above: from how many rows on a new table is loaded by columns; the result is the same.
        scratch: a folder in which such a table's batches are kept for its digest; None where that reads SQLite.
    """

    zone: tzinfo = UTC
    batch_size: int = 10_000
    widen_above: float = 0.05
    max_rejected: int | None = None
    orphans: Orphans = Orphans.KEEP
    columnar_above: int = 20_000
    scratch: Path | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a table on its way: the plan as carried out, its rows, and their batches if they were kept."""

    plan: TablePlan
    rows_read: int
    rows_copied: int
    notes: tuple[str, ...] = ()
    kept: "BatchFile | None" = None


class WidenError(Exception):
    """Too many values of some columns do not fit; the table begins again with wider types."""

    def __init__(self, unfit: Sequence[str], nulls: Sequence[str]) -> None:
        super().__init__("columns are too narrow")
        self.unfit = unfit
        self.nulls = nulls


class ComputedError(Exception):
    """PostgreSQL does not compute a generated column as SQLite does."""


@dataclass(slots=True)
class _Tally:
    """Counts while a table streams by."""

    read: int = 0
    copied: int = 0
    unfit: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    kept: "BatchFile | None" = None


def import_ahead() -> None:
    """Imports what a large client needs and a small one may not, while its snapshot is taken."""
    for name in ("migrator.columnar", "migrator.column_digest"):
        importlib.import_module(name)


def decide_types(snapshot: sqlite3.Connection, plan: TablePlan, options: LoadOptions) -> TablePlan:
    """Decides by their values the types of columns whose declaration says nothing."""
    names = [column.source.name for column in plan.columns if column.datatype is None]
    if not names:
        return plan
    evidence = weigh_columns(snapshot, plan.table, names)
    return plan.with_types(
        {
            name: choose_type(plan.find_column(name).source.declared_type, found, options.widen_above)
            for name, found in evidence.items()
        }
    )


async def load_fresh(
    connection: Connection,
    snapshot: sqlite3.Connection,
    plan: TablePlan,
    options: LoadOptions,
    quarantine: Quarantine,
    progress: Progress,
) -> Loaded:
    """Makes a table and fills it; values that do not fit are quarantined, or widen their column.

    Args:
        connection: within the client's transaction.
        snapshot: the client's rows.
        plan: a table that the target does not have.
        options: batch size, share, zone.
        quarantine: where rows go that do not fit.
        progress: told the number of rows after each batch.

    Raises:
        TooManyRejectedError: see ``--max-rejected``.
    """
    notes: list[str] = []
    while True:
        quarantine.forget(plan.table.name)
        savepoint = connection.transaction()
        await savepoint.start()
        try:
            plan = await create_table(connection, plan, notes)
            tally = await _copy_table(connection, snapshot, plan, plan.name, options, quarantine, progress, plan.schema)
        except WidenError as error:
            await savepoint.rollback()
            plan = _widen(snapshot, plan, options, error, notes)
        except ComputedError as error:
            await savepoint.rollback()
            plan = drop_computed(plan, str(error), notes)
        except BaseException:
            with suppress(Exception):
                await savepoint.rollback()
            raise
        else:
            await savepoint.commit()
            return Loaded(plan, tally.read, tally.copied, (*notes, *tally.notes), tally.kept)


async def load_stage(
    connection: Connection,
    snapshot: sqlite3.Connection,
    plan: TablePlan,
    stage: str,
    options: LoadOptions,
    quarantine: Quarantine,
    progress: Progress,
    numbers: Sequence[int] | None = None,
) -> Loaded:
    """Fills a temporary table with the rows for a table that exists; nothing is widened here.

    Args:
        connection: within the client's transaction.
        snapshot: the client's rows.
        plan: a table that exists.
        stage: the temporary table's name.
        options: batch size, zone.
        quarantine: where rows go that do not fit.
        progress: told the number of rows after each batch.
        numbers: the rows that count; all of them where it is left out.
    """
    quarantine.forget(plan.table.name)
    columns = ", ".join(f"{quote_name(c.name)} {stage_type(c)}" for c in plan.loaded)
    await connection.execute(
        f"CREATE TEMP TABLE {quote_name(stage)} (migrator_number bigint NOT NULL, {columns}) ON COMMIT DROP"
    )
    tally = await _copy_table(
        connection, snapshot, plan, stage, replace(options, widen_above=1.0), quarantine, progress, None, numbers
    )
    await connection.execute(f"ANALYZE {quote_name(stage)}")
    return Loaded(plan, tally.read, tally.copied, tuple(tally.notes))


def stage_type(column: ColumnPlan) -> str:
    """Gives the type that a column has on the stage: text where only the server can convert it."""
    return "text" if column.type.kind is Kind.OTHER else column.type.sql


async def create_table(connection: Connection, plan: TablePlan, notes: list[str]) -> TablePlan:
    """Makes a table with its columns, without keys.

    Returns:
        The plan; generated columns that PostgreSQL refuses have become plain ones.
    """
    try:
        async with connection.transaction():
            await connection.execute(_render_table(plan))
    except asyncpg.PostgresError as error:
        if not any(column.computed for column in plan.columns):
            raise
        plan = drop_computed(plan, str(error), notes)
        await connection.execute(_render_table(plan))
    return plan


def _render_table(plan: TablePlan) -> str:
    names = plan.translate_names()
    parts = []
    for column in plan.columns:
        part = f"{quote_name(column.name)} {column.type.sql}"
        if column.identity:
            part += " GENERATED BY DEFAULT AS IDENTITY"
        elif column.computed:
            expression = translate_expression(column.source.generated or "", names) or "?"
            part += f" GENERATED ALWAYS AS ({expression}) STORED"
        if column.not_null and not column.computed:
            part += " NOT NULL"
        parts.append(part)
    return f"CREATE TABLE {plan.qualified} ({', '.join(parts)})"


def drop_computed(plan: TablePlan, reason: str, notes: list[str]) -> TablePlan:
    """Turns generated columns into plain ones that are loaded with SQLite's values."""
    notes.extend(
        f"{plan.name}.{c.name}: generated column became a plain one with its values ({reason})"
        for c in plan.columns
        if c.computed
    )
    return replace(plan, columns=tuple(replace(c, computed=False) for c in plan.columns))


async def _copy_table(
    connection: Connection,
    snapshot: sqlite3.Connection,
    plan: TablePlan,
    into: str,
    options: LoadOptions,
    quarantine: Quarantine,
    progress: Progress,
    schema: str | None,
    numbers: Sequence[int] | None = None,
) -> _Tally:
    tally = _Tally()
    total = count_rows(snapshot, plan.table)
    allowed = {column.name: total * _allow_share(column, options.widen_above) for column in plan.loaded}
    columns = [column.name for column in plan.loaded]
    if schema is None:
        columns.insert(0, "migrator_number")
    columnar = schema is not None and numbers is None and total >= options.columnar_above
    items = _convert_table(snapshot, plan, options, tally, numbers, columnar=columnar)
    async with aclosing(items):
        item = await anext(items, None)
        while item is not None:
            if not isinstance(item, tuple):
                item = await _copy_encoded(connection, plan, schema, columns, item, items, tally, progress)
                continue
            batch, converted = item
            tally.unfit.update(converted.unfit)
            tally.nulls.update(converted.nulls)
            _check_share(tally, allowed)
            quarantine.add_rejections(plan.table, converted.rejections)
            if converted.records:
                copier = _Copier(connection, plan, into, schema, columns, quarantine)
                tally.copied += await copier.copy(batch, converted)
            tally.read += len(batch.rows)
            _check_rejected(quarantine, plan, options)
            progress(len(batch.rows))
            item = await anext(items, None)
    return tally


async def _copy_encoded(
    connection: Connection,
    plan: TablePlan,
    schema: str | None,
    columns: Sequence[str],
    first: "Encoded",
    items: AsyncIterator[Item],
    tally: _Tally,
    progress: Progress,
) -> "Item | None":
    """Copies encoded batches in one COPY, so that the server never waits for the next one to begin.

    Returns:
        The first item that is not encoded; None at the end.
    """
    from migrator.columnar import COPY_HEADER, COPY_TRAILER

    item: Item | None = first

    async def stream() -> AsyncIterator[bytes]:
        nonlocal item
        yield COPY_HEADER
        while item is not None and not isinstance(item, tuple):
            yield item.payload
            tally.read += item.rows
            progress(item.rows)
            item = await anext(items, None)
        yield COPY_TRAILER

    copied = await connection.copy_to_table(
        plan.name,
        schema_name=schema,
        columns=columns,
        format="binary",
        source=stream(),
        # The table was made in this transaction, so its rows need never be looked at again to be found visible.
        freeze=True,
    )
    tally.copied += int(copied.split()[1])
    return item


def _allow_share(column: ColumnPlan, share: float) -> float:
    return max(share, TEXT_SHARE) if column.type.kind is Kind.TEXT else share


def _check_share(tally: _Tally, allowed: Mapping[str, float]) -> None:
    unfit = [name for name, count in tally.unfit.items() if count > allowed[name]]
    nulls = [name for name, count in tally.nulls.items() if count > allowed[name]]
    if unfit or nulls:
        raise WidenError(unfit, nulls)


def _check_rejected(quarantine: Quarantine, plan: TablePlan, options: LoadOptions) -> None:
    if options.max_rejected is None:
        return
    rejected = quarantine.count()
    if rejected > options.max_rejected:
        raise TooManyRejectedError(
            f"more than {options.max_rejected} rows are rejected ({rejected} by table {plan.table.name}); "
            f"nothing was committed. 'migrate --dry-run' lists them in rejected.jsonl"
        )


def _widen(
    snapshot: sqlite3.Connection, plan: TablePlan, options: LoadOptions, error: WidenError, notes: list[str]
) -> TablePlan:
    sources = {column.name: column.source for column in plan.columns}
    names = [sources[name].name for name in error.unfit]
    evidence = weigh_columns(snapshot, plan.table, names) if names else {}
    types: dict[str, DataType] = {}
    for name in names:
        column = plan.find_column(name)
        types[name] = choose_type(column.source.declared_type, evidence[name], options.widen_above)
        if types[name] == column.type:
            # The same type again can only mean that it was not wide enough.
            types[name] = choose_type("", replace(evidence[name], blobs=evidence[name].total + 1), 0)
        notes.append(
            f"{plan.name}.{column.name}: declared {column.source.declared_type or 'without a type'}, wished as "
            f"{column.type.sql}, became {types[name].sql}, since its values are {describe_evidence(evidence, name)}"
        )
    notes.extend(f"{plan.name}.{name}: NOT NULL was left out, since NULLs occur in SQLite" for name in error.nulls)
    widened = plan.with_types(types)
    return replace(
        widened,
        columns=tuple(replace(c, not_null=c.not_null and c.name not in error.nulls) for c in widened.columns),
    )


async def _convert_table(
    snapshot: sqlite3.Connection,
    plan: TablePlan,
    options: LoadOptions,
    tally: _Tally,
    numbers: Sequence[int] | None,
    *,
    columnar: bool,
) -> AsyncGenerator[Item, None]:
    """Reads and converts one batch ahead, in a thread, while the batch before it is copied."""
    converters = [Converter(c.name, c.type, not_null=c.not_null, zone=options.zone) for c in plan.loaded]
    items = _list_batches(snapshot, plan, options, converters, numbers, tally, columnar=columnar)
    ahead = asyncio.ensure_future(asyncio.to_thread(next, items, None))
    ended = False
    try:
        while (found := await ahead) is not None:
            ahead = asyncio.ensure_future(asyncio.to_thread(next, items, None))
            yield found
        tally.notes += _note_clock_changes(plan, converters, options)
        ended = True
    finally:
        # The thread uses the snapshot until it ends, so it is waited for whatever happened here.
        with suppress(Exception):
            await asyncio.shield(ahead)
        items.close()
        if tally.kept and not ended:
            tally.kept.drop()


def _list_batches(
    snapshot: sqlite3.Connection,
    plan: TablePlan,
    options: LoadOptions,
    converters: Sequence[Converter],
    numbers: Sequence[int] | None,
    tally: _Tally,
    *,
    columnar: bool,
) -> Generator["Encoded | tuple[Batch, Converted]", None, None]:
    places = [column.place for column in plan.loaded]
    if columnar:
        # Arrow takes longer to import than a small client takes to migrate.
        from migrator.batches import BatchFile
        from migrator.columnar import Encoded, encode_batches, is_columnar

        if is_columnar(snapshot, plan, options.zone):
            # The digest goes by columns in UTC alone, and needs generated columns, which the load leaves out.
            digested = options.zone is UTC and plan.loaded == plan.columns
            if digested and options.scratch and _has_room(options.scratch, snapshot):
                tally.kept = BatchFile(options.scratch)
            for item in encode_batches(snapshot, plan, tally.kept):
                if isinstance(item, Encoded):
                    yield item
                else:
                    batch = read_range(snapshot, plan.table, item.first, item.last)
                    yield batch, convert_batch(batch, converters, places)
            return
    batches = (
        read_batches(snapshot, plan.table, options.batch_size)
        if numbers is None
        else read_rows(snapshot, plan.table, numbers)
    )
    for batch in batches:
        yield batch, convert_batch(batch, converters, places)


def _has_room(folder: Path, snapshot: sqlite3.Connection) -> bool:
    """Whether batches may lie beside the snapshot, with room left for what other clients need there."""
    size = snapshot.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
    return shutil.disk_usage(folder).free > ROOM * int(size)


def _note_clock_changes(plan: TablePlan, converters: Sequence[Converter], options: LoadOptions) -> list[str]:
    notes = []
    for converter in converters:
        repeated, skipped = (converter.clock_changes[kind] for kind in (Clock.REPEATED, Clock.SKIPPED))
        if repeated or skipped:
            notes.append(
                f"{plan.name}.{converter.name}: {repeated} local times occur twice in {options.zone} and were read as "
                f"the first; {skipped} do not occur and were read with the offset from before the clock change"
            )
    return notes


class _Copier:
    """Copies one batch; a record that the server refuses is found by halving, in savepoints."""

    def __init__(
        self,
        connection: Connection,
        plan: TablePlan,
        into: str,
        schema: str | None,
        columns: Sequence[str],
        quarantine: Quarantine,
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._into = into
        self._schema = schema
        self._columns = columns
        self._quarantine = quarantine

    async def copy(self, batch: Batch, converted: Converted) -> int:
        records: Sequence[tuple[Value, ...]] = converted.records
        if self._schema is None:
            records = [(n, *record) for n, record in zip(converted.numbers, records, strict=True)]
        return await self._copy_records(batch, converted.numbers, records)

    async def _copy_records(self, batch: Batch, numbers: Sequence[int], records: Sequence[tuple[Value, ...]]) -> int:
        try:
            async with self._connection.transaction():
                await self._connection.copy_records_to_table(
                    self._into, schema_name=self._schema, columns=self._columns, records=records
                )
        except ROW_ERRORS as error:
            if any(column.computed for column in self._plan.columns):
                raise ComputedError(str(error)) from error
            if len(records) == 1:
                self._reject(batch, numbers[0], error)
                return 0
            middle = len(records) // 2
            first = await self._copy_records(batch, numbers[:middle], records[:middle])
            return first + await self._copy_records(batch, numbers[middle:], records[middle:])
        return len(records)

    def _reject(self, batch: Batch, number: int, error: Exception) -> None:
        row = batch.rows[list(batch.numbers).index(number)]
        name = getattr(error, "column_name", None)
        column = next((c for c in self._plan.columns if c.name == name), None)
        value = row[column.place] if column else None
        self._quarantine.add_rejections(
            self._plan.table,
            [Rejection(number, column.source.name if column else None, str(error), value, row)],
            getattr(error, "sqlstate", None),
        )
