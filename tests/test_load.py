"""Tables that the target lacks: their types, keys and rows, from SQLite to PostgreSQL."""

import hashlib
import sqlite3
from datetime import UTC, date, datetime, time

import pytest

from migrator.plan import Orphans
from tests.conftest import Lab


def notes(report: object) -> str:
    return "\n".join(report.notes)  # type: ignore[attr-defined]


def test_booking_tables_get_the_types_of_the_wish_list(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE users (user_id INTEGER PRIMARY KEY, first_seen TEXT NOT NULL);
        CREATE TABLE services (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, price TEXT,
            color TEXT DEFAULT '#4CAF50', is_active BOOLEAN DEFAULT 1, created_at TEXT DEFAULT CURRENT_TIMESTAMP);
        CREATE TABLE bookings (id INTEGER PRIMARY KEY AUTOINCREMENT, date TEXT NOT NULL, time TEXT NOT NULL,
            service_id INTEGER NOT NULL DEFAULT 1, UNIQUE (date, time),
            FOREIGN KEY (service_id) REFERENCES services(id) ON DELETE RESTRICT ON UPDATE CASCADE);
        CREATE INDEX idx_bookings_service ON bookings (service_id);
        INSERT INTO users VALUES (4503599627370495, '2024-01-01T10:00:00+03:00');
        INSERT INTO services VALUES (3, 'Стрижка', '1 500 ₽', '#fff', 0, '2024-01-01 10:00:00.25');
        INSERT INTO bookings VALUES (9, '2024-05-01', '09:30', 3);
        """
    )
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    assert [table.name for table in report.tables] == ["users", "services", "bookings"]
    assert lab.columns("users") == {"user_id": "bigint", "first_seen": "timestamp with time zone"}
    assert lab.fetch("SELECT * FROM users") == [(4503599627370495, datetime(2024, 1, 1, 7, tzinfo=UTC))]
    assert lab.fetch("SELECT * FROM services") == [
        (3, "Стрижка", "1 500 ₽", "#fff", False, datetime(2024, 1, 1, 10, 0, 0, 250000, tzinfo=UTC))
    ]
    assert lab.fetch("SELECT * FROM bookings") == [(9, date(2024, 5, 1), time(9, 30), 3)]
    assert lab.fetch("INSERT INTO services (name) VALUES ('new') RETURNING id, color, is_active") == [
        (4, "#4CAF50", True)
    ]
    definitions = {
        row[0]
        for row in lab.fetch(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
        )
    }
    assert 'UNIQUE (date, "time")' in definitions
    assert "FOREIGN KEY (service_id) REFERENCES services(id) ON UPDATE CASCADE ON DELETE RESTRICT" in definitions
    assert lab.fetch("SELECT indexname::text FROM pg_indexes WHERE indexname = 'idx_bookings_service'")


def test_second_run_inserts_nothing(lab: Lab) -> None:
    lab.fill(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, x REAL); CREATE TABLE b (x, y TEXT);",
        ("INSERT INTO a (x) VALUES (?)", [(0.1,), (float("inf"),), (None,)]),
        ("INSERT INTO b VALUES (?, ?)", [(1, "a"), (1, "a"), (2, None)]),
    )
    assert lab.migrate().totals.rows_inserted == 6
    again = lab.migrate()
    assert (again.status, again.totals.rows_inserted, again.totals.rows_already_present) == ("ok", 0, 6)
    assert again.totals.verified
    assert lab.fetch("SELECT count(*) FROM b") == [(3,)]


def test_sequences_go_on_above_ids_that_were_deleted(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE gone (id INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT);
        INSERT INTO gone VALUES (40, 'a'); DELETE FROM gone; INSERT INTO gone VALUES (3, 'b');
        CREATE TABLE plain (id INTEGER PRIMARY KEY, a TEXT); INSERT INTO plain VALUES (12, 'a');
        CREATE TABLE none (id INTEGER PRIMARY KEY AUTOINCREMENT, a TEXT);
        """
    )
    report = lab.migrate()
    for table, following in (("gone", 41), ("plain", 13), ("none", 1)):
        assert lab.fetch(f"INSERT INTO {table} (a) VALUES ('x') RETURNING id") == [(following,)]
        assert f"{table}.id: its sequence's next value is {following}" in report.notes


