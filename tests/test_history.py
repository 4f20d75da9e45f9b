"""A client is passed over where nothing has changed, and never where anything has."""

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import Lab

SCHEMA = "CREATE TABLE bookings (id INTEGER PRIMARY KEY, name TEXT NOT NULL, at TIMESTAMP)"


@pytest.fixture
def moved(lab: Lab) -> Lab:
    rows = [(1, "Ada", "2024-05-01 10:00:00"), (2, "Bob", None), (3, None, None)]
    lab.fill(SCHEMA.replace(" NOT NULL", ""), ("INSERT INTO bookings VALUES (?, ?, ?)", rows))
    lab.migrate()
    return lab


def count_runs(lab: Lab) -> int:
    return int(lab.fetch("SELECT count(*) FROM migrator.runs")[0][0])


def test_unchanged_client_is_passed_over(lab: Lab) -> None:
    lab.fill(SCHEMA, ("INSERT INTO bookings VALUES (?, ?, ?)", [(1, "Ada", "2024-05-01 10:00:00"), (2, "Bob", None)]))
    first, second, third = lab.migrate(), lab.migrate(), lab.migrate()
    assert first.unchanged_since is None
    for report in (second, third):
        assert report.unchanged_since == first.run_id
        assert report.status == "ok" and report.totals.verified
        assert (report.totals.rows_read, report.totals.rows_inserted, report.totals.rows_already_present) == (2, 0, 2)
        assert report.tables[0].digest_source == first.tables[0].digest_source
        assert report.source.sha256 == first.source.sha256
        assert first.run_id in report.notes[0]
    assert count_runs(lab) == 1
    assert not (lab.folder / "work").exists()


def test_rejected_rows_are_reported_again(lab: Lab) -> None:
    rows = [(number, f"name {number}", "2024-05-01 10:00:00") for number in range(1, 40)]
    lab.fill(SCHEMA, ("INSERT INTO bookings VALUES (?, ?, ?)", [*rows, (40, "Eve", "no moment")]))
    first, second = lab.migrate(), lab.migrate()
    assert second.unchanged_since == first.run_id and second.status == first.status == "rejected_rows"
    lines = [
        json.loads((lab.folder / "reports" / lab.client.id / report.run_id / "rejected.jsonl").read_text())
        for report in (first, second)
    ]
    assert lines[0] == lines[1] and lines[0]["rowid"] == 40


def change_row(lab: Lab) -> None:
    lab.fill("UPDATE bookings SET name = 'Eva' WHERE id = 2")


def change_wal_only(lab: Lab) -> None:
    """Leaves the main file as it is, as a bot does that was killed."""
    copy = lab.folder / "copy.db"
    copy.write_bytes(lab.client.sqlite_path.read_bytes())
    writer = sqlite3.connect(copy)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("INSERT INTO bookings VALUES (9, 'New', NULL)")
    writer.commit()
    wal = copy.with_name("copy.db-wal").read_bytes()
    writer.close()
    lab.client.sqlite_path.with_name("bookings.db-wal").write_bytes(wal)


def set_zone(lab: Lab) -> None:
    (lab.folder / ".env").write_text("TIMEZONE=Europe/Moscow\n")


def run_in_target(script: str) -> Callable[[Lab], None]:
    def change(lab: Lab) -> None:
        lab.execute(script)

    return change


@pytest.mark.parametrize(
    "change",
    [
        change_row,
        change_wal_only,
        set_zone,
        run_in_target("UPDATE bookings SET name = 'Other' WHERE id = 1"),
        run_in_target("DELETE FROM bookings WHERE id = 1"),
        run_in_target("INSERT INTO bookings VALUES (77, 'x', NULL)"),
        run_in_target("TRUNCATE bookings"),
        run_in_target("DROP TABLE bookings"),
        run_in_target("ALTER TABLE bookings ADD COLUMN more text"),
        run_in_target("UPDATE migrator.runs SET target_mark = NULL"),
        run_in_target("UPDATE migrator.runs SET source_digest = NULL"),
    ],
    ids=lambda change: getattr(change, "__name__", ""),
)
def test_any_change_is_looked_at(lab: Lab, change: Callable[[Lab], None]) -> None:
    lab.fill("PRAGMA journal_mode = WAL")
    lab.fill(SCHEMA, ("INSERT INTO bookings VALUES (?, ?, ?)", [(1, "Ada", "2024-05-01 10:00:00"), (2, "Bob", None)]))
    lab.migrate()
    assert lab.migrate().unchanged_since
    change(lab)
    report = lab.migrate()
    assert report.unchanged_since is None and report.status in ("ok", "rejected_rows")


@pytest.mark.parametrize("option", [{"again": True}, {"dry_run": True}, {"add_columns": True}])
def test_another_way_of_running_is_not_passed_over(moved: Lab, option: dict[str, Any]) -> None:
    assert moved.migrate(**option).unchanged_since is None


def test_another_way_of_loading_is_not_passed_over(moved: Lab) -> None:
    moved.set_load(max_rejected=0)
    assert moved.migrate().unchanged_since is None


def test_file_written_while_copied_is_not_taken_for_known(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from migrator import snapshot

    lab.fill(SCHEMA, ("INSERT INTO bookings VALUES (?, ?, ?)", [(1, "Ada", None)]))
    copy = snapshot._copy_database

    def copy_and_write(source: Path, *rest: Any) -> None:
        copy(source, *rest)
        lab.fill("INSERT INTO bookings VALUES (2, 'late', NULL)")

    monkeypatch.setattr(snapshot, "_copy_database", copy_and_write)
    assert lab.migrate().totals.rows_inserted == 1
    monkeypatch.undo()
    report = lab.migrate()
    assert report.unchanged_since is None and report.totals.rows_inserted == 1


def test_lost_word_of_the_commit_is_found_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server commits and the connection breaks before it can say so: the report tells what went in."""
    lab.fill(SCHEMA, ("INSERT INTO bookings VALUES (?, ?, ?)", [(1, "Ada", None), (2, "Bob", None)]))
    commit = asyncpg.transaction.Transaction.commit
    broken: list[bool] = []

    async def commit_and_break(self: Any) -> None:
        await commit(self)
        # A savepoint's end is no commit; only a transaction's own is.
        if not self._nested and not broken:
            broken.append(True)
            self._connection.terminate()
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", commit_and_break)
    report = lab.migrate()
    assert broken and report.status == "ok" and report.totals.rows_inserted == 2
    assert count_runs(lab) == 1


def test_times_of_files_do_not_matter(moved: Lab) -> None:
    os.utime(moved.client.sqlite_path, (1, 1))
    assert moved.migrate().unchanged_since
