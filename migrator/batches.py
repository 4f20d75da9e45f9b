"""Reads SQLite by columns: Arrow record batches, through the ADBC driver.

What was read for the load can be kept in a file until it is hashed, so that SQLite need not be read twice.
"""

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import adbc_driver_manager
import adbc_driver_sqlite.dbapi
import pyarrow as pa

# Small enough for the job's bound on memory; larger batches are no faster by much.
BATCH_ROWS = 16_000
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


class BatchFile:
    """A table's batches on their way to the digest: written down as they are read for the load.

    What cannot be kept, as on a full disk, or is not all of the table, is dropped: the digest then reads SQLite.
    """

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(suffix=".arrow", dir=folder)
        os.close(handle)
        self.path = Path(name)
        self.is_whole = False
        self._stream: Any = None

    def keep(self, items: Iterator[Any]) -> Iterator[Any]:
        """Passes items on and writes them down, as long as they are batches and the disk has room for them."""
        fits = True
        for item in items:
            fits = fits and self._write(item)
            yield item
        self.is_whole = fits and self._close()

    def read(self) -> Iterator[Any]:
        """Reads the batches, once: the file is gone after that."""
        try:
            with pa.OSFile(str(self.path)) as file:
                yield from pa.ipc.open_stream(file)
        finally:
            self.drop()

    def drop(self) -> None:
        """Removes the file."""
        self.is_whole = False
        self._close()
        self.path.unlink(missing_ok=True)

    def _write(self, item: Any) -> bool:
        try:
            if isinstance(item, pa.RecordBatch):
                self._stream = self._stream or pa.ipc.new_stream(str(self.path), item.schema)
                self._stream.write_batch(item)
                return True
        except OSError:
            pass
        self.drop()
        return False

    def _close(self) -> bool:
        stream, self._stream = self._stream, None
        try:
            if stream:
                stream.close()
        except OSError:
            return False
        return True
