"""One client's migration from snapshot to commit: the stages in their order, in one transaction."""

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC
from pathlib import Path

import asyncpg
import tenacity

from migrator.clients import Client
from migrator.errors import SnapshotError, TransientError
from migrator.history import PastRun, describe_manner, read_last_run, read_mark, record_run, seal_run
from migrator.keys import (
    KeyViolation,
    add_defaults,
    add_foreign_key,
    add_indexes,
    add_keys,
    allow_building,
    set_sequences,
)
from migrator.load import (
    COLUMNAR_BYTES,
    Loaded,
    create_table,
    decide_types,
    drop_computed,
    load_fresh,
    load_stage,
)
from migrator.pages import prepare_pages
from migrator.plan import Orphans, Plan, TablePlan, make_plan, resolve_parent
from migrator.quarantine import Quarantine, Verdict
from migrator.report import Report, TableReport
from migrator.run import (
    JobOptions,
    Run,
    Watch,
    begin_run,
    check_copy,
    check_reports,
    open_target,
    prepare_run,
    report_run,
    write_rejected,
)
from migrator.snapshot import check_file, digest_files, open_snapshot
from migrator.source import count_rows, read_source
from migrator.stage import Settled, Staged, restrict_to_stage, settle_stages
from migrator.target import TRANSIENT, Connection, Reference, log_retry, quote_name, read_target
from migrator.verify import Difference, Digest, digest_source, digest_target, find_differences

ATTEMPTS = 3


async def migrate_client(client: Client, options: JobOptions, watch: Watch | None = None) -> Report:
    """Migrates one client and writes its report.

    Everything that can go wrong for a client ends in its report, with nothing changed in the target.

    Args:
        client: from where to where.
        options: how.
        watch: is told of progress.
    """
    run = begin_run(client, watch or Watch())
    return await report_run(run, options, "migrate", lambda folder: _migrate(run, options, folder))


async def _migrate(run: Run, options: JobOptions, folder: Path) -> bool:
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=tenacity.wait_random_exponential(multiplier=1, max=10),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        before_sleep=log_retry(run.log, "client_retried"),
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await _migrate_once(run, options, folder)
    raise AssertionError("unreachable")  # pragma: no cover


async def _migrate_once(run: Run, options: JobOptions, folder: Path) -> bool:
    if run.snapshot is None:
        check_file(run.client.sqlite_path)
    async with open_target(run, options) as connection:
        if run.snapshot is None:
            run.log.info(
                "client_started",
                source=str(run.client.sqlite_path),
                target=run.client.database.address,
                dry_run=options.dry_run,
            )
        quarantine = Quarantine(folder)
        try:
            if past := await _find_standing(run, options, connection):
                return await _repeat_report(run, options, connection, past, quarantine)
            return await _migrate_claimed(run, options, connection, folder, quarantine)
        finally:
            quarantine.close()
            quarantine.path.unlink(missing_ok=True)


def _describe(options: JobOptions) -> str:
    zone = str(options.zone.info) if options.zone else None
    return describe_manner(options.load, zone, add_columns=options.add_columns)


async def _find_standing(run: Run, options: JobOptions, connection: Connection) -> PastRun | None:
    """Finds the run after which there is nothing left to do: this very one, if only the word of its commit was lost."""
    past = await read_last_run(connection)
    if past and run.snapshot is None:
        run.source_digest = await asyncio.to_thread(digest_files, run.client.sqlite_path)
    if (options.again or options.dry_run) and not (past and past.run_id == run.run_id):
        return None
    if past is None or past.run_id == run.run_id:
        return past
    if options.shared and past.age_seconds < time.monotonic() - options.begun_at and past.manner == _describe(options):
        run.done_by = past.worker
        return past
    digest = run.source_digest.whole if run.source_digest else None
    return past if past.stands(digest, _describe(options), await read_mark(connection)) else None


async def _repeat_report(
    run: Run, options: JobOptions, connection: Connection, past: PastRun, quarantine: Quarantine
) -> bool:
    """Reports what stands since an earlier run: its rows are all present."""
    if past.run_id == run.run_id:
        run.tables, run.notes = past.tables, list(past.notes)
        return _has_rejected(run)
    run.unchanged_since = past.run_id
    run.server_version = str(await connection.fetchval("SHOW server_version"))
    run.notes = [
        f"file and tables are as run {past.run_id} left and verified them at {past.finished_at:%Y-%m-%d %H:%M:%S} UTC; "
        f"nothing was loaded. --again does it anew, 'migrator verify' compares anew",
        *past.notes,
    ]
    run.tables = tuple(
        table.model_copy(
            update={
                "rows_inserted": 0,
                "rows_already_present": table.rows_inserted + table.rows_already_present,
                "duration_seconds": 0.0,
            }
        )
        for table in past.tables
    )
    if _has_rejected(run) and not run.done_by:
        async with connection.transaction():
            await quarantine.recall(connection)
        write_rejected(run, options, quarantine)
    return _has_rejected(run)


