"""Rows in quarantine: whole, and loadable again once they are mended."""

import asyncio
import json

import pytest

from migrator.plan import Orphans
from migrator.quarantine import decode_value, encode_value
from migrator.report import Report
from migrator.retry import retry_client
from migrator.source import SqliteValue
from tests.conftest import Lab


def retry(lab: Lab) -> Report:
    lab.set_load(orphans=Orphans.QUARANTINE)
    report = asyncio.run(retry_client(lab.client, lab.options))
    lab.set_load(orphans=Orphans.KEEP)
    for table in report.tables:
        assert table.adds_up
    return report


@pytest.mark.parametrize(
    "value",
    [None, 0, -(2**63), 2**63 - 1, 0.1, float("inf"), -0.0, "", "я", "a\x00b", "\udcff\udc80", b"", b"\x00\xff"],
)
def test_value_survives_json(value: SqliteValue) -> None:
    again = decode_value(json.loads(json.dumps(encode_value(value))))
    assert (repr(again), type(again)) == (repr(value), type(value))


def test_mended_rows_go_in_and_are_remembered(lab: Lab) -> None:
    lab.fill(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, day DATE, note TEXT)",
        ("INSERT INTO t VALUES (?, ?, ?)", [(n, "2024-01-01", "x") for n in range(1, 60)]),
        ("INSERT INTO t VALUES (?, ?, ?)", [(60, "2024-02-30", "a"), (61, "soon", "b\x00")]),
    )
    first = lab.migrate()
    assert (first.totals.rows_inserted, first.totals.rows_rejected) == (59, 2)
    assert retry(lab).totals.rows_rejected == 2
    lab.execute(
        "UPDATE migrator.rejected_rows SET mended = jsonb_set(\"row\", '{day}', '\"2024-02-29\"') WHERE row_number = 60"
    )
    report = retry(lab)
    assert (report.status, report.totals.rows_inserted, report.totals.rows_rejected) == ("rejected_rows", 1, 1)
    assert lab.fetch("SELECT day::text, note FROM t WHERE id = 60") == [("2024-02-29", "a")]
    assert lab.verify().status == "rejected_rows"
    again = lab.migrate()
    assert (again.totals.rows_inserted, again.totals.rows_already_present, again.totals.rows_rejected) == (0, 60, 1)
    lab.execute(
        'UPDATE migrator.rejected_rows SET mended = \'{"id": 61, "day": null, "note": "b"}\' WHERE row_number = 61'
    )
    assert retry(lab).status == "ok"
    assert lab.migrate().status == "ok"
    assert lab.verify().status == "ok"
    lab.execute("UPDATE t SET note = 'other' WHERE id = 5")
    assert lab.verify().status == "verify_failed"


def test_rows_go_in_when_their_cause_is_gone(lab: Lab) -> None:
    lab.fill(
        """
        CREATE TABLE parents (id INTEGER PRIMARY KEY); INSERT INTO parents VALUES (1);
        CREATE TABLE children (id INTEGER PRIMARY KEY, parent_id INT REFERENCES parents(id));
        INSERT INTO children VALUES (1, 1), (2, 9);
        """
    )
    lab.set_load(orphans=Orphans.QUARANTINE)
    assert lab.migrate().totals.rows_rejected == 1
    assert retry(lab).totals.rows_rejected == 1
    lab.execute("INSERT INTO parents VALUES (9)")
    assert retry(lab).status == "ok"
    assert lab.fetch("SELECT id, parent_id FROM children ORDER BY id") == [(1, 1), (2, 9)]


def test_nothing_to_retry(lab: Lab) -> None:
    assert retry(lab).tables == ()
