"""Tables that exist already: their types and rules win, and every row is accounted for."""

import json
import sqlite3

import pytest

from migrator.plan import Orphans
from tests.conftest import Lab


def report_notes(report: object) -> str:
    return "\n".join(report.notes)  # type: ignore[attr-defined]


def test_target_types_win(lab: Lab) -> None:
    lab.execute(
        """
        CREATE TYPE mood AS ENUM ('good', 'bad');
        CREATE TABLE t (
            id serial PRIMARY KEY, a varchar(3), b numeric(6, 2), c timestamp, d jsonb, e smallint, f real, g uuid,
            h json, i char(4), j mood, k inet, l time(0), m boolean, extra text NOT NULL DEFAULT 'made',
            made_at timestamptz DEFAULT now()
        );
        """
    )
    good = (1, "abc", "12.50", "2024-01-01T10:00:00Z", '{"b": 1.50, "a": "x\\n\\u00e9"}', 7, 0.5,
            "6BA7B810-9DAD-11D1-80B4-00C04FD430C8", '{ "k" :1}', "ab", "good", "10.0.0.1", "10:00", "yes")  # fmt: skip
    bad = {
        1: "abcd", 2: 12345678.0, 3: "no", 4: "{", 5: 40000, 6: 0.1, 7: "x", 8: "[", 9: "abcde", 10: "ugly",
        11: "10.0.0.1/32", 12: "10:00:00.5", 13: "perhaps",
    }  # fmt: skip
    rows: list[tuple[object, ...]] = [good]
    for place, value in bad.items():
        row: list[object] = list(good)
        row[0], row[place] = place + 1, value
        rows.append(tuple(row))
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a, b, c, d, e, f, g, h, i, j, k, l, m)",
        ("INSERT INTO t VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", rows),
    )
    report = lab.migrate()
    assert (report.status, report.error) == ("rejected_rows", None)
    assert lab.fetch("SELECT id, a, b::text, d::text, f, i, j::text, k::text, m, extra FROM t") == [
        (1, "abc", "12.50", '{"a": "x\\né", "b": 1.50}', 0.5, "ab  ", "good", "10.0.0.1/32", True, "made")
    ]
    rejected = {row[1]: row[3] for row in lab.rejected()}
    assert rejected == dict(zip(range(2, 15), "abcdefghijklm", strict=True))
    assert lab.fetch("SELECT nextval('t_id_seq')") == [(15,)]


def test_missing_column_is_refused_with_the_way_out(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id bigint PRIMARY KEY)")
    lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY, more INTEGER); INSERT INTO t VALUES (1, 2)")
    report = lab.migrate()
    assert report.status == "failed"
    assert 'ALTER TABLE "public"."t" ADD COLUMN "more" bigint' in str(report.error)
    assert lab.fetch("SELECT * FROM t") == []
    assert lab.migrate(add_columns=True).status == "ok"
    assert lab.fetch("SELECT * FROM t") == [(1, 2)]


def test_column_that_nothing_fills_is_refused(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id bigint PRIMARY KEY, needed text NOT NULL)")
    lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY)")
    assert "needed is NOT NULL without a default" in str(lab.migrate().error)


def test_rows_that_are_there_conflict_or_are_present(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id bigint PRIMARY KEY, a text, day date, UNIQUE (a))")
    lab.execute(
        "INSERT INTO t VALUES (1, 'same', '2024-01-01'), (2, 'theirs', NULL), (77, 'taken', NULL), (88, 'own', NULL)"
    )
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, day TEXT);"
        "INSERT INTO t VALUES (1, 'same', '2024-01-01'), (2, 'ours', NULL), (3, 'taken', NULL), (4, 'new', '2024-02-02')"
    )
    report = lab.migrate()
    totals = report.totals
    assert report.status == "rejected_rows"
    assert (
        totals.rows_inserted,
        totals.rows_already_present,
        totals.rows_conflicting,
        totals.rows_rejected,
    ) == (1, 1, 2, 0)
    assert lab.fetch("SELECT id, a FROM t ORDER BY id") == [
        (1, "same"),
        (2, "theirs"),
        (4, "new"),
        (77, "taken"),
        (88, "own"),
    ]
    versions = lab.fetch('SELECT "row"::text, target_row::text FROM migrator.rejected_rows ORDER BY row_number')
    assert [(json.loads(ours)["a"], json.loads(theirs)["a"]) for ours, theirs in versions] == [
        ("ours", "theirs"),
        ("taken", "taken"),
    ]
    lines = [
        json.loads(line) for line in next(lab.options.reports_dir.glob("*/*/rejected.jsonl")).read_text().splitlines()
    ]
    assert [(line["verdict"], line["rowid"], line["target_row"]["a"]) for line in lines] == [
        ("conflicting", 2, "theirs"),
        ("conflicting", 3, "taken"),
    ]


