"""The fast way for well-formed batches: columns instead of rows, from SQLite to binary COPY in C.

SQLite's rows are read as Arrow record batches (ADBC), converted by Arrow's own parsers and encoded as
PostgreSQL's binary COPY format (pgpq). It takes only what needs no judgement: a batch with any value
that is not in its column's usual form is left to :mod:`migrator.convert`, which decides about every
value; both ways give the same rows.
"""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Any

import pgpq
import pyarrow as pa
import pyarrow.compute as pc

from migrator import batches
from migrator.batches import READ_ERRORS, BatchFile, open_columns, read_columns
from migrator.datatypes import DataType, Kind
from migrator.plan import ColumnPlan, TablePlan, list_classes
from migrator.snapshot import open_snapshot
from migrator.source import holds_only, identify_rows, quote_sqlite

# What stands before and after the rows (https://www.postgresql.org/docs/16/sql-copy.html, Binary Format).
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER = b"\xff\xff"
_NAIVE_LENGTHS = (10, 16, 26)
_ZONED = r"(Z|[+-]\d\d:\d\d)$"


class UnusualError(Exception):
    """A batch holds something that only the careful way may judge."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch ready for COPY: how many rows, and their bytes without header and trailer."""

    rows: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Leftover:
    """A range of rows, by their numbers, for the careful way; ``first`` is None from the beginning."""

    first: int | None
    last: int | None


def is_columnar(snapshot: sqlite3.Connection, plan: TablePlan, zone: tzinfo) -> bool:
    """Whether a table can go this way: it has rowids, and all its types have a columnar form.

    The driver makes one class of a column's first values, writing numbers as text in its own manner;
    a column in which that could happen keeps its table out.
    """
    if plan.table.rowid_name is None or plan.table.virtual:
        return False
    if not all(_has_form(column, zone) for column in plan.loaded):
        return False
    return holds_only(snapshot, plan.table, list_classes(plan.loaded))


def _has_form(column: ColumnPlan, zone: tzinfo) -> bool:
    if column.type.kind is Kind.TIMESTAMPTZ:
        return zone is UTC and column.type.scale is None
    return column.type.kind in _FORMS


