"""Takes a consistent copy of a client's SQLite file without writing to it or beside it.

A live file is copied while a read lock keeps writers out of it, or, with a WAL, by SQLite's online backup.
What these would have to repair first (a WAL or a hot journal that a crash left behind) is copied together with
its journal and repaired on the copy.
The rules about which companion file means what are SQLite's own:
https://www.sqlite.org/wal.html#read_only_databases and https://www.sqlite.org/atomiccommit.html
"""

import errno
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from migrator.clients import explain_owner
from migrator.errors import ConfigurationError, SnapshotError

MAGIC = b"SQLite format 3\x00"
HEADER_BYTES = 100
SNAPSHOT_FILE = "snapshot.db"
Result = TypeVar("Result")
CANNOT_OPEN_READ_ONLY = ("SQLITE_READONLY", "SQLITE_CANTOPEN")
LOCKED = ("SQLITE_BUSY", "SQLITE_LOCKED")
DISK_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE")
STABLE_COPY_ATTEMPTS = 5
COPY_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A consistent copy of a source file, and the facts about the source at that moment.

    ``sha256`` is that of the source's main file; ``size_bytes`` its size. ``source_digest`` is that of
    the file with its journals, or None where they changed while they were copied.
    """

    path: Path
    source_path: Path
    size_bytes: int
    sha256: str
    journal_mode: str
    source_digest: str | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """The parts of a database file's first 100 bytes that decide how it may be opened.

    Source: https://www.sqlite.org/fileformat.html#the_database_header
    """

    page_size: int
    page_count: int
    is_wal: bool


@dataclass(frozen=True, slots=True)
class SourceDigest:
    """SHA-256 of the main file, and of everything on disk that decides what the client's rows are.

    ``whole`` is None where a file beside the main one cannot be read.
    """

    main: str
    whole: str | None


def digest_files(source: Path) -> SourceDigest | None:
    """Hashes the file, its WAL or rollback journal, and the ``.env`` beside it that may set the zone.

    Returns:
        None where the file cannot be read; whoever takes the snapshot finds out why.
    """
    try:
        return _digest_companions(source, _hash_file(source))
    except OSError:
        return None


def _digest_companions(source: Path, main: str) -> SourceDigest:
    parts = [main]
    try:
        for companion in (_wal(source), _journal(source), source.with_name(".env")):
            present = companion.is_file() and companion.stat().st_size > 0
            parts.append(_hash_file(companion) if present else "-")
    except OSError:
        return SourceDigest(main, None)
    return SourceDigest(main, hashlib.sha256(" ".join(parts).encode()).hexdigest())


def check_file(source: Path) -> None:
    """Looks whether a file may be a client's database at all, before anything else is begun for it.

    Raises:
        ConfigurationError: the file is missing or may not be read.
        SnapshotError: it is no SQLite database, or truncated.
    """
    _read_header(source)


def take_snapshot(source: Path, folder: Path, *, lock_timeout: float = 30.0) -> Snapshot:
    """Copies ``source`` into ``folder`` as of one moment, and checks the copy.

    Args:
        source: the client's file; it may be in use, and its folder may be read-only.
        folder: an existing, empty, writable folder for the copy.
        lock_timeout: how long, in seconds, a locked file is waited for.

    Raises:
        ConfigurationError: the file is missing or may not be read.
        SnapshotError: it is no SQLite database, truncated, damaged, locked or changing too fast.
    """
    snapshot = copy_source(source, folder, lock_timeout=lock_timeout)
    check_snapshot(snapshot)
    return snapshot


def copy_source(source: Path, folder: Path, *, lock_timeout: float, before: SourceDigest | None = None) -> Snapshot:
    """Does what :func:`take_snapshot` does, except for the check, which may then run beside other work.

    Args:
        source: the client's file.
        folder: for the copy.
        lock_timeout: in seconds.
        before: the files' digest just before, where it is known.
    """
    header = _read_header(source)
    path = folder / SNAPSHOT_FILE
    try:
        digest = _copy_database(source, path, header, lock_timeout, before)
        size = source.stat().st_size
        sha256 = digest.main if digest else _hash_file(source)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SnapshotError(_describe_full_disk(source, folder)) from error
        raise SnapshotError(f"{source} cannot be copied to {folder}: {error.strerror}") from error
    return Snapshot(
        path=path,
        source_path=source,
        size_bytes=size,
        sha256=sha256,
        journal_mode="wal" if header.is_wal else "delete",
        source_digest=digest.whole if digest else None,
    )


def open_snapshot(path: Path) -> sqlite3.Connection:
    """Opens a snapshot for reading; nothing can change it, so no locks are taken."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, check_same_thread=False)


