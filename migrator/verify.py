"""Proves that what is in PostgreSQL is what was in SQLite, down to the last bit of every value.

For each row both sides make the same cells (:mod:`migrator.cells`) and hash them (:mod:`migrator.row_hash`);
the hashes of a table are added up, so that order does not count and a row that occurs twice counts twice.
SQLite's side is computed from the stored values by rules of its own, never by those of :mod:`migrator.convert`:
a fault of the converter shows as a difference.

Where digests differ, rows are compared by their canonical texts, which a person can read. These are PostgreSQL's
own output, except that doubles are written as the hexadecimal digits of their eight bytes, and texts are preceded
by their length in bytes.
"""

import hashlib
import json
import re
import sqlite3
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from migrator.datatypes import TEXT_KINDS, DataType, Kind
from migrator.errors import TargetError
from migrator.plan import ColumnPlan, TablePlan, list_classes
from migrator.source import SqliteValue, count_rows, holds_only, identify_rows, quote_sqlite
from migrator.target import Connection, quote_literal, quote_name

if TYPE_CHECKING:
    from migrator.batches import BatchFile

_FETCH = 10_000
# From how many rows on a table is hashed by columns; the digest is the same.
COLUMNS_FROM = 20_000
_SHOWN_DIFFERENCES = 5
_MASK = (1 << 64) - 1
_NULL = "N"
_INTEGERS = (Kind.SMALLINT, Kind.INTEGER, Kind.BIGINT)
_FLOATS = (Kind.REAL, Kind.DOUBLE)


