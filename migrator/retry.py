"""Loads rejected rows that a person has mended, or whose cause is gone, from ``migrator.rejected_rows``.

The rows are written into a scratch SQLite file, each under its own table's name and with its own row
number, and go the way of every other row from there: plan, stage, rules, insert.
"""

import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from migrator.clients import Client
from migrator.errors import TargetError
from migrator.load import LoadOptions, Progress, load_stage
from migrator.plan import Plan, TablePlan, make_plan
from migrator.quarantine import Quarantine, decode_value
from migrator.queries import load_query
from migrator.report import Report, TableReport
from migrator.run import JobOptions, Run, Watch, begin_run, open_target, prepare_run, report_run, write_rejected
from migrator.source import Row, SqliteValue, quote_sqlite, read_source
from migrator.stage import Settled, Staged, settle_stages
from migrator.target import Connection, quote_literal, quote_name, read_target
from migrator.verify import write_key

RETRY_FILE = "retry.db"
_FETCH = 1_000


async def retry_client(client: Client, options: JobOptions, watch: Watch | None = None) -> Report:
    """Loads a client's rejected rows that were mended or whose cause is gone, and writes a report."""
    run = begin_run(client, watch or Watch())
    run.log.info("retry_started", target=client.database.address)
    return await report_run(run, options, "retry-rejected", lambda folder: _retry(run, options, folder))


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of one table's rejected rows."""

    name: str
    rows: int
    loaded: int

    @property
    def left(self) -> int:
        """The rows that still cannot go in."""
        return self.rows - self.loaded


async def retry_rejected(
    connection: Connection, folder: Path, run_id: str, options: LoadOptions, quarantine: Quarantine, progress: Progress
) -> tuple[Retried, ...]:
    """Tries all rejected rows of a client again, within the client's transaction.

    Args:
        connection: within the client's transaction.
        folder: for the scratch file.
        run_id: this run, written to rows that are still rejected.
        options: batch size, zone, orphans.
        quarantine: empty; takes the rows that still cannot go in.
        progress: told the number of rows after each batch.

    Returns:
        One element for each table that has rejected rows.

    Raises:
        TargetError: a table that had rejected rows is no longer there.
    """
    if not await connection.fetchval("SELECT to_regclass('migrator.rejected_rows') IS NOT NULL"):
        return ()
    await connection.execute(load_query("quarantine_schema"))
    counts = await _write_scratch(connection, folder / RETRY_FILE)
    scratch = sqlite3.connect(folder / RETRY_FILE, check_same_thread=False)
    try:
        plan = await _plan_retry(connection, scratch)
        stages = await _load_stages(connection, scratch, plan, options, quarantine, progress)
        settled = await settle_stages(connection, scratch, stages, options, quarantine, [])
        for staged in stages:
            await _resolve(connection, staged, quarantine)
            await quarantine.update(connection, staged.plan.table.name, run_id)
    finally:
        scratch.close()
    return tuple(_count(staged, counts, settled) for staged in stages)


def _count(staged: Staged, counts: dict[str, int], settled: dict[str, Settled]) -> Retried:
    name = staged.plan.table.name
    return Retried(name, counts[name], settled[name].inserted + settled[name].present)


async def _write_scratch(connection: Connection, path: Path) -> dict[str, int]:
    """Writes the rows into an SQLite file whose columns have no type, so that no value changes."""
    counts: dict[str, int] = {}
    scratch = sqlite3.connect(path)
    try:
        async for table, number, names, values in _read_rows(connection):
            columns = ", ".join(map(quote_sqlite, names))
            if table not in counts:
                scratch.execute(f"CREATE TABLE {quote_sqlite(table)} ({columns})")
                counts[table] = 0
            rowid = next(name for name in ("rowid", "_rowid_", "oid") if name not in {n.lower() for n in names})
            bound = [_make_raw(v) for v in values]
            casts = ", ".join("?" if _make_raw(v) is v else "CAST(? AS TEXT)" for v in values)
            scratch.execute(
                f"INSERT INTO {quote_sqlite(table)} ({rowid}, {columns}) VALUES (?, {casts})", (number, *bound)
            )
            counts[table] += 1
        scratch.commit()
    finally:
        scratch.close()
    return counts


