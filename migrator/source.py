"""Reads a snapshot: which tables it holds, how they are declared, and their rows in batches."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from migrator.declarations import Check, Declarations, read_declarations
from migrator.errors import SourceError

SqliteValue = None | int | float | str | bytes
Row = tuple[SqliteValue, ...]

# Bytes that are no UTF-8 become lone surrogates, one for one, so that nothing is lost in reading.
_lossless_text = partial(str, encoding="utf-8", errors="surrogateescape")
_ROWID_NAMES = ("rowid", "_rowid_", "oid")
_PICKED_BATCH = 10_000
_HIDDEN, _GENERATED_VIRTUAL, _GENERATED_STORED = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Column:
    """A column as SQLite declares it.

    ``default`` and ``generated`` are expressions in SQLite's SQL; ``key_position`` is 1 for the
    first column of the primary key and 0 outside of it.
    """

    name: str
    declared_type: str
    not_null: bool
    default: str | None
    key_position: int
    generated: str | None
    collation: str | None


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key; ``parent_columns`` is empty where it means the parent's primary key."""

    columns: tuple[str, ...]
    parent: str
    parent_columns: tuple[str, ...]
    on_delete: str
    on_update: str
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class IndexPart:
    """One column of an index; ``column`` is None where it is an expression."""

    column: str | None
    collation: str
    descending: bool


@dataclass(frozen=True, slots=True)
class Index:
    """An index; ``origin`` is 'c' (CREATE INDEX), 'u' (UNIQUE) or 'pk', as SQLite names them."""

    name: str
    unique: bool
    origin: str
    partial: bool
    parts: tuple[IndexPart, ...]
    sql: str | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table and everything that is declared on it.

    ``rowid_name`` is the name under which the rowid can be selected, or None for a table that has
    none; ``rowid_alias`` the column that stands for it (INTEGER PRIMARY KEY). ``sequence`` is what
    ``sqlite_sequence`` holds for an AUTOINCREMENT table.
    """

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    rowid_name: str | None
    rowid_alias: str | None
    autoincrement: bool
    sequence: int | None
    virtual: bool
    foreign_keys: tuple[ForeignKey, ...]
    indexes: tuple[Index, ...]
    checks: tuple[Check, ...]
    strict: bool

    def find_column(self, name: str) -> Column | None:
        """Finds a column by name as SQLite does, whatever its case."""
        return next((c for c in self.columns if c.name.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class Source:
    """All that a snapshot declares; ``notes`` tells what is not carried over as it stands."""

    tables: tuple[Table, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a table, in the table's own order.

    ``numbers`` identifies each row: its rowid, or its place (from 1) in a table without rowids.
    """

    numbers: Sequence[int]
    rows: Sequence[Row]


def quote_sqlite(name: str) -> str:
    """Quotes a name for SQLite.

    >>> quote_sqlite('my "own" table')
    '"my ""own"" table"'
    """
    return '"' + name.replace('"', '""') + '"'


def read_source(connection: sqlite3.Connection) -> Source:
    """Lists every table of the snapshot with its columns, keys, indexes and checks.

    Raises:
        SourceError: the schema cannot be read.
    """
    connection.text_factory = _lossless_text
    try:
        return _read_source(connection)
    except sqlite3.DatabaseError as error:
        raise SourceError(f"the schema of the snapshot cannot be read: {error}") from error


