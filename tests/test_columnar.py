"""The fast way: well-formed batches take it, and whatever needs judgement is left to the careful way."""

import sqlite3
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from migrator import batches, verify
from migrator.batches import BatchFile
from migrator.column_digest import sum_columns
from migrator.columnar import Encoded, Leftover, encode_batches, is_columnar
from migrator.plan import TablePlan, make_plan
from migrator.source import read_source
from migrator.target import Target
from migrator.zones import parse_zone
from tests.conftest import Lab

EMPTY = Target("public", "16", 160000, {})


def prepare(path: Path, script: str) -> tuple[sqlite3.Connection, TablePlan]:
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.commit()
    return connection, make_plan(read_source(connection), EMPTY).tables[0]


def ways(path: Path, script: str) -> list[type]:
    connection, plan = prepare(path, script)
    if not is_columnar(connection, plan, UTC):
        return [Leftover]
    return [type(item) for item in encode_batches(connection, plan)]


CLEAN = "CREATE TABLE t (id INTEGER PRIMARY KEY, a {} NOT NULL); INSERT INTO t (a) VALUES ({}), ({});"


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("INTEGER", "5"), ("TEXT", "'Привет'"), ("REAL", "0.1"), ("BOOLEAN", "1"), ("DATE", "'2024-02-29'"),
        ("TIME", "'09:30'"), ("TIME", "'09:30:15'"), ("TIMESTAMP", "'2024-01-01 10:00:00'"),
        ("TIMESTAMP", "'2024-01-01T10:00:00.25+03:00'"), ("VARCHAR(5)", "'abcde'"),
    ],
)  # fmt: skip
def test_usual_values_go_by_columns(tmp_path: Path, declared: str, value: str) -> None:
    assert ways(tmp_path / "t.db", CLEAN.format(declared, value, value)) == [Encoded]


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("INTEGER", "'many'"), ("INTEGER", "1.5"), ("TEXT", "x'00'"), ("TEXT", "'a' || char(0)"),
        ("TEXT", "CAST(x'ff' AS TEXT)"), ("REAL", "'x'"), ("BOOLEAN", "2"), ("DATE", "'2024-02-30'"), ("DATE", "''"),
        ("TIME", "'9:30'"), ("TIME", "'24:00'"), ("TIMESTAMP", "'yesterday'"), ("TIMESTAMP", "1700000000"),
        ("TIMESTAMP", "'2024-01-01 10'"), ("VARCHAR(5)", "'abcdef'"), ("TIMESTAMP", "'2024-01-01 10:00:00.1234567'"),
    ],
)  # fmt: skip
def test_unusual_values_are_left_to_the_careful_way(tmp_path: Path, declared: str, value: str) -> None:
    assert ways(tmp_path / "t.db", CLEAN.format(declared, value, value)) == [Leftover]


FIRST = [(n, "2024-05-01 10:00:00") for n in range(40)] + [(41, "never")]


def test_only_the_batch_with_the_unusual_value_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", 10)
    connection, plan = prepare(tmp_path / "t.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, a INTEGER)")
    connection.executemany("INSERT INTO t (a) VALUES (?)", [(n if n != 25 else "odd",) for n in range(60)])
    connection.commit()
    items: list[Any] = list(encode_batches(connection, plan))
    assert [type(item) for item in items].count(Leftover) == 1
    (left,) = (item for item in items if isinstance(item, Leftover))
    assert left.first is not None and left.first < 26 <= (left.last or 0)
    assert sum(item.rows for item in items if isinstance(item, Encoded)) == 50


def test_digest_by_columns_gives_up_on_irregular_values(tmp_path: Path) -> None:
    connection, plan = prepare(
        tmp_path / "t.db", CLEAN.format("TIMESTAMP", "'2024-01-01 10:00:00'", "'2024-01-01 1:00'")
    )
    connection.close()
    assert sum_columns(tmp_path / "t.db", plan) is None


KEPT = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP, day DATE, hour TIME, name TEXT, price REAL, open BOOLEAN);"
    "INSERT INTO t (at, day, hour, name, price, open) VALUES"
    " ('2024-01-01 10:00:00', '2024-02-29', '09:30', 'Ключ', 0.1, 1), (NULL, NULL, NULL, NULL, NULL, NULL);"
    + "INSERT INTO t SELECT NULL, at, day, hour, name, price, open FROM t;"
    * 5
)


def keep_batches(folder: Path, script: str) -> tuple[BatchFile, TablePlan]:
    """Encodes a table while its batches are kept."""
    connection, plan = prepare(folder / "t.db", script)
    kept = BatchFile(folder)
    list(encode_batches(connection, plan, kept))
    return kept, plan


def test_kept_batches_give_the_digest_that_sqlite_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", 10)
    kept, plan = keep_batches(tmp_path, KEPT)
    expected = sum_columns(tmp_path / "t.db", plan)
    assert expected is not None and expected[0] == 64
    assert kept.is_whole and kept.path.exists()
    assert sum_columns(tmp_path / "nowhere.db", plan, kept) == expected
    assert not kept.path.exists()


