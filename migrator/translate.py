"""Turns SQLite expressions (defaults, CHECKs, index and generated columns) into PostgreSQL's SQL.

The result is a proposal: whoever uses it lets the server judge it in a savepoint and notes what
the server refuses.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from migrator.datatypes import DataType, Kind

if TYPE_CHECKING:
    from sqlglot import expressions as exp

_NOW = re.compile(r"\(*\s*(?:CURRENT_TIMESTAMP|datetime\s*\(\s*'now'\s*\))\s*\)*", re.IGNORECASE)
_TODAY = re.compile(r"\(*\s*(?:CURRENT_DATE|date\s*\(\s*'now'\s*\))\s*\)*", re.IGNORECASE)
_TIME_NOW = re.compile(r"\(*\s*(?:CURRENT_TIME|time\s*\(\s*'now'\s*\))\s*\)*", re.IGNORECASE)
_EPOCH_NOW = re.compile(
    r"\(*\s*(?:CAST\s*\(\s*)?(?:strftime\s*\(\s*'%s'\s*,\s*'now'\s*\)|unixepoch\s*\((?:\s*'now'\s*)?\))"
    r"(?:\s+AS\s+INT(?:EGER)?\s*\))?\s*\)*",
    re.IGNORECASE,
)
_UTC_NOW = "(CURRENT_TIMESTAMP AT TIME ZONE 'UTC')"
_FORMATS = ((_NOW, "YYYY-MM-DD HH24:MI:SS"), (_TODAY, "YYYY-MM-DD"), (_TIME_NOW, "HH24:MI:SS"))


def translate_clock(expression: str, datatype: DataType) -> str | None:
    """Translates a default that reads the clock, so that it fits the column's type.

    SQLite's clock is in UTC whatever the machine's zone (https://www.sqlite.org/lang_datefunc.html).

    Returns:
        PostgreSQL's SQL, or None where the expression is no clock or cannot fit the type.

    >>> from migrator.datatypes import TEXT, TIMESTAMPTZ
    >>> translate_clock("CURRENT_TIMESTAMP", TIMESTAMPTZ)
    'CURRENT_TIMESTAMP'
    >>> translate_clock("(date('now'))", TEXT)
    "to_char((CURRENT_TIMESTAMP AT TIME ZONE 'UTC'), 'YYYY-MM-DD')"
    """
    if _EPOCH_NOW.fullmatch(expression):
        return "extract(epoch FROM CURRENT_TIMESTAMP)::bigint"
    for pattern, form in _FORMATS:
        if not pattern.fullmatch(expression):
            continue
        if datatype.kind in (Kind.TEXT, Kind.VARCHAR):
            return f"to_char({_UTC_NOW}, '{form}')"
        if datatype.kind is Kind.TIMESTAMPTZ and pattern is _NOW:
            return "CURRENT_TIMESTAMP"
        if datatype.kind in (Kind.TIMESTAMP, Kind.DATE, Kind.TIME):
            return f"{_UTC_NOW}::{datatype.sql}"
    return None


def translate_expression(expression: str, columns: Mapping[str, tuple[str, DataType]]) -> str | None:
    r"""Translates an expression over a table's columns.

    Args:
        expression: SQLite's SQL.
        columns: lower-case source name to the target's name and type.

    Returns:
        PostgreSQL's SQL, or None where it cannot be parsed. SQLite's LIKE ignores the case of
        letters and its booleans are integers; both are kept so.

    >>> from migrator.datatypes import BOOLEAN, TEXT
    >>> translate_expression("flag IN (0, 1)", {"flag": ("flag", BOOLEAN)})
    'CAST("flag" AS INT) IN (0, 1)'
    >>> translate_expression("name LIKE 'a%'", {"name": ("Name", TEXT)})
    '"Name" ILIKE \'a%\''
    """
    # Many clients have no expression at all, and the parser takes long to import.
    import sqlglot
    from sqlglot.errors import SqlglotError

    try:
        tree = sqlglot.parse_one(f"SELECT {expression}", read="sqlite")
        tree = tree.transform(_fold_like)
        tree = tree.transform(lambda node: _translate_column(node, columns))
        text = tree.sql(dialect="postgres")
    except SqlglotError:
        return None
    return text.removeprefix("SELECT ") if text.startswith("SELECT ") else None


def _fold_like(node: "exp.Expression") -> "exp.Expression":
    from sqlglot import expressions as exp

    if isinstance(node, exp.Like):
        return exp.ILike(this=node.this, expression=node.expression)
    return node


def _translate_column(node: "exp.Expression", columns: Mapping[str, tuple[str, DataType]]) -> "exp.Expression":
    from sqlglot import expressions as exp

    if not isinstance(node, exp.Column) or not isinstance(node.this, exp.Identifier):
        return node
    found = columns.get(node.name.lower())
    if found is None:
        # SQLite reads a double-quoted name that is no column as a string.
        return exp.Literal.string(node.name) if node.this.quoted else node
    name, datatype = found
    column = exp.column(exp.to_identifier(name, quoted=True))
    if datatype.kind is Kind.BOOLEAN and not isinstance(node.parent, exp.Cast):
        return exp.cast(column, "int")
    return column
