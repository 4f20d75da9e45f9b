"""Compares a client's SQLite file with its database at any later time; nothing is changed."""

import asyncio
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from migrator.clients import Client
from migrator.errors import VerificationError
from migrator.plan import make_plan
from migrator.quarantine import Quarantine, Verdict
from migrator.report import Report, TableReport
from migrator.run import JobOptions, Run, Watch, begin_run, check_reports, open_target, prepare_run, report_run
from migrator.snapshot import open_snapshot
from migrator.source import count_rows, read_source
from migrator.target import Connection, read_target
from migrator.verify import Difference, digest_source, digest_target, exclude_mended, find_differences


async def verify_client(client: Client, options: JobOptions, watch: Watch | None = None) -> Report:
    """Compares a client's SQLite file with its database as both are now, and writes a report."""
    run = begin_run(client, watch or Watch())
    run.log.info("verify_started", source=str(client.sqlite_path), target=client.database.address)
    return await report_run(run, options, "verify", lambda folder: _verify(run, options, folder))


async def _verify(run: Run, options: JobOptions, folder: Path) -> bool:
    options = await prepare_run(run, options, folder)
    assert run.snapshot is not None  # noqa: S101 - just taken
    snapshot = open_snapshot(run.snapshot.path)
    quarantine = Quarantine(folder)
    try:
        async with open_target(run, options, lock=False) as connection:
            transaction = connection.transaction(isolation="repeatable_read")
            await transaction.start()
            try:
                return await _compare(run, options, connection, snapshot, quarantine)
            finally:
                with suppress(Exception):
                    await transaction.rollback()
    finally:
        quarantine.close()
        snapshot.close()


async def _compare(
    run: Run,
    options: JobOptions,
    connection: Connection,
    snapshot: sqlite3.Connection,
    quarantine: Quarantine,
) -> bool:
    assert run.snapshot is not None  # noqa: S101 - set by the caller
    source = await asyncio.to_thread(read_source, snapshot)
    target = await read_target(connection)
    run.server_version = target.server_version
    await quarantine.recall(connection)
    reports: list[TableReport] = []
    differences: list[Difference] = []
    for table in make_plan(source, target).tables:
        if table.existing is None:
            raise VerificationError(f"table {table.name} is not in {run.client.database.name}: run 'migrate' first")
        started = time.monotonic()
        rows = count_rows(snapshot, table.table)
        mended = quarantine.count(table.table.name, Verdict.MENDED)
        restriction = exclude_mended(table) if mended else None
        ours, theirs = await asyncio.gather(
            asyncio.to_thread(digest_source, run.snapshot.path, table, options.load.zone, quarantine.path),
            digest_target(connection, table, restriction),
        )
        rejected = quarantine.count(table.table.name)
        conflicting = quarantine.count(table.table.name, Verdict.CONFLICTING)
        reports.append(
            TableReport(
                name=table.table.name,
                rows_read=rows,
                rows_already_present=rows - rejected - conflicting,
                rows_conflicting=conflicting,
                rows_rejected=rejected,
                duration_seconds=round(time.monotonic() - started, 3),
                verified=ours == theirs,
                digest_source=ours.value,
                digest_target=theirs.value,
            )
        )
        run.log.info("table_verified", table=table.name, verified=ours == theirs, rows=theirs.rows)
        if ours != theirs:
            differences += await find_differences(
                connection, run.snapshot.path, table, options.load.zone, quarantine.path, restriction
            )
    run.tables = tuple(reports)
    check_reports((), differences)
    return any(report.rows_rejected or report.rows_conflicting for report in reports)