def test_full_disk_ends_the_keeping_and_not_the_load(tmp_path: Path) -> None:
    connection, plan = prepare(tmp_path / "t.db", KEPT)
    kept = BatchFile(tmp_path)
    kept.path.unlink()
    kept.path.symlink_to("/dev/full")
    assert [type(item) for item in encode_batches(connection, plan, kept)] == [Encoded]
    assert not kept.is_whole and not kept.path.is_symlink()


def test_batches_are_not_kept_of_a_table_that_was_not_read_by_columns_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", 10)
    odd = "UPDATE t SET price = 'odd' WHERE id = 40;"
    kept, _ = keep_batches(tmp_path, KEPT + odd)
    assert not kept.is_whole and not kept.path.exists()


def test_digest_does_not_trust_kept_batches_that_lack_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "COLUMNS_FROM", 1)
    kept, plan = keep_batches(tmp_path, KEPT)
    with sqlite3.connect(tmp_path / "t.db") as connection:
        connection.execute("INSERT INTO t (name) VALUES ('late')")
    connection.close()
    digest = verify.digest_source(tmp_path / "t.db", plan, UTC, None, kept)
    assert digest == verify.digest_source(tmp_path / "t.db", plan, UTC, None)
    assert digest.rows == 65


def test_large_tables_are_migrated_from_kept_batches(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bool] = []
    original = BatchFile.read

    def watch(self: BatchFile) -> Any:
        read.append(self.is_whole)
        return original(self)

    monkeypatch.setattr(BatchFile, "read", watch)
    monkeypatch.setattr(verify, "COLUMNS_FROM", 1)
    lab.set_load(columnar_above=1)
    lab.fill(f"{KEPT} ALTER TABLE t ADD COLUMN photo BLOB; UPDATE t SET photo = x'00ff';")
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted, report.totals.verified) == ("ok", 64, True)
    assert read == [True]


@pytest.mark.parametrize("free", [0, 1 << 40])
def test_batches_are_kept_only_where_there_is_room_for_other_clients(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    kept: list[Path] = []
    original = BatchFile.__init__

    def watch(self: BatchFile, folder: Path) -> None:
        kept.append(folder)
        original(self, folder)

    monkeypatch.setattr(BatchFile, "__init__", watch)
    monkeypatch.setattr("migrator.load.shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    lab.set_load(columnar_above=1)
    lab.fill(KEPT)
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted, report.totals.verified) == ("ok", 64, True)
    assert bool(kept) == bool(free)


def test_batches_are_not_kept_where_the_digest_does_not_go_by_columns(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("batches that nobody reads")

    monkeypatch.setattr(BatchFile, "__init__", refuse)
    lab.set_load(columnar_above=1)
    lab.fill(KEPT.replace("at TIMESTAMP", "at TEXT"))
    report = lab.migrate(zone=parse_zone("Europe/Moscow", "here"))
    assert (report.error, report.totals.rows_inserted, report.totals.verified) == (None, 64, True)


def test_batches_of_a_table_that_begins_again_are_dropped(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[int] = []
    original = BatchFile.__init__

    def watch(self: BatchFile, folder: Path) -> None:
        files.append(len(list(folder.glob("*.arrow"))))
        original(self, folder)

    monkeypatch.setattr(BatchFile, "__init__", watch)
    lab.set_load(columnar_above=1)
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, day DATE)",
        ("INSERT INTO t (day) VALUES (?)", [(f"{n}th",) for n in range(30)]),
    )
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted, report.totals.verified) == ("ok", 30, True)
    assert files == [0, 0]


def test_large_table_with_dirt_in_the_middle(lab: Lab) -> None:
    rows = [
        (n, f"2024-01-{n % 28 + 1:02d}", "09:30", f"2024-01-01 00:00:{n % 60:02d}", n / 7) for n in range(1, 120_000)
    ]
    rows[70_000] = (70_001, "2025-02-30", "09:30", "soon", 0.5)
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, date TEXT, time TEXT, created_at TEXT, x REAL)",
        ("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows),
    )
    report = lab.migrate()
    assert (report.status, report.totals.rows_inserted, report.totals.rows_rejected) == ("rejected_rows", 119_998, 1)
    assert lab.rejected() == [("t", 70_001, "rejected", "date", None)]
    assert lab.fetch("SELECT count(*), min(date)::text, sum(id) FROM t") == [
        (119_998, "2024-01-01", sum(range(1, 120_000)) - 70_001)
    ]


def test_large_table_that_comes_later_goes_in_too(lab: Lab) -> None:
    """A second run reads what was rejected before with a cursor: COPY FREEZE must not stumble over that."""
    lab.set_load(columnar_above=1)
    lab.fill("CREATE TABLE a (id INTEGER PRIMARY KEY, at TIMESTAMP)", ("INSERT INTO a VALUES (?, ?)", FIRST))
    assert lab.migrate().totals.rows_rejected == 1
    lab.fill("CREATE TABLE b (id INTEGER PRIMARY KEY)", ("INSERT INTO b VALUES (?)", [(n,) for n in range(50)]))
    report = lab.migrate()
    assert report.error is None and report.totals.rows_inserted == 50
