"""SQLite's side of a digest by columns, for tables in which every value is in its usual form.

It gives the same digest as the row-wise way in :mod:`migrator.verify`, or none at all. Like that one
it writes its canonical texts from the stored values by rules of its own, apart from the conversion.
"""

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import adbc_driver_manager
import adbc_driver_sqlite.dbapi
import pyarrow as pa
import pyarrow.compute as pc

from migrator.datatypes import Kind
from migrator.plan import TablePlan
from migrator.row_hash import LONGEST, choose_width, sum_padded, sum_texts
from migrator.source import quote_sqlite

_BATCH = 6_000
pa.set_memory_pool(pa.system_memory_pool())
_NULL = "N"
_MOMENT = r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d$"


class IrregularError(Exception):
    """A value is in a form that only the row-wise way knows."""


def sum_columns(snapshot_path: Path, plan: TablePlan) -> tuple[int, int, int] | None:
    """Adds up the hashes of all rows of a table.

    Returns:
        The number of rows and the two sums, or None where the row-wise way must do it.
    """
    if any(column.type.kind not in _WRITERS for column in plan.columns):
        return None
    columns = ", ".join(quote_sqlite(column.source.name) for column in plan.columns)
    rows = first = second = 0
    try:
        with (
            adbc_driver_sqlite.dbapi.connect(f"file:{quote(str(snapshot_path))}?mode=ro&immutable=1") as connection,
            connection.cursor() as cursor,
        ):
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(_BATCH)})
            cursor.execute(f"SELECT {columns} FROM {quote_sqlite(plan.table.name)}")
            for batch in cursor.fetch_record_batch():
                sums = _sum_rows(_write_rows(batch, plan))
                first, second = first + sums[0], second + sums[1]
                rows += batch.num_rows
    except (IrregularError, adbc_driver_manager.Error, pa.ArrowException, OSError):
        return None
    return rows, first, second


def _write_rows(batch: Any, plan: TablePlan) -> Any:
    terms = []
    for place, column in enumerate(plan.columns):
        values = batch.column(place)
        if values.null_count == len(values):
            terms.append(pa.repeat(_NULL, len(values)))
        else:
            terms.append(pc.fill_null(_WRITERS[column.type.kind](values), _NULL))
    terms.append(pa.repeat("", batch.num_rows))
    return pc.binary_join_element_wise(*terms, "|")


def _sum_rows(texts: Any) -> tuple[int, int]:
    lengths = pc.binary_length(texts).to_numpy(zero_copy_only=False).astype("int64")
    longest = int(lengths.max()) if len(lengths) else 0
    if longest > LONGEST or not len(lengths):
        return sum_texts(pc.cast(texts, pa.binary()).to_pylist())
    width = choose_width(longest)
    padded = pc.ascii_rpad(texts, width=width, padding="\0")
    # The bytes of a string array lie one after the other in its last buffer.
    return sum_padded(padded.buffers()[2], lengths, width)


def _write_integers(values: Any) -> Any:
    _expect(values, pa.int64())
    return pc.cast(values, pa.string())


def _write_doubles(values: Any) -> Any:
    _expect(values, pa.float64())
    bits = array("d", pc.fill_null(values, 0.0).to_pylist())
    bits.byteswap()
    digits = bits.tobytes().hex()
    texts = pa.array([digits[start : start + 16] for start in range(0, len(digits), 16)])
    return pc.if_else(pc.is_valid(values), texts, None)


def _write_booleans(values: Any) -> Any:
    _expect(values, pa.int64())
    if not set(pc.unique(values).to_pylist()) <= {0, 1, None}:
        raise IrregularError
    return pc.if_else(pc.equal(values, 1), "true", "false")


def _write_texts(values: Any) -> Any:
    _expect(values, pa.string())
    values.validate(full=True)
    return pc.binary_join_element_wise(pc.cast(pc.binary_length(values), pa.string()), values, ":")


def _write_dates(values: Any) -> Any:
    _expect_lengths(values, {10})
    return values


def _write_times(values: Any) -> Any:
    _expect_lengths(values, {5, 8})
    short = pc.equal(pc.binary_length(values), 5)
    return pc.if_else(short, pc.binary_join_element_wise(values, "00", ":"), values)


def _write_moments(values: Any) -> Any:
    _expect(values, pa.string())
    if not pc.all(pc.match_substring_regex(values, _MOMENT)).as_py():
        raise IrregularError
    spaced = pc.replace_substring(values, "T", " ")
    return pc.binary_join_element_wise(spaced, "+00", "")


def _expect(values: Any, wanted: Any) -> None:
    if values.type != wanted:
        raise IrregularError


def _expect_lengths(values: Any, lengths: set[int]) -> None:
    _expect(values, pa.string())
    if not set(pc.unique(pc.binary_length(values)).to_pylist()) <= {*lengths, None}:
        raise IrregularError


_WRITERS: dict[Kind, Callable[[Any], Any]] = {
    Kind.BIGINT: _write_integers,
    Kind.DOUBLE: _write_doubles,
    Kind.BOOLEAN: _write_booleans,
    Kind.TEXT: _write_texts,
    Kind.VARCHAR: _write_texts,
    Kind.DATE: _write_dates,
    Kind.TIME: _write_times,
    Kind.TIMESTAMPTZ: _write_moments,
}
