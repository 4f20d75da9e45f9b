"""Brings a client that was migrated before up to a newer snapshot, in one verified transaction."""

import asyncio
import sqlite3
from pathlib import Path

from migrator.clients import Client
from migrator.delta import renew_tables
from migrator.errors import TargetError
from migrator.keys import set_sequences
from migrator.plan import make_plan
from migrator.quarantine import Quarantine, Verdict
from migrator.report import Report, TableReport
from migrator.run import (
    JobOptions,
    Run,
    Watch,
    begin_run,
    check_reports,
    open_target,
    prepare_run,
    report_run,
    write_rejected,
)
from migrator.snapshot import Snapshot, open_snapshot
from migrator.source import read_source
from migrator.target import Connection, read_target
from migrator.verify import Difference, digest_source, digest_target, exclude_mended, find_differences


async def renew_client(client: Client, options: JobOptions, snapshot: Snapshot) -> Report:
    """Brings a client that was migrated before up to a newer snapshot by its changed rows alone.

    Args:
        client: from where to where.
        options: how.
        snapshot: the client's file as it is now; rows that it does not hold go from the target.
    """
    run = begin_run(client, Watch())
    run.snapshot = snapshot
    run.log.info("renew_started", source=str(snapshot.path), target=client.database.address)
    return await report_run(run, options, "cutover", lambda folder: _renew(run, options, folder))


async def _renew(run: Run, options: JobOptions, folder: Path) -> bool:
    options = await prepare_run(run, options, folder)
    assert run.snapshot is not None  # noqa: S101 - given by the caller
    snapshot = open_snapshot(run.snapshot.path)
    quarantine = Quarantine(folder)
    try:
        async with open_target(run, options) as connection, connection.transaction():
            await _renew_locked(run, options, connection, snapshot, quarantine)
            write_rejected(run, options, quarantine)
    finally:
        quarantine.close()
        snapshot.close()
    return any(table.rows_rejected or table.rows_conflicting for table in run.tables)


async def _renew_locked(
    run: Run, options: JobOptions, connection: Connection, snapshot: sqlite3.Connection, quarantine: Quarantine
) -> None:
    assert run.snapshot is not None  # noqa: S101 - given by the caller
    await quarantine.recall_mended(connection)
    await quarantine.recall(connection, [Verdict.MENDED])
    target = await read_target(connection)
    run.server_version = target.server_version
    plan = make_plan(read_source(snapshot), target)
    missing = [table.name for table in plan.tables if table.existing is None]
    if missing:
        raise TargetError(f"{', '.join(missing)}: new in SQLite since the first copy; begin again")
    renewed = await renew_tables(
        connection, snapshot, run.snapshot.path, plan, target, options.load, quarantine, run.notes
    )
    target = await read_target(connection)
    reports: list[TableReport] = []
    differences: list[Difference] = []
    for found in renewed:
        table = found.plan
        await set_sequences(connection, snapshot, table, target.tables[table.name].columns, run.notes)
        name = table.table.name
        kept = exclude_mended(table) if quarantine.count(name, Verdict.MENDED) else None
        ours, theirs = await asyncio.gather(
            asyncio.to_thread(digest_source, run.snapshot.path, table, options.load.zone, quarantine.path),
            digest_target(connection, table, kept),
        )
        rejected, conflicting = quarantine.count(name), quarantine.count(name, Verdict.CONFLICTING)
        if found.removed:
            run.notes.append(
                f"{table.name}: {found.removed} rows were changed or deleted in SQLite since the first copy"
            )
        reports.append(
            TableReport(
                name=name,
                rows_read=found.rows,
                rows_inserted=found.inserted,
                rows_already_present=found.rows - found.inserted - rejected - conflicting,
                rows_conflicting=conflicting,
                rows_rejected=rejected,
                verified=ours == theirs,
                digest_source=ours.value,
                digest_target=theirs.value,
            )
        )
        if ours != theirs:
            differences += await find_differences(
                connection, run.snapshot.path, table, options.load.zone, quarantine.path, kept
            )
    run.tables = tuple(reports)
    check_reports(reports, differences)
    await quarantine.store(connection, run.run_id, [table.table.name for table in plan.tables])
