"""Turns SQLite's values into what PostgreSQL's columns hold, without loss or not at all.

A value that a column's type cannot hold as it is raises :class:`Unfit` with the reason; nothing is
rounded, cut or guessed. Batches are converted column by column, and only a batch with an unfit
value is gone through row by row.
"""

import contextlib
import json
import math
import re
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from typing import Any

from migrator.datatypes import INTEGER_BITS, TEXT_KINDS, DataType, Kind
from migrator.source import Batch, Row, SqliteValue
from migrator.zones import Clock, judge_local

Value = Any
ConvertOne = Callable[[Any], Value]

JULIAN_DAY_OF_EPOCH = 2440587.5
_JULIAN_LIMIT = 5373484.5
_SECONDS_LIMIT = 253402300800
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MEMO_LIMIT = 20_000
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[ T]00:00(?::00(?:\.0+)?)?)?", re.ASCII)
_TIME = re.compile(r"\d\d:\d\d(?::\d\d(?:\.(\d+))?)?", re.ASCII)
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d(?::\d\d)?)(?:\.(\d+))?)?\s*(Z|z|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?", re.ASCII)
_WHOLE = re.compile(r"-?[1-9]\d*|0", re.ASCII)
_TRUE = frozenset({"1", "t", "true", "y", "yes", "on"})
_FALSE = frozenset({"0", "f", "false", "n", "no", "off"})


class Unfit(ValueError):  # noqa: N818 - it is the verdict on a value, not a fault of the program
    """A value does not fit its column; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that cannot go in: which, why, and everything that it held."""

    number: int
    column: str | None
    reason: str
    value: SqliteValue
    row: Row


@dataclass(frozen=True, slots=True)
class Converted:
    """A batch after conversion: what can be loaded and what cannot.

    ``unfit`` counts, for each column, the values that do not fit its type (a row may have several);
    ``nulls`` the NULLs in columns that are NOT NULL.
    """

    numbers: Sequence[int]
    records: Sequence[tuple[Value, ...]]
    rejections: Sequence[Rejection] = ()
    unfit: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)


class Converter:
    """Converts the values of one column."""

    def __init__(self, name: str, datatype: DataType, *, not_null: bool, zone: tzinfo) -> None:
        self.name = name
        self._datatype = datatype
        self._not_null = not_null
        self._convert = _choose(datatype, zone)
        self._local = zone if datatype.kind is Kind.TIMESTAMPTZ and zone is not UTC else None
        self.clock_changes: Counter[Clock] = Counter()
        self._passes = _PASSING.get(datatype.kind)
        self._memo: dict[Any, Value] = {}

    def convert(self, value: SqliteValue) -> Value:
        """Converts one value.

        Raises:
            Unfit: the column cannot hold it as it is.
        """
        if value is None:
            if self._not_null:
                raise Unfit("NULL in a column that is NOT NULL")
            return None
        if self._local is not None:
            self._judge(value, self._local)
        return self._convert(value)

    def _judge(self, value: SqliteValue, zone: tzinfo) -> None:
        """Counts local times that a clock change makes ambiguous."""
        if not isinstance(value, str) or len(value) < len("2024-01-01 00:00") or value[-1:] in "zZ":
            return
        match = _MOMENT.fullmatch(value.strip(" "))
        if match and match[2] and not match[4]:
            with contextlib.suppress(ValueError):
                moment = datetime.fromisoformat(f"{match[1]}T{match[2]}")
                self.clock_changes[judge_local(moment, zone)] += 1

    def convert_all(self, values: Sequence[SqliteValue]) -> Sequence[Value]:
        """Converts a whole column of a batch.

        Raises:
            Unfit: some value does not fit; which one, :meth:`convert` tells value by value.
        """
        classes = set(map(type, values))
        if type(None) in classes:
            if self._not_null:
                raise Unfit("NULL in a column that is NOT NULL")
            classes.discard(type(None))
        if self._passes is not None and classes <= {self._passes}:
            if self._passes is str:
                self._check_texts(values)
            return values
        return self._convert_each(values)

    def _check_texts(self, values: Sequence[Any]) -> None:
        texts = [value for value in values if value is not None]
        joined = "".join(texts)
        _check_text(joined)
        if self._datatype.length is not None and max(map(len, texts), default=0) > self._datatype.length:
            raise Unfit(f"longer than {self._datatype.length} characters")

    def _convert_each(self, values: Sequence[SqliteValue]) -> Sequence[Value]:
        memo = self._memo
        convert = self._convert
        if len(memo) > _MEMO_LIMIT:
            memo.clear()
        if self._local is not None:
            for value in values:
                self._judge(value, self._local)
        converted: list[Value] = []
        for value in values:
            if value is None:
                converted.append(None)
                continue
            if isinstance(value, float):
                # -0.0 and 0.0 are one key, but not one value.
                converted.append(convert(value))
                continue
            key = (value.__class__, value)
            try:
                converted.append(memo[key])
            except KeyError:
                result = memo[key] = convert(value)
                converted.append(result)
        return converted