def _read_source(connection: sqlite3.Connection) -> Source:
    sequences = _read_sequences(connection)
    statements: dict[str, str] = dict(
        connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_schema WHERE type = 'table'")
    )
    tables: list[Table] = []
    notes: list[str] = []
    listed = connection.execute(
        "SELECT name, type, wr, strict FROM pragma_table_list"
        " WHERE schema = 'main' AND type <> 'view' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    ).fetchall()
    order = {name: place for place, name in enumerate(statements)}
    for name, kind, without_rowid, strict in sorted(listed, key=lambda row: order.get(row[0], 0)):
        if kind == "shadow":
            notes.append(f"{name}: shadow table of a virtual table, not carried over by itself")
            continue
        statement = statements.get(name, "")
        if kind == "virtual":
            note = _describe_virtual(connection, name, statement)
            notes.append(note.text)
            if not note.has_content:
                continue
        tables.append(
            _read_table(
                connection,
                name,
                statement,
                virtual=kind == "virtual",
                without_rowid=bool(without_rowid),
                strict=bool(strict),
                sequences=sequences,
            )
        )
    for kind, name in connection.execute(
        "SELECT type, name FROM sqlite_schema WHERE type IN ('view', 'trigger') ORDER BY type, name"
    ):
        notes.append(f"{name}: {kind}, not carried over; write it anew in PostgreSQL's SQL if it is needed")
    return Source(tuple(tables), tuple(notes))


@dataclass(frozen=True, slots=True)
class _VirtualNote:
    text: str
    has_content: bool


def _describe_virtual(connection: sqlite3.Connection, name: str, statement: str) -> _VirtualNote:
    try:
        connection.execute(f"SELECT * FROM {quote_sqlite(name)} LIMIT 1").fetchone()
    except sqlite3.DatabaseError as error:
        return _VirtualNote(
            f"{name}: virtual table that this SQLite cannot read ({error}); its shadow tables are carried over",
            has_content=False,
        )
    options = statement.replace(" ", "").lower()
    if "content=''" in options or 'content=""' in options:
        return _VirtualNote(f"{name}: contentless full-text index, holds no rows of its own", has_content=False)
    if "usingfts" in options and "content=" in options:
        return _VirtualNote(
            f"{name}: full-text index over another table, whose rows are carried over there",
            has_content=False,
        )
    return _VirtualNote(
        f"{name}: virtual table; its content is carried over as a plain table with its rowid, its index is not",
        has_content=True,
    )


def _read_sequences(connection: sqlite3.Connection) -> dict[str, int]:
    exists = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone()
    if not exists:
        return {}
    rows = connection.execute("SELECT name, seq FROM sqlite_sequence WHERE typeof(seq) = 'integer'")
    return {str(name): int(value) for name, value in rows}


def _read_table(
    connection: sqlite3.Connection,
    name: str,
    statement: str,
    *,
    virtual: bool,
    without_rowid: bool,
    strict: bool,
    sequences: Mapping[str, int],
) -> Table:
    declared = read_declarations(statement) if not virtual else Declarations()
    columns = _read_columns(connection, name, declared, virtual=virtual)
    rowid_name = None if without_rowid else _choose_rowid_name(columns)
    if virtual and rowid_name:
        columns = (_rowid_column(rowid_name), *columns)
    key = tuple(c.name for c in sorted(columns, key=lambda c: c.key_position) if c.key_position)
    alias = None if without_rowid else _find_rowid_alias(connection, name, columns, key, virtual=virtual)
    return Table(
        name=name,
        columns=columns,
        primary_key=key,
        rowid_name=rowid_name or alias,
        rowid_alias=alias,
        autoincrement=name in sequences or "AUTOINCREMENT" in statement.upper(),
        sequence=sequences.get(name),
        virtual=virtual,
        foreign_keys=_read_foreign_keys(connection, name, declared),
        indexes=_read_indexes(connection, name),
        checks=declared.checks,
        strict=strict,
    )


def _read_columns(
    connection: sqlite3.Connection, table: str, declared: Declarations, *, virtual: bool
) -> tuple[Column, ...]:
    columns: list[Column] = []
    rows = connection.execute(
        'SELECT name, type, "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(?)', (table,)
    )
    for name, declared_type, not_null, default, position, hidden in rows:
        if virtual and hidden == _HIDDEN:
            continue
        expression = None
        if hidden in (_GENERATED_VIRTUAL, _GENERATED_STORED):
            expression = declared.generated.get(name.lower(), "")
        declared_type = (declared_type or "").strip()
        if expression is not None:
            declared_type = declared_type.upper().replace("GENERATED ALWAYS", "").strip()
        columns.append(
            Column(
                name=name,
                declared_type=declared_type,
                not_null=bool(not_null),
                default=default,
                key_position=position,
                generated=expression,
                collation=declared.collations.get(name.lower()),
            )
        )
    return tuple(columns)


def _rowid_column(name: str) -> Column:
    return Column(name, "INTEGER", not_null=True, default=None, key_position=1, generated=None, collation=None)


def _choose_rowid_name(columns: Sequence[Column]) -> str | None:
    taken = {column.name.lower() for column in columns}
    return next((name for name in _ROWID_NAMES if name not in taken), None)


def _find_rowid_alias(
    connection: sqlite3.Connection,
    table: str,
    columns: Sequence[Column],
    key: tuple[str, ...],
    *,
    virtual: bool,
) -> str | None:
    """Finds the INTEGER PRIMARY KEY column, if there is one.

    INTEGER PRIMARY KEY DESC is SQLite's documented exception and has an index of its own:
    https://www.sqlite.org/lang_createtable.html#rowid
    """
    if len(key) != 1:
        return None
    column = next(c for c in columns if c.name == key[0])
    if virtual:
        return column.name
    has_index = connection.execute("SELECT 1 FROM pragma_index_list(?) WHERE origin = 'pk'", (table,)).fetchone()
    if column.declared_type.upper() == "INTEGER" and not has_index:
        return column.name
    return None


def _read_foreign_keys(connection: sqlite3.Connection, table: str, declared: Declarations) -> tuple[ForeignKey, ...]:
    rows = connection.execute(
        'SELECT id, "table", "from", "to", on_update, on_delete FROM pragma_foreign_key_list(?) ORDER BY id DESC, seq',
        (table,),
    ).fetchall()
    keys: dict[int, list[tuple[str, str, str | None, str, str]]] = {}
    for number, *rest in rows:
        keys.setdefault(number, []).append((rest[0], rest[1], rest[2], rest[3], rest[4]))
    return tuple(
        ForeignKey(
            columns=tuple(part[1] for part in parts),
            parent=parts[0][0],
            parent_columns=tuple(part[2] for part in parts if part[2] is not None),
            on_update=parts[0][3],
            on_delete=parts[0][4],
            deferred=place < len(declared.deferred) and declared.deferred[place],
        )
        for place, parts in enumerate(keys.values())
    )


def _read_indexes(connection: sqlite3.Connection, table: str) -> tuple[Index, ...]:
    indexes: list[Index] = []
    rows = connection.execute(
        'SELECT l.name, l."unique", l.origin, l.partial, s.sql FROM pragma_index_list(?) AS l'
        " LEFT JOIN sqlite_schema AS s ON s.type = 'index' AND s.name = l.name ORDER BY l.seq DESC",
        (table,),
    ).fetchall()
    for name, unique, origin, is_partial, sql in rows:
        parts = connection.execute(
            'SELECT name, coll, "desc" FROM pragma_index_xinfo(?) WHERE key = 1 ORDER BY seqno', (name,)
        )
        indexes.append(
            Index(
                name=name,
                unique=bool(unique),
                origin=origin,
                partial=bool(is_partial),
                parts=tuple(IndexPart(column, collation, bool(down)) for column, collation, down in parts),
                sql=sql,
            )
        )
    return tuple(indexes)


def count_rows(connection: sqlite3.Connection, table: Table) -> int:
    """Counts a table's rows, for progress alone; the accounting counts what is read."""
    return int(connection.execute(f"SELECT count(*) FROM {quote_sqlite(table.name)}").fetchone()[0])


def read_batches(connection: sqlite3.Connection, table: Table, batch_size: int) -> Iterator[Batch]:
    """Streams a table's rows in its own order: by rowid, or by primary key where it has none.

    Text comes as str; bytes in it that are no UTF-8 come as lone surrogates
    (``errors="surrogateescape"``), never as an error.

    Raises:
        SourceError: a page of the table cannot be read.
    """
    done = 0
    # The built-in decoder is several times as fast, so the lossless one serves only where it must.
    for factory in (str, _lossless_text):
        connection.text_factory = factory
        cursor = connection.execute(_select_rows(table), (done,))
        while True:
            try:
                rows = cursor.fetchmany(batch_size)
            except sqlite3.OperationalError as error:
                if factory is str and "decode" in str(error):
                    break
                raise SourceError(f"table {table.name!r}: rows after {done:,} cannot be read: {error}") from error
            except sqlite3.DatabaseError as error:
                raise SourceError(f"table {table.name!r}: rows after {done:,} cannot be read: {error}") from error
            if not rows:
                return
            yield _make_batch(table, rows, done)
            done += len(rows)


def read_rows(connection: sqlite3.Connection, table: Table, numbers: Sequence[int]) -> Iterator[Batch]:
    """Reads some rows by their numbers, in the table's own order."""
    wanted = frozenset(numbers)
    for batch in read_batches(connection, table, _PICKED_BATCH):
        picked = [(n, row) for n, row in zip(batch.numbers, batch.rows, strict=True) if n in wanted]
        if picked:
            yield Batch([n for n, _ in picked], [row for _, row in picked])


def holds_only(connection: sqlite3.Connection, table: Table, classes: Mapping[str, str]) -> bool:
    """Whether some columns hold nothing but one storage class each, and NULL.

    Args:
        connection: the snapshot.
        table: the table in question.
        classes: column name to the storage class that it should hold: text, real or blob.

    A column's affinity may tell already: one with TEXT affinity stores numbers as text, one with REAL
    affinity integers as reals (https://www.sqlite.org/datatype3.html#type_affinity).
    """
    doubtful = [
        f"typeof({quote_sqlite(name)}) NOT IN ('{wanted}', 'null')"
        for name, wanted in classes.items()
        if not _affinity_keeps(table.find_column(name), wanted)
    ]
    if not doubtful:
        return True
    query = f"SELECT EXISTS (SELECT 1 FROM {quote_sqlite(table.name)} WHERE {' OR '.join(doubtful)})"
    return not connection.execute(query).fetchone()[0]


def _affinity_keeps(column: Column | None, wanted: str) -> bool:
    """Whether a column's affinity alone keeps numbers out of texts; blobs are told apart by the reader."""
    declared = column.declared_type.upper() if column and column.generated is None else ""
    if "INT" in declared:
        return False
    if wanted == "text":
        return any(word in declared for word in ("CHAR", "CLOB", "TEXT"))
    return wanted == "real" and any(word in declared for word in ("REAL", "FLOA", "DOUB"))


def read_range(connection: sqlite3.Connection, table: Table, after: int | None, last: int | None) -> Batch:
    """Reads the rows of a table with rowids that lie above ``after`` and up to ``last``."""
    number, order = identify_rows(table)
    columns = ", ".join(quote_sqlite(column.name) for column in table.columns)
    connection.text_factory = _lossless_text
    rows = connection.execute(
        f"SELECT {number}, {columns} FROM {quote_sqlite(table.name)}"
        f" WHERE (?1 IS NULL OR {order} > ?1) AND (?2 IS NULL OR {order} <= ?2) ORDER BY {order}",
        (after, last),
    ).fetchall()
    return _make_batch(table, rows, 0)


def _select_rows(table: Table) -> str:
    columns = ", ".join(quote_sqlite(column.name) for column in table.columns)
    number, order = identify_rows(table)
    return f"SELECT {number}, {columns} FROM {quote_sqlite(table.name)} ORDER BY {order} LIMIT -1 OFFSET ?"


def identify_rows(table: Table) -> tuple[str, str]:
    """Gives the SQL of a row's number (NULL where it is its place) and of the table's order."""
    if table.rowid_name:
        name = table.rowid_name if table.rowid_name in _ROWID_NAMES else quote_sqlite(table.rowid_name)
        return name, name
    return "NULL", ", ".join(quote_sqlite(name) for name in table.primary_key) or "1"


def _make_batch(table: Table, rows: list[Row], done: int) -> Batch:
    numbers: Sequence[int] = range(done + 1, done + 1 + len(rows))
    if table.rowid_name:
        numbers = [row[0] for row in rows]  # type: ignore[misc]
    return Batch(numbers, [row[1:] for row in rows])


def read_tail(connection: sqlite3.Connection, table: Table, column: str) -> int | None:
    """Gives the greatest integer in a column, or None where there is none."""
    name = quote_sqlite(column)
    row = connection.execute(
        f"SELECT max({name}) FROM {quote_sqlite(table.name)} WHERE typeof({name}) = 'integer'"
    ).fetchone()
    return None if row[0] is None else int(row[0])
