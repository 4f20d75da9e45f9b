"""Single values: what each type takes, and what it refuses with a reason."""

import math
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from migrator.convert import Converter, Unfit, convert_batch
from migrator.datatypes import (
    BIGINT,
    BOOLEAN,
    BYTEA,
    DATE,
    DOUBLE,
    JSONB,
    NUMERIC,
    TEXT,
    TIME,
    TIMESTAMPTZ,
    UUID,
    DataType,
    Kind,
)
from migrator.source import Batch

NAIVE = DataType(Kind.TIMESTAMP, "timestamp")
MONEY = DataType(Kind.NUMERIC, "numeric(6,2)", precision=6, scale=2)
SHORT = DataType(Kind.VARCHAR, "varchar(3)", length=3)
SMALL = DataType(Kind.SMALLINT, "smallint")
REAL = DataType(Kind.REAL, "real")
SECONDS = DataType(Kind.TIMESTAMPTZ, "timestamptz(0)", scale=0)
MOSCOW = ZoneInfo("Europe/Moscow")
INF = float("inf")


def convert(datatype: DataType, value: Any, zone: Any = UTC) -> Any:
    converter = Converter("c", datatype, not_null=False, zone=zone)
    one = converter.convert(value)
    (batch,) = converter.convert_all([value])
    assert one == batch and type(one) is type(batch)
    return one


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        (BIGINT, -(2**63), -(2**63)),
        (BIGINT, 2**63 - 1, 2**63 - 1),
        (BIGINT, 5.0, 5),
        (BIGINT, "-17", -17),
        (SMALL, 32767, 32767),
        (DOUBLE, 0.1, 0.1),
        (DOUBLE, INF, INF),
        (DOUBLE, 2**53, float(2**53)),
        (DOUBLE, "0.1", 0.1),
        (REAL, 0.5, 0.5),
        (NUMERIC, 0.1, Decimal("0.1")),
        (NUMERIC, 10**18, Decimal(10**18)),
        (NUMERIC, "1.50", Decimal("1.50")),
        (MONEY, 1234.5, Decimal("1234.5")),
        (BOOLEAN, 1, True),
        (BOOLEAN, 0.0, False),
        (BOOLEAN, "T", True),
        (BOOLEAN, "yes", True),
        (BOOLEAN, "off", False),
        (TEXT, "", ""),
        (TEXT, "1 500 ₽", "1 500 ₽"),
        (TEXT, 5, "5"),
        (TEXT, 0.1, "0.1"),
        (SHORT, "абв", "абв"),
        (BYTEA, b"\x00\xff", b"\x00\xff"),
        (BYTEA, "a\udcff", b"a\xff"),
        (DATE, "2024-02-29", date(2024, 2, 29)),
        (DATE, "2024-02-29 00:00:00", date(2024, 2, 29)),
        (DATE, 86400, date(1970, 1, 2)),
        (TIME, "09:30", time(9, 30)),
        (TIME, "09:30:15.250", time(9, 30, 15, 250000)),
        (UUID, "6BA7B810-9dad-11d1-80b4-00c04fd430c8", uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")),
        (JSONB, '{"a": [1, 2.50]}', '{"a": [1, 2.50]}'),
        (JSONB, 5, "5"),
    ],
)
def test_value_that_fits(datatype: DataType, value: Any, expected: Any) -> None:
    assert convert(datatype, value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-03-01 10:20:30", datetime(2024, 3, 1, 10, 20, 30, tzinfo=UTC)),
        ("2024-03-01T10:20", datetime(2024, 3, 1, 10, 20, tzinfo=UTC)),
        ("2024-03-01", datetime(2024, 3, 1, tzinfo=UTC)),
        ("2024-03-01 10:20:30.123456", datetime(2024, 3, 1, 10, 20, 30, 123456, tzinfo=UTC)),
        ("2024-03-01 10:20:30.5", datetime(2024, 3, 1, 10, 20, 30, 500000, tzinfo=UTC)),
        ("2024-03-01T10:20:30Z", datetime(2024, 3, 1, 10, 20, 30, tzinfo=UTC)),
        ("2024-03-01 10:20:30+03:00", datetime(2024, 3, 1, 7, 20, 30, tzinfo=UTC)),
        ("2024-03-01T10:20:30.25-0530", datetime(2024, 3, 1, 15, 50, 30, 250000, tzinfo=UTC)),
        (1_700_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (1_700_000_000_123, datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)),
        (1_700_000_000.5, datetime(2023, 11, 14, 22, 13, 20, 500000, tzinfo=UTC)),
        (2460000.5, datetime(2023, 2, 25, tzinfo=UTC)),
        ("1700000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_moment_in_any_form(value: Any, expected: datetime) -> None:
    assert convert(TIMESTAMPTZ, value) == expected


def test_naive_moment_is_read_in_the_clients_zone() -> None:
    assert convert(TIMESTAMPTZ, "2024-03-01 10:00:00", MOSCOW) == datetime(2024, 3, 1, 7, tzinfo=UTC)
    assert convert(TIMESTAMPTZ, "2024-03-01 10:00:00Z", MOSCOW) == datetime(2024, 3, 1, 10, tzinfo=UTC)
    assert convert(NAIVE, "2024-03-01 10:00:00Z", MOSCOW) == datetime(2024, 3, 1, 13)  # noqa: DTZ001
    assert convert(NAIVE, "2024-03-01 10:00:00", MOSCOW) == datetime(2024, 3, 1, 10)  # noqa: DTZ001


@pytest.mark.parametrize(
    ("datatype", "value", "reason"),
    [
        (BIGINT, "", "is no integer"),
        (BIGINT, "007", "is no integer"),
        (BIGINT, 1.5, "is no integer"),
        (BIGINT, b"1", "is no integer"),
        (SMALL, 32768, "out of range"),
        (DOUBLE, 2**53 + 1, "no number that a double holds"),
        (DOUBLE, "0.10000000000000000001", "no number that a double holds"),
        (DOUBLE, "abc", "no number"),
        (REAL, 0.1, "does not fit a 4-byte real"),
        (REAL, 1e300, "does not fit a 4-byte real"),
        (NUMERIC, "1,5", "is no number"),
        (MONEY, 1.005, r"does not fit numeric\(6,2\)"),
        (MONEY, 12345, r"does not fit numeric\(6,2\)"),
        (MONEY, INF, r"does not fit numeric\(6,2\)"),
        (BOOLEAN, 2, "is no boolean"),
        (BOOLEAN, "maybe", "is no boolean"),
        (TEXT, b"x", "a blob is no text"),
        (TEXT, "a\x00b", r"U\+0000"),
        (TEXT, "a\udcff", "no UTF-8"),
        (SHORT, "abcd", r"varchar\(3\)|longer than 3"),
        (DATE, "2025-02-30", "not in the calendar"),
        (DATE, "01.02.2024", "is no date"),
        (DATE, "2024-01-01 10:00", "is no date"),
        (DATE, "", "is no date"),
        (DATE, 3600, "is no date"),
        (TIME, "25:00", "is no time of day"),
        (TIME, "9:30", "is no time of day"),
        (TIME, "09:30:00.1234567", "finer than"),
        (TIMESTAMPTZ, "yesterday", "is no date and time"),
        (TIMESTAMPTZ, "", "is no date and time"),
        (TIMESTAMPTZ, "2024-13-01 00:00:00", "not in the calendar"),
        (TIMESTAMPTZ, "2024-03-01 10:20:30.1234567", "finer than"),
        (TIMESTAMPTZ, "2024-03-01 +03:00", "is no date and time"),
        (TIMESTAMPTZ, 10**18, "out of range"),
        (TIMESTAMPTZ, b"x", "is no moment"),
        (SECONDS, "2024-03-01 10:20:30.5", "finer than"),
        (UUID, "no", "is no UUID"),
        (JSONB, "{broken", "is no JSON"),
        (JSONB, "NaN", "is no JSON"),
        (JSONB, '"\\u0000"', "jsonb refuses"),
        (JSONB, '"\\ud800"', "jsonb refuses"),
    ],
)
def test_value_that_does_not_fit(datatype: DataType, value: Any, reason: str) -> None:
    converter = Converter("c", datatype, not_null=False, zone=UTC)
    with pytest.raises(Unfit, match=reason):
        converter.convert(value)
    with pytest.raises(Unfit):
        converter.convert_all(["" if datatype.kind is Kind.TEXT else None, value])


def test_negative_zero_is_not_the_positive_one() -> None:
    zeros = Converter("c", DOUBLE, not_null=False, zone=UTC).convert_all([0.0, -0.0, 1, None])
    assert [math.copysign(1, zero) for zero in zeros[:2]] == [1, -1]


def test_null_in_a_not_null_column() -> None:
    converter = Converter("c", TEXT, not_null=True, zone=UTC)
    with pytest.raises(Unfit, match="NOT NULL"):
        converter.convert(None)
    with pytest.raises(Unfit, match="NOT NULL"):
        converter.convert_all(["a", None])


def test_batch_with_unfit_rows_keeps_the_others() -> None:
    batch = Batch([1, 2, 3], [(1, "a"), ("x", "b"), (3, "c\x00")])
    converters = [Converter(name, kind, not_null=False, zone=UTC) for name, kind in (("n", BIGINT), ("t", TEXT))]
    converted = convert_batch(batch, converters, [0, 1])
    assert (converted.numbers, converted.records) == ([1], [(1, "a")])
    assert [(r.number, r.column, r.value) for r in converted.rejections] == [(2, "n", "x"), (3, "t", "c\x00")]
    assert dict(converted.unfit) == {"n": 1, "t": 1}
