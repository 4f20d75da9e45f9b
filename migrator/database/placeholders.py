"""Writes a statement with PostgreSQL's ``$1`` in SQLite's own form.

SQLite has numbered parameters too (``?1``, https://www.sqlite.org/lang_expr.html#varparam), so that
repeated and out-of-order numbers keep their meaning. What stands in a string, a comment or a quoted
name is left alone; casts (``$1::date``) and dollar quotes, which SQLite lacks, are rewritten.
"""

import re
from functools import lru_cache

_TOKEN = re.compile(
    r"""
    (?P<space>\s+ | --[^\n]*)
  | (?P<comment>/\*.*?\*/)
  | (?P<escaped>[eE]'(?:[^'\\]|''|\\.)*')
  | (?P<string>'(?:[^']|'')*')
  | (?P<name>"(?:[^"]|"")*" | [^\W\d][\w$]*)
  | (?P<dollar>\$(?P<tag>[^\W\d]\w*)?\$(?P<body>.*?)\$(?(tag)(?P=tag))\$)
  | (?P<parameter>\$\d+)
  | (?P<cast>::)
  | (?P<number>\d[\w.]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
# Types of several words, as far as SQL allows them after a cast.
_LONG_TYPES = (
    "timestamp with time zone",
    "timestamp without time zone",
    "time with time zone",
    "time without time zone",
    "double precision",
    "character varying",
)
# A cast to these changes a value's storage class in SQLite; for other types the text stays as it is.
_SQLITE_TYPES = {
    **dict.fromkeys(("int", "int2", "int4", "int8", "integer", "bigint", "smallint", "boolean", "bool"), "INTEGER"),
    **dict.fromkeys(("real", "float", "float4", "float8", "double precision"), "REAL"),
    **dict.fromkeys(("numeric", "decimal"), "NUMERIC"),
    **dict.fromkeys(("text", "varchar", "character varying"), "TEXT"),
    "bytea": "BLOB",
}


@lru_cache(maxsize=1024)
def to_sqlite(statement: str) -> str:
    r"""Rewrites a statement.

    >>> to_sqlite("SELECT $2, $1, $2 WHERE a = '$1' AND b = \"$1\" -- $1")
    'SELECT ?2, ?1, ?2 WHERE a = \'$1\' AND b = "$1" -- $1'
    >>> to_sqlite("SELECT $1::int, (a + b)::text, now_at::date, $$it's$$")
    "SELECT CAST(?1 AS INTEGER), CAST((a + b) AS TEXT), now_at, 'it''s'"
    """
    pieces: list[str] = []
    position = 0
    while position < len(statement):
        match = _TOKEN.match(statement, position)
        if match is None:
            pieces.append(statement[position])
            position += 1
            continue
        position = match.end()
        if match.lastgroup == "cast" or match.group() == "::":
            position = _rewrite_cast(statement, position, pieces)
        else:
            pieces.append(_rewrite_token(match))
    return "".join(pieces)


def _rewrite_token(match: re.Match[str]) -> str:
    text = match.group()
    if match["parameter"]:
        return "?" + text[1:]
    if match["dollar"]:
        return _quote(match["body"])
    if match["escaped"]:
        return _quote(_unescape(text[2:-1]))
    return text


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _unescape(text: str) -> str:
    plain = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), text, flags=re.DOTALL)
    return plain.replace("''", "'")


def _rewrite_cast(statement: str, position: int, pieces: list[str]) -> int:
    """Wraps what stands before ``::`` into CAST; gives the position behind the type's name."""
    name, position = _read_type(statement, position)
    start = _find_operand(pieces)
    operand = "".join(pieces[start:]).rstrip()
    del pieces[start:]
    target = _SQLITE_TYPES.get(name.lower())
    pieces.append(f"CAST({operand} AS {target})" if target else operand)
    return position


def _read_type(statement: str, position: int) -> tuple[str, int]:
    rest = statement[position:].lstrip()
    position = len(statement) - len(rest)
    lowered = rest.lower()
    name = next((long for long in _LONG_TYPES if lowered.startswith(long)), None)
    if name is None:
        found = re.match(r'"(?:[^"]|"")*"|[^\W\d]\w*', rest)
        name = found.group() if found else ""
    position += len(name)
    limits = re.match(r"\s*\([\d\s,]*\)", statement[position:])
    return name, position + (limits.end() if limits else 0)


def _find_operand(pieces: list[str]) -> int:
    """Finds where the operand that ends here begins: one token, or a whole pair of parentheses."""
    place = len(pieces) - 1
    while place > 0 and pieces[place].isspace():
        place -= 1
    if pieces[place] != ")":
        while place >= 2 and pieces[place - 1] == ".":
            place -= 2
        return place
    depth = 0
    while place > 0:
        depth += {")": 1, "(": -1}.get(pieces[place], 0)
        if depth == 0:
            break
        place -= 1
    # A function's name belongs to its parentheses.
    if place > 0 and re.fullmatch(r'[^\W\d][\w$]*|"[^"]*"', pieces[place - 1]):
        place -= 1
    return place


def is_repeatable(statement: str) -> bool:
    """Whether a statement only reads, so that it may be sent again when its answer was lost.

    >>> is_repeatable("SELECT a FROM t"), is_repeatable("select nextval('s')")
    (True, False)
    >>> is_repeatable("WITH x AS (DELETE FROM t RETURNING a) SELECT * FROM x"), is_repeatable("SELECT 1 FOR UPDATE")
    (False, False)
    """
    words = [
        match["name"].lower()
        for match in _TOKEN.finditer(statement)
        if match["name"] and not match["name"].startswith('"')
    ]
    if not words or words[0] not in ("select", "with", "values", "show", "table"):
        return False
    return not any(word in _WRITING or word.startswith(("pg_advisory", "pg_try_advisory", "lo_")) for word in words)


_WRITING = frozenset(
    {"insert", "update", "delete", "merge", "into", "truncate", "for", "call"}
    | {"nextval", "setval", "set_config", "pg_notify", "dblink", "dblink_exec"}
)