def _has_rejected(run: Run) -> bool:
    return any(table.rows_rejected or table.rows_conflicting for table in run.tables)


async def _migrate_claimed(
    run: Run, options: JobOptions, connection: Connection, folder: Path, quarantine: Quarantine
) -> bool:
    manner = _describe(options)
    run.notes.clear()
    run.tables = ()
    try:
        rejected = await _migrate_copy(run, options, connection, folder, quarantine, manner)
    except SnapshotError:
        raise
    except Exception:
        # Whatever was found in a damaged file, the damage is what a person must hear of.
        await check_copy(run)
        raise
    if not options.dry_run:
        # The rows are in; without the seal the next run only does more than it need.
        with suppress(*TRANSIENT, asyncpg.PostgresError):
            await seal_run(connection, run.run_id)
    return rejected


async def _migrate_copy(
    run: Run, options: JobOptions, connection: Connection, folder: Path, quarantine: Quarantine, manner: str
) -> bool:
    options = await prepare_run(run, options, folder, check=False)
    assert run.snapshot is not None  # noqa: S101 - just taken
    if run.zone is not None and run.zone.info is not UTC:
        run.notes.append(f"moments without an offset are read in {run.zone.info} ({run.zone.origin})")
    with closing(open_snapshot(run.snapshot.path)) as snapshot:
        return await _migrate_locked(run, options, connection, snapshot, quarantine, manner)


async def _migrate_locked(
    run: Run,
    options: JobOptions,
    connection: Connection,
    snapshot: sqlite3.Connection,
    quarantine: Quarantine,
    manner: str,
) -> bool:
    transaction = connection.transaction()
    await transaction.start()
    await allow_building(connection, spared=0)
    try:
        await quarantine.recall_mended(connection)
        job = Migration(run, options, connection, snapshot, quarantine)
        rejected = await job.run()
    except BaseException:
        with suppress(Exception):
            await transaction.rollback()
        raise
    write_rejected(run, options, quarantine)
    if options.dry_run:
        await transaction.rollback()
        run.notes.insert(0, "dry run: everything was loaded, checked and rolled back; nothing was changed")
    else:
        assert run.snapshot is not None  # noqa: S101 - taken before
        await record_run(connection, run.run_id, run.snapshot.source_digest, manner, run.tables, tuple(run.notes))
        await transaction.commit()
    return rejected