def test_names_with_quotes_spaces_case_and_keywords(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE "My ""odd"" Table" ("Select" INTEGER PRIMARY KEY, "a b" TEXT UNIQUE, "ключ" TEXT DEFAULT 'it''s \\');
        INSERT INTO "My ""odd"" Table" VALUES (1, 'x', 'y');
        CREATE TABLE "order" ("user" INT REFERENCES "my ""odd"" table"("select"), "%s" TEXT, [from] TEXT);
        INSERT INTO "order" VALUES (1, '{}', '$1');
        CREATE INDEX "my index" ON "order" ("from", "%s");
        """
    )
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    assert lab.fetch('SELECT "Select", "a b", "ключ" FROM "My ""odd"" Table"') == [(1, "x", "y")]
    assert lab.fetch('SELECT * FROM "order"') == [(1, "{}", "$1")]
    assert lab.fetch('INSERT INTO "My ""odd"" Table" ("a b") VALUES (NULL) RETURNING "Select", "ключ"') == [
        (2, "it's \\")
    ]
    assert not [note for note in report.notes if "left out" in note]


def test_long_names_are_shortened_and_noted(lab: Lab) -> None:
    long = "ы" * 40
    lab.fill(f'CREATE TABLE "{long}1" (a INT, "{long}x" INT, "{long}y" INT); CREATE TABLE "{long}2" (a INT);')
    lab.fill(f'INSERT INTO "{long}1" VALUES (1, 2, 3)')
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    assert len(lab.list_tables()) == 2
    assert notes(report).count("renamed to") == 4
    assert lab.migrate().totals.rows_inserted == 0


def test_types_by_what_the_column_holds(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE t (a, b "byte[]", c number, d "unsigned big int", e VARCHAR(20) COLLATE NOCASE, f, g, h NUMERIC, i DECIMAL(10,2), j, k BLOB);
        INSERT INTO t VALUES (1, x'00ff', 1.5, 9223372036854775807, 'Ab', 'text', 1, 12345678901, 10.25, NULL, 'blobby');
        INSERT INTO t VALUES (2, x'', 3, -1, NULL, 7, 0.1, 0.1, 3, NULL, 'text');
        """
    )
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    assert lab.columns("t") == {
        "a": "bigint",
        "b": "bytea",
        "c": "double precision",
        "d": "bigint",
        "e": "character varying(20)",
        "f": "text",
        "g": "double precision",
        "h": "numeric",
        "i": "numeric(10,2)",
        "j": "text",
        "k": "text",
    }


def test_column_that_holds_other_things_than_declared_gets_a_wider_type(lab: Lab) -> None:
    lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, day DATE, v VARCHAR(3), flag BOOLEAN, r REAL, b TEXT)")
    lab.fill(
        "",
        (
            "INSERT INTO t (n, day, v, flag, r, b) VALUES (?, ?, ?, ?, ?, ?)",
            [("many", "soon", "abcdef", 2, 2**60, b"\x00")] * 20,
        ),
    )
    report = lab.migrate()
    assert report.status == "ok"
    types = lab.columns("t")
    assert [types[name] for name in ("n", "day", "v", "flag", "r", "b")] == [
        "text",
        "text",
        "text",
        "bigint",
        "double precision",
        "bytea",
    ]
    assert notes(report).count("became") == 5


