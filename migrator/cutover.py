"""Moves a running bot to PostgreSQL, and back again without losing what was booked in between.

Both ways are a list of steps that a journal records before and after each. A failure undoes what was
done, in reverse order, and starts the bot where it was. A process that was killed left its journal:
until the bot was started on the other side, the next command undoes it; from then on, since the bot
may have written there, the next command completes it.
"""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

from migrator.carry import Carried, carry_back, count_all
from migrator.clients import Client
from migrator.container import Bot, ContainerError, Patience, find_bot
from migrator.envfile import read_env, restore_variables, set_variables, write_env
from migrator.errors import (
    ConfigurationError,
    LockedError,
    MigratorError,
    SnapshotError,
    TargetError,
    VerificationError,
)
from migrator.journal import STATE_FILE, Journal, open_journal, read_journal, sync_folder, write_json
from migrator.logs import get_logger
from migrator.migration import migrate_client
from migrator.owners import adopt
from migrator.pages import publish_report
from migrator.quarantine import Quarantine, Verdict
from migrator.renewal import renew_client
from migrator.report import Report, SourceReport, TableReport, TargetReport
from migrator.run import JobOptions
from migrator.settings import Settings
from migrator.snapshot import Snapshot, take_snapshot
from migrator.target import connect, lock_client, quote_name, read_target
from migrator.zones import find_zone

VARIABLES = ("DB_TYPE", "DATABASE_URL", "DB_POOL_MIN_SIZE", "DB_POOL_MAX_SIZE")
_SPACE_FACTOR = 3
_PLACED_FILE = ".bookings.db.rollback"


@dataclass(frozen=True, slots=True)
class State:
    """On which side a client's bot runs, by what was completed last; ``backup`` is of the cutover."""

    side: str
    backup: str | None = None
    changed_at: str | None = None
    cutovers: int = 0


