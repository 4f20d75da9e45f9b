"""The PostgreSQL types that the project knows how to fill, and how a declared name becomes one."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a PostgreSQL column holds; the value is the type's own name in ``pg_type``."""

    SMALLINT = "int2"
    INTEGER = "int4"
    BIGINT = "int8"
    REAL = "float4"
    DOUBLE = "float8"
    NUMERIC = "numeric"
    BOOLEAN = "bool"
    TEXT = "text"
    VARCHAR = "varchar"
    CHAR = "bpchar"
    BYTEA = "bytea"
    DATE = "date"
    TIME = "time"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    JSON = "json"
    JSONB = "jsonb"
    UUID = "uuid"
    OTHER = "other"


INTEGER_BITS = {Kind.SMALLINT: 16, Kind.INTEGER: 32, Kind.BIGINT: 64}
TEXT_KINDS = frozenset({Kind.TEXT, Kind.VARCHAR, Kind.CHAR})
MOMENT_KINDS = frozenset({Kind.TIMESTAMP, Kind.TIMESTAMPTZ})


@dataclass(frozen=True, slots=True)
class DataType:
    """A type as it stands in DDL, with the limits that a value must keep.

    ``length`` is in characters, ``precision`` and ``scale`` in decimal digits; for times and
    moments ``scale`` is the number of digits kept of a second. ``sql`` is the type in full.
    """

    kind: Kind
    sql: str
    length: int | None = None
    precision: int | None = None
    scale: int | None = None


BIGINT = DataType(Kind.BIGINT, "bigint")
DOUBLE = DataType(Kind.DOUBLE, "double precision")
NUMERIC = DataType(Kind.NUMERIC, "numeric")
BOOLEAN = DataType(Kind.BOOLEAN, "boolean")
TEXT = DataType(Kind.TEXT, "text")
BYTEA = DataType(Kind.BYTEA, "bytea")
DATE = DataType(Kind.DATE, "date")
TIME = DataType(Kind.TIME, "time")
TIMESTAMPTZ = DataType(Kind.TIMESTAMPTZ, "timestamptz")
JSONB = DataType(Kind.JSONB, "jsonb")
UUID = DataType(Kind.UUID, "uuid")

_MAX_VARCHAR = 10_485_760
_MAX_PRECISION = 1000
_EXACT = {
    "BOOLEAN": BOOLEAN,
    "BOOL": BOOLEAN,
    "DATE": DATE,
    "TIME": TIME,
    "DATETIME": TIMESTAMPTZ,
    "TIMESTAMP": TIMESTAMPTZ,
    "TIMESTAMPTZ": TIMESTAMPTZ,
    "TIMESTAMP WITH TIME ZONE": TIMESTAMPTZ,
    "TIMESTAMP WITHOUT TIME ZONE": TIMESTAMPTZ,
    "JSON": JSONB,
    "JSONB": JSONB,
    "UUID": UUID,
    "DECIMAL": NUMERIC,
    "NUMERIC": NUMERIC,
}
_DECLARED = re.compile(r"([^()]*)(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?([^()]*)")
_TEXT_NAMES = ("CHAR", "CLOB", "TEXT")
_MOMENT_NAME = re.compile(r".*_at|(.*_)?timestamp|(.*_)?datetime|(first|last)_seen")
_DATE_NAME = re.compile(r"(.*_)?date")
_TIME_NAME = re.compile(r"(.*_)?time")
_SHIFT_NAME = re.compile(r"shift\d+_(start|end)")


def wish_type(column: str, declared: str) -> DataType | None:
    """Says which type a column is wished to have, by its declaration and, for text, its name.

    SQLite's own affinity rules decide about names that no rule here knows
    (https://www.sqlite.org/datatype3.html#determination_of_column_affinity).

    Returns:
        The wished type; None where only the stored values can tell (NUMERIC and BLOB affinity).

    >>> wish_type("id", "unsigned big int").sql, wish_type("created_at", "TEXT").sql
    ('bigint', 'timestamptz')
    >>> wish_type("x", "varchar(20)").sql, wish_type("x", "DECIMAL(10, 2)").sql
    ('varchar(20)', 'numeric(10,2)')
    >>> wish_type("is_active", "BOOLEAN").sql, wish_type("x", "Timestamp").sql
    ('boolean', 'timestamptz')
    >>> wish_type("x", "number") is None, wish_type("x", "byte[]") is None, wish_type("x", "") is None
    (True, True, True)
    """
    upper = " ".join(declared.upper().split())
    match = _DECLARED.fullmatch(upper)
    base, first, second = (match[1].strip(), match[2], match[3]) if match else (upper, None, None)
    if base in ("DECIMAL", "NUMERIC") and first and int(first) <= _MAX_PRECISION:
        scale = int(second or 0)
        return DataType(Kind.NUMERIC, f"numeric({first},{scale})", precision=int(first), scale=scale)
    if base in _EXACT:
        return _EXACT[base]
    if "INT" in upper:
        return BIGINT
    if any(name in upper for name in _TEXT_NAMES):
        if "CHAR" in upper and first and 0 < int(first) <= _MAX_VARCHAR:
            return DataType(Kind.VARCHAR, f"varchar({int(first)})", length=int(first))
        return _wish_by_name(column) or TEXT
    if any(name in upper for name in ("REAL", "FLOA", "DOUB")):
        return DOUBLE
    return None


def _wish_by_name(column: str) -> DataType | None:
    name = column.lower()
    if _MOMENT_NAME.fullmatch(name):
        return TIMESTAMPTZ
    if _DATE_NAME.fullmatch(name):
        return DATE
    if _TIME_NAME.fullmatch(name) or _SHIFT_NAME.fullmatch(name):
        return TIME
    return None
