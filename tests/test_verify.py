"""The proof: whatever is changed behind the migration's back is found and named."""

import sqlite3
from dataclasses import replace
from zoneinfo import ZoneInfo

import pytest

from migrator import convert, load
from migrator.datatypes import Kind
from migrator.zones import Zone
from tests.conftest import Lab

SCRIPT = """
    CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b TEXT, x REAL, at TIMESTAMP, n INTEGER);
    CREATE TABLE loose (a TEXT, n INTEGER);
"""


@pytest.fixture
def migrated(lab: Lab) -> Lab:
    lab.fill(
        SCRIPT,
        (
            "INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)",
            [(n, f"a{n}", f"b{n}", n / 7, f"2024-01-01 10:00:{n:02d}", n) for n in range(1, 40)],
        ),
        ("INSERT INTO loose VALUES (?, ?)", [(f"l{n}", n) for n in range(20)]),
    )
    assert lab.migrate().status == "ok"
    assert lab.verify().status == "ok"
    return lab


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("UPDATE t SET a = 'A5' WHERE id = 5", r"t (5): a: SQLite 2:a5, PostgreSQL 2:A5"),
        ("DELETE FROM t WHERE id = 7", "t (7) row 7: missing in PostgreSQL"),
        ("DELETE FROM loose WHERE n = 7", "loose (a row without a key) row 8: missing in PostgreSQL"),
        ("INSERT INTO loose VALUES ('l3', 3)", "loose (a row without a key): only in PostgreSQL"),
        ("INSERT INTO t SELECT 99, a, b, x, at, n FROM t WHERE id = 3", "t (99): only in PostgreSQL"),
        (
            "UPDATE t SET a = b, b = a WHERE id = 3",
            "t (3): a: SQLite 2:a3, PostgreSQL 2:b3; b: SQLite 2:b3, PostgreSQL 2:a3",
        ),
        (
            "UPDATE t SET a = CASE id WHEN 3 THEN 'a4' ELSE 'a3' END WHERE id IN (3, 4)",
            "t (3): a: SQLite 2:a3, PostgreSQL 2:a4",
        ),
        (
            "UPDATE t SET at = at + interval '1 hour' WHERE id = 9",
            "t (9): at: SQLite 2024-01-01 10:00:09+00, PostgreSQL 2024-01-01 11:00:09+00",
        ),
        (
            "UPDATE t SET x = x + 2 ^ -52 WHERE id = 8",
            "t (8): x: SQLite 3ff2492492492492, PostgreSQL 3ff2492492492493",
        ),
        ("UPDATE t SET b = NULL WHERE id = 1", "t (1): b: SQLite 2:b1, PostgreSQL N"),
        ("UPDATE t SET a = a || chr(8203) WHERE id = 1", "t (1): a: SQLite 2:a1"),
    ],
)
def test_change_is_named(migrated: Lab, change: str, found: str) -> None:
    migrated.execute(change)
    report = migrated.verify()
    assert (report.status, report.exit_code) == ("verify_failed", 4)
    assert found in str(report.error)


def test_change_in_sqlite_is_named(migrated: Lab) -> None:
    connection = sqlite3.connect(migrated.client.sqlite_path)
    connection.execute("UPDATE t SET n = 0 WHERE id = 5")
    connection.commit()
    connection.close()
    assert "t (5): n: SQLite 0, PostgreSQL 5" in str(migrated.verify().error)


def test_verify_changes_nothing_and_needs_the_tables(lab: Lab) -> None:
    lab.fill(SCRIPT)
    report = lab.verify()
    assert report.status == "verify_failed"
    assert "run 'migrate' first" in str(report.error)
    assert lab.list_tables() == []


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        ("_to_text", lambda value, _: str(value).strip()),
        ("_to_double", lambda value: float(f"{value:.15g}")),
        ("_to_integer", lambda value, _: int(value) ^ 1),
    ],
)
def test_fault_of_the_converter_shows_and_nothing_is_committed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, function: str, fault: object
) -> None:
    monkeypatch.setattr(convert, function, fault)
    monkeypatch.setattr(convert, "_PASSING", {})
    monkeypatch.setitem(convert._SIMPLE, Kind.DOUBLE, convert._to_double)
    lab.fill("CREATE TABLE t (a TEXT, x REAL, n INT); INSERT INTO t VALUES (' padded', 0.30000000000000004, 6)")
    report = lab.migrate()
    assert (report.status, report.exit_code) == ("verify_failed", 4)
    assert "SQLite and PostgreSQL differ in t" in str(report.error)
    assert lab.list_tables() == []


def test_time_zone_slip_of_the_converter_shows(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    read = convert._read_moment
    monkeypatch.setattr(convert, "_read_moment", lambda text, kind: read(text[:19], kind))
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP);INSERT INTO t VALUES (1, '2024-01-01 10:00:00+03:00')"
    )
    report = lab.migrate()
    assert report.status == "verify_failed"
    assert "2024-01-01 07:00:00+00" in str(report.error)


def test_row_lost_on_the_way_shows(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = load._Copier._copy_records

    async def lose(self: object, batch: object, numbers: list[int], records: list[object]) -> int:
        return await copy(self, batch, numbers[1:], records[1:]) + 1  # type: ignore[arg-type]

    monkeypatch.setattr(load._Copier, "_copy_records", lose)
    lab.fill("CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3)")
    report = lab.migrate()
    assert report.status == "verify_failed"
    assert "t (1) row 1: missing in PostgreSQL" in str(report.error)


@pytest.mark.parametrize("zone", ["Europe/Moscow", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_zones_with_hours_that_repeat_or_are_skipped(lab: Lab, zone: str) -> None:
    lab.options = replace(lab.options, zone=Zone(ZoneInfo(zone), "test"))
    days = [
        "2024-03-31",
        "2024-10-27",
        "2024-03-10",
        "2024-11-03",
        "2024-04-07",
        "2024-10-06",
        "2010-10-31",
        "2024-07-01",
    ]
    values = [f"{day} {hour:02d}:{minute}:00" for day in days for hour in range(5) for minute in ("00", "15", "45")]
    lab.fill("CREATE TABLE t (at TIMESTAMP)", ("INSERT INTO t VALUES (?)", [(value,) for value in values]))
    report = lab.migrate()
    assert (report.status, report.error) == ("ok", None)