def convert_batch(batch: Batch, converters: Sequence[Converter], places: Sequence[int]) -> Converted:
    """Converts a batch.

    Args:
        batch: rows with all columns of the source table.
        converters: one for each column that goes over.
        places: for each converter, the place of its column in a row.
    """
    columns = list(zip(*batch.rows, strict=True))
    converted: list[Sequence[Value]] = []
    try:
        for converter, place in zip(converters, places, strict=True):
            converted.append(converter.convert_all(columns[place]))
    except Unfit:
        return _convert_row_by_row(batch, converters, places)
    return Converted(batch.numbers, list(zip(*converted, strict=True)))


def _convert_row_by_row(batch: Batch, converters: Sequence[Converter], places: Sequence[int]) -> Converted:
    numbers: list[int] = []
    records: list[tuple[Value, ...]] = []
    rejections: list[Rejection] = []
    unfit: Counter[str] = Counter()
    nulls: Counter[str] = Counter()
    for number, row in zip(batch.numbers, batch.rows, strict=True):
        record: list[Value] = []
        rejection = None
        for converter, place in zip(converters, places, strict=True):
            try:
                record.append(converter.convert(row[place]))
            except Unfit as error:
                (nulls if row[place] is None else unfit)[converter.name] += 1
                rejection = rejection or Rejection(number, converter.name, str(error), row[place], row)
        if rejection:
            rejections.append(rejection)
        else:
            numbers.append(number)
            records.append(tuple(record))
    return Converted(numbers, records, rejections, unfit, nulls)


_PASSING: dict[Kind, type] = {
    Kind.BIGINT: int,
    Kind.DOUBLE: float,
    Kind.TEXT: str,
    Kind.VARCHAR: str,
    Kind.OTHER: str,
    Kind.BYTEA: bytes,
}


def _choose(datatype: DataType, zone: tzinfo) -> ConvertOne:
    kind = datatype.kind
    if kind in INTEGER_BITS:
        limit = 1 << (INTEGER_BITS[kind] - 1)
        return lambda value: _to_integer(value, limit)
    if kind in TEXT_KINDS:
        return lambda value: _to_text(value, datatype)
    if kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        return lambda value: _to_moment(value, datatype, zone)
    if kind is Kind.NUMERIC:
        return lambda value: _to_numeric(value, datatype)
    if kind is Kind.TIME:
        return lambda value: _to_time(value, datatype)
    return _SIMPLE[kind]


def _to_integer(value: SqliteValue, limit: int) -> int:
    is_whole_real = isinstance(value, float) and value.is_integer() and abs(value) <= 2**53
    is_whole_text = isinstance(value, str) and _WHOLE.fullmatch(value) and len(value) < 21
    if value is not None and (is_whole_real or is_whole_text):
        value = int(value)
    if not isinstance(value, int):
        raise Unfit(f"{_describe(value)} is no integer")
    if not -limit <= value < limit:
        raise Unfit(f"{value} is out of range")
    return value


