"""SQLite's side of a digest by columns, for tables in which every value is in its usual form.

It gives the same digest as the row-wise way in :mod:`migrator.verify`, or none at all. Like that one
it makes its cells from the stored values by rules of its own, apart from the conversion.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from migrator.batches import READ_ERRORS, BatchFile, open_columns, read_columns
from migrator.cells import IrregularError, hash_readings
from migrator.datatypes import Kind
from migrator.plan import TablePlan
from migrator.row_hash import (
    LONGEST,
    Array,
    choose_width,
    hash_numbers,
    hash_padded,
    hash_rows,
    hash_texts,
    sum_hashes,
)
from migrator.source import quote_sqlite


def sum_columns(snapshot_path: Path, plan: TablePlan, kept: BatchFile | None = None) -> tuple[int, int] | None:
    """Adds up the hashes of all rows of a table.

    Args:
        snapshot_path: the snapshot.
        plan: the table as it was carried out.
        kept: all its batches as the load read them, if it kept them.

    Returns:
        The number of rows and the sum, or None where the row-wise way must do it.
    """
    if any(column.type.kind not in _HASHERS for column in plan.columns):
        return None
    rows = total = 0
    try:
        for batch in kept.read() if kept else _read_table(snapshot_path, plan):
            cells = (_hash_column(batch.column(place), c.type.kind) for place, c in enumerate(plan.columns))
            total += sum_hashes(hash_rows(cells, batch.num_rows))
            rows += batch.num_rows
    except (IrregularError, *READ_ERRORS):
        return None
    return rows, total


def _read_table(snapshot_path: Path, plan: TablePlan) -> Iterator[Any]:
    columns = ", ".join(quote_sqlite(column.source.name) for column in plan.columns)
    with open_columns(snapshot_path) as connection:
        yield from read_columns(connection, f"SELECT {columns} FROM {quote_sqlite(plan.table.name)}")


def _hash_column(values: Any, kind: Kind) -> Array:
    if values.null_count == len(values):
        return np.zeros(len(values), np.uint64)
    hashes = _HASHERS[kind](values, kind)
    if values.null_count:
        hashes[~_find_present(values)] = 0
    return hashes


def _find_present(values: Any) -> Array:
    present: Array = pc.is_valid(values).to_numpy(zero_copy_only=False)
    return present


def _hash_integers(values: Any, _: Kind) -> Array:
    _expect(values, pa.int64())
    return hash_numbers(_fill(values, 0).to_numpy())


def _hash_doubles(values: Any, _: Kind) -> Array:
    _expect(values, pa.float64())
    return hash_numbers(_fill(values, 0.0).to_numpy().view(np.int64))


def _hash_booleans(values: Any, _: Kind) -> Array:
    _expect(values, pa.int64())
    numbers = _fill(values, 0).to_numpy()
    if ((numbers != 0) & (numbers != 1)).any():
        raise IrregularError
    return hash_numbers(numbers.astype(np.uint8))


def _hash_texts(values: Any, _: Kind) -> Array:
    _expect(values, pa.string())
    texts = _fill(values, "")
    lengths = pc.binary_length(texts).to_numpy().astype(np.int64)
    longest = int(lengths.max())
    if longest > LONGEST:
        return hash_texts(pc.cast(texts, pa.binary()).to_pylist())
    width = choose_width(longest)
    padded = pc.ascii_rpad(texts, width=width, padding="\0")
    # The bytes of a string array lie one after the other in its last buffer.
    return hash_padded(padded.buffers()[2], lengths, width)


def _hash_blobs(values: Any, _: Kind) -> Array:
    _expect(values, pa.binary())
    return hash_texts(_fill(values, b"").to_pylist())


def _hash_readings(values: Any, kind: Kind) -> Array:
    _expect(values, pa.string())
    present = _find_present(values)
    texts = _fill(values, "")
    lengths = pc.binary_length(texts).to_numpy().astype(np.int64)
    first = int(np.frombuffer(texts.buffers()[1], np.int32)[texts.offset])
    characters = np.frombuffer(texts.buffers()[2], np.uint8)[first : first + int(lengths.sum())]
    return hash_readings(kind, characters, lengths, present)


def _fill(values: Any, value: object) -> Any:
    return pc.fill_null(values, value) if values.null_count else values


def _expect(values: Any, wanted: Any) -> None:
    if values.type != wanted:
        raise IrregularError


_HASHERS: dict[Kind, Callable[[Any, Kind], Array]] = {
    Kind.BIGINT: _hash_integers,
    Kind.DOUBLE: _hash_doubles,
    Kind.BOOLEAN: _hash_booleans,
    Kind.TEXT: _hash_texts,
    Kind.VARCHAR: _hash_texts,
    Kind.BYTEA: _hash_blobs,
    Kind.DATE: _hash_readings,
    Kind.TIME: _hash_readings,
    Kind.TIMESTAMP: _hash_readings,
    Kind.TIMESTAMPTZ: _hash_readings,
}
