"""Rows by name and by position, and the same Python types from both databases."""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any

from migrator.datatypes import Kind, wish_type


class Row(Sequence[Any]):
    """One row of an answer.

    >>> row = Row(("id", "name"), (1, "Анна"))
    >>> row["name"], row[0], row.get("age", 7), dict(row.items())
    ('Анна', 1, 7, {'id': 1, 'name': 'Анна'})
    """

    __slots__ = ("_names", "_values")

    def __init__(self, names: Sequence[str], values: Sequence[Any]) -> None:
        self._names = names
        self._values = values

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            try:
                return self._values[self._names.index(key)]
            except ValueError:
                raise KeyError(key) from None
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        return tuple(self._values) == tuple(other) if isinstance(other, (Row, tuple)) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._values))

    def __repr__(self) -> str:
        return f"<Row {' '.join(f'{name}={value!r}' for name, value in self.items())}>"

    def get(self, name: str, default: Any = None) -> Any:
        """Gives a column's value, or a default where the answer has no such column."""
        return self[name] if name in self._names else default

    def keys(self) -> list[str]:
        """The columns' names."""
        return list(self._names)

    def values(self) -> list[Any]:
        """The values in the columns' order."""
        return list(self._values)

    def items(self) -> list[tuple[str, Any]]:
        """Names and values."""
        return list(zip(self._names, self._values, strict=True))


# --- SQLite --------------------------------------------------------------------------------------


def encode_sqlite(value: Any) -> Any:
    """Turns an argument into what SQLite stores, in the forms that the bots have always written.

    >>> encode_sqlite(time(9, 30)), encode_sqlite(date(2024, 5, 1)), encode_sqlite(True)
    ('09:30', '2024-05-01', 1)
    >>> encode_sqlite(datetime(2024, 5, 1, 12, tzinfo=UTC)), encode_sqlite({"a": 1})
    ('2024-05-01 12:00:00+00:00', '{"a": 1}')
    """
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value
        return moment.isoformat(sep=" ")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, time):
        return value.isoformat("minutes" if not (value.second or value.microsecond) else "auto")
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return value


def _read_date(value: Any) -> Any:
    return date.fromisoformat(value[:10]) if isinstance(value, str) else value


def _read_time(value: Any) -> Any:
    return time.fromisoformat(value) if isinstance(value, str) else value


def _read_moment(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _read_boolean(value: Any) -> Any:
    return bool(value) if value in (0, 1) else value


def _read_decimal(value: Any) -> Any:
    return Decimal(repr(value) if isinstance(value, float) else value)


_READERS = {
    Kind.DATE: _read_date,
    Kind.TIME: _read_time,
    Kind.TIMESTAMPTZ: _read_moment,
    Kind.BOOLEAN: _read_boolean,
    Kind.NUMERIC: _read_decimal,
    Kind.JSONB: json.loads,
}


class SqliteTypes:
    """Knows which columns of a database hold more than text and numbers.

    SQLite's answers carry no types. A column of an answer is taken for that of a table if its name is
    a column's of a table that the statement names; where two such tables differ it stays as stored.
    """

    def __init__(self, tables: Mapping[str, Mapping[str, str]]) -> None:
        self._kinds = {
            table.lower(): {name.lower(): _find_kind(name, declared) for name, declared in columns.items()}
            for table, columns in tables.items()
        }

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> "SqliteTypes":
        """Reads the declared types of all tables."""
        tables: dict[str, dict[str, str]] = {}
        rows = connection.execute(
            "SELECT m.name, c.name, c.type FROM sqlite_schema AS m, pragma_table_info(m.name) AS c"
            " WHERE m.type IN ('table', 'view')"
        )
        for table, column, declared in rows.fetchall():
            tables.setdefault(table, {})[column] = declared or ""
        return cls(tables)

    def decode(self, statement: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[Row]:
        """Makes rows of an answer's raw values; a value that is not in its column's form stays as stored."""
        readers = self._choose_readers(statement, names)
        if not any(readers):
            return [Row(names, row) for row in rows]
        return [Row(names, [_apply(reader, value) for reader, value in zip(readers, row, strict=True)]) for row in rows]

    def _choose_readers(self, statement: str, names: Sequence[str]) -> list[Any]:
        lowered = statement.lower()
        tables = [columns for table, columns in self._kinds.items() if table in lowered]
        readers = []
        for name in names:
            kinds = {columns[name.lower()] for columns in tables if name.lower() in columns}
            readers.append(_READERS.get(kinds.pop()) if len(kinds) == 1 else None)
        return readers


def _find_kind(name: str, declared: str) -> Kind:
    wished = wish_type(name, declared)
    return wished.kind if wished else Kind.OTHER


def _apply(reader: Any, value: Any) -> Any:
    if reader is None or value is None:
        return value
    try:
        return reader(value)
    except (ValueError, TypeError, InvalidOperation):
        return value


# --- PostgreSQL ----------------------------------------------------------------------------------


def encode_text(value: Any) -> str:
    """Turns a date, time or moment into text; a text goes as it is, as it did with SQLite."""
    return value if isinstance(value, str) else str(value.isoformat())


def encode_boolean(value: Any) -> str:
    """Takes 0 and 1 for booleans, as SQLite does."""
    return "t" if value else "f"


def decode_boolean(text: str) -> bool:
    """Reads PostgreSQL's text form of a boolean."""
    return text == "t"


def decode_date(text: str) -> Any:
    """Reads a date; 'infinity' and dates that Python does not know stay text."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text


def decode_moment(text: str) -> Any:
    """Reads a timestamp or timestamptz; what Python does not know ('infinity') stays text."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


def encode_json(value: Any) -> str:
    """Writes a value as JSON; a text is taken for JSON already."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