def _to_double(value: SqliteValue) -> float:
    if isinstance(value, float):
        return value
    if isinstance(value, int) and abs(value) <= 2**53:
        return float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        number = float(value)
        if math.isfinite(number) and Decimal(repr(number)) == Decimal(value):
            return number
    raise Unfit(f"{_describe(value)} is no number that a double holds exactly")


def _to_real(value: SqliteValue) -> float:
    number = _to_double(value)
    try:
        narrow = struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        narrow = None
    if narrow != number:
        raise Unfit(f"{number!r} does not fit a 4-byte real exactly")
    return number


def _to_numeric(value: SqliteValue, datatype: DataType) -> Decimal:
    if isinstance(value, int):
        number = Decimal(value)
    elif isinstance(value, float):
        number = Decimal(repr(value))
    elif isinstance(value, str) and _NUMBER.fullmatch(value) and len(value) < 1000:
        number = Decimal(value)
    else:
        raise Unfit(f"{_describe(value)} is no number")
    if datatype.precision is None:
        return number
    if not number.is_finite():
        raise Unfit(f"{number} does not fit {datatype.sql}")
    scale = datatype.scale or 0
    exponent = number.normalize().as_tuple().exponent
    digits = max(number.adjusted() + 1, 0) if number else 0
    if (isinstance(exponent, int) and -exponent > scale) or digits > datatype.precision - scale:
        raise Unfit(f"{number} does not fit {datatype.sql}")
    return number


def _to_boolean(value: SqliteValue) -> bool:
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        word = value.lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
    raise Unfit(f"{_describe(value)} is no boolean (0, 1, true, false, yes, no, …)")


def _to_text(value: SqliteValue, datatype: DataType) -> str:
    if isinstance(value, bytes):
        raise Unfit("a blob is no text")
    text = value if isinstance(value, str) else repr(value)
    _check_text(text)
    if datatype.length is not None and len(text) > datatype.length:
        raise Unfit(f"{len(text)} characters, where {datatype.sql} holds {datatype.length}")
    if datatype.kind is Kind.CHAR and text.endswith(" "):
        raise Unfit(f"ends in spaces, which {datatype.sql} does not keep")
    return text


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise Unfit("holds the character U+0000, which PostgreSQL's text cannot")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise Unfit("holds bytes that are no UTF-8") from None


def _to_bytes(value: SqliteValue) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return repr(value).encode("ascii")


def _to_date(value: SqliteValue) -> date:
    if isinstance(value, str):
        match = _DATE.fullmatch(value)
        if match:
            try:
                return date(int(match[1]), int(match[2]), int(match[3]))
            except ValueError:
                raise Unfit(f"{_describe(value)} is not in the calendar") from None
    elif isinstance(value, (int, float)):
        moment = _read_number(value)
        if moment.time() == time(0):
            return moment.date()
    raise Unfit(f"{_describe(value)} is no date (YYYY-MM-DD)")


def _to_time(value: SqliteValue, datatype: DataType) -> time:
    if isinstance(value, str):
        match = _TIME.fullmatch(value)
        if match:
            _check_fraction(match[1], datatype)
            try:
                return time.fromisoformat(value)
            except ValueError:
                raise Unfit(f"{_describe(value)} is no time of day") from None
    raise Unfit(f"{_describe(value)} is no time of day (HH:MM or HH:MM:SS)")


def _check_fraction(fraction: str | None, datatype: DataType) -> None:
    if fraction and len(fraction.rstrip("0")) > (6 if datatype.scale is None else datatype.scale):
        raise Unfit(f"its fraction of a second is finer than {datatype.sql} holds")


def _to_moment(value: SqliteValue, datatype: DataType, zone: tzinfo) -> datetime:
    """Reads a moment in any of SQLite's forms (https://www.sqlite.org/lang_datefunc.html)."""
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        moment = _read_moment(value, datatype)
    elif isinstance(value, bytes) or value is None:
        raise Unfit("a blob is no moment")
    else:
        moment = _read_number(float(value) if isinstance(value, str) and "." in value else _plain(value))
    try:
        if datatype.kind is Kind.TIMESTAMPTZ:
            return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(UTC)
        return moment.astimezone(zone).replace(tzinfo=None) if moment.tzinfo else moment
    except OverflowError:
        raise Unfit(f"{_describe(value)} is out of range") from None