class Migration:
    """The stages of one client's transaction."""

    def __init__(
        self,
        run: Run,
        options: JobOptions,
        connection: Connection,
        snapshot: sqlite3.Connection,
        quarantine: Quarantine,
    ) -> None:
        self._run = run
        self._options = options
        self._connection = connection
        self._snapshot = snapshot
        self._quarantine = quarantine
        self._loaded: dict[str, Loaded] = {}
        self._stages: dict[str, str] = {}
        self._seconds: dict[str, float] = {}
        self._copying: dict[str, float] = {}
        self._digests: dict[str, asyncio.Future[Digest]] = {}
        self._meanwhile: list[asyncio.Future[None]] = []

    async def run(self) -> bool:
        """Does everything but the commit.

        Returns:
            Whether rows were rejected or conflict.

        Raises:
            SnapshotError: the snapshot is damaged.
        """
        try:
            return await self._run_stages()
        finally:
            await asyncio.gather(*self._meanwhile, return_exceptions=True)

    async def _run_stages(self) -> bool:
        first = not await self._connection.fetchval("SELECT to_regclass('migrator.rejected_rows') IS NOT NULL")
        source = await asyncio.to_thread(read_source, self._snapshot)
        target = await read_target(self._connection)
        self._run.server_version = target.server_version
        plan = make_plan(source, target, add_columns=self._options.add_columns)
        self._run.notes.extend(plan.notes)
        self._run.log.info(
            "plan_made", tables=len(plan.tables), existing=sum(t.existing is not None for t in plan.tables)
        )
        for table in plan.tables:
            await self._load(table)
        plan = Plan(tuple(self._loaded[t.table.name].plan for t in plan.tables), plan.notes)
        self._begin_check()
        staged = await self._list_stages(plan)
        settled = await settle_stages(
            self._connection, self._snapshot, staged, self._options.load, self._quarantine, self._run.notes
        )
        await self._finish_tables(plan)
        self._run.tables = await self._verify(plan, staged, settled)
        await self._quarantine.store(self._connection, self._run.run_id, [t.table.name for t in plan.tables])
        if first:
            await self._record_foreign_rows(plan)
        await asyncio.gather(*self._meanwhile)
        return _has_rejected(self._run)

    async def _record_foreign_rows(self, plan: Plan) -> None:
        """Remembers rows that were there before the first migration, so that a cutover does not remove them."""
        reports = {report.name: report for report in self._run.tables}
        for table in plan.tables:
            if table.existing is None:
                continue
            report = reports[table.table.name]
            count = await self._connection.fetchval(f"SELECT count(*) FROM {table.qualified}")
            foreign = count - report.rows_inserted - report.rows_already_present
            if foreign > 0:
                await self._connection.execute(
                    "INSERT INTO migrator.foreign_rows VALUES ($1, $2) ON CONFLICT DO NOTHING", table.name, foreign
                )

    async def _load(self, table: TablePlan) -> None:
        started = time.monotonic()
        self._run.watch.begin(self._run.client.id, table.name, count_rows(self._snapshot, table.table))
        table = await asyncio.to_thread(decide_types, self._snapshot, table, self._options.load)
        if table.existing is not None:
            await self._add_columns(table)
            loaded = await self._load_stage(table)
        elif table.table.foreign_keys and self._options.load.orphans is not Orphans.KEEP:
            loaded = await self._load_fresh_by_stage(table)
        else:
            loaded = await self._load_fresh(table)
        self._loaded[table.table.name] = loaded
        self._run.notes.extend(loaded.notes)
        self._seconds[table.table.name] = time.monotonic() - started
        self._run.log.info(
            "table_loaded",
            table=table.name,
            rows_read=loaded.rows_read,
            rows_rejected=self._quarantine.count(table.table.name),
            duration_seconds=round(self._seconds[table.table.name], 3),
            copy_seconds=round(self._copying.get(table.table.name, self._seconds[table.table.name]), 3),
        )

    def _advance(self, rows: int) -> None:
        self._run.watch.advance(self._run.client.id, rows)

    async def _add_columns(self, table: TablePlan) -> None:
        for column in table.columns:
            if column.added:
                await self._connection.execute(
                    f"ALTER TABLE {table.qualified} ADD COLUMN {quote_name(column.name)} {column.type.sql}"
                )

    async def _load_stage(self, table: TablePlan) -> Loaded:
        stage = f"migrator_stage_{len(self._stages)}"
        self._stages[table.table.name] = stage
        return await load_stage(
            self._connection,
            self._snapshot,
            table,
            stage,
            self._options.load,
            self._quarantine,
            self._advance,
        )

    async def _load_fresh(self, table: TablePlan) -> Loaded:
        savepoint = self._connection.transaction()
        await savepoint.start()
        notes: list[str] = []
        started = time.monotonic()
        loaded = await load_fresh(
            self._connection, self._snapshot, table, self._options.load, self._quarantine, self._advance
        )
        self._copying[table.table.name] = time.monotonic() - started
        if not await self._computes_alike(loaded.plan):
            await savepoint.rollback()
            plain = drop_computed(loaded.plan, "PostgreSQL computes other values", notes)
            again = await self._load_fresh(plain)
            return Loaded(again.plan, again.rows_read, again.rows_copied, (*loaded.notes, *notes, *again.notes))
        self._begin_digest(loaded)
        if loaded.kept:
            await allow_building(self._connection, spared=1)
        try:
            await add_keys(self._connection, self._snapshot, loaded.plan, notes)
        except KeyViolation as violation:
            self._digests.pop(table.table.name, None)
            await savepoint.rollback()
            self._run.log.info("table_restaged", table=table.name, reason=str(violation))
            again = await self._load_fresh_by_stage(loaded.plan)
            return Loaded(again.plan, again.rows_read, again.rows_copied, (*loaded.notes, *again.notes))
        if loaded.kept:
            await allow_building(self._connection, spared=0)
        await savepoint.commit()
        return Loaded(loaded.plan, loaded.rows_read, loaded.rows_copied, (*loaded.notes, *notes))

    def _begin_digest(self, loaded: Loaded) -> None:
        """Lets SQLite's side be hashed in a thread while the server builds keys and indexes.

        A table with rows in quarantine waits, since the quarantine is still written to.
        """
        name, kept = loaded.plan.table.name, loaded.kept
        assert self._run.snapshot is not None  # noqa: S101 - set before the transaction begins
        if not any(self._quarantine.count(name, verdict) for verdict in Verdict):
            path, zone = self._run.snapshot.path, self._options.load.zone
            kept = kept if kept and kept.is_whole else None
            self._digests[name] = asyncio.ensure_future(
                asyncio.to_thread(digest_source, path, loaded.plan, zone, None, kept)
            )
        elif kept:
            kept.drop()

    def _begin_check(self) -> None:
        """Lets threads look at every page, and prepare the report, while the server is at work."""
        assert self._run.snapshot is not None  # noqa: S101 - set before the transaction begins
        self._meanwhile.append(asyncio.ensure_future(check_copy(self._run)))
        if self._run.snapshot.size_bytes >= COLUMNAR_BYTES:
            self._meanwhile.append(asyncio.ensure_future(asyncio.to_thread(prepare_pages)))

    async def _computes_alike(self, plan: TablePlan) -> bool:
        if not any(column.computed for column in plan.columns):
            return True
        return await self._digest_source(plan) == await digest_target(self._connection, plan)

    async def _load_fresh_by_stage(self, table: TablePlan) -> Loaded:
        """Makes the table with its keys while it is empty, so that the stage can see them."""
        notes: list[str] = []
        table = await create_table(self._connection, table, notes)
        await add_keys(self._connection, self._snapshot, table, notes)
        loaded = await self._load_stage(table)
        return Loaded(loaded.plan, loaded.rows_read, loaded.rows_copied, tuple(notes))

    async def _list_stages(self, plan: Plan) -> list[Staged]:
        if not self._stages:
            return []
        target = await read_target(self._connection)
        staged: list[Staged] = []
        for table in plan.tables:
            stage = self._stages.get(table.table.name)
            if stage is None:
                continue
            fresh = table.existing is None
            found = target.tables[table.name]
            references = _plan_references(table, plan) if fresh else found.references
            staged.append(Staged(table, stage, found, references, fresh))
        return staged

    async def _finish_tables(self, plan: Plan) -> None:
        fresh = [table for table in plan.tables if table.existing is None]
        for table in fresh:
            await add_indexes(self._connection, table, self._run.notes)
            await add_defaults(self._connection, table, self._options.load, self._run.notes)
        for table in fresh:
            for key in table.table.foreign_keys:
                await add_foreign_key(self._connection, plan, table, key, self._run.notes)
        target = await read_target(self._connection)
        for table in plan.tables:
            found = target.tables[table.name]
            await set_sequences(self._connection, self._snapshot, table, found.columns, self._run.notes)

    async def _digest_source(self, plan: TablePlan) -> Digest:
        if begun := self._digests.pop(plan.table.name, None):
            return await begun
        assert self._run.snapshot is not None  # noqa: S101 - set before the transaction begins
        return await asyncio.to_thread(
            digest_source, self._run.snapshot.path, plan, self._options.load.zone, self._quarantine.path
        )

    async def _verify(
        self, plan: Plan, staged: Sequence[Staged], settled: dict[str, Settled]
    ) -> tuple[TableReport, ...]:
        stages = {stage.plan.table.name: stage for stage in staged}
        reports: list[TableReport] = []
        differences: list[Difference] = []
        for table in plan.tables:
            started = time.monotonic()
            stage = stages.get(table.table.name)
            restriction = restrict_to_stage(stage) if stage and not stage.fresh else None
            ours, theirs = await asyncio.gather(
                self._digest_source(table), digest_target(self._connection, table, restriction)
            )
            self._seconds[table.table.name] += time.monotonic() - started
            report = self._account(table, settled.get(table.table.name), ours, theirs)
            reports.append(report)
            self._run.log.info("table_verified", table=table.name, verified=report.verified, rows=theirs.rows)
            if ours != theirs:
                assert self._run.snapshot is not None  # noqa: S101
                differences += await find_differences(
                    self._connection,
                    self._run.snapshot.path,
                    table,
                    self._options.load.zone,
                    self._quarantine.path,
                    restriction,
                )
        self._run.tables = tuple(reports)
        check_reports(reports, differences)
        return tuple(reports)

    def _account(self, table: TablePlan, settled: Settled | None, ours: Digest, theirs: Digest) -> TableReport:
        loaded = self._loaded[table.table.name]
        name = table.table.name
        return TableReport(
            name=name,
            rows_read=loaded.rows_read,
            rows_inserted=settled.inserted if settled else loaded.rows_copied,
            rows_already_present=(settled.present if settled else 0) + self._quarantine.count(name, Verdict.MENDED),
            rows_conflicting=self._quarantine.count(name, Verdict.CONFLICTING),
            rows_rejected=self._quarantine.count(name, Verdict.REJECTED),
            duration_seconds=round(self._seconds[name], 3),
            verified=ours == theirs,
            digest_source=ours.value,
            digest_target=theirs.value,
        )


def _plan_references(table: TablePlan, plan: Plan) -> tuple[Reference, ...]:
    """Gives a new table's foreign keys, which are added only after the load, as the stage needs them."""
    references: list[Reference] = []
    for place, key in enumerate(table.table.foreign_keys):
        found = resolve_parent(key, plan)
        if found is None:
            continue
        parent, parent_columns = found
        columns = tuple(table.find_column(name).name for name in key.columns)
        references.append(Reference(f"#{place}", columns, parent.name, parent_columns, False, False, True, ""))
    return tuple(references)