def test_a_few_unfit_values_are_quarantined_and_the_type_stays(lab: Lab) -> None:
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)",
        ("INSERT INTO t (n) VALUES (?)", [(n,) for n in range(100)]),
        ("INSERT INTO t (n) VALUES (?)", [("odd",), (b"\x01",)]),
    )
    report = lab.migrate()
    assert (report.status, report.totals.rows_rejected, report.exit_code) == ("rejected_rows", 2, 3)
    assert lab.columns("t")["n"] == "bigint"
    assert lab.rejected() == [("t", 101, "rejected", "n", None), ("t", 102, "rejected", "n", None)]
    assert lab.fetch('SELECT "row"::text FROM migrator.rejected_rows ORDER BY id') == [
        ('{"n": "odd", "id": 101}',),
        ('{"n": {"blob": "01"}, "id": 102}',),
    ]


def test_share_can_be_chosen(lab: Lab) -> None:
    lab.fill("CREATE TABLE t (n INTEGER)", ("INSERT INTO t VALUES (?)", [(n,) for n in range(99)] + [("odd",)]))
    lab.set_load(widen_above=0.0)
    assert lab.migrate().status == "ok"
    assert lab.columns("t") == {"n": "text"}


def test_too_many_rejected_rows_fail_the_client(lab: Lab) -> None:
    lab.fill("CREATE TABLE t (n INTEGER)", ("INSERT INTO t VALUES (?)", [(n,) for n in range(99)] + [("odd",)]))
    lab.set_load(max_rejected=0)
    report = lab.migrate()
    assert (report.status, report.exit_code) == ("failed", 1)
    assert "more than 0 rows are rejected" in str(report.error)
    assert lab.list_tables() == []


def test_doubles_stay_the_same_to_the_last_bit(lab: Lab) -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2**53 + 2.0, float("inf"), float("-inf")]
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, x REAL)",
        ("INSERT INTO t (x) VALUES (?)", [(v,) for v in values]),
    )
    assert lab.migrate().status == "ok"
    assert [row[0] for row in lab.fetch("SELECT x FROM t ORDER BY id")] == values


def test_keys_without_rowid_strict_and_composite(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE w (a TEXT, b INT, c BLOB, PRIMARY KEY (b, a)) WITHOUT ROWID;
        INSERT INTO w VALUES ('x', 2, NULL), ('x', 1, x'01');
        CREATE TABLE s (i INT PRIMARY KEY, a ANY, t TEXT) STRICT;
        INSERT INTO s VALUES (1, 'any', 't'), (2, 5, 'u');
        """
    )
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    assert lab.fetch("SELECT * FROM w ORDER BY b") == [("x", 1, b"\x01"), ("x", 2, None)]
    assert lab.fetch("SELECT a FROM s ORDER BY i") == [("any",), ("5",)]


def test_generated_columns(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE t (a INT, b INT GENERATED ALWAYS AS (a * 2) STORED, c TEXT AS (a || '!') VIRTUAL,
            d REAL AS (a / 2), e TEXT AS (typeof(a)));
        INSERT INTO t (a) VALUES (3), (4), (NULL);
        """
    )
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    assert lab.fetch("SELECT * FROM t ORDER BY a") == [
        (3, 6, "3!", 1.0, "integer"),
        (4, 8, "4!", 2.0, "integer"),
        (None, None, None, None, "null"),
    ]
    assert "became a plain one" in notes(report)
    assert lab.migrate().totals.rows_already_present == 3


def test_generated_column_that_postgres_computes_too(lab: Lab) -> None:
    lab.fill("CREATE TABLE t (a INT, b INT GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO t (a) VALUES (3), (4);")
    assert lab.migrate().status == "ok"
    assert lab.fetch("INSERT INTO t (a) VALUES (50) RETURNING b") == [(100,)]