@dataclass(frozen=True, slots=True)
class Digest:
    """How many rows there are and the sum of their hashes, as 16 hexadecimal digits."""

    rows: int
    value: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One row that is not the same on both sides.

    ``key`` is its primary key as text, ``what`` is 'missing', 'extra' or 'changed', and ``columns``
    holds, for a changed one, the names of the columns and both sides' canonical texts.
    """

    table: str
    key: str
    what: str
    columns: tuple[tuple[str, str, str], ...] = ()

    def describe(self) -> str:
        """Puts the difference into one line."""
        if self.what == "missing":
            return f"{self.table} {self.key}: missing in PostgreSQL"
        if self.what == "extra":
            return f"{self.table} {self.key}: only in PostgreSQL"
        cells = "; ".join(f"{name}: SQLite {ours}, PostgreSQL {theirs}" for name, ours, theirs in self.columns)
        return f"{self.table} {self.key}: {cells}"


@dataclass(frozen=True, slots=True)
class Change:
    """A row that differs: its number in SQLite, its place (ctid) in PostgreSQL, and which columns do.

    ``number`` is None for a row that only PostgreSQL has, ``place`` for one that only SQLite has.
    """

    number: int | None
    place: str | None
    columns: tuple[str, ...]


# --- SQLite's side -------------------------------------------------------------------------------


def digest_source(
    snapshot_path: Path,
    plan: TablePlan,
    zone: tzinfo,
    quarantine_path: Path | None,
    kept: "BatchFile | None" = None,
) -> Digest:
    """Computes a table's digest from the snapshot, without the rows that are in quarantine.

    Args:
        snapshot_path: the snapshot; it is opened anew, so this may run in a thread.
        plan: the table as it was carried out.
        zone: the zone of naive moments.
        quarantine_path: the scratch file of :class:`migrator.quarantine.Quarantine`.
        kept: all batches of the table as the load read them, if it kept them.
    """
    from migrator.cells import hash_canonical
    from migrator.row_hash import hash_rows, sum_hashes

    rows = total = 0
    with _open_both(snapshot_path, quarantine_path) as connection:
        if _suits_columns(connection, plan, zone, with_quarantine=quarantine_path is not None):
            # Arrow takes longer to import than a small table takes to hash.
            from migrator.column_digest import sum_columns

            found = sum_columns(snapshot_path, plan, kept)
            if found is not None and found[0] == count_rows(connection, plan.table):
                return _make_digest(*found)
        canonical = _prepare_source(connection, plan, zone, with_quarantine=quarantine_path is not None)
        cursor = connection.execute(f"SELECT {', '.join(canonical.values)}{canonical.rows}")
        while fetched := cursor.fetchmany(_FETCH):
            rows += len(fetched)
            columns = zip(plan.columns, zip(*fetched, strict=True), strict=True)
            cells = (hash_canonical(column.type.kind, values) for column, values in columns)
            total += sum_hashes(hash_rows(cells, len(fetched)))
    return _make_digest(rows, total)


def _make_digest(rows: int, total: int) -> Digest:
    return Digest(rows, f"{total & _MASK:016x}")


def _suits_columns(connection: sqlite3.Connection, plan: TablePlan, zone: tzinfo, *, with_quarantine: bool) -> bool:
    """Whether a table is large, and whole: no row of it is in quarantine."""
    if zone is not UTC or plan.table.virtual:
        return False
    if with_quarantine:
        kept = "SELECT 1 FROM quarantine.entries WHERE table_name = ? LIMIT 1"
        if connection.execute(kept, (plan.table.name,)).fetchone():
            return False
    if count_rows(connection, plan.table) < COLUMNS_FROM:
        return False
    return holds_only(connection, plan.table, list_classes(plan.columns))


def _hash(text: str) -> "hashlib._Hash":
    return hashlib.md5(text.encode("utf-8", "surrogateescape"), usedforsecurity=False)


class _open_both:  # noqa: N801 - a context manager used as a function
    """Opens a snapshot, with the quarantine's scratch file attached as ``quarantine``."""

    def __init__(self, snapshot_path: Path, quarantine_path: Path | None) -> None:
        self._connection = sqlite3.connect(
            f"file:{quote(str(snapshot_path))}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        if quarantine_path is not None:
            self._connection.execute(
                "ATTACH DATABASE ? AS quarantine", (f"file:{quote(str(quarantine_path))}?mode=ro",)
            )

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


@dataclass(frozen=True, slots=True)
class _Canonical:
    """SQL over the snapshot: for each column its canonical text, and the FROM and WHERE of the rows that count."""

    values: tuple[str, ...]
    rows: str

    @property
    def terms(self) -> tuple[str, ...]:
        """The texts of which a row's is put together."""
        return tuple(f"coalesce({value}, '{_NULL}') || '|'" for value in self.values)


def _prepare_source(
    connection: sqlite3.Connection, plan: TablePlan, zone: tzinfo, *, with_quarantine: bool
) -> _Canonical:
    """Writes the SQL of all canonical texts and registers the functions that it needs."""
    nulled = _list_nulled(connection, plan) if with_quarantine else set()
    table = _quote_text(plan.table.name)
    values = []
    for place, column in enumerate(plan.columns):
        function = f"canonical_{place}"
        connection.create_function(function, 1, _make_canonical(column.type, zone), deterministic=True)
        value = f"r.{quote_sqlite(column.source.name)}"
        if column.source.name in nulled:
            value = (
                f"CASE WHEN EXISTS (SELECT 1 FROM quarantine.entries AS n WHERE n.table_name = {table}"
                f" AND n.number = r.migrator_number AND n.verdict = 'nulled'"
                f" AND n.column_name = {_quote_text(column.source.name)}) THEN NULL ELSE {value} END"
            )
        values.append(_shortcut(column.type, value, function, zone))
    identity, order = identify_rows(plan.table)
    if identity == "NULL":
        identity = f"row_number() OVER (ORDER BY {order})"
    # The rowid of a virtual table is no part of *, so all columns are named.
    columns = ", ".join(quote_sqlite(column.name) for column in plan.table.columns)
    rows = f" FROM (SELECT {identity} AS migrator_number, {columns} FROM {quote_sqlite(plan.table.name)}) AS r"
    if with_quarantine:
        rows += (
            f" WHERE NOT EXISTS (SELECT 1 FROM quarantine.entries AS e WHERE e.table_name = {table}"
            f" AND e.number = r.migrator_number AND e.verdict <> 'nulled')"
        )
    else:
        rows += " WHERE true"
    return _Canonical(tuple(values), rows)


def _list_nulled(connection: sqlite3.Connection, plan: TablePlan) -> set[str]:
    rows = connection.execute(
        "SELECT DISTINCT column_name FROM quarantine.entries WHERE table_name = ? AND verdict = 'nulled'",
        (plan.table.name,),
    )
    return {row[0] for row in rows}


def _quote_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _join(terms: Sequence[str]) -> str:
    """Joins terms with ||, as a balanced tree: SQLite bounds the depth of an expression."""
    if len(terms) <= 2:
        return " || ".join(terms)
    middle = len(terms) // 2
    return f"({_join(terms[:middle])}) || ({_join(terms[middle:])})"


def _shortcut(datatype: DataType, value: str, function: str, zone: tzinfo) -> str:
    """Writes the canonical text in SQL for the storage class that a type usually meets."""
    kind = datatype.kind
    slow = f"{function}({value})"
    if kind in _INTEGERS:
        return f"CASE typeof({value}) WHEN 'integer' THEN {value} ELSE {slow} END"
    if kind in TEXT_KINDS or kind is Kind.OTHER:
        return f"CASE typeof({value}) WHEN 'text' THEN length(CAST({value} AS BLOB)) || ':' || {value} ELSE {slow} END"
    if kind is Kind.BYTEA:
        return f"CASE typeof({value}) WHEN 'blob' THEN lower(hex({value})) ELSE {slow} END"
    if kind is Kind.DATE:
        return f"CASE WHEN typeof({value}) = 'text' AND length({value}) = 10 THEN {value} ELSE {slow} END"
    if kind is Kind.TIME:
        return (
            f"CASE WHEN typeof({value}) <> 'text' THEN {slow} WHEN length({value}) = 5 THEN {value} || ':00'"
            f" WHEN length({value}) = 8 THEN {value} ELSE {slow} END"
        )
    if kind is Kind.TIMESTAMP or (kind is Kind.TIMESTAMPTZ and zone is UTC):
        suffix = " || '+00'" if kind is Kind.TIMESTAMPTZ else ""
        return (
            f"CASE WHEN typeof({value}) = 'text' AND length({value}) = 19 AND {value} NOT GLOB '*[^-0-9: T]*'"
            f" THEN replace({value}, 'T', ' '){suffix} ELSE {slow} END"
        )
    return slow


Canonical = Callable[[Any], str | None]


def _make_canonical(datatype: DataType, zone: tzinfo) -> Canonical:
    """Makes the function that writes any value of a type; what does not fit stays recognisable."""
    rule = _choose_rule(datatype, zone)

    def canonical(value: SqliteValue) -> str | None:
        if value is None:
            return None
        try:
            return rule(value)
        except (ValueError, TypeError, OverflowError, ArithmeticError, RecursionError):
            return f"?{value!r}"

    return canonical


def _choose_rule(datatype: DataType, zone: tzinfo) -> Callable[[Any], str]:
    kind = datatype.kind
    if kind in _INTEGERS:
        return _write_integer
    if kind in _FLOATS:
        return lambda value: struct.pack(">d", float(value)).hex()
    if kind is Kind.TIMESTAMPTZ:
        return lambda value: _write_instant(_read_microseconds(value, zone)) + "+00"
    if kind is Kind.TIMESTAMP:
        return lambda value: _write_local(value, zone)
    return _RULES[kind]


def _write_integer(value: Any) -> str:
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if number != number.to_integral_value():
        raise ValueError(value)
    return f"{number:f}".partition(".")[0]


def _write_numeric(value: Any) -> str:
    try:
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    except InvalidOperation:
        raise ValueError(value) from None
    if not number.is_finite():
        return {"Infinity": "Infinity", "-Infinity": "-Infinity"}.get(str(number), "NaN")
    text = f"{number:f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _write_boolean(value: Any) -> str:
    if isinstance(value, str):
        return {"1": "true", "t": "true", "y": "true", "o": "true" if value.lower() == "on" else "false"}.get(
            value[:1].lower(), "false"
        )
    return "true" if value else "false"


def _write_text(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f"{len(text.encode())}:{text}"


def _write_bytes(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "surrogateescape").hex()


def _write_date(value: Any) -> str:
    return _write_instant(_read_microseconds(value, UTC))[:10]


_CLOCK = re.compile(r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?")
_STAMP = re.compile(r" *(\d\d\d\d)-(\d\d)-(\d\d)(?:[T ](\d\d:\d\d[:.0-9]*))? *(?:(Z|z)|([-+])(\d\d):?(\d\d)?)? *")


def _write_clock(value: Any) -> str:
    found = _CLOCK.fullmatch(value)
    if found is None:
        raise ValueError(value)
    fraction = (found[4] or "").rstrip("0")
    return f"{found[1]}:{found[2]}:{found[3] or '00'}" + (f".{fraction}" if fraction else "")


def _count_days(year: int, month: int, day: int) -> int:
    """Counts the days from 1970-01-01 in the proleptic Gregorian calendar.

    Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil.
    """
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def _split_days(days: int) -> tuple[int, int, int]:
    """Gives back year, month and day (civil_from_days of the same source)."""
    days += 719468
    era = days // 146097
    of_era = days - era * 146097
    year_of_era = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1


def _read_local(value: str) -> tuple[int, int | None]:
    """Reads a moment's text as microseconds since 1970, and its offset in seconds if it has one."""
    found = _STAMP.fullmatch(value)
    if found is None:
        raise ValueError(value)
    clock = _CLOCK.fullmatch(found[4] or "00:00")
    if clock is None:
        raise ValueError(value)
    days = _count_days(int(found[1]), int(found[2]), int(found[3]))
    seconds = days * 86400 + int(clock[1]) * 3600 + int(clock[2]) * 60 + int(clock[3] or 0)
    microseconds = seconds * 1_000_000 + int((clock[4] or "0").ljust(6, "0")[:6])
    offset = None
    if found[5]:
        offset = 0
    elif found[6]:
        offset = (int(found[7]) * 3600 + int(found[8] or 0) * 60) * (-1 if found[6] == "-" else 1)
    return microseconds, offset


def _read_microseconds(value: Any, zone: tzinfo) -> int:
    """Reads any stored form of a moment as microseconds since 1970 in UTC."""
    if isinstance(value, str) and not re.fullmatch(r"-?\d+(\.\d+)?", value):
        local, offset = _read_local(value)
        return local - (_find_offset(local, zone) if offset is None else offset) * 1_000_000
    if isinstance(value, str):
        value = float(value) if "." in value else int(value)
    return _count_microseconds(value)


def _count_microseconds(value: Any) -> int:
    if isinstance(value, float) and 0 <= value < 5373484.5:
        return int(((value - 2440587.5) * 86_400_000_000 + 0.5).__floor__())
    if isinstance(value, bytes):
        raise TypeError(value)
    scale = 1_000_000 if abs(value) < 253402300800 else 1_000
    if isinstance(value, int):
        return value * scale
    whole = value.__floor__()
    return int(whole * scale + ((value - whole) * scale + 0.5).__floor__())


def _find_offset(local: int, zone: tzinfo) -> int:
    """Finds the offset from UTC, in seconds, of a local time given as if it were UTC.

    An hour that a clock change repeats is read as its first occurrence; one that it skips keeps the
    offset from before the change.
    """
    if zone is UTC:
        return 0
    naive = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=local)
    day = timedelta(days=1)
    offsets = [_offset_at(naive - day, zone), _offset_at(naive + day, zone)]
    fitting = [o for o in offsets if _offset_at(naive - timedelta(seconds=o), zone) == o]
    return max(fitting) if fitting else offsets[0]


def _offset_at(moment: datetime, zone: tzinfo) -> int:
    offset = moment.astimezone(zone).utcoffset()
    return int(offset.total_seconds()) if offset else 0


def _write_local(value: Any, zone: tzinfo) -> str:
    if isinstance(value, str) and not re.fullmatch(r"-?\d+(\.\d+)?", value):
        local, offset = _read_local(value)
        if offset is None:
            return _write_instant(local)
        instant = local - offset * 1_000_000
    else:
        return _write_instant(_read_microseconds(value, UTC))
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant)
    return _write_instant(instant + _offset_at(moment, zone) * 1_000_000)


def _write_instant(microseconds: int) -> str:
    seconds, fraction = divmod(microseconds, 1_000_000)
    days, second = divmod(seconds, 86400)
    year, month, day = _split_days(days)
    text = f"{year:04d}-{month:02d}-{day:02d} {second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
    return text + (f".{fraction:06d}".rstrip("0") if fraction else "")


def _write_json(value: Any) -> str:
    return _write_text(value)


def _write_jsonb(value: Any) -> str:
    r"""Writes JSON as jsonb prints it: keys by length and bytes, the last of equal keys, numbers exact.

    Source: https://www.postgresql.org/docs/16/datatype-json.html.

    >>> _write_jsonb('{"bb": 1.0, "a": [true, null], "a": "x"}')
    '21:{"a": "x", "bb": 1.0}'
    """
    text = value if isinstance(value, str) else repr(value)
    tree = json.loads(text, parse_int=_Number, parse_float=_Number)
    return _write_text(_write_tree(tree))


class _Number(str):
    """A number of a JSON text, kept as written."""

    __slots__ = ()


def _write_tree(tree: Any) -> str:
    if isinstance(tree, _Number):
        number = Decimal(tree)
        text = f"{number:f}"
        return text.removeprefix("-") if not number else text
    if isinstance(tree, dict):
        keys = sorted(tree, key=lambda key: (len(key.encode()), key.encode()))
        return "{" + ", ".join(f"{_write_string(key)}: {_write_tree(tree[key])}" for key in keys) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(_write_tree, tree)) + "]"
    if isinstance(tree, str):
        return _write_string(tree)
    return json.dumps(tree)