def test_equal_rows_without_a_key_are_matched_one_to_one(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (a int, b text)")
    lab.execute("INSERT INTO t VALUES (1, 'x'), (5, 'other')")
    lab.fill("CREATE TABLE t (a INT, b TEXT); INSERT INTO t VALUES (1, 'x'), (1, 'x'), (2, NULL)")
    report = lab.migrate()
    assert (report.totals.rows_already_present, report.totals.rows_inserted, report.status) == (1, 2, "ok")
    assert lab.migrate().totals.rows_already_present == 3


def test_checks_and_domains_of_the_target(lab: Lab) -> None:
    lab.execute("CREATE DOMAIN small AS int CHECK (VALUE < 100)")
    lab.execute("CREATE TABLE t (id bigint PRIMARY KEY, a int CONSTRAINT positive CHECK (a > 0), b small)")
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, b INT)",
        ("INSERT INTO t VALUES (?, ?, ?)", [(n, n - 3, 100 if n == 50 else n % 50) for n in range(1, 100)]),
    )
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted, report.totals.rows_rejected) == (
        "rejected_rows",
        95,
        4,
    )
    assert {(row[1], row[4]) for row in lab.rejected()} == {
        (1, "23514"),
        (2, "23514"),
        (3, "23514"),
        (50, "23514"),
    }


def test_rule_that_only_the_insert_meets(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id bigint PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&))")
    ranges = [f"[{n * 10},{n * 10 + 5})" for n in range(200)]
    ranges[150] = "[12,13)"
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, during TEXT)",
        ("INSERT INTO t VALUES (?, ?)", list(enumerate(ranges))),
    )
    report = lab.migrate()
    assert (report.totals.rows_inserted, report.totals.rows_rejected) == (199, 1)
    assert lab.rejected() == [("t", 150, "rejected", None, "23P01")]


def test_triggers_do_not_fire_and_are_as_before(lab: Lab) -> None:
    lab.execute(
        """
        CREATE TABLE log (what text);
        CREATE TABLE t (id bigint PRIMARY KEY, a text);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO log VALUES (TG_NAME); NEW.a := 'changed'; RETURN NEW; END $$;
        CREATE TRIGGER one BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION note();
        CREATE TRIGGER two BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION note();
        ALTER TABLE t DISABLE TRIGGER two;
        CREATE TRIGGER three BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION note();
        ALTER TABLE t ENABLE ALWAYS TRIGGER three;
        """
    )
    lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT); INSERT INTO t VALUES (1, 'a')")
    assert lab.migrate().status == "ok"
    assert lab.fetch("SELECT a FROM t") == [("a",)]
    assert lab.fetch("SELECT * FROM log") == []
    assert lab.fetch("SELECT tgname::text, tgenabled FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1") == [
        ("one", b"O"),
        ("three", b"A"),
        ("two", b"D"),
    ]


def test_triggers_of_another_owner_are_an_error(lab: Lab) -> None:
    role, database = lab.database.role, lab.database.name
    lab.server.run_sql(
        "CREATE TABLE t (id bigint PRIMARY KEY);"
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
        "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();"
        f"GRANT SELECT, INSERT ON t TO {role}",
        database=database,
    )
    lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)")
    assert "only its owner can switch them off" in str(lab.migrate().error)


