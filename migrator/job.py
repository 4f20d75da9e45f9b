"""One client's migration from snapshot to commit: the stages in their order, in one transaction."""

import asyncio
import fcntl
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import tenacity

from migrator.clients import Client
from migrator.delta import renew_tables
from migrator.errors import (
    ConfigurationError,
    ExitCode,
    MigratorError,
    SnapshotError,
    TargetError,
    TransientError,
    VerificationError,
)
from migrator.keys import KeyViolation, add_defaults, add_foreign_key, add_indexes, add_keys, set_sequences
from migrator.load import (
    Loaded,
    LoadOptions,
    create_table,
    decide_types,
    drop_computed,
    load_fresh,
    load_stage,
)
from migrator.logs import Logger, get_logger
from migrator.owners import adopt
from migrator.plan import Orphans, Plan, TablePlan, make_plan, resolve_parent
from migrator.quarantine import Quarantine, Verdict
from migrator.report import Report, SourceReport, TableReport, TargetReport, locate_run, write_report
from migrator.retry import retry_rejected
from migrator.snapshot import Snapshot, open_snapshot, take_snapshot
from migrator.source import count_rows, read_source
from migrator.stage import Settled, Staged, restrict_to_stage, settle_stages
from migrator.target import (
    TRANSIENT,
    Connection,
    Reference,
    Target,
    connect,
    lock_client,
    quote_name,
    read_target,
)
from migrator.verify import Difference, Digest, digest_source, digest_target, exclude_mended, find_differences
from migrator.zones import Zone, find_zone

ATTEMPTS = 3
WORK_FOLDER = ".work"


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job runs.

    Attributes:
        load: how rows are loaded.
        work_dir: where snapshots lie while a job runs; as large as the largest client's file.
        reports_dir: where reports go.
        dry_run: everything is done and checked, and then rolled back.
        add_columns: columns that an existing table lacks are added.
        lock_timeout: how long, in seconds, another run on the same client is waited for.
        connect_timeout: how long, in seconds, a server that does not answer is tried.
        source_timeout: how long, in seconds, a locked SQLite file is waited for.
        zone: where the client's own setting is not to count.
    """

    load: LoadOptions
    work_dir: Path
    reports_dir: Path
    dry_run: bool = False
    add_columns: bool = False
    lock_timeout: float = 10.0
    connect_timeout: float = 60.0
    source_timeout: float = 30.0
    zone: Zone | None = None


@dataclass(slots=True)
class _Run:
    """What is known of a run so far; the report is made of it, however the run ends."""

    client: Client
    run_id: str
    started_at: datetime
    log: Logger
    watch: "Watch"
    snapshot: Snapshot | None = None
    server_version: str | None = None
    zone: Zone | None = None
    tables: tuple[TableReport, ...] = ()
    notes: list[str] = field(default_factory=list)


class Watch:
    """Is told of progress; this one is silent, the command line's draws bars."""

    def begin(self, client: str, table: str, rows: int) -> None:
        """A table begins."""

    def advance(self, client: str, rows: int) -> None:
        """Rows of the table have been read."""

    def finish(self, client: str) -> None:
        """The client is done, one way or another."""


async def migrate_client(client: Client, options: JobOptions, watch: Watch | None = None) -> Report:
    """Migrates one client and writes its report.

    Everything that can go wrong for a client ends in its report, with nothing changed in the target.

    Args:
        client: from where to where.
        options: how.
        watch: is told of progress.
    """
    run = _begin(client, watch or Watch())
    run.log.info(
        "client_started",
        source=str(client.sqlite_path),
        target=client.database.address,
        dry_run=options.dry_run,
    )
    return await _report(run, options, "migrate", lambda folder: _migrate(run, options, folder))


async def verify_client(client: Client, options: JobOptions, watch: Watch | None = None) -> Report:
    """Compares a client's SQLite file with its database as both are now, and writes a report."""
    run = _begin(client, watch or Watch())
    run.log.info("verify_started", source=str(client.sqlite_path), target=client.database.address)
    return await _report(run, options, "verify", lambda folder: _verify(run, options, folder))


async def retry_client(client: Client, options: JobOptions, watch: Watch | None = None) -> Report:
    """Loads a client's rejected rows that were mended or whose cause is gone, and writes a report."""
    run = _begin(client, watch or Watch())
    run.log.info("retry_started", target=client.database.address)
    return await _report(run, options, "retry-rejected", lambda folder: _retry(run, options, folder))


