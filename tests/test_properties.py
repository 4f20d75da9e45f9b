"""Random schemas and values of every storage class: each row arrives equal, or is kept whole.

The oracle below was written apart from the converters: it asks SQLite itself what a moment means,
and compares numbers as fractions.
"""

import contextlib
import json
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.embedded import EmbeddedServer
from migrator import batches, verify
from migrator.plan import Orphans
from migrator.quarantine import decode_value
from migrator.source import quote_sqlite
from migrator.target import quote_name
from tests.conftest import Lab

TYPES = (
    "", "INTEGER", "TEXT", "REAL", "BLOB", "NUMERIC", "BOOLEAN", "DATE", "TIME", "TIMESTAMP", "DATETIME", "VARCHAR(5)",
    "DECIMAL(8,2)", "byte[]", "number", "unsigned big int", "JSON", "UUID", "varchar(3) COLLATE NOCASE", "ANY",
)  # fmt: skip
NAMES = (
    "a",
    "date",
    "Time",
    "created_at",
    "user",
    "a b",
    'q"q',
    "ключ",
    "select",
    "ctid2",
    "migrator",
    "timestamp",
    "%s",
)
WORDS = (
    "", "x", "1", "0", "-5", "1.5", "007", "true", "No", "2024-02-29", "2023-02-29", "2024-01-01 10:20:30", "10:20",
    "2024-01-01T10:20:30.123456+03:00", "2024-06-01 10:20:30.5Z", "1e5", "NaN", "{}", '{"a": [1, 2.0, null]}', "[1,",
    "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "ABC", "abc", "Привет", "\N{GRINNING FACE}", "a\x00b", "\x01", "'; --", "1700000000",
)  # fmt: skip

texts = st.one_of(st.sampled_from(WORDS), st.text(st.characters(codec="utf-8"), max_size=8))
values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2),
    st.sampled_from([1_700_000_000, 1_700_000_000_123, 2460000, 86400]),
    st.floats(allow_nan=False),
    st.sampled_from([0.1, 2460000.5, 1e300, -0.0, 2.0**53]),
    texts,
    st.binary(max_size=5),
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, list[str], list[tuple[Any, ...]]]:
    """Draws a CREATE TABLE, its column names and rows."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique_by=str.lower))
    key = draw(st.sampled_from(["none", "rowid", "column", "without rowid", "pair"]))
    parts = []
    for place, name in enumerate(names):
        part = f"{quote_sqlite(name)} {draw(st.sampled_from(TYPES))}"
        if key == "rowid" and place == 0:
            part = f"{quote_sqlite(name)} INTEGER PRIMARY KEY"
        elif draw(st.integers(0, 5)) == 0:
            part += draw(
                st.sampled_from([" NOT NULL", " UNIQUE", " DEFAULT 1", " DEFAULT 'x'", " DEFAULT CURRENT_TIMESTAMP"])
            )
        parts.append(part)
    if key in ("column", "without rowid"):
        parts.append(f"PRIMARY KEY ({quote_sqlite(names[-1])})")
    elif key == "pair":
        parts.append(f"PRIMARY KEY ({', '.join(map(quote_sqlite, names[:2]))})")
    suffix = " WITHOUT ROWID" if key == "without rowid" else ""
    rows = draw(st.lists(st.tuples(*[values] * len(names)), max_size=12))
    return f'CREATE TABLE "T t" ({", ".join(parts)}){suffix}', names, rows


def instant(value: Any) -> datetime:
    """Asks SQLite's own date functions what a stored moment means, to the second, and adds the fraction."""
    connection = sqlite3.connect(":memory:")
    fraction = timedelta()
    modifier = "'auto'"
    if isinstance(value, str) and not value.lstrip("-").replace(".", "", 1).isdigit():
        modifier = "'+0 days'"
        if "." in value:
            digits = "".join(c for c in value.split(".")[1].split("+")[0].split("-")[0] if c.isdigit())
            fraction = timedelta(microseconds=int(digits.ljust(6, "0")[:6]))
            value = value.replace("." + digits, "")
    else:
        number = float(value) if isinstance(value, (str, float)) and "." in str(value) else int(value)
        if isinstance(number, int) or not 0 <= number < 5373484.5:
            scaled = Fraction(number) / (1 if abs(number) < 253402300800 else 1000)
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=round(scaled * 1_000_000))
        value = number
    (seconds,) = connection.execute(f"SELECT strftime('%s', ?, {modifier})", (value,)).fetchone()
    connection.close()
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds)) + fraction


def means(stored: Any, there: Any) -> bool:
    """Whether a value read from PostgreSQL means what SQLite stores."""
    if stored is None or there is None:
        return stored is there
    if isinstance(there, bool):
        return there == (str(stored).lower() in ("1", "1.0", "true", "t", "y", "yes", "on"))
    if isinstance(there, float):
        if isinstance(stored, float):
            return struct.pack(">d", stored) == struct.pack(">d", there)
        return Fraction(stored) == Fraction(there) or repr(there) == stored
    if isinstance(there, (int, Decimal)):
        if isinstance(stored, float) and stored in (float("inf"), float("-inf")):
            return float(there) == stored
        return Fraction(repr(stored) if isinstance(stored, float) else stored) == Fraction(there)
    if isinstance(there, bytes):
        raw = stored if isinstance(stored, (bytes, str)) else repr(stored)
        return there == (raw.encode("utf-8", "surrogateescape") if isinstance(raw, str) else raw)
    if isinstance(there, datetime):
        return abs(instant(stored) - there.astimezone(UTC)) <= timedelta(
            milliseconds=1 if isinstance(stored, float) else 0
        )
    if isinstance(there, date):
        return instant(stored) == datetime(there.year, there.month, there.day, tzinfo=UTC)
    if isinstance(there, time):
        return time.fromisoformat(stored) == there
    if isinstance(there, str):
        return (
            there == stored
            or (not isinstance(stored, (str, bytes)) and there == repr(stored))
            or is_same_json(stored, there)
        )
    return str(there) == str(stored).lower()