def _plain(value: SqliteValue) -> int | float:
    return int(value) if isinstance(value, str) else value  # type: ignore[return-value]


def _read_moment(text: str, datatype: DataType) -> datetime:
    match = _MOMENT.fullmatch(text.strip(" "))
    if not match or (match[4] and not match[2]):
        raise Unfit(f"{_describe(text)} is no date and time")
    day, clock, fraction, offset = match.groups()
    _check_fraction(fraction, datatype)
    if fraction and clock.count(":") == 1:
        raise Unfit(f"{_describe(text)} is no date and time")
    rest = f".{fraction[:6]:0<6}" if fraction else ""
    try:
        return datetime.fromisoformat(f"{day}T{clock or '00:00'}{rest}{(offset or '').upper()}")
    except ValueError:
        raise Unfit(f"{_describe(text)} is not in the calendar") from None


def _read_number(value: int | float) -> datetime:
    """Reads a number as SQLite's 'auto' modifier does, and as milliseconds beyond its range.

    Source: https://www.sqlite.org/lang_datefunc.html (modifier 'auto').
    """
    if isinstance(value, float) and 0.0 <= value < _JULIAN_LIMIT:
        microseconds = math.floor((value - JULIAN_DAY_OF_EPOCH) * 86_400_000_000 + 0.5)
    elif not abs(value) < _SECONDS_LIMIT * 1000:
        raise Unfit(f"{value!r} is out of range for a moment")
    elif isinstance(value, int):
        microseconds = value * (1_000_000 if abs(value) < _SECONDS_LIMIT else 1_000)
    else:
        scale = 1_000_000 if abs(value) < _SECONDS_LIMIT else 1_000
        whole = math.floor(value)
        microseconds = whole * scale + math.floor((value - whole) * scale + 0.5)
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        raise Unfit(f"{value!r} is out of range for a moment") from None


def _to_uuid(value: SqliteValue) -> uuid.UUID:
    if isinstance(value, str):
        try:
            found = uuid.UUID(value)
        except ValueError:
            found = None
        if found and str(found) == value.lower():
            return found
    raise Unfit(f"{_describe(value)} is no UUID")


def _to_json(value: SqliteValue) -> str:
    if isinstance(value, bytes) or value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise Unfit(f"{_describe(value)} is no JSON")
    text = value if isinstance(value, str) else repr(value)
    _check_text(text)
    try:
        json.loads(text, parse_constant=_refuse_constant, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"is no JSON: {error}") from None
    return text


def _to_jsonb(value: SqliteValue) -> str:
    text = _to_json(value)
    if "\\u" in text:
        try:
            # A lone surrogate or U+0000 written as an escape is JSON, but no jsonb.
            _check_text(json.dumps(json.loads(text), ensure_ascii=False).replace("\\u0000", "\x00"))
        except Unfit:
            raise Unfit("holds an escape (\\u0000 or half of a surrogate pair) that jsonb refuses") from None
    return text


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not in the JSON grammar")


def _to_other(value: SqliteValue) -> str:
    if isinstance(value, bytes):
        raise Unfit("a blob has no text form for this type")
    text = value if isinstance(value, str) else repr(value)
    _check_text(text)
    return text


def _describe(value: SqliteValue) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…" + shown[-1]


_SIMPLE: dict[Kind, ConvertOne] = {
    Kind.DOUBLE: _to_double,
    Kind.REAL: _to_real,
    Kind.BOOLEAN: _to_boolean,
    Kind.BYTEA: _to_bytes,
    Kind.DATE: _to_date,
    Kind.UUID: _to_uuid,
    Kind.JSON: _to_json,
    Kind.JSONB: _to_jsonb,
    Kind.OTHER: _to_other,
}