def read_state(settings: Settings, client: str) -> State:
    """Reads a client's state; one that was never moved is on SQLite."""
    path = settings.backups_dir / client / STATE_FILE
    try:
        return State(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return State("sqlite")


class Move:
    """A client on its way: everything that the steps of both directions need."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        options: JobOptions,
        patience: Patience,
        *,
        accept_rejected: bool = True,
    ) -> None:
        self.client = client
        self.settings = settings
        self.options = options
        self.patience = patience
        self.accept_rejected = accept_rejected
        self.folder = settings.backups_dir / client.id
        self.env_path = client.sqlite_path.with_name(".env")
        self.log = get_logger().bind(client=client.id)
        self.state = read_state(settings, client.id)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other cutovers and rollbacks of the client away; the lock goes with the process.

        Raises:
            LockedError: another one is at work.
            ConfigurationError: BACKUPS_DIR cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(f"{self.folder} cannot be written: {error.strerror} (BACKUPS_DIR)") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise LockedError(f"{self.client.id}: another cutover or rollback is at work. Wait for it to end") from None
        try:
            yield
        finally:
            adopt(self.folder, self.settings.backups_dir)
            os.close(handle)

    def save_state(self, side: str, backup: str | None, cutovers: int) -> None:
        """Records on which side the bot runs now."""
        self.state = State(side, backup, datetime.now(UTC).isoformat(), cutovers)
        write_json(
            self.folder / STATE_FILE,
            {"side": side, "backup": backup, "changed_at": self.state.changed_at, "cutovers": cutovers},
        )


# --- Forward -------------------------------------------------------------------------------------


async def cut_over(move: Move) -> Report:
    """Moves a client's bot from SQLite to PostgreSQL.

    Returns:
        The report of the final load, with the downtime.

    Raises:
        MigratorError: the bot runs on SQLite, as before; nothing of the move remains but the rows that
            were already copied into PostgreSQL.
    """
    if move.client.problem:
        raise ConfigurationError(move.client.problem)
    with move.lock():
        await _settle_open_journal(move)
        if move.state.side == "postgresql":
            raise ConfigurationError(f"{move.client.id} is on PostgreSQL already, since {move.state.changed_at}")
        bot = await _preflight(move)
        first = await _copy_first(move)
        journal = open_journal(move.folder, "cutover", first.run_id)
        try:
            report = await _cut_over_steps(move, bot, journal)
        except (MigratorError, OSError, asyncpg.PostgresError) as error:
            move.log.error("cutover_failed", error=str(error), undoing=True)
            await _undo_cutover(move, bot, journal)
            raise
        journal.close()
    return report


async def _preflight(move: Move) -> Bot:
    """Checks everything that can be checked before anything is touched."""
    client = move.client
    bot = await asyncio.to_thread(find_bot, client.id)
    if bot.fixes_database():
        raise ConfigurationError(
            f"container {bot.name} has DB_TYPE in its own environment, which no file can change: mount "
            f"{move.env_path} into it instead of passing it as env_file"
        )
    if not bot.is_on_network():
        raise ConfigurationError(
            f"container {bot.name} is not on the network booking-network and could not reach PostgreSQL. "
            f"Run: docker network connect booking-network {bot.name}"
        )
    text = read_env(move.env_path)
    if not os.access(move.env_path.parent, os.W_OK):
        raise ConfigurationError(f"{move.env_path.parent} cannot be written, and the .env in it must be")
    if "DB_TYPE=postgresql" in text.splitlines():
        raise ConfigurationError(f"{move.env_path} says DB_TYPE=postgresql already; is the bot moved by hand?")
    size = _read_size(client.sqlite_path)
    free = shutil.disk_usage(move.folder).free
    if free < size * _SPACE_FACTOR:
        raise ConfigurationError(
            f"{move.folder} has {free:,} bytes free; a cutover needs {size * _SPACE_FACTOR:,} (BACKUPS_DIR)"
        )
    async with connect(client.database, connect_timeout=move.options.connect_timeout) as connection:
        await read_target(connection)
    move.log.info("preflight_passed", container=bot.name, running=bot.is_running(), size_bytes=size)
    return bot


def _read_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


async def _copy_first(move: Move) -> Report:
    """Copies all rows while the bot still runs, so that little is left to do once it is stopped."""
    before = await _was_migrated(move)
    report = await migrate_client(move.client, replace(move.options, dry_run=False))
    await _check_foreign_rows(move)
    if before and report.status in ("ok", "rejected_rows"):
        # Rows that have changed since the earlier migration conflict with what it left; they are renewed.
        folder = move.folder / ".first"
        with _fresh_folder(folder):
            snapshot = await asyncio.to_thread(_snapshot, move, folder)
            report = await renew_client(move.client, move.options, snapshot)
    _check_report(move, report)
    move.log.info("first_copy_done", rows=report.totals.rows_read)
    return report


async def _was_migrated(move: Move) -> bool:
    async with connect(move.client.database, connect_timeout=move.options.connect_timeout) as connection:
        return bool(await connection.fetchval("SELECT to_regclass('migrator.rejected_rows') IS NOT NULL"))


def _check_report(move: Move, report: Report) -> None:
    if report.status == "verify_failed":
        raise VerificationError(str(report.error))
    if report.status == "failed":
        raise TargetError(str(report.error))
    if report.totals.rows_conflicting:
        raise TargetError(
            f"{move.client.id}: {report.totals.rows_conflicting} rows are in PostgreSQL with other content; see the "
            f"report, and remove those or migrate into an empty database"
        )
    if report.totals.rows_rejected and not move.accept_rejected:
        raise TargetError(
            f"{move.client.id}: {report.totals.rows_rejected} rows would be quarantined; mend them, or leave out "
            f"--refuse-rejected"
        )


async def _check_foreign_rows(move: Move) -> None:
    """Refuses tables that held rows before the first migration: the final load would remove them."""
    async with connect(move.client.database, connect_timeout=move.options.connect_timeout) as connection:
        if not await connection.fetchval("SELECT to_regclass('migrator.foreign_rows') IS NOT NULL"):
            return
        found = await connection.fetch("SELECT table_name FROM migrator.foreign_rows ORDER BY 1")
    if found:
        names = ", ".join(row["table_name"] for row in found)
        raise TargetError(
            f"{names} of {move.client.database.name} holds rows that did not come from SQLite; remove them and the "
            f"table's line in migrator.foreign_rows first, since a cutover makes it hold what SQLite holds"
        )


async def _cut_over_steps(move: Move, bot: Bot, journal: Journal) -> Report:
    journal.begin("stop_bot")
    stopped = time.monotonic()
    was_running = bot.is_running()
    journal.note(was_running=was_running)
    await asyncio.to_thread(bot.stop)
    journal.finish("stop_bot")
    move.log.info("bot_stopped", container=bot.name)

    journal.begin("back_up")
    snapshot = await asyncio.to_thread(_back_up, move)
    journal.finish("back_up", backup=str(snapshot.path))
    move.log.info("backup_made", path=str(snapshot.path))

    journal.begin("load")
    report = await renew_client(move.client, move.options, snapshot)
    _check_report(move, report)
    journal.finish("load")

    journal.begin("write_env")
    original = read_env(move.env_path)
    _keep_env(move, original)
    write_env(move.env_path, set_variables(original, _make_variables(move)))
    journal.finish("write_env")
    move.log.info("env_written", path=str(move.env_path))

    await _start_bot(move, bot, journal)
    downtime = round(time.monotonic() - stopped, 3)
    move.save_state("postgresql", str(snapshot.path), move.state.cutovers + 1)
    report = report.model_copy(update={"downtime_seconds": downtime})
    publish_report(report, move.settings.reports_dir)
    move.log.info("cutover_done", downtime_seconds=downtime, rows=report.totals.rows_read)
    return report


async def _start_bot(move: Move, bot: Bot, journal: Journal) -> None:
    journal.begin("start_bot")
    await asyncio.to_thread(bot.start)
    await asyncio.to_thread(bot.await_healthy, move.patience)
    journal.finish("start_bot")
    move.log.info("bot_started", container=bot.name)


def _make_variables(move: Move) -> dict[str, str | None]:
    database = move.client.database
    if database.password is None:
        raise AssertionError("a client without a password has a problem")
    password = quote(database.password.get_secret_value(), safe="")
    host, port = move.settings.bot_postgres_host, move.settings.bot_postgres_port
    return {
        "DB_TYPE": "postgresql",
        "DATABASE_URL": f"postgresql://{database.role}:{password}@{host}:{port}/{database.name}",
        "DB_POOL_MIN_SIZE": "5",
        "DB_POOL_MAX_SIZE": "20",
    }


def _keep_env(move: Move, original: str) -> None:
    path = move.folder / "env.before_cutover"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(original)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(move.folder)


@contextmanager
def _fresh_folder(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _snapshot(move: Move, folder: Path) -> Snapshot:
    return take_snapshot(move.client.sqlite_path, folder, lock_timeout=move.options.source_timeout)


def _back_up(move: Move) -> Snapshot:
    """Makes the backup beside its checksum, and opens it to see that it is one."""
    path = move.folder / f"{move.client.sqlite_path.name}.backup_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    if path.exists():
        raise SnapshotError(f"{path} exists already; wait a second and try again")
    folder = move.folder / ".partial"
    with _fresh_folder(folder):
        snapshot = _snapshot(move, folder)
        count_all(snapshot.path)
        snapshot.path.chmod(0o600)
        snapshot.path.replace(path)
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    path.with_name(path.name + ".sha256").write_text(f"{checksum}  {path.name}\n")
    sync_folder(move.folder)
    return replace(snapshot, path=path)


# --- Undoing and completing ----------------------------------------------------------------------


async def _undo_cutover(move: Move, bot: Bot, journal: Journal) -> None:
    """Puts back what a cutover changed, in reverse order, and starts the bot on SQLite."""
    if "start_bot" in journal.started:
        # The bot may have written to PostgreSQL before it failed.
        move.save_state("postgresql", journal.facts["backup"], move.state.cutovers + 1)
        back = open_journal(move.folder, "rollback", journal.run_id)
        await _roll_back_steps(move, bot, back, discard_new=False)
        back.close()
        return
    if "write_env" in journal.started:
        _restore_env(move)
    if journal.facts.get("was_running", True):
        await asyncio.to_thread(bot.start)
        await asyncio.to_thread(bot.await_healthy, move.patience)
    journal.close()
    move.log.info("cutover_undone", container=bot.name)


def _restore_env(move: Move) -> None:
    kept = move.folder / "env.before_cutover"
    if kept.exists():
        original = kept.read_text(encoding="utf-8")
        write_env(move.env_path, restore_variables(read_env(move.env_path), original, list(VARIABLES)))


async def _settle_open_journal(move: Move) -> str | None:
    """Undoes or completes what a killed command left.

    Returns:
        Which operation was completed, or None.
    """
    journal = read_journal(move.folder)
    if journal is None:
        return None
    bot = await asyncio.to_thread(find_bot, move.client.id)
    move.log.info("journal_found", operation=journal.operation, started=journal.started, done=journal.done)
    if journal.operation == "rollback":
        await _roll_back_steps(move, bot, journal, discard_new=bool(journal.facts.get("discard_new")))
        journal.close()
        return "rollback"
    if "start_bot" not in journal.started:
        await _undo_cutover(move, bot, journal)
        return None
    try:
        await _start_bot(move, bot, journal)
    except (ContainerError, MigratorError) as error:
        move.log.error("cutover_failed", error=str(error), undoing=True)
        await _undo_cutover(move, bot, journal)
        return None
    cutovers = move.state.cutovers + (move.state.side != "postgresql")
    move.save_state("postgresql", journal.facts["backup"], cutovers)
    journal.close()
    move.log.info("cutover_completed")
    return "cutover"


# --- Back ----------------------------------------------------------------------------------------


async def roll_back(move: Move, *, discard_new: bool = False) -> Report:
    """Moves a client's bot back to SQLite.

    Args:
        move: the client.
        discard_new: the file becomes what it was at the cutover; what came since stays in PostgreSQL
            alone.

    Raises:
        MigratorError: the bot runs on PostgreSQL, as before.
    """
    with move.lock():
        started = datetime.now(UTC)
        if await _settle_open_journal(move) == "rollback":
            return _make_report(move, started, [], ["a rollback that was killed has been completed"], None)
        if move.state.side != "postgresql":
            raise ConfigurationError(f"{move.client.id} is on SQLite; there is nothing to roll back")
        bot = await asyncio.to_thread(find_bot, move.client.id)
        backup = _check_backup(move)
        read_env(move.env_path)
        if not discard_new:
            async with connect(move.client.database, connect_timeout=move.options.connect_timeout) as connection:
                await read_target(connection)
        journal = open_journal(move.folder, "rollback", f"{started:%Y%m%dT%H%M%SZ}-rollback")
        journal.note(discard_new=discard_new, backup=str(backup))
        notes: list[str] = []
        stopped = time.monotonic()
        try:
            carried = await _roll_back_steps(move, bot, journal, discard_new=discard_new, notes=notes)
        except (MigratorError, OSError, asyncpg.PostgresError, sqlite3.Error) as error:
            move.log.error("rollback_failed", error=str(error), undoing=True)
            await _undo_rollback(move, bot, journal)
            raise
        journal.close()
        downtime = round(time.monotonic() - stopped, 3)
        move.log.info("rollback_done", downtime_seconds=downtime)
        return _make_report(move, started, carried, notes, downtime)


def _check_backup(move: Move) -> Path:
    if move.state.backup is None:
        raise ConfigurationError(f"{move.client.id}: no backup is known; the cutover's state is incomplete")
    path = Path(move.state.backup)
    checksum = path.with_name(path.name + ".sha256")
    if not path.exists() or not checksum.exists():
        raise ConfigurationError(f"{move.client.id}: the backup {path} or its .sha256 is missing; put it back first")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not checksum.read_text().startswith(found):
        raise ConfigurationError(
            f"{move.client.id}: the backup {path} does not have its checksum; it was changed or is damaged"
        )
    return path


async def _roll_back_steps(
    move: Move, bot: Bot, journal: Journal, *, discard_new: bool, notes: list[str] | None = None
) -> list[Carried]:
    """Does the steps that are not done yet; each may be repeated, since the bot is stopped meanwhile."""
    found = notes if notes is not None else []
    carried: list[Carried] = []
    placed = move.client.sqlite_path.with_name(_PLACED_FILE)
    if "start_bot" not in journal.started:
        journal.begin("stop_bot")
        await asyncio.to_thread(bot.stop)
        journal.finish("stop_bot")
    if "carry" not in journal.done:
        journal.begin("carry")
        backup = _check_backup(move)
        shutil.copyfile(backup, placed)
        if not discard_new:
            carried = await _carry(move, placed, found)
        _own_like(placed, move.client.sqlite_path)
        journal.finish("carry")
    if "place" not in journal.done:
        journal.begin("place")
        _place(move, placed, journal)
        journal.finish("place")
    if "restore_env" not in journal.done:
        journal.begin("restore_env")
        _restore_env(move)
        journal.finish("restore_env")
    await _start_bot(move, bot, journal)
    move.save_state("sqlite", move.state.backup, move.state.cutovers)
    return carried


async def _carry(move: Move, placed: Path, notes: list[str]) -> list[Carried]:
    folder = move.folder / ".carry"
    with _fresh_folder(folder):
        quarantine = Quarantine(folder)
        try:
            async with connect(move.client.database, connect_timeout=move.options.connect_timeout) as connection:
                await lock_client(connection, move.client.id, lock_timeout=move.options.lock_timeout)
                async with connection.transaction(isolation="repeatable_read"):
                    await quarantine.recall(connection, [Verdict.REJECTED, Verdict.CONFLICTING, Verdict.NULLED])
                    copy = sqlite3.connect(placed)
                    try:
                        zone = move.options.zone or find_zone(copy, move.client.sqlite_path)
                    finally:
                        copy.close()
                    return await carry_back(connection, placed, zone.info, quarantine, notes)
        finally:
            quarantine.close()


def _own_like(path: Path, model: Path) -> None:
    found = model.stat()
    path.chmod(found.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(path, found.st_uid, found.st_gid)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _place(move: Move, placed: Path, journal: Journal) -> None:
    """Puts the new file in the old one's place; the old one and its journals are kept beside it."""
    path = move.client.sqlite_path
    kept = journal.facts.get("kept") or f"{path.name}.before_rollback_{datetime.now(UTC):%Y%m%d_%H%M%S}"
    journal.note(kept=kept)
    for suffix in ("-wal", "-shm", "-journal"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.replace(path.with_name(kept + suffix))
    if not path.with_name(kept).exists():
        os.link(path, path.with_name(kept))
    if placed.exists():
        placed.replace(path)
    sync_folder(path.parent)


async def _undo_rollback(move: Move, bot: Bot, journal: Journal) -> None:
    """Starts the bot on PostgreSQL again; a file that was put in place is taken out."""
    if "start_bot" in journal.started:
        # The bot may have written to SQLite: what is there counts, and the next command completes it.
        move.log.error("rollback_left_open", journal=str(journal.path))
        return
    move.client.sqlite_path.with_name(_PLACED_FILE).unlink(missing_ok=True)
    if "place" in journal.started and (kept := journal.facts.get("kept")):
        old = move.client.sqlite_path.with_name(kept)
        if old.exists():
            old.replace(move.client.sqlite_path)
    if "restore_env" in journal.started:
        write_env(move.env_path, set_variables(read_env(move.env_path), _make_variables(move)))
    await asyncio.to_thread(bot.start)
    await asyncio.to_thread(bot.await_healthy, move.patience)
    journal.close()
    move.log.info("rollback_undone", container=bot.name)


def _make_report(
    move: Move, started: datetime, carried: list[Carried], notes: list[str], downtime: float | None
) -> Report:
    lines = [
        f"{c.name}: {c.inserted} rows inserted, {c.changed} changed, {c.deleted} deleted in SQLite"
        for c in carried
        if c.inserted or c.changed or c.deleted
    ]
    report = Report(
        run_id=f"{started:%Y%m%dT%H%M%SZ}-rollback",
        client=move.client.id,
        command="rollback",
        status="ok",
        source=SourceReport(path=str(move.client.sqlite_path)),
        target=TargetReport(database=move.client.database.name),
        started_at=started,
        finished_at=datetime.now(UTC),
        tables=tuple(
            TableReport(name=c.name, rows_read=c.inserted, rows_inserted=c.inserted, verified=True) for c in carried
        ),
        notes=(*lines, *notes),
        downtime_seconds=downtime,
    )
    publish_report(report, move.settings.reports_dir)
    return report


# --- Looking and clearing ------------------------------------------------------------------------


async def purge(move: Move) -> list[str]:
    """Drops a client's tables from PostgreSQL; its bot must be on SQLite.

    Returns:
        The names of the tables that are gone.

    Raises:
        ConfigurationError: the bot runs on PostgreSQL, or a journal is open.
    """
    with move.lock():
        if move.state.side == "postgresql":
            raise ConfigurationError(
                f"{move.client.id} runs on PostgreSQL: run 'make rollback CLIENT={move.client.id}' first"
            )
        if read_journal(move.folder) is not None:
            raise ConfigurationError(f"{move.client.id}: a cutover or rollback is not complete; run it again first")
        async with connect(move.client.database, connect_timeout=move.options.connect_timeout) as connection:
            target = await read_target(connection)
            async with connection.transaction():
                owned = [table.name for table in target.tables.values() if table.owned]
                for name in owned:
                    await connection.execute(f"DROP TABLE {quote_name(target.schema)}.{quote_name(name)} CASCADE")
                await connection.execute("DROP SCHEMA IF EXISTS migrator CASCADE")
        move.save_state("sqlite", move.state.backup, 0)
    return owned


def describe_client(settings: Settings, client: str, latest: Report | None) -> dict[str, Any]:
    """Gathers what ``status`` shows of one client."""
    state = read_state(settings, client)
    journal = read_journal(settings.backups_dir / client)
    totals = latest.totals if latest else None
    return {
        "client": client,
        "side": state.side,
        "last_run": f"{latest.command} {latest.status}" if latest else "never",
        "rows": totals.rows_read if totals else 0,
        "rejected": totals.rows_rejected if totals else 0,
        "verified": totals.verified if totals else False,
        "backup": Path(state.backup).name if state.backup else None,
        "journal": journal.operation if journal else None,
    }