def is_same_json(stored: Any, there: str) -> bool:
    try:
        return bool(json.loads(str(stored)) == json.loads(there))
    except ValueError:
        return False


@pytest.fixture(scope="module")
def shared(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(server, tmp_path_factory.mktemp("properties"))
    lab.set_load(orphans=Orphans.KEEP)
    usual = verify.COLUMNS_FROM, batches.BATCH_ROWS
    yield lab
    verify.COLUMNS_FROM, batches.BATCH_ROWS = usual


def choose_way(lab: Lab, by_columns: bool) -> None:
    """Sends tables of any size by columns, or none."""
    verify.COLUMNS_FROM = 0 if by_columns else 1 << 60
    lab.set_load(columnar_above=verify.COLUMNS_FROM)


def reset(lab: Lab) -> None:
    lab.execute("DROP SCHEMA IF EXISTS migrator CASCADE")
    for table in lab.list_tables():
        lab.execute(f"DROP TABLE public.{quote_name(table)} CASCADE")
    lab.client.sqlite_path.unlink(missing_ok=True)


def fill(lab: Lab, statement: str, names: list[str], rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(lab.client.sqlite_path)
    connection.execute(statement)
    marks = ", ".join("?" * len(names))
    for row in rows:
        # What SQLite itself refuses is not there to be migrated.
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.execute(f'INSERT INTO "T t" VALUES ({marks})', row)
    connection.commit()
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    stored = connection.execute('SELECT * FROM "T t"').fetchall()
    connection.close()
    return stored


def take_match(stored: tuple[Any, ...], left: list[tuple[Any, ...]]) -> bool:
    for place, row in enumerate(left):
        if all(means(ours, theirs) for ours, theirs in zip(stored, row, strict=True)):
            del left[place]
            return True
    return False


def key_of(row: tuple[Any, ...]) -> str:
    return repr(row)


@settings(
    max_examples=120, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(drawn=tables(), by_columns=st.booleans())
def test_every_row_arrives_equal_or_is_kept_whole(
    shared: Lab, drawn: tuple[str, list[str], list[tuple[Any, ...]]], by_columns: bool
) -> None:
    choose_way(shared, by_columns)
    statement, names, rows = drawn
    reset(shared)
    stored = fill(shared, statement, names, rows)
    report = shared.migrate()
    assert report.error is None, report.error
    assert report.totals.verified
    assert report.totals.rows_read == len(stored)
    kept = Counter(
        key_of(tuple(decode_value(json.loads(row)[name]) for name in names))
        for (row,) in shared.fetch('SELECT "row"::text FROM migrator.rejected_rows')
    )
    there = shared.fetch('SELECT * FROM public."T t"')
    assert len(there) == report.totals.rows_inserted
    assert sum(kept.values()) == report.totals.rows_rejected
    for row in stored:
        if kept[key_of(row)]:
            kept[key_of(row)] -= 1
            continue
        assert take_match(row, there), (row, there)
    assert there == []
    again = shared.migrate()
    assert (again.error, again.totals.rows_inserted, again.totals.rows_rejected) == (
        None,
        0,
        report.totals.rows_rejected,
    )
    assert shared.verify().error is None


BATCH_TYPES = st.sampled_from(
    ["INTEGER", "TEXT", "REAL", "TIMESTAMP", "BOOLEAN", "NUMERIC", "BLOB", "DATE", "TIME", "VARCHAR(4)"]
)
common = st.sampled_from(
    [
        "2024-01-01 10:20:30",
        "2024-01-01",
        "10:20",
        1,
        0,
        0.5,
        "x",
        "2024-01-01T10:20:30.25",
        "2024-05-05 01:02:03+03:00",
        None,
    ]
)


@settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    declared=BATCH_TYPES,
    column=st.lists(common | values, min_size=1, max_size=40) | st.lists(common, min_size=1, max_size=3),
    size=st.integers(1, 7),
    by_columns=st.integers(1, 9),
)
def test_neither_batches_nor_columns_change_what_arrives(
    shared: Lab, declared: str, column: list[Any], size: int, by_columns: int
) -> None:
    outcomes = []
    for batch_size, columnar in ((10_000, 0), (size, 0), (10_000, by_columns)):
        reset(shared)
        fill(shared, f'CREATE TABLE "T t" (a {declared})', ["a"], [(value,) for value in column])
        choose_way(shared, bool(columnar))
        batches.BATCH_ROWS = columnar or 50_000
        shared.set_load(batch_size=batch_size)
        report = shared.migrate()
        assert report.error is None
        table = report.tables[0]
        outcomes.append((table.digest_source, table.digest_target, table.rows_rejected, shared.columns("T t")))
    shared.set_load(batch_size=10_000)
    assert outcomes[0] == outcomes[1] == outcomes[2]
