"""What every run over a client has in common: its options, its snapshot, its connection, its report."""

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from migrator.clients import Client
from migrator.errors import (
    ConfigurationError,
    ExitCode,
    LockedError,
    MigratorError,
    TargetError,
    TransientError,
    VerificationError,
)
from migrator.load import COLUMNAR_BYTES, LoadOptions, import_ahead
from migrator.logs import Logger, get_logger
from migrator.pages import publish_report
from migrator.quarantine import Quarantine
from migrator.report import Report, SourceReport, TableReport, TargetReport, locate_run
from migrator.snapshot import Snapshot, SourceDigest, check_snapshot, copy_source, open_snapshot
from migrator.target import TRANSIENT, Connection, connect, lock_client
from migrator.verify import Difference
from migrator.workspace import hold_folder
from migrator.zones import Zone, find_zone


@dataclass(frozen=True, slots=True)
class JobOptions:
    """How a job runs.

    Attributes:
        load: how rows are loaded.
        work_dir: where snapshots lie while a job runs; twice as large as the largest client's file.
        reports_dir: where reports go.
        dry_run: everything is done and checked, and then rolled back.
        add_columns: columns that an existing table lacks are added.
        lock_timeout: how long, in seconds, another run on the same client is waited for.
        connect_timeout: how long, in seconds, a server that does not answer is tried.
        source_timeout: how long, in seconds, a locked SQLite file is waited for.
        zone: where the client's own setting is not to count.
        again: a client is done anew even where nothing has changed since its last run.
        shared: other workers may have the same clients; one that is in other hands raises LockedError.
        begun_at: when the job began (``time.monotonic()``); a client that another worker has done since is done.
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
    again: bool = False
    shared: bool = False
    begun_at: float = field(default_factory=time.monotonic)


class Watch:
    """Is told of progress; this one is silent, the command line's draws bars."""

    def begin(self, client: str, table: str, rows: int) -> None:
        """A table begins."""

    def advance(self, client: str, rows: int) -> None:
        """Rows of the table have been read."""

    def finish(self, client: str) -> None:
        """The client is done, one way or another."""

    def tell(self, line: str) -> None:
        """A worker process has logged a line."""


@dataclass(slots=True)
class Run:
    """What is known of a run so far; the report is made of it, however the run ends."""

    client: Client
    run_id: str
    started_at: datetime
    log: Logger
    watch: "Watch"
    snapshot: Snapshot | None = None
    checked: bool = False
    server_version: str | None = None
    source_digest: SourceDigest | None = None
    zone: Zone | None = None
    tables: tuple[TableReport, ...] = ()
    notes: list[str] = field(default_factory=list)
    unchanged_since: str | None = None
    done_by: str | None = None


def begin_run(client: Client, watch: Watch) -> Run:
    """Gives a run its id and its beginning."""
    started = datetime.now(UTC)
    run_id = f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
    return Run(client, run_id, started, get_logger().bind(client=client.id, run_id=run_id), watch)


async def report_run(run: Run, options: JobOptions, command: str, work: Callable[[Path], Awaitable[bool]]) -> Report:
    """Does a run's work and writes its report, however it ends.

    Args:
        run: what is known of it so far; the work adds to it.
        options: where the report goes.
        command: the command's name, for the report.
        work: is given a scratch folder and answers whether rows were rejected.

    Raises:
        LockedError: the clients are shared, and this one is in another worker's hands.
    """
    status, error, failure_code = "ok", None, ExitCode.FAILED
    try:
        if run.client.problem:
            raise ConfigurationError(run.client.problem)
        with hold_folder(options.work_dir, run.client.id, run.run_id) as folder:
            rejected = await work(folder)
        status = "rejected_rows" if rejected else "ok"
    except VerificationError as failure:
        status, error = "verify_failed", str(failure)
    except LockedError as failure:
        if options.shared:
            raise
        status, error, failure_code = "failed", str(failure), failure.exit_code
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
        unchanged_since=run.unchanged_since,
        error=error,
        failure_code=failure_code,
    )
    if run.done_by:
        run.log.info("client_done_elsewhere", worker=run.done_by, done_in=run.unchanged_since, status=status)
        return report
    path = publish_report(report, options.reports_dir)
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
    if run.unchanged_since:
        facts["unchanged_since"] = run.unchanged_since
    if error:
        run.log.error("client_failed", error=error, **facts)
    else:
        run.log.info("client_finished", **facts)
    return report


