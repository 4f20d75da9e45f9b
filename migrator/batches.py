"""Reads SQLite by columns: Arrow record batches, through the ADBC driver."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import adbc_driver_manager
import adbc_driver_sqlite.dbapi
import pyarrow as pa

# Small enough for the job's bound on memory; larger batches are no faster by much.
BATCH_ROWS = 10_000
# What the driver raises, among others where a column's values change their class.
READ_ERRORS = (adbc_driver_manager.Error, pa.ArrowException, OSError)
# Arrow's own pool keeps freed memory for long; the system's gives it back.
pa.set_memory_pool(pa.system_memory_pool())
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20


def _keep_blocks() -> None:
    """Lets glibc keep some freed memory, so that each batch does not have to ask the kernel for its own again.

    Source: mallopt(3). Elsewhere there is no such function, and nothing to be done.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(parameter, _KEPT_BYTES)


_keep_blocks()


@contextmanager
def open_columns(path: Path) -> Iterator[Any]:
    """Opens a snapshot with the driver."""
    with adbc_driver_sqlite.dbapi.connect(f"file:{quote(str(path))}?mode=ro&immutable=1") as connection:
        yield connection


def read_columns(connection: Any, query: str) -> Iterator[Any]:
    """Reads a query's rows as record batches.

    Raises:
        READ_ERRORS: a column's values are not all of the class that its first ones have.
    """
    with connection.cursor() as cursor:
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
        cursor.execute(query)
        yield from cursor.fetch_record_batch()
