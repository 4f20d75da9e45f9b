"""Weighs the values that a column really holds, where its declaration cannot decide its type."""

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from migrator.datatypes import BIGINT, BYTEA, DOUBLE, NUMERIC, TEXT, DataType
from migrator.source import SqliteValue, Table, read_batches

_BATCH_SIZE = 10_000
_EXACT_INTEGER = 2**53
# Above this share of values that are no clean text, a text column becomes bytea.
TEXT_SHARE = 0.5


@dataclass(slots=True)
class Evidence:
    """How many values of each storage class a column holds.

    ``large`` counts integers that a double cannot hold exactly, ``unclean`` texts that hold U+0000
    or bytes that are no UTF-8.
    """

    integers: int = 0
    reals: int = 0
    texts: int = 0
    blobs: int = 0
    large: int = 0
    unclean: int = 0

    @property
    def total(self) -> int:
        """All values that are not NULL."""
        return self.integers + self.reals + self.texts + self.blobs

    def add(self, value: SqliteValue) -> None:
        """Counts one value."""
        if isinstance(value, int):
            self.integers += 1
            self.large += abs(value) > _EXACT_INTEGER
        elif isinstance(value, float):
            self.reals += 1
        elif isinstance(value, str):
            self.texts += 1
            self.unclean += _is_unclean(value)
        elif isinstance(value, bytes):
            self.blobs += 1


def _is_unclean(text: str) -> bool:
    if "\x00" in text:
        return True
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def weigh_columns(connection: sqlite3.Connection, table: Table, names: Sequence[str]) -> dict[str, Evidence]:
    """Counts the storage classes of some columns in one pass over the table.

    Args:
        connection: the snapshot.
        table: the table to read.
        names: the columns in question.
    """
    places = [(place, Evidence()) for place, column in enumerate(table.columns) if column.name in names]
    for batch in read_batches(connection, table, _BATCH_SIZE):
        for row in batch.rows:
            for place, evidence in places:
                evidence.add(row[place])
    return {table.columns[place].name: evidence for place, evidence in places}


def choose_type(declared: str, evidence: Evidence, share: float) -> DataType:
    """Chooses the narrowest type that holds the values.

    A numeric type must hold all of them; text may leave out up to ``share``, or half of them where
    that is more (blobs, U+0000), since bytea holds everything but is a poor home for text.

    >>> choose_type("", Evidence(integers=3), 0.01).sql
    'bigint'
    >>> choose_type("", Evidence(integers=3, reals=1), 0.01).sql
    'double precision'
    >>> choose_type("number", Evidence(integers=2, reals=1, large=1), 0.01).sql
    'numeric'
    >>> choose_type("", Evidence(integers=1, texts=1), 0.01).sql
    'text'
    >>> choose_type("", Evidence(blobs=2, texts=1), 0.01).sql
    'bytea'
    """
    if evidence.total == 0:
        return _choose_for_empty(declared)
    if evidence.texts + evidence.blobs == 0:
        if evidence.reals == 0:
            return BIGINT
        return NUMERIC if evidence.large else DOUBLE
    if evidence.blobs + evidence.unclean <= max(share, TEXT_SHARE) * evidence.total:
        return TEXT
    return BYTEA


def _choose_for_empty(declared: str) -> DataType:
    upper = declared.upper()
    if "BLOB" in upper or "BYTE" in upper or "BINARY" in upper:
        return BYTEA
    return NUMERIC if upper else TEXT


def describe_evidence(evidence: Mapping[str, Evidence], column: str) -> str:
    """Puts a column's evidence into words for a note.

    >>> describe_evidence({"a": Evidence(integers=2, texts=1)}, "a")
    '2 integers, 1 texts'
    """
    found = evidence[column]
    counts = {
        "integers": found.integers,
        "reals": found.reals,
        "texts": found.texts,
        "blobs": found.blobs,
        "of them unclean": found.unclean,
    }
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "no values"
