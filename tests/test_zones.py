"""Where a client's zone comes from, and what a clock change does to its moments."""

from datetime import UTC, datetime

import pytest

from migrator.zones import parse_zone
from tests.conftest import Lab

MOMENTS = "CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP); INSERT INTO t VALUES (1, '2024-07-01 12:00:00'), (2, '2024-07-01 12:00:00Z');"
SETTINGS = (
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL); INSERT INTO settings VALUES ('timezone', '{}');"
)


def read(lab: Lab) -> list[datetime]:
    return [row[0] for row in lab.fetch("SELECT at FROM t ORDER BY id")]


def test_utc_where_nothing_is_set(lab: Lab) -> None:
    lab.fill(MOMENTS)
    assert lab.migrate().status == "ok"
    assert read(lab) == [datetime(2024, 7, 1, 12, tzinfo=UTC)] * 2


def test_the_settings_table_counts_before_the_env_file(lab: Lab) -> None:
    lab.fill(MOMENTS + SETTINGS.format("Europe/Moscow"))
    (lab.folder / ".env").write_text("TIMEZONE=Asia/Tokyo\n")
    report = lab.migrate()
    assert report.status == "ok"
    assert read(lab) == [datetime(2024, 7, 1, 9, tzinfo=UTC), datetime(2024, 7, 1, 12, tzinfo=UTC)]
    assert any("read in Europe/Moscow" in note and "settings.timezone" in note for note in report.notes)
    assert lab.verify().status == "ok"
    assert lab.migrate().totals.rows_already_present == 3


@pytest.mark.parametrize("line", ["TIMEZONE=Asia/Tokyo", "TZ='Asia/Tokyo' # where it runs", "export TZ=UTC+9"])
def test_the_env_file_counts_where_the_table_is_silent(lab: Lab, line: str) -> None:
    lab.fill(MOMENTS)
    (lab.folder / ".env").write_text(f"# a bot\nBOT_TOKEN=x\n{line}\n")
    assert lab.migrate().status == "ok"
    assert read(lab)[0] == datetime(2024, 7, 1, 3, tzinfo=UTC)


def test_zone_that_does_not_exist_is_an_error(lab: Lab) -> None:
    lab.fill(MOMENTS + SETTINGS.format("Moscow time"))
    report = lab.migrate()
    assert (report.status, report.exit_code) == ("failed", 2)
    assert "settings.timezone: 'Moscow time' is no time zone" in str(report.error)
    assert lab.list_tables() == []


def test_repeated_and_skipped_hours_are_noted(lab: Lab) -> None:
    lab.fill(
        SETTINGS.format("Europe/Berlin") + "CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP)",
        (
            "INSERT INTO t (at) VALUES (?)",
            [
                ("2024-10-27 02:30:00",),
                ("2024-10-27 02:30:00",),
                ("2024-03-31T02:30",),
                ("2024-10-27 02:30:00+01:00",),
                ("2024-05-01",),
            ],
        ),
    )
    report = lab.migrate()
    assert report.status == "ok"
    assert read(lab) == [
        datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
        datetime(2024, 10, 27, 0, 30, tzinfo=UTC),
        datetime(2024, 3, 31, 1, 30, tzinfo=UTC),
        datetime(2024, 10, 27, 1, 30, tzinfo=UTC),
        datetime(2024, 4, 30, 22, 0, tzinfo=UTC),
    ]
    assert any("t.at: 2 local times occur twice" in note and "1 do not occur" in note for note in report.notes)


def test_fixed_offsets() -> None:
    assert str(parse_zone("+03:00", "x").info) == "UTC+03:00"
    assert str(parse_zone("UTC-5", "x").info) == "UTC-05:00"