def _write_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_RULES: dict[Kind, Callable[[Any], str]] = {
    Kind.NUMERIC: _write_numeric,
    Kind.BOOLEAN: _write_boolean,
    Kind.TEXT: _write_text,
    Kind.VARCHAR: _write_text,
    Kind.CHAR: _write_text,
    Kind.OTHER: _write_text,
    Kind.BYTEA: _write_bytes,
    Kind.DATE: _write_date,
    Kind.TIME: _write_clock,
    Kind.JSON: _write_json,
    Kind.JSONB: _write_jsonb,
    Kind.UUID: lambda value: str(value).lower(),
}


# --- PostgreSQL's side ---------------------------------------------------------------------------

# What a server must hash as this side does to be understood.
_PROBE = "26 bytes: ключ и замок ✓"
_SENT: dict[Kind, str] = {
    **dict.fromkeys(_INTEGERS, "int8send({}::int8)"),
    **dict.fromkeys(_FLOATS, "float8send({}::float8)"),
    Kind.BOOLEAN: "boolsend({})",
    Kind.DATE: "date_send({})",
    Kind.TIME: "time_send({})",
    Kind.TIMESTAMP: "timestamp_send({})",
    Kind.TIMESTAMPTZ: "timestamptz_send({})",
    Kind.UUID: "uuid_send({})",
}


