"""The cells of rows, a column at a time: each value as the bytes that PostgreSQL's binary output has for it.

Numbers, dates and moments are eight or four bytes, texts are themselves. Dates, times and moments are read
here from texts, by rules that share nothing with :mod:`migrator.convert`. What is not in the usual form is
refused, never guessed at.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from migrator.datatypes import Kind
from migrator.row_hash import Array, hash_numbers, hash_texts

# PostgreSQL counts from 2000-01-01 (src/include/datatype/timestamp.h).
_EPOCH = np.datetime64("2000-01-01", "us")
_DAY = 86_400_000_000
_YEARS = 10_000
# For each month of the years 0 to 9999, the day on which it begins; one more for the end of the last.
_MONTHS = np.arange(-1970 * 12, (_YEARS - 1970) * 12 + 1).astype("datetime64[M]").astype("datetime64[D]")
_FIRST_DAYS = (_MONTHS - np.datetime64("2000-01-01")).astype(np.int64)
_ZERO, _COLON, _DASH, _DOT = b"0:-."
_CLOCKS = frozenset({5, 8, *range(10, 16)})
_MOMENTS = frozenset({10, *(length + 11 for length in _CLOCKS)})
_INTEGERS = (Kind.SMALLINT, Kind.INTEGER, Kind.BIGINT)
_INSTANTS = (Kind.TIMESTAMP, Kind.TIMESTAMPTZ)


class IrregularError(Exception):
    """A value is in a form that only the row-wise way knows."""


# --- Columns of canonical texts ------------------------------------------------------------------


def hash_canonical(kind: Kind, values: Sequence[str | int | None]) -> Array:
    """Hashes a column's cells, given by their canonical texts as :mod:`migrator.verify` writes them.

    Args:
        kind: the column's type in PostgreSQL.
        values: texts, whole numbers as they are, None for NULL.

    Returns:
        uint64; 0 for NULL.
    """
    present = np.fromiter((value is not None for value in values), bool, len(values))
    try:
        hashes = _hash_usual(kind, values, present)
    except (IrregularError, ValueError, OverflowError):
        hashes = hash_texts([b"" if value is None else _write_cell(kind, str(value)) for value in values])
    hashes[~present] = 0
    return hashes


def _hash_usual(kind: Kind, values: Sequence[str | int | None], present: Array) -> Array:
    if kind in _INTEGERS:
        return hash_numbers(np.fromiter((0 if value is None else int(value) for value in values), np.int64))
    if kind in _READERS:
        texts = [b"" if value is None else str(value).removesuffix("+00").encode() for value in values]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        return hash_readings(kind, np.frombuffer(b"".join(texts), np.uint8), lengths, present)
    raise IrregularError


def _write_cell(kind: Kind, text: str) -> bytes:
    r"""Writes one cell; the canonical text itself where it is none of the type's.

    >>> _write_cell(Kind.TEXT, "3:a:b"), _write_cell(Kind.BOOLEAN, "true"), _write_cell(Kind.BIGINT, "?'x'")
    (b'a:b', b'\x01', b"?'x'")
    """
    try:
        if kind in _INTEGERS:
            return int(text).to_bytes(8, "big", signed=True)
        if kind in (Kind.REAL, Kind.DOUBLE, Kind.BYTEA):
            return bytes.fromhex(text)
        if kind is Kind.UUID:
            return bytes.fromhex(text.replace("-", ""))
        if kind is Kind.BOOLEAN:
            return {"true": b"\1", "false": b"\0"}[text]
        if kind in _INSTANTS:
            return _count_microseconds(text.removesuffix("+00")).to_bytes(8, "big", signed=True)
        if kind is Kind.DATE:
            return (_count_microseconds(text) // _DAY).to_bytes(4, "big", signed=True)
        if kind is Kind.TIME:
            # PostgreSQL's last moment of a day, which no clock of SQLite's has.
            moment = _DAY if text == "24:00:00" else _count_microseconds(f"2000-01-01 {text}")
            return moment.to_bytes(8, "big", signed=True)
    except (ValueError, OverflowError, KeyError):
        return _encode(text)
    if kind is Kind.NUMERIC or text.startswith("?"):
        return _encode(text)
    return _encode(text.partition(":")[2])


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _count_microseconds(text: str) -> int:
    return int((np.datetime64(text, "us") - _EPOCH).astype(np.int64))


# --- Columns of dates, times and moments ---------------------------------------------------------


def hash_readings(kind: Kind, characters: Array, lengths: Array, present: Array) -> Array:
    """Hashes the cells of a column of dates, times or moments, given as texts that lie one after the other.

    Args:
        kind: one of the types for which :data:`_READERS` has a reader.
        characters: all texts' bytes.
        lengths: each text's; 0 where ``present`` is false.
        present: which are not NULL.

    Raises:
        IrregularError: a text is in none of the forms, or no date at all.
    """
    read, allowed, width = _READERS[kind]
    hashes = np.zeros(len(lengths), np.uint64)
    starts = np.cumsum(lengths) - lengths
    for length in _list_different(lengths[present]):
        if length not in allowed:
            raise IrregularError
        chosen = present & (lengths == length)
        if chosen.all():
            texts = characters.reshape(-1, length)
        else:
            texts = characters[starts[chosen][:, None] + np.arange(length)]
        hashes[chosen] = hash_numbers(read(np.ascontiguousarray(texts.T)).astype(width))
    return hashes


def read_days(characters: Array) -> Array:
    """Reads dates as days since 2000-01-01.

    Args:
        characters: ten rows of bytes, ``YYYY-MM-DD`` from top to bottom, a column for each date.

    Raises:
        IrregularError: one of them is no date.

    >>> read_days(_stand(b"2000-03-01")).tolist()
    [60]
    """
    _expect(characters[[4, 7]], _DASH)
    year = _read_number(characters[0:4])
    month = _read_number(characters[5:7])
    day = _read_number(characters[8:10])
    if (year < 1).any() or (month < 1).any() or (month > 12).any():
        raise IrregularError
    place = year * 12 + month - 1
    days: Array = _FIRST_DAYS[place] + day - 1
    if (day < 1).any() or (days >= _FIRST_DAYS[place + 1]).any():
        raise IrregularError
    return days


def read_clock(characters: Array) -> Array:
    """Reads times as microseconds since midnight.

    Args:
        characters: rows of bytes: ``HH:MM``, ``HH:MM:SS`` or ``HH:MM:SS.`` and up to six digits.

    Raises:
        IrregularError: one of them is no time.

    >>> read_clock(_stand(b"00:01:02.5")).tolist()
    [62500000]
    """
    _expect(characters[2:8:3], _COLON)
    hours, minutes = _read_number(characters[0:2]), _read_number(characters[3:5])
    seconds = _read_number(characters[6:8])
    if (hours > 23).any() or (minutes > 59).any() or (seconds > 59).any():
        raise IrregularError
    moment: Array = (hours * 3600 + minutes * 60 + seconds) * 1_000_000
    if len(characters) > 8:
        _expect(characters[8:9], _DOT)
        moment += _read_number(characters[9:]) * 10 ** (15 - len(characters))
    return moment


def read_moments(characters: Array) -> Array:
    """Reads moments without an offset as microseconds since 2000-01-01.

    Args:
        characters: as :func:`read_days` and, one byte further, :func:`read_clock` take them; or the day alone.

    Raises:
        IrregularError: one of them is no moment.

    >>> read_moments(_stand(b"2000-01-02 00:00:01")).tolist(), read_moments(_stand(b"2000-01-02")).tolist()
    ([86401000000], [86400000000])
    """
    moment = read_days(characters[:10]) * _DAY
    if len(characters) > 10:
        if not np.isin(characters[10], (ord(" "), ord("T"))).all():
            raise IrregularError
        moment += read_clock(characters[11:])
    return moment


_READERS: dict[Kind, tuple[Callable[[Array], Array], frozenset[int], type[Any]]] = {
    Kind.DATE: (read_days, frozenset({10}), np.int32),
    Kind.TIME: (read_clock, _CLOCKS, np.int64),
    Kind.TIMESTAMP: (read_moments, _MOMENTS, np.int64),
    Kind.TIMESTAMPTZ: (read_moments, _MOMENTS, np.int64),
}


def _read_number(digits: Array) -> Array:
    values = digits - np.uint8(_ZERO)
    if values.max(initial=0) > 9:
        raise IrregularError
    if len(values) % 2:
        values = np.concatenate([np.zeros_like(values[:1]), values])
    # Two digits fit into a byte, of which a processor takes many at a time.
    pairs = values[::2] * np.uint8(10) + values[1::2]
    number = np.zeros(digits.shape[1], np.int64)
    for place, pair in enumerate(pairs):
        if place:
            number *= 100
        number += pair
    return number


def _expect(characters: Array, wanted: int) -> None:
    if (characters != wanted).any():
        raise IrregularError


def _list_different(lengths: Array) -> list[int]:
    first, last = int(lengths.min(initial=1 << 31)), int(lengths.max(initial=0))
    # Mostly there is only one, which need not be searched for.
    found: list[int] = [first] if first == last else np.unique(lengths).tolist()
    return found


def _stand(text: bytes) -> Array:
    return np.frombuffer(text, np.uint8).reshape(-1, 1)