async def renew_client(client: Client, options: JobOptions, snapshot: Snapshot) -> Report:
    """Brings a client that was migrated before up to a newer snapshot by its changed rows alone.

    Args:
        client: from where to where.
        options: how.
        snapshot: the client's file as it is now; rows that it does not hold go from the target.
    """
    run = _begin(client, Watch())
    run.snapshot = snapshot
    run.log.info("renew_started", source=str(snapshot.path), target=client.database.address)
    return await _report(run, options, "cutover", lambda folder: _renew(run, options, folder))


def _begin(client: Client, watch: Watch) -> _Run:
    started = datetime.now(UTC)
    run_id = f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    return _Run(client, run_id, started, get_logger().bind(client=client.id, run_id=run_id), watch)


async def _report(run: _Run, options: JobOptions, command: str, work: Callable[[Path], Awaitable[bool]]) -> Report:
    status, error, failure_code = "ok", None, ExitCode.FAILED
    try:
        if run.client.problem:
            raise ConfigurationError(run.client.problem)
        with _work_folder(options.work_dir, run.client.id, run.run_id) as folder:
            rejected = await work(folder)
        status = "rejected_rows" if rejected else "ok"
    except VerificationError as failure:
        status, error = "verify_failed", str(failure)
    except MigratorError as failure:
        status, error, failure_code = "failed", str(failure), failure.exit_code
    except asyncpg.PostgresError as failure:
        said = " ".join(str(failure).split())
        status, error = "failed", f"{run.client.database.address}: {said} (SQLSTATE {failure.sqlstate})"
    except OSError as failure:
        status, error = "failed", f"{failure.filename or options.work_dir}: {failure.strerror or failure}"
    except sqlite3.Error as failure:
        # The snapshot was checked page by page, so what fails now is the disk that it lies on.
        status, error = "failed", f"{options.work_dir} (BACKUPS_DIR): {failure}"
    finally:
        run.watch.finish(run.client.id)
    report = Report(
        run_id=run.run_id,
        client=run.client.id,
        command=command,  # type: ignore[arg-type]
        dry_run=options.dry_run,
        status=status,  # type: ignore[arg-type]
        source=_describe_source(run),
        target=TargetReport(database=run.client.database.name, server_version=run.server_version),
        started_at=run.started_at,
        finished_at=datetime.now(UTC),
        tables=run.tables,
        notes=tuple(run.notes),
        error=error,
        failure_code=failure_code,
    )
    path = write_report(report, options.reports_dir)
    totals = report.totals
    facts = {
        "status": status,
        "rows_read": totals.rows_read,
        "rows_inserted": totals.rows_inserted,
        "rows_already_present": totals.rows_already_present,
        "rows_conflicting": totals.rows_conflicting,
        "rows_rejected": totals.rows_rejected,
        "verified": totals.verified,
        "duration_seconds": report.duration_seconds,
        "report": str(path),
    }
    if error:
        run.log.error("client_failed", error=error, **facts)
    else:
        run.log.info("client_finished", **facts)
    return report


def _describe_source(run: _Run) -> SourceReport:
    if run.snapshot is None:
        return SourceReport(path=str(run.client.sqlite_path))
    return SourceReport(
        path=str(run.snapshot.source_path),
        size_bytes=run.snapshot.size_bytes,
        sha256=run.snapshot.sha256,
        journal_mode=run.snapshot.journal_mode,
    )


@contextmanager
def _work_folder(work_dir: Path, client: str, run_id: str) -> Iterator[Path]:
    """Gives a run a folder of its own, and removes those that killed runs of the client left.

    A folder in use is locked; the lock goes with its process, so a folder without one is a leftover.
    """
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        for leftover in work_dir.glob(f"{client}.*"):
            _remove_unlocked(leftover)
        folder = work_dir / f"{client}.{run_id}"
        folder.mkdir(mode=0o700)
        adopt(work_dir, work_dir.parent)
    except OSError as error:
        raise SnapshotError(
            f"{work_dir} cannot be written: {error.strerror}. BACKUPS_DIR must be a folder that uid {os.geteuid()} may "
            f"write; 'make secrets' prepares it"
        ) from error
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)
        with suppress(OSError):
            work_dir.rmdir()