def _write_column(column: ColumnPlan) -> str:
    """Writes the SQL of a column's canonical text over the alias ``t``."""
    name = f"t.{quote_name(column.name)}"
    kind = column.type.kind
    if kind in _FLOATS:
        return f"encode(float8send({name}::float8), 'hex')"
    if kind is Kind.NUMERIC:
        return f"trim_scale({name})::text"
    if kind is Kind.BYTEA:
        return f"encode({name}, 'hex')"
    if kind is Kind.OTHER:
        text = _format_other(name)
        return f"(octet_length({text}) || ':' || {text})"
    if kind in TEXT_KINDS or kind in (Kind.JSON, Kind.JSONB):
        return f"(octet_length({name}::text) || ':' || {name}::text)"
    return f"{name}::text"


def _format_other(name: str) -> str:
    """Prints a value as its type's output function does; a cast to text need not (inet)."""
    return f"CASE WHEN {name} IS NOT NULL THEN format('%s', {name}) END"


def _write_texts(columns: Sequence[ColumnPlan]) -> str:
    return _join([f"coalesce({_write_column(column)}, '{_NULL}') || '|'" for column in columns])


async def digest_target(connection: Connection, plan: TablePlan, restriction: str | None = None) -> Digest:
    """Computes a table's digest in PostgreSQL.

    Args:
        connection: sees the rows in question.
        plan: the table as it was carried out.
        restriction: a condition over the alias ``t`` where not all rows count.

    Raises:
        TargetError: the server hashes texts in another way than this side does.
    """
    where = f" WHERE {restriction}" if restriction else ""
    cells = ", ".join(_write_cell(column) for column in plan.columns)
    probe = f"boolsend(true), {quote_literal(_PROBE)}::text"
    # Not fetchrow(): a server that is asked for so many rows and no more uses no parallel workers.
    (row,) = await connection.fetch(
        f"SELECT count(*) AS rows, coalesce(sum({_hash_cells(cells)}), 0)::text AS total,"
        f" {_hash_cells(probe)} AS probe FROM {plan.qualified} AS t{where}"
    )
    if row["probe"] & _MASK != _hash_probe():
        raise TargetError(
            "the server hashes rows in another way than is known of PostgreSQL 14 to 18 on little-endian machines, "
            "so its rows cannot be compared; nothing was committed"
        )
    return _make_digest(row["rows"], int(row["total"]))