def encode_batches(
    snapshot: sqlite3.Connection, plan: TablePlan, kept: BatchFile | None = None
) -> Iterator[Encoded | Leftover]:
    """Reads a table in the order of its rowids, as encoded batches and ranges for the careful way.

    Args:
        snapshot: names the file, which is opened anew.
        plan: a table for which :func:`is_columnar` holds.
        kept: where its batches are kept for the digest.
    """
    path = snapshot.execute("SELECT file FROM pragma_database_list WHERE name = 'main'").fetchone()[0]
    after: int | None = None
    found = _read_batches(path, plan)
    for item in _read_ahead(kept.keep(found) if kept else found):
        if isinstance(item, Leftover):
            after = item.last
            yield item
            continue
        last = _read_last(item, plan)
        try:
            yield _encode(item, plan)
        except (UnusualError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            yield Leftover(after, last)
        after = last


def _read_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Reads the next batch in a thread while the last one is encoded; reading needs no interpreter lock."""
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(next, batches, None)
        while (found := ahead.result()) is not None:
            ahead = reader.submit(next, batches, None)
            yield found


def _read_batches(path: str, plan: TablePlan) -> Iterator[Any]:
    after: int | None = None
    with closing(open_snapshot(Path(path))) as finder, open_columns(Path(path)) as connection:
        while True:
            try:
                for batch in _open_reader(connection, plan, after):
                    if batch.num_rows:
                        yield batch
                        after = _read_last(batch, plan)
            except READ_ERRORS:
                # The driver fixes each column's class by its first rows and stops where another follows.
                last = _find_last(finder, plan, after)
                if last is None:
                    return
                yield Leftover(after, last)
                after = last
            else:
                return


def _open_reader(connection: Any, plan: TablePlan, after: int | None) -> Iterator[Any]:
    number, order = identify_rows(plan.table)
    columns = [quote_sqlite(column.source.name) for column in plan.loaded]
    if _place_number(plan) == len(columns):
        columns.append(f"{number} AS migrator_number")
    where = "" if after is None else f" WHERE {order} > {after}"
    return read_columns(
        connection, f"SELECT {', '.join(columns)} FROM {quote_sqlite(plan.table.name)}{where} ORDER BY {order}"
    )


def _place_number(plan: TablePlan) -> int:
    """Gives the place of the rows' numbers: that of the column that stands for them, or one after all columns."""
    names = [column.source.name for column in plan.loaded]
    return names.index(plan.table.rowid_alias) if plan.table.rowid_alias in names else len(names)


def _read_last(batch: Any, plan: TablePlan) -> int:
    return int(batch.column(_place_number(plan))[-1].as_py())


def _find_last(snapshot: sqlite3.Connection, plan: TablePlan, after: int | None) -> int | None:
    number, order = identify_rows(plan.table)
    where = "" if after is None else f" WHERE {order} > {after}"
    query = (
        f"SELECT max(n) FROM (SELECT {number} AS n FROM {quote_sqlite(plan.table.name)}{where}"
        f" ORDER BY {order} LIMIT {batches.BATCH_ROWS})"
    )
    found = snapshot.execute(query).fetchone()[0]
    return None if found is None else int(found)


def _encode(batch: Any, plan: TablePlan) -> Encoded:
    columns = [_convert(batch.column(place), column) for place, column in enumerate(plan.loaded)]
    names = [f"c{place}" for place in range(len(columns))]
    typed = pa.record_batch(columns, names=names)
    encoder = pgpq.ArrowToPostgresBinaryEncoder(typed.schema)
    # Whoever copies several batches at once writes what stands before the first of them and after the last.
    encoder.write_header()
    rows = encoder.write_batch(typed) + encoder.finish()
    return Encoded(batch.num_rows, rows.removesuffix(COPY_TRAILER))


def _convert(values: Any, column: ColumnPlan) -> Any:
    if values.null_count and column.not_null:
        raise UnusualError("NULL in a column that is NOT NULL")
    if values.null_count == len(values):
        return pa.nulls(len(values), _ARROW_TYPES[column.type.kind])
    return _FORMS[column.type.kind](values, column.type)


def _take_integers(values: Any, _: DataType) -> Any:
    _expect(values, pa.int64())
    return values


def _take_doubles(values: Any, _: DataType) -> Any:
    _expect(values, pa.float64())
    return values


def _take_booleans(values: Any, _: DataType) -> Any:
    _expect(values, pa.int64())
    bounds = pc.min_max(values).as_py()
    if bounds["min"] < 0 or bounds["max"] > 1:
        raise UnusualError("no boolean")
    return pc.cast(values, pa.bool_())


def _take_blobs(values: Any, _: DataType) -> Any:
    _expect(values, pa.binary())
    return values


def _take_texts(values: Any, datatype: DataType) -> Any:
    _expect(values, pa.string())
    values.validate(full=True)
    if pc.any(pc.match_substring(values, "\x00")).as_py():
        raise UnusualError("U+0000")
    if datatype.length is not None and pc.max(pc.utf8_length(values)).as_py() > datatype.length:
        raise UnusualError("too long")
    return values


def _take_dates(values: Any, _: DataType) -> Any:
    _expect_lengths(values, (10,))
    return pc.cast(values, pa.date32())


def _take_times(values: Any, datatype: DataType) -> Any:
    _expect_lengths(values, (5, 8))
    if datatype.scale is not None:
        raise UnusualError("a limited precision")
    # A day has few of them, so each is parsed once.
    coded = values.dictionary_encode()
    moments = pc.binary_join_element_wise("1970-01-01", coded.dictionary, " ")
    return pc.take(pc.cast(pc.cast(moments, pa.timestamp("us")), pa.time64("us")), coded.indices)


def _take_moments(values: Any, datatype: DataType) -> Any:
    _expect(values, pa.string())
    if datatype.kind is Kind.TIMESTAMP:
        if datatype.scale is not None:
            raise UnusualError("a limited precision")
        return _parse_naive(values)
    try:
        return pc.cast(_parse_naive(values), pa.timestamp("us", "UTC"))
    except (UnusualError, pa.ArrowInvalid):
        zoned = pc.match_substring_regex(values, _ZONED)
        offsets = pc.cast(pc.if_else(zoned, values, "1970-01-01T00:00:00Z"), pa.timestamp("us", "UTC"))
        naive = pc.cast(_parse_naive(pc.if_else(zoned, "1970-01-01", values)), pa.timestamp("us", "UTC"))
        return pc.if_else(zoned, offsets, naive)


def _parse_naive(values: Any) -> Any:
    """Parses moments without an offset; the lengths keep out forms that Arrow takes and SQLite does not."""
    lengths = pc.unique(pc.utf8_length(values)).to_pylist()
    shortest, minutes, longest = _NAIVE_LENGTHS
    if any(n is not None and n != shortest and not minutes <= n <= longest for n in lengths):
        raise UnusualError("no moment in the usual form")
    return pc.cast(values, pa.timestamp("us"))


def _expect(values: Any, wanted: Any) -> None:
    if values.type != wanted:
        raise UnusualError(f"{values.type} where {wanted} is usual")


def _expect_lengths(values: Any, lengths: tuple[int, ...]) -> None:
    _expect(values, pa.string())
    if not set(pc.unique(pc.binary_length(values)).to_pylist()) <= {*lengths, None}:
        raise UnusualError("another form")


_FORMS: dict[Kind, Callable[[Any, DataType], Any]] = {
    Kind.BIGINT: _take_integers,
    Kind.DOUBLE: _take_doubles,
    Kind.BOOLEAN: _take_booleans,
    Kind.TEXT: _take_texts,
    Kind.VARCHAR: _take_texts,
    Kind.BYTEA: _take_blobs,
    Kind.DATE: _take_dates,
    Kind.TIME: _take_times,
    Kind.TIMESTAMP: _take_moments,
    Kind.TIMESTAMPTZ: _take_moments,
}
_ARROW_TYPES: dict[Kind, Any] = {
    Kind.BIGINT: pa.int64(),
    Kind.DOUBLE: pa.float64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.TEXT: pa.string(),
    Kind.VARCHAR: pa.string(),
    Kind.BYTEA: pa.binary(),
    Kind.DATE: pa.date32(),
    Kind.TIME: pa.time64("us"),
    Kind.TIMESTAMP: pa.timestamp("us"),
    Kind.TIMESTAMPTZ: pa.timestamp("us", "UTC"),
}