def test_checks_are_carried_over_or_noted(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE t (a INT CHECK (a BETWEEN 0 AND 9), flag BOOLEAN CHECK (flag IN (0, 1)),
            name TEXT CHECK (name LIKE 'A%'), odd TEXT CHECK (odd GLOB 'x*'));
        INSERT INTO t VALUES (1, 1, 'abc', 'xyz');
        """
    )
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    assert "CHECK (odd GLOB 'x*') was left out" in notes(report)
    for values in ("10, true, 'a', 'x'", "1, true, 'b', 'x'"):
        with pytest.raises(Exception, match="check constraint"):
            lab.execute(f"INSERT INTO t VALUES ({values})")


def test_row_that_breaks_its_check_is_quarantined(lab: Lab) -> None:
    path = lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY, a INT CHECK (a > 0)); INSERT INTO t VALUES (1, 5)")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute("INSERT INTO t VALUES (2, -5)")
    connection.commit()
    connection.close()
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted) == ("rejected_rows", 1)
    assert lab.rejected() == [("t", 2, "rejected", None, "23514")]


def test_indexes_partial_by_expression_and_without_case(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT COLLATE NOCASE UNIQUE, b INT, c TEXT);
        CREATE INDEX part ON t (b DESC) WHERE b > 5;
        CREATE INDEX expr ON t (lower(c), b + 1);
        CREATE UNIQUE INDEX uniq ON t (c) WHERE b = 1;
        INSERT INTO t VALUES (1, 'Abc', 6, 'x'), (2, 'Иван', 1, 'y'), (3, 'иван', 2, 'y');
        """
    )
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    definitions = dict(lab.fetch("SELECT indexname::text, indexdef FROM pg_indexes WHERE tablename = 't'"))
    assert "WHERE (b > 5)" in definitions["part"]
    assert "lower(c), ((b + 1))" in definitions["expr"]
    with pytest.raises(Exception, match="duplicate key"):
        lab.execute("INSERT INTO t (a) VALUES ('aBC')")
    with pytest.raises(Exception, match="duplicate key"):
        lab.execute("INSERT INTO t (b, c) VALUES (1, 'y')")


def test_null_in_a_primary_key(lab: Lab) -> None:
    lab.fill(
        "CREATE TABLE t (k TEXT PRIMARY KEY, v INT)",
        ("INSERT INTO t VALUES (?, ?)", [(f"k{n}", n) for n in range(50)]),
    )
    lab.fill("INSERT INTO t VALUES (NULL, 1)")
    report = lab.migrate()
    assert report.status == "rejected_rows"
    assert lab.rejected() == [("t", 51, "rejected", "k", None)]


def test_primary_key_of_nulls_becomes_unique(lab: Lab) -> None:
    lab.fill("CREATE TABLE t (k TEXT PRIMARY KEY, v INT); INSERT INTO t VALUES (NULL, 1), (NULL, 2), ('a', 3)")
    report = lab.migrate()
    assert report.status == "ok"
    assert "its primary key became UNIQUE" in notes(report)
    assert lab.migrate().totals.rows_already_present == 3


def test_values_that_become_equal_are_quarantined_as_duplicates(lab: Lab) -> None:
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, time TEXT UNIQUE)",
        ("INSERT INTO t (time) VALUES (?)", [("09:30",), ("09:30:00",), ("10:00",)]),
    )
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted) == ("rejected_rows", 2)
    assert lab.rejected() == [("t", 2, "rejected", None, "23505")]


def test_foreign_keys_that_cannot_be_kept_are_noted(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE users (user_id INTEGER PRIMARY KEY);
        CREATE TABLE a (x INT REFERENCES users(id)); CREATE TABLE b (x INT REFERENCES nowhere(id));
        CREATE TABLE c (x TEXT REFERENCES users(user_id)); INSERT INTO c VALUES ('1');
        """
    )
    report = lab.migrate()
    assert report.status == "ok"
    assert notes(report).count("was left out") == 3


def test_cycles_and_references_to_itself(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE a (id INTEGER PRIMARY KEY, b_id INT REFERENCES b(id), up INT REFERENCES a(id));
        CREATE TABLE b (id INTEGER PRIMARY KEY, a_id INT REFERENCES a(id));
        INSERT INTO a VALUES (1, 1, 2), (2, NULL, 1); INSERT INTO b VALUES (1, 2);
        """
    )
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    assert lab.fetch("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated") == [(3,)]
    assert lab.migrate().totals.rows_already_present == 3