def _write_cell(column: ColumnPlan) -> str:
    """Writes the SQL of a column's cell over the alias ``t``, as :mod:`migrator.cells` has it."""
    from migrator.row_hash import LONGEST

    name = f"t.{quote_name(column.name)}"
    kind = column.type.kind
    if kind in _SENT:
        return _SENT[kind].format(name)
    if kind is Kind.BYTEA:
        return f"CASE WHEN octet_length({name}) > {LONGEST} THEN md5({name})::bytea ELSE {name} END"
    text = f"{name}::text"
    if kind is Kind.NUMERIC:
        text = f"trim_scale({name})::text"
    elif kind is Kind.OTHER:
        text = _format_other(name)
    return f"CASE WHEN octet_length({text}) > {LONGEST} THEN md5({text}) ELSE {text} END"


def _hash_cells(cells: str) -> str:
    return f"hashint4extended(0, hash_record_extended(ROW({cells}), 0))"


def _hash_probe() -> int:
    from migrator.row_hash import hash_rows, hash_texts, sum_hashes

    cells = [hash_texts([cell]) for cell in (b"\1", _PROBE.encode())]
    return sum_hashes(hash_rows(cells, 1))


def exclude_mended(plan: TablePlan) -> str:
    """Gives the condition, over the alias ``t``, that a row was not mended after it had been rejected.

    SQLite still holds such a row as it was, so neither side's digest counts it.
    """
    key = write_key(plan) or "''"
    return (
        f"({key}) NOT IN (SELECT m.target_key FROM migrator.rejected_rows AS m"
        f" WHERE m.table_name = {quote_literal(plan.table.name)}"
        f" AND m.resolved_at IS NOT NULL AND m.target_key IS NOT NULL)"
    )