TARGET = """
    CREATE TABLE parents (id bigint PRIMARY KEY, up bigint REFERENCES parents, favourite bigint);
    CREATE TABLE children (id bigint PRIMARY KEY, parent_id bigint CONSTRAINT fk REFERENCES parents(id));
    ALTER TABLE parents ADD CONSTRAINT back FOREIGN KEY (favourite) REFERENCES children(id);
"""
SOURCE = """
    CREATE TABLE parents (id INTEGER PRIMARY KEY, up INT, favourite INT);
    CREATE TABLE children (id INTEGER PRIMARY KEY, parent_id INT);
    INSERT INTO parents VALUES (1, 2, 1), (2, 1, NULL), (3, 3, 99);
    INSERT INTO children VALUES (1, 1), (2, 55), (3, 3);
"""


def test_cycle_of_foreign_keys_with_orphans_in_quarantine(lab: Lab) -> None:
    lab.execute(TARGET)
    lab.fill(SOURCE)
    lab.set_load(orphans=Orphans.QUARANTINE)
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted) == ("rejected_rows", 3)
    assert [(row[0], row[1]) for row in lab.rejected()] == [("children", 2), ("children", 3), ("parents", 3)]
    states = lab.fetch("SELECT condeferrable, condeferred, convalidated FROM pg_constraint WHERE contype = 'f'")
    assert states == [(False, False, True)] * 3


def test_orphans_kept_make_an_existing_key_not_valid(lab: Lab) -> None:
    lab.execute(TARGET)
    lab.fill(SOURCE)
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted) == ("ok", 6)
    assert "foreign key fk is now NOT VALID" in report_notes(report)
    states = dict(lab.fetch("SELECT conname::text, convalidated FROM pg_constraint WHERE contype = 'f'"))
    assert states == {"fk": False, "back": False, "parents_up_fkey": True}
    assert lab.migrate().totals.rows_already_present == 6


def test_names_match_whatever_their_case(lab: Lab) -> None:
    lab.execute("CREATE TABLE bookings (id bigint PRIMARY KEY, userid bigint)")
    lab.fill("CREATE TABLE Bookings (ID INTEGER PRIMARY KEY, UserId INT); INSERT INTO Bookings VALUES (1, 2)")
    assert lab.migrate().status == "ok"
    assert lab.fetch("SELECT * FROM bookings") == [(1, 2)]


def test_identity_always_and_generated_columns_of_the_target(lab: Lab) -> None:
    lab.execute(
        "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int, b int GENERATED ALWAYS AS (a * 2) STORED)"
    )
    lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, b INT); INSERT INTO t VALUES (5, 1, 2)")
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
    assert lab.fetch("INSERT INTO t (a) VALUES (2) RETURNING id, b") == [(6, 4)]


def test_table_that_may_not_be_written(lab: Lab) -> None:
    lab.server.run_sql("CREATE TABLE t (id bigint PRIMARY KEY)", database=lab.database.name)
    lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)")
    report = lab.migrate()
    assert report.status == "failed"
    assert "GRANT SELECT, INSERT ON" in str(report.error)


@pytest.mark.parametrize("bad", [1, 40])
def test_unique_key_of_the_target_that_sqlite_lacks(lab: Lab, bad: int) -> None:
    lab.execute(
        "CREATE TABLE t (id bigint PRIMARY KEY, a text, b int); CREATE UNIQUE INDEX u ON t (lower(a)) WHERE b > 0"
    )
    rows = (
        [(n, f"name {n}", 1) for n in range(50)]
        + [(100 + n, f"NAME {n}", 1) for n in range(bad)]
        + [(200, "NAME 1", 0)]
    )
    lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INT)", ("INSERT INTO t VALUES (?, ?, ?)", rows))
    report = lab.migrate()
    assert (report.totals.rows_inserted, report.totals.rows_rejected) == (51, bad)
    again = lab.migrate()
    assert (again.totals.rows_already_present, again.totals.rows_rejected) == (51, bad)


def test_rows_from_before_the_first_migration_are_remembered(lab: Lab) -> None:
    lab.execute("CREATE TABLE t (id bigint PRIMARY KEY); INSERT INTO t VALUES (1), (99)")
    path = lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3)")
    assert lab.migrate().status == "ok"
    assert lab.fetch("SELECT * FROM migrator.foreign_rows") == [("t", 1)]
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM t WHERE id = 3")
    connection.commit()
    connection.close()
    assert lab.migrate().status == "ok"
    assert lab.fetch("SELECT * FROM migrator.foreign_rows") == [("t", 1)]
