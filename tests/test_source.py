"""What is read out of a file: every kind of declaration, and rows that are no proper text."""

import sqlite3

import pytest

from migrator.source import Source, read_batches, read_source


def read(script: str) -> tuple[sqlite3.Connection, Source]:
    connection = sqlite3.connect(":memory:")
    connection.executescript(script)
    return connection, read_source(connection)


def test_columns_keys_and_sequences() -> None:
    _, source = read(
        """
        CREATE TABLE p (id INTEGER PRIMARY KEY AUTOINCREMENT, "Full Name" TEXT NOT NULL DEFAULT 'x');
        INSERT INTO p VALUES (7, 'a'); DELETE FROM p;
        CREATE TABLE c (a INT, b TEXT COLLATE NOCASE, PRIMARY KEY (b, a),
            FOREIGN KEY (a) REFERENCES p ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED) WITHOUT ROWID;
        """
    )
    parent, child = source.tables
    assert (parent.rowid_alias, parent.autoincrement, parent.sequence) == ("id", True, 7)
    assert [(c.name, c.not_null, c.default) for c in parent.columns] == [
        ("id", False, None),
        ("Full Name", True, "'x'"),
    ]
    assert (child.primary_key, child.rowid_name, child.rowid_alias) == (("b", "a"), None, None)
    assert child.columns[1].collation == "NOCASE"
    (key,) = child.foreign_keys
    assert (key.columns, key.parent, key.parent_columns, key.on_delete, key.deferred) == (
        ("a",),
        "p",
        (),
        "SET NULL",
        True,
    )


def test_integer_primary_key_desc_is_no_rowid() -> None:
    _, source = read("CREATE TABLE t (id INTEGER PRIMARY KEY DESC); CREATE TABLE u (id INT PRIMARY KEY)")
    assert [table.rowid_alias for table in source.tables] == [None, None]


def test_column_named_rowid_hides_the_rowid_and_another_name_is_used() -> None:
    connection, source = read("CREATE TABLE t (rowid TEXT, oid TEXT); INSERT INTO t VALUES ('a', 'b')")
    assert source.tables[0].rowid_name == "_rowid_"
    (batch,) = read_batches(connection, source.tables[0], 10)
    assert (batch.numbers, batch.rows) == ([1], [("a", "b")])


def test_generated_columns_checks_and_indexes() -> None:
    _, source = read(
        """
        CREATE TABLE t (a INT CHECK (a > 0), b GENERATED ALWAYS AS (a * 2) STORED, c TEXT AS ('(' || a) VIRTUAL,
            CONSTRAINT "odd one" CHECK (a <> 13 /* , ) */ OR b IS NULL));
        CREATE UNIQUE INDEX i ON t (lower(c) DESC) WHERE a > 1;
        """
    )
    (table,) = source.tables
    assert [column.generated for column in table.columns] == [None, "a * 2", "'(' || a"]
    assert [(check.name, check.expression.split(" /*")[0]) for check in table.checks] == [
        (None, "a > 0"),
        ("odd one", "a <> 13"),
    ]
    (index,) = table.indexes
    assert (index.unique, index.partial, index.parts[0].column, index.parts[0].descending) == (
        True,
        True,
        None,
        True,
    )


def test_views_and_triggers_are_noted() -> None:
    _, source = read(
        "CREATE TABLE t (a); CREATE VIEW v AS SELECT a FROM t;CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END;"
    )
    assert [note.split(",")[0] for note in source.notes] == ["g: trigger", "v: view"]


def test_full_text_table_comes_as_its_content() -> None:
    connection, source = read(
        "CREATE VIRTUAL TABLE f USING fts5(title, body); INSERT INTO f (rowid, title, body) VALUES (5, 'a', 'b');"
        "CREATE TABLE t (a TEXT); CREATE VIRTUAL TABLE x USING fts5(a, content='t');"
    )
    assert [table.name for table in source.tables] == ["f", "t"]
    (batch,) = read_batches(connection, source.tables[0], 10)
    assert (batch.numbers, batch.rows) == ([5], [(5, "a", "b")])
    assert any("index is not" in note for note in source.notes)
    assert sum("shadow table" in note for note in source.notes) >= 8


def test_bytes_that_are_no_text_are_read_without_loss() -> None:
    connection, source = read("CREATE TABLE t (a TEXT)")
    connection.executemany("INSERT INTO t VALUES (?)", [(f"row {n}",) for n in range(25)])
    connection.execute("INSERT INTO t VALUES (CAST(x'61ff62' AS TEXT))")
    connection.execute("INSERT INTO t VALUES ('last')")
    batches = list(read_batches(connection, source.tables[0], 10))
    values = [row[0] for batch in batches for row in batch.rows]
    assert values == [*(f"row {n}" for n in range(25)), "a\udcffb", "last"]
    assert [number for batch in batches for number in batch.numbers] == list(range(1, 28))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_rows_without_rowid_are_numbered_by_their_place(size: int) -> None:
    connection, source = read(
        "CREATE TABLE t (k TEXT PRIMARY KEY) WITHOUT ROWID; INSERT INTO t VALUES ('b'), ('a'), ('c')"
    )
    found = [
        (number, row[0])
        for batch in read_batches(connection, source.tables[0], size)
        for number, row in zip(batch.numbers, batch.rows, strict=True)
    ]
    assert found == [(1, "a"), (2, "b"), (3, "c")]