# --- What differs --------------------------------------------------------------------------------


async def find_differences(
    connection: Connection,
    snapshot_path: Path,
    plan: TablePlan,
    zone: tzinfo,
    quarantine_path: Path | None,
    restriction: str | None = None,
) -> list[Difference]:
    """Finds the first rows that differ, once the digests of a table do.

    Returns:
        At most five differences.
    """
    with _open_both(snapshot_path, quarantine_path) as source:
        canonical = _prepare_source(source, plan, zone, with_quarantine=quarantine_path is not None)
        differing = await _compare_hashes(connection, source, plan, canonical, restriction)
        rows = await connection.fetch(f"{differing} ORDER BY number NULLS LAST, identity LIMIT {_SHOWN_DIFFERENCES}")
        return [await _describe_difference(connection, source, plan, canonical, row) for row in rows]


async def list_changes(
    connection: Connection,
    snapshot_path: Path,
    plan: TablePlan,
    zone: tzinfo,
    quarantine_path: Path | None,
    restriction: str | None = None,
) -> list[Change]:
    """Lists all rows that differ, each with its number in SQLite and its place in PostgreSQL.

    The answer is as long as there are changes, so it suits tables that are nearly alike.
    """
    with _open_both(snapshot_path, quarantine_path) as source:
        canonical = _prepare_source(source, plan, zone, with_quarantine=quarantine_path is not None)
        differing = await _compare_hashes(connection, source, plan, canonical, restriction)
        rows = await connection.fetch(f"{differing} ORDER BY number NULLS LAST, identity")
        return [
            Change(row["number"], row["place"], await _list_columns(connection, source, plan, canonical, row))
            for row in rows
        ]


async def _list_columns(
    connection: Connection, source: sqlite3.Connection, plan: TablePlan, canonical: _Canonical, row: Any
) -> tuple[str, ...]:
    if row["number"] is None or row["place"] is None:
        return ()
    return tuple(name for name, _, _ in await _compare_cells(connection, source, plan, canonical, row))