def _remove_unlocked(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            get_logger().info("leftover_removed", folder=str(folder))
        finally:
            os.close(handle)


async def _migrate(run: _Run, options: JobOptions, folder: Path) -> bool:
    options = await _prepare(run, options, folder)

    def tell(state: tenacity.RetryCallState) -> None:
        outcome = state.outcome.exception() if state.outcome else None
        run.log.warning(
            "client_retried",
            attempt=state.attempt_number,
            wait_seconds=round(state.upcoming_sleep, 2),
            reason=str(outcome),
        )

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=tenacity.wait_random_exponential(multiplier=1, max=10),
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        before_sleep=tell,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await _migrate_once(run, options, folder)
    raise AssertionError("unreachable")  # pragma: no cover


async def _prepare(run: _Run, options: JobOptions, folder: Path) -> JobOptions:
    """Takes the snapshot and settles in which zone its moments are read."""
    if run.snapshot is None:
        run.snapshot = await _snapshot(run, options, folder)
    snapshot = open_snapshot(run.snapshot.path)
    try:
        zone = options.zone or find_zone(snapshot, run.client.sqlite_path)
    finally:
        snapshot.close()
    run.zone = zone
    return replace(options, load=replace(options.load, zone=zone.info))


async def _snapshot(run: _Run, options: JobOptions, folder: Path) -> Snapshot:
    started = time.monotonic()
    snapshot = await asyncio.to_thread(
        take_snapshot, run.client.sqlite_path, folder, lock_timeout=options.source_timeout
    )
    run.log.info(
        "snapshot_taken",
        size_bytes=snapshot.size_bytes,
        sha256=snapshot.sha256,
        journal_mode=snapshot.journal_mode,
        duration_seconds=round(time.monotonic() - started, 3),
    )
    return snapshot


async def _migrate_once(run: _Run, options: JobOptions, folder: Path) -> bool:
    assert run.snapshot is not None  # noqa: S101 - set by the caller
    run.notes.clear()
    if run.zone is not None and run.zone.info is not UTC:
        run.notes.append(f"moments without an offset are read in {run.zone.info} ({run.zone.origin})")
    run.tables = ()
    snapshot = open_snapshot(run.snapshot.path)
    quarantine = Quarantine(folder)
    try:
        async with connect(run.client.database, connect_timeout=options.connect_timeout) as connection:
            try:
                await lock_client(connection, run.client.id, lock_timeout=options.lock_timeout)
                rejected = await _migrate_locked(run, options, connection, snapshot, quarantine)
            except TRANSIENT as error:
                raise TransientError(f"{run.client.database.address}: the connection was lost: {error}") from error
        return rejected
    finally:
        quarantine.close()
        quarantine.path.unlink(missing_ok=True)
        snapshot.close()


async def _migrate_locked(
    run: _Run,
    options: JobOptions,
    connection: Connection,
    snapshot: sqlite3.Connection,
    quarantine: Quarantine,
) -> bool:
    transaction = connection.transaction()
    await transaction.start()
    try:
        await quarantine.recall_mended(connection)
        job = _Job(run, options, connection, snapshot, quarantine)
        rejected = await job.run()
    except BaseException:
        with suppress(Exception):
            await transaction.rollback()
        raise
    _write_rejected(run, options, quarantine)
    if options.dry_run:
        await transaction.rollback()
        run.notes.insert(0, "dry run: everything was loaded, checked and rolled back; nothing was changed")
    else:
        await transaction.commit()
    return rejected


def _write_rejected(run: _Run, options: JobOptions, quarantine: Quarantine) -> None:
    folder = locate_run(options.reports_dir, run.client.id, run.run_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        quarantine.write_lines(folder / "rejected.jsonl")
    except OSError as error:
        raise TargetError(
            f"the rejected rows cannot be written to {folder}: {error.strerror}; nothing was committed. "
            f"REPORTS_DIR must be a folder that uid {os.geteuid()} may write; 'make secrets' prepares it"
        ) from error


class _Job:
    """The stages of one client's transaction."""

    def __init__(
        self,
        run: _Run,
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

    async def run(self) -> bool:
        """Does everything but the commit.

        Returns:
            Whether rows were rejected or conflict.
        """
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
        staged = await self._list_stages(plan)
        settled = await settle_stages(
            self._connection, self._snapshot, staged, self._options.load, self._quarantine, self._run.notes
        )
        await self._finish_tables(plan)
        self._run.tables = await self._verify(plan, staged, settled)
        await self._quarantine.store(self._connection, self._run.run_id, [t.table.name for t in plan.tables])
        return any(t.rows_rejected or t.rows_conflicting for t in self._run.tables)

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
        loaded = await load_fresh(
            self._connection, self._snapshot, table, self._options.load, self._quarantine, self._advance
        )
        if not await self._computes_alike(loaded.plan):
            await savepoint.rollback()
            plain = drop_computed(loaded.plan, "PostgreSQL computes other values", notes)
            again = await self._load_fresh(plain)
            return Loaded(again.plan, again.rows_read, again.rows_copied, (*loaded.notes, *notes, *again.notes))
        try:
            await add_keys(self._connection, self._snapshot, loaded.plan, notes)
        except KeyViolation as violation:
            await savepoint.rollback()
            self._run.log.info("table_restaged", table=table.name, reason=str(violation))
            again = await self._load_fresh_by_stage(loaded.plan)
            return Loaded(again.plan, again.rows_read, again.rows_copied, (*loaded.notes, *again.notes))
        await savepoint.commit()
        return Loaded(loaded.plan, loaded.rows_read, loaded.rows_copied, (*loaded.notes, *notes))

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
        _check_reports(reports, differences)
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


def _check_reports(reports: Sequence[TableReport], differences: Sequence[Difference]) -> None:
    """Raises where a digest differs or a row has left the accounting."""
    if differences or not all(report.verified for report in reports):
        names = ", ".join(dict.fromkeys(difference.table for difference in differences)) or ", ".join(
            report.name for report in reports if not report.verified
        )
        shown = "; ".join(difference.describe() for difference in differences)
        raise VerificationError(f"SQLite and PostgreSQL differ in {names}: {shown or 'digests are not equal'}")
    for report in reports:
        if not report.adds_up:
            raise VerificationError(
                f"table {report.name}: {report.rows_read} rows were read, but inserted, present, conflicting and "
                f"rejected ones add up to another number; nothing was committed"
            )


async def _verify(run: _Run, options: JobOptions, folder: Path) -> bool:
    options = await _prepare(run, options, folder)
    assert run.snapshot is not None  # noqa: S101 - just taken
    snapshot = open_snapshot(run.snapshot.path)
    quarantine = Quarantine(folder)
    try:
        async with connect(run.client.database, connect_timeout=options.connect_timeout) as connection:
            transaction = connection.transaction(isolation="repeatable_read")
            await transaction.start()
            try:
                return await _compare(run, options, connection, snapshot, quarantine)
            except TRANSIENT as error:
                raise TransientError(f"{run.client.database.address}: the connection was lost: {error}") from error
            finally:
                with suppress(Exception):
                    await transaction.rollback()
    finally:
        quarantine.close()
        snapshot.close()


async def _compare(
    run: _Run,
    options: JobOptions,
    connection: Connection,
    snapshot: sqlite3.Connection,
    quarantine: Quarantine,
) -> bool:
    assert run.snapshot is not None  # noqa: S101 - set by the caller
    source = await asyncio.to_thread(read_source, snapshot)
    target: Target = await read_target(connection)
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
    _check_reports((), differences)
    return any(report.rows_rejected or report.rows_conflicting for report in reports)


async def _retry(run: _Run, options: JobOptions, folder: Path) -> bool:
    options = await _prepare(run, options, folder)
    quarantine = Quarantine(folder)
    try:
        async with connect(run.client.database, connect_timeout=options.connect_timeout) as connection:
            await lock_client(connection, run.client.id, lock_timeout=options.lock_timeout)
            run.server_version = str(await connection.fetchval("SHOW server_version"))
            try:
                async with connection.transaction():
                    retried = await retry_rejected(
                        connection, folder, run.run_id, options.load, quarantine, lambda _: None
                    )
                    _write_rejected(run, options, quarantine)
            except TRANSIENT as error:
                raise TransientError(f"{run.client.database.address}: the connection was lost: {error}") from error
    finally:
        quarantine.close()
    run.tables = tuple(
        TableReport(
            name=table.name, rows_read=table.rows, rows_inserted=table.loaded, rows_rejected=table.left, verified=True
        )
        for table in retried
    )
    return any(table.left for table in retried)


async def _renew(run: _Run, options: JobOptions, folder: Path) -> bool:
    options = await _prepare(run, options, folder)
    assert run.snapshot is not None  # noqa: S101 - given by the caller
    snapshot = open_snapshot(run.snapshot.path)
    quarantine = Quarantine(folder)
    try:
        async with connect(run.client.database, connect_timeout=options.connect_timeout) as connection:
            try:
                await lock_client(connection, run.client.id, lock_timeout=options.lock_timeout)
                async with connection.transaction():
                    await _renew_locked(run, options, connection, snapshot, quarantine)
                    _write_rejected(run, options, quarantine)
            except TRANSIENT as error:
                raise TransientError(f"{run.client.database.address}: the connection was lost: {error}") from error
    finally:
        quarantine.close()
        snapshot.close()
    return any(table.rows_rejected or table.rows_conflicting for table in run.tables)


async def _renew_locked(
    run: _Run, options: JobOptions, connection: Connection, snapshot: sqlite3.Connection, quarantine: Quarantine
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
    _check_reports(reports, differences)
    await quarantine.store(connection, run.run_id, [table.table.name for table in plan.tables])