def _make_raw(value: SqliteValue) -> SqliteValue:
    """Gives the bytes of a text that is no UTF-8, which sqlite3 cannot bind as a str."""
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return value.encode("utf-8", "surrogateescape")
    return value


async def _read_rows(connection: Connection) -> AsyncIterator[tuple[str, int, list[str], Row]]:
    async for record in connection.cursor(load_query("retry_rows"), prefetch=_FETCH):
        row = json.loads(record["row"])
        yield record["table_name"], record["row_number"], list(row), tuple(map(decode_value, row.values()))


async def _plan_retry(connection: Connection, scratch: sqlite3.Connection) -> Plan:
    target = await read_target(connection)
    plan = make_plan(read_source(scratch), target)
    for table in plan.tables:
        if table.existing is None:
            raise TargetError(f"table {table.name} has rejected rows, but is no longer there: run 'migrate' first")
    return plan


async def _load_stages(
    connection: Connection,
    scratch: sqlite3.Connection,
    plan: Plan,
    options: LoadOptions,
    quarantine: Quarantine,
    progress: Progress,
) -> list[Staged]:
    stages: list[Staged] = []
    ordered = _order_by_references(plan)
    for place, table in enumerate(ordered):
        stage = f"migrator_stage_{place}"
        await load_stage(connection, scratch, table, stage, replace(options, max_rejected=None), quarantine, progress)
        if table.existing is None:
            raise AssertionError("checked by the plan")
        stages.append(Staged(table, stage, table.existing, table.existing.references, fresh=False))
    return stages


def _order_by_references(plan: Plan) -> list[TablePlan]:
    """Puts parents first; the scratch file declares no foreign keys, the target does."""
    left = list(plan.tables)
    names = {table.name for table in left}
    ordered: list[TablePlan] = []
    while left:
        done = {table.name for table in ordered}
        ready = next((table for table in left if _list_parents(table) & names <= done | {table.name}), left[0])
        left.remove(ready)
        ordered.append(ready)
    return ordered


def _list_parents(table: TablePlan) -> set[str]:
    return {reference.parent for reference in table.existing.references} if table.existing else set()


async def _resolve(connection: Connection, staged: Staged, quarantine: Quarantine) -> None:
    """Marks the rows that went in; the key under which they lie lets a later ``verify`` know them."""
    table = staged.plan.table.name
    keys = [key for key in staged.target.keys if key.primary and set(key.columns) <= set(staged.names)]
    key = "NULL::text"
    if keys:
        key = write_key(staged.plan, keys[0].columns)
    await connection.execute(
        f"UPDATE migrator.rejected_rows AS r SET resolved_at = now(), target_key = {key}"
        f" FROM {quote_name(staged.stage)} AS t"
        f" WHERE r.table_name = {quote_literal(table)} AND r.row_number = t.migrator_number"
        f" AND r.verdict = 'rejected' AND r.resolved_at IS NULL AND t.migrator_number <> ALL ($1::bigint[])",
        quarantine.list_numbers(table),
    )


async def _retry(run: Run, options: JobOptions, folder: Path) -> bool:
    options = await prepare_run(run, options, folder)
    quarantine = Quarantine(folder)
    try:
        async with open_target(run, options) as connection, connection.transaction():
            run.server_version = str(await connection.fetchval("SHOW server_version"))
            retried = await retry_rejected(connection, folder, run.run_id, options.load, quarantine, lambda _: None)
            write_rejected(run, options, quarantine)
    finally:
        quarantine.close()
    run.tables = tuple(
        TableReport(
            name=table.name, rows_read=table.rows, rows_inserted=table.loaded, rows_rejected=table.left, verified=True
        )
        for table in retried
    )
    return any(table.left for table in retried)