async def _compare_hashes(
    connection: Connection,
    source: sqlite3.Connection,
    plan: TablePlan,
    canonical: _Canonical,
    restriction: str | None,
) -> str:
    """Loads SQLite's hashes into a temporary table; gives the query of all rows that differ."""
    where = f" WHERE {restriction}" if restriction else ""
    identity = write_key(plan) if plan.primary_key else f"md5({_write_texts(plan.columns)})"
    await connection.execute("DROP TABLE IF EXISTS pg_temp.migrator_hashes")
    await connection.execute("CREATE TEMP TABLE migrator_hashes (number bigint, identity text, hash text)")
    await connection.copy_records_to_table("migrator_hashes", records=_hash_source(source, plan, canonical))
    return (
        f"WITH theirs AS (SELECT {identity} AS identity, md5({_write_texts(plan.columns)}) AS hash,"
        f" t.ctid::text AS place, row_number() OVER (PARTITION BY {identity}) AS copy"
        f" FROM {plan.qualified} AS t{where}),"
        " ours AS (SELECT *, row_number() OVER (PARTITION BY identity ORDER BY number) AS copy"
        " FROM migrator_hashes)"
        " SELECT coalesce(ours.identity, theirs.identity) AS identity, number, place,"
        " ours.hash AS ours, theirs.hash AS theirs FROM ours FULL JOIN theirs USING (identity, copy)"
        " WHERE ours.hash IS DISTINCT FROM theirs.hash"
    )


def write_key(plan: TablePlan, names: Sequence[str] | None = None) -> str:
    """Writes the SQL of a target row's primary key, or of some columns, as text over the alias ``t``."""
    key = plan.primary_key if names is None else names
    return _write_texts([column for column in plan.columns if column.name in key])


async def _hash_source(
    source: sqlite3.Connection, plan: TablePlan, canonical: _Canonical
) -> AsyncIterator[tuple[int, str, str]]:
    places = [place for place, column in enumerate(plan.columns) if column.name in plan.primary_key]
    key = _join([canonical.terms[place] for place in places]) or "NULL"
    rows = source.execute(f"SELECT r.migrator_number, {_join(canonical.terms)}, {key}{canonical.rows}")
    for number, text, identity in rows:
        digest = _hash(text).hexdigest()
        yield number, digest if identity is None else _clean(identity), digest


def _clean(text: str) -> str:
    """Makes a text fit for a PostgreSQL parameter, for a key that is shown to a person alone."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


async def _describe_difference(
    connection: Connection, source: sqlite3.Connection, plan: TablePlan, canonical: _Canonical, row: Any
) -> Difference:
    key = f"({row['identity'].rstrip('|')})" if plan.primary_key else "(a row without a key)"
    if row["place"] is None:
        return Difference(plan.name, f"{key} row {row['number']}", "missing")
    if row["number"] is None:
        return Difference(plan.name, key, "extra")
    cells = await _compare_cells(connection, source, plan, canonical, row)
    return Difference(
        plan.name, key, "changed", tuple((name, _shorten(ours), _shorten(theirs)) for name, ours, theirs in cells)
    )


async def _compare_cells(
    connection: Connection, source: sqlite3.Connection, plan: TablePlan, canonical: _Canonical, row: Any
) -> list[tuple[str, str, str]]:
    """Gives the columns in which one row differs, with both sides' canonical texts."""
    ours = source.execute(
        f"SELECT {', '.join(canonical.terms)}{canonical.rows} AND r.migrator_number = ?", (row["number"],)
    ).fetchone()
    theirs = await connection.fetchrow(
        f"SELECT {', '.join(_write_column(column) for column in plan.columns)} FROM {plan.qualified} AS t"
        f" WHERE t.ctid = '{row['place']}'"
    )
    if theirs is None:
        raise AssertionError("the row was there in this transaction")
    cells = []
    for column, our_text, their_text in zip(plan.columns, ours, theirs, strict=True):
        wanted, found = our_text.removesuffix("|"), _NULL if their_text is None else their_text
        if wanted != found:
            cells.append((column.name, wanted, found))
    return cells


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