ORPHANS = """
    CREATE TABLE bookings (id INTEGER PRIMARY KEY, a TEXT);
    CREATE TABLE booking_history (id INTEGER PRIMARY KEY, booking_id INT REFERENCES bookings(id) ON DELETE CASCADE);
    CREATE TABLE notes (id INTEGER PRIMARY KEY, history_id INT NOT NULL REFERENCES booking_history(id));
    INSERT INTO bookings VALUES (1, 'x');
    INSERT INTO booking_history VALUES (1, 1), (2, 99), (3, NULL);
    INSERT INTO notes VALUES (1, 1), (2, 2);
"""


def test_orphans_are_kept_and_their_key_is_not_valid(lab: Lab) -> None:
    lab.fill(ORPHANS)
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted) == ("ok", 6)
    assert "was added NOT VALID" in notes(report)
    assert lab.fetch("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND NOT convalidated") == [(1,)]
    with pytest.raises(Exception, match="foreign key"):
        lab.execute("INSERT INTO booking_history VALUES (9, 98)")


def test_orphans_and_their_children_go_to_quarantine(lab: Lab) -> None:
    lab.fill(ORPHANS)
    lab.set_load(orphans=Orphans.QUARANTINE)
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted) == ("rejected_rows", 4)
    assert lab.rejected() == [
        ("booking_history", 2, "rejected", "booking_id", "23503"),
        ("notes", 2, "rejected", "history_id", "23503"),
    ]
    assert lab.fetch("SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated") == [(2,)]
    again = lab.migrate()
    assert (again.status, again.totals.rows_inserted, again.totals.rows_rejected) == ("rejected_rows", 0, 2)


def test_orphans_are_set_to_null_and_kept_in_quarantine(lab: Lab) -> None:
    lab.fill(ORPHANS)
    lab.set_load(orphans=Orphans.NULL)
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted) == ("ok", 6)
    assert lab.fetch("SELECT booking_id FROM booking_history ORDER BY id") == [(1,), (None,), (None,)]
    assert lab.rejected() == [("booking_history", 2, "nulled", "booking_id", None)]
    assert lab.verify().status == "ok"


def test_full_text_table_arrives_with_its_content(lab: Lab) -> None:
    lab.fill("CREATE VIRTUAL TABLE f USING fts5(title, body); INSERT INTO f (rowid, title, body) VALUES (5, 'a', 'b')")
    report = lab.migrate()
    assert report.status == "ok"
    assert lab.fetch("SELECT rowid, title, body FROM f") == [(5, "a", "b")]
    assert "its index is not" in notes(report)


def test_many_rows_in_small_batches(lab: Lab) -> None:
    lab.fill("CREATE TABLE t (x INT)", ("INSERT INTO t VALUES (?)", [(n,) for n in range(2500)]))
    lab.set_load(batch_size=1000)
    assert lab.migrate().totals.rows_inserted == 2500
    assert lab.fetch("SELECT count(*), sum(x) FROM t") == [(2500, 2500 * 2499 // 2)]


def test_dry_run_changes_nothing(lab: Lab) -> None:
    lab.fill("CREATE TABLE t (x INT)", ("INSERT INTO t VALUES (?)", [(n,) for n in range(99)] + [("odd",)]))
    report = lab.migrate(dry_run=True)
    assert (report.status, report.dry_run, report.totals.rows_rejected) == ("rejected_rows", True, 1)
    assert lab.list_tables() == []
    assert lab.fetch("SELECT to_regnamespace('migrator')::text") == [(None,)]


def test_source_is_left_byte_for_byte(lab: Lab) -> None:
    path = lab.fill("CREATE TABLE t (x INT); INSERT INTO t VALUES (1)")
    before = path.read_bytes()
    report = lab.migrate()
    assert path.read_bytes() == before
    assert report.source.sha256 == hashlib.sha256(before).hexdigest()
    assert [entry.name for entry in path.parent.iterdir() if entry.name not in ("bookings.db", "reports")] == []