def _describe_source(run: Run) -> SourceReport:
    if run.snapshot is None:
        digest = run.source_digest
        return SourceReport(path=str(run.client.sqlite_path), sha256=digest.main if digest else None)
    return SourceReport(
        path=str(run.snapshot.source_path),
        size_bytes=run.snapshot.size_bytes,
        sha256=run.snapshot.sha256,
        journal_mode=run.snapshot.journal_mode,
    )


async def prepare_run(run: Run, options: JobOptions, folder: Path, *, check: bool = True) -> JobOptions:
    """Takes the snapshot and settles in which zone its moments are read.

    Args:
        run: is given the snapshot.
        options: where it goes.
        folder: for the copy.
        check: whether the copy is checked at once; otherwise the caller does it, before anything is committed.
    """
    if run.snapshot is None:
        run.snapshot = await _snapshot(run, options, folder)
    if check:
        await check_copy(run)
    snapshot = open_snapshot(run.snapshot.path)
    try:
        zone = options.zone or find_zone(snapshot, run.client.sqlite_path)
    finally:
        snapshot.close()
    run.zone = zone
    return replace(options, load=replace(options.load, zone=zone.info, scratch=folder))


async def check_copy(run: Run) -> None:
    """Looks at every page of the snapshot, if there is one and that was not done before.

    Raises:
        SnapshotError: it is damaged.
    """
    if run.snapshot is not None and not run.checked:
        await asyncio.to_thread(check_snapshot, run.snapshot)
        run.checked = True


async def _snapshot(run: Run, options: JobOptions, folder: Path) -> Snapshot:
    started = time.monotonic()
    taking = asyncio.to_thread(
        copy_source,
        run.client.sqlite_path,
        folder,
        lock_timeout=options.source_timeout,
        before=run.source_digest,
    )
    path = run.client.sqlite_path
    if path.exists() and path.stat().st_size >= COLUMNAR_BYTES:
        # SQLite copies without the interpreter's lock, which leaves time to import what a large client needs.
        snapshot, _ = await asyncio.gather(taking, asyncio.to_thread(import_ahead))
    else:
        snapshot = await taking
    run.log.info(
        "snapshot_taken",
        size_bytes=snapshot.size_bytes,
        sha256=snapshot.sha256,
        journal_mode=snapshot.journal_mode,
        duration_seconds=round(time.monotonic() - started, 3),
    )
    return snapshot


@asynccontextmanager
async def open_target(run: Run, options: JobOptions, *, lock: bool = True) -> AsyncIterator[Connection]:
    """Connects to the client's database and takes its lock.

    Raises:
        TransientError: the connection was lost meanwhile; the same work may succeed when it is repeated.
    """
    async with connect(run.client.database, connect_timeout=options.connect_timeout) as connection:
        try:
            if lock:
                timeout = 0 if options.shared else options.lock_timeout
                await lock_client(connection, run.client.id, lock_timeout=timeout)
            yield connection
        except TRANSIENT as error:
            raise TransientError(f"{run.client.database.address}: the connection was lost: {error}") from error


def write_rejected(run: Run, options: JobOptions, quarantine: Quarantine) -> None:
    """Writes the run's ``rejected.jsonl``, before anything is committed."""
    folder = locate_run(options.reports_dir, run.client.id, run.run_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        quarantine.write_lines(folder / "rejected.jsonl")
    except OSError as error:
        raise TargetError(
            f"the rejected rows cannot be written to {folder}: {error.strerror}; nothing was committed. "
            f"REPORTS_DIR must be a folder that uid {os.geteuid()} may write; 'make secrets' prepares it"
        ) from error


def check_reports(reports: Sequence[TableReport], differences: Sequence[Difference]) -> None:
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