def _describe_full_disk(source: Path, folder: Path) -> str:
    return (
        f"{source} cannot be copied: no space left on the disk of {folder.parent}. The copy needs as much space as "
        f"the file; BACKUPS_DIR says where it goes"
    )


def _read_header(source: Path) -> Header:
    try:
        size = source.stat().st_size
        with source.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except FileNotFoundError:
        raise ConfigurationError(f"{source} does not exist") from None
    except PermissionError:
        raise ConfigurationError(f"{source} cannot be read. {explain_owner(source)}") from None
    except OSError as error:
        raise SnapshotError(f"{source} cannot be read: {error.strerror}") from error
    if size == 0:
        raise SnapshotError(f"{source} is empty (0 bytes): it holds no tables, so this is not the bot's file")
    if not header.startswith(MAGIC):
        raise SnapshotError(f"{source} is not an SQLite database (its first 16 bytes are others)")
    if size < HEADER_BYTES:
        raise SnapshotError(f"{source} is truncated: {size} bytes, less than its header")
    page_size = int.from_bytes(header[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    page_count = int.from_bytes(header[28:32], "big")
    is_wal = header[18] == 2 or header[19] == 2
    count_is_valid = header[24:28] == header[92:96]
    if count_is_valid and not is_wal and size < page_count * page_size and not _journal(source).exists():
        raise SnapshotError(
            f"{source} is truncated: {size:,} bytes, where its header speaks of "
            f"{page_count * page_size:,}. Restore it from a backup"
        )
    return Header(page_size, page_count, is_wal)


def _journal(source: Path) -> Path:
    return source.with_name(source.name + "-journal")


def _wal(source: Path) -> Path:
    return source.with_name(source.name + "-wal")


def _shm(source: Path) -> Path:
    return source.with_name(source.name + "-shm")


def _copy_database(
    source: Path, path: Path, header: Header, lock_timeout: float, before: SourceDigest | None
) -> SourceDigest | None:
    """Copies the database and gives the digest of what was copied; None where files changed meanwhile."""
    if not header.is_wal:
        digest = _try_copy(source, path, lock_timeout, _copy_locked)
        if digest is not None:
            return digest
    before = before or digest_files(source)
    # Without its -shm file a WAL database has no open connection, and opening it would create one.
    if (header.is_wal and not _shm(source).exists()) or not _try_copy(source, path, lock_timeout, _back_up):
        _copy_files(source, path)
    _fold_journal(source, path)
    after = digest_files(source)
    return after if after == before else None


def _try_copy(
    source: Path, path: Path, lock_timeout: float, copy: Callable[[Path, Path, float], Result]
) -> Result | None:
    """Copies in one way; None where SQLite would have to repair the file first, and cannot without writing."""
    try:
        return copy(source, path, lock_timeout)
    except sqlite3.Error as error:
        name = _error_name(error)
        if name.startswith(LOCKED):
            raise SnapshotError(_describe_lock(source, lock_timeout)) from error
        if name.startswith(DISK_FULL):
            raise SnapshotError(_describe_full_disk(source, path.parent)) from error
        if not name.startswith(CANNOT_OPEN_READ_ONLY):
            raise SnapshotError(f"{source} cannot be read: {error}") from error
        path.unlink(missing_ok=True)
        return None


def _describe_lock(source: Path, lock_timeout: float) -> str:
    return f"{source} stayed locked for {lock_timeout:g} s. Another process holds it: stop that process or try again"


def _copy_locked(source: Path, path: Path, lock_timeout: float) -> SourceDigest | None:
    """Copies the file's bytes within a read transaction; None if it has come to have a WAL since.

    While it is read, no writer may touch a database with a rollback journal
    (https://www.sqlite.org/lockingv3.html). Closing any descriptor of the file gives its locks up
    (https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_),
    so there is one alone, and it is closed last.
    """
    uri = f"file:{quote(str(source.resolve()))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=lock_timeout, isolation_level=None)
    try:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            return None
        with source.open("rb") as original, path.open("wb") as copy:
            return _digest_companions(source, _copy_bytes(original, copy))
    finally:
        connection.close()


def _copy_bytes(original: BufferedReader, copy: BufferedWriter) -> str:
    """Copies a file and gives its SHA-256."""
    digest = hashlib.sha256()
    size = os.fstat(original.fileno()).st_size
    chunk = memoryview(bytearray(max(1, min(size, COPY_BYTES))))
    while size := original.readinto(chunk):
        digest.update(chunk[:size])
        copy.write(chunk[:size])
    return digest.hexdigest()


def _back_up(source: Path, path: Path, lock_timeout: float) -> bool:
    # readonly_shm keeps SQLite from writing to the -shm file of a bot that is running.
    uri = f"file:{quote(str(source.resolve()))}?mode=ro&readonly_shm=1"
    deadline = time.monotonic() + lock_timeout

    def watch(status: int, _remaining: int, _total: int) -> None:
        # backup() waits for a locked file without end; this gives it one.
        locked = status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        if locked and time.monotonic() > deadline:
            raise SnapshotError(_describe_lock(source, lock_timeout))

    origin = sqlite3.connect(uri, uri=True, timeout=0.1)
    copy = sqlite3.connect(path)
    try:
        origin.backup(copy, pages=-1, progress=watch, sleep=0.1)
    finally:
        copy.close()
        origin.close()
    return True


def _copy_files(source: Path, path: Path) -> None:
    """Copies the file with its journal or WAL; nobody has it open, which is checked by its stats."""
    companions = {source: path, _wal(source): _wal(path), _journal(source): _journal(path)}
    for _ in range(STABLE_COPY_ATTEMPTS):
        before = _read_stats(companions)
        for origin, copy in companions.items():
            copy.unlink(missing_ok=True)
            if origin in before:
                shutil.copyfile(origin, copy)
        if before == _read_stats(companions):
            return
        time.sleep(0.2)
    raise SnapshotError(f"{source} changes while it is copied: stop the process that writes it, or try again")


def _read_stats(paths: dict[Path, Path]) -> dict[Path, tuple[int, int, int]]:
    stats: dict[Path, tuple[int, int, int]] = {}
    for path in paths:
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        stats[path] = (found.st_size, found.st_mtime_ns, found.st_ino)
    return stats


def _fold_journal(source: Path, path: Path) -> None:
    """Folds a WAL or hot journal into the copy."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    except sqlite3.DatabaseError as error:
        raise _explain_damage(source, path, error) from error
    finally:
        connection.close()


def _explain_damage(source: Path, path: Path, error: sqlite3.Error) -> SnapshotError:
    if _error_name(error).startswith(DISK_FULL):
        return SnapshotError(_describe_full_disk(source, path.parent))
    return SnapshotError(
        f"{source} is damaged: {error}. Restore it from a backup, or mend it with 'sqlite3 {source.name} .recover'"
    )


def check_snapshot(snapshot: Snapshot) -> None:
    """Walks every page of the copy.

    Raises:
        SnapshotError: it is damaged.
    """
    source, path = snapshot.source_path, snapshot.path
    connection = open_snapshot(path)
    try:
        problems = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.DatabaseError as error:
        raise _explain_damage(source, path, error) from error
    finally:
        connection.close()
    # Broken NOT NULL and CHECK rules are dirt in the rows, which the load deals with row by row.
    damage = [text for text in problems if text != "ok" and not _is_dirt(text)]
    if damage:
        raise SnapshotError(
            f"{source} is damaged: {'; '.join(damage)}. Restore it from a backup, or mend it with "
            f"'sqlite3 {source.name} .recover'"
        )


def _is_dirt(problem: str) -> bool:
    return problem.startswith(("NULL value in", "CHECK constraint failed", "non-unique entry")) or (
        " value in " in problem
    )


def _error_name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "") or ""


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
