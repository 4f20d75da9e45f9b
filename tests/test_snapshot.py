"""The snapshot: consistent, checked, and without a trace beside the source."""

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from migrator.errors import ConfigurationError, SnapshotError
from migrator.snapshot import digest_files, take_snapshot
from tests.conftest import Lab

_UNPRIVILEGED = 65534


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "client"
    folder.mkdir()
    path = folder / "bookings.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)")
    connection.executemany("INSERT INTO t (a) VALUES (?)", [("x" * 100,)] * 500)
    connection.commit()
    connection.close()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


def count(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM t").fetchone()[0])
    finally:
        connection.close()


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def leave_wal(source: Path) -> None:
    """Leaves the file as a killed bot does: rows in the -wal that the main file does not have."""
    script = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1])\n"
        "c.execute('PRAGMA journal_mode = WAL')\n"
        "c.execute('PRAGMA wal_autocheckpoint = 0')\n"
        "c.execute(\"INSERT INTO t (a) VALUES ('in the wal')\")\n"
        "c.commit()\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(source)], check=False)
    assert source.with_name("bookings.db-wal").stat().st_size > 0


def leave_hot_journal(source: Path) -> None:
    """Leaves the file half written, with the journal that undoes it."""
    script = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1])\n"
        "c.execute('PRAGMA cache_size = 1')\n"
        "c.execute('BEGIN')\n"
        "c.execute(\"UPDATE t SET a = 'half written'\")\n"
        'c.execute("INSERT INTO t (a) SELECT a FROM t")\n'
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(source)], check=False)
    assert source.with_name("bookings.db-journal").stat().st_size > 0


def test_plain_file_is_copied_and_described(source: Path, folder: Path) -> None:
    before = contents(source.parent)
    snapshot = take_snapshot(source, folder)
    assert count(snapshot.path) == 500
    assert snapshot.journal_mode == "delete"
    assert snapshot.size_bytes == source.stat().st_size
    assert len(snapshot.sha256) == 64
    assert contents(source.parent) == before


@pytest.mark.parametrize("with_shm", [True, False])
def test_wal_of_a_killed_bot_is_read_and_left_alone(source: Path, folder: Path, with_shm: bool) -> None:
    leave_wal(source)
    if not with_shm:
        source.with_name("bookings.db-shm").unlink()
    before = contents(source.parent)
    snapshot = take_snapshot(source, folder)
    assert count(snapshot.path) == 501
    assert snapshot.journal_mode == "wal"
    assert contents(source.parent) == before


def test_wal_file_without_companions_gets_none(source: Path, folder: Path) -> None:
    connection = sqlite3.connect(source)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert [file.name for file in source.parent.iterdir()] == ["bookings.db"]
    take_snapshot(source, folder)
    assert [file.name for file in source.parent.iterdir()] == ["bookings.db"]


def test_hot_journal_is_undone_on_the_copy_alone(source: Path, folder: Path) -> None:
    leave_hot_journal(source)
    before = contents(source.parent)
    snapshot = take_snapshot(source, folder)
    connection = sqlite3.connect(snapshot.path)
    assert connection.execute("SELECT count(*), count(DISTINCT a), min(a) FROM t").fetchone() == (
        500,
        1,
        "x" * 100,
    )
    assert contents(source.parent) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user to meet a read-only folder")
def leave_secret(source: Path) -> None:
    source.with_name(".env").write_text("TOKEN=1")


@pytest.mark.parametrize("leave", [leave_wal, leave_hot_journal, leave_secret, None])
def test_folder_that_may_not_be_written(source: Path, folder: Path, leave: object) -> None:
    if callable(leave):
        leave(source)
    shutil.chown(folder, _UNPRIVILEGED, _UNPRIVILEGED)
    for place in (source.parent, *source.parent.iterdir()):
        place.chmod(0o555 if place.is_dir() else 0o000 if place.name == ".env" else 0o444)
    for place in folder.parents:
        if place != Path("/") and place.stat().st_uid == 0 and place != Path("/tmp"):
            place.chmod(place.stat().st_mode | 0o011)
    found: list[int] = []
    child = os.fork()
    if child == 0:
        os.setgid(_UNPRIVILEGED)
        os.setuid(_UNPRIVILEGED)
        try:
            os._exit(0 if count(take_snapshot(source, folder).path) >= 500 else 3)
        except BaseException:
            os._exit(4)
    found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert found == [0]


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE", "PERSIST"])
def test_file_of_a_running_bot_is_consistent(source: Path, folder: Path, mode: str) -> None:
    writer = sqlite3.connect(source, check_same_thread=False)
    writer.execute(f"PRAGMA journal_mode = {mode}")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            writer.execute("INSERT INTO t (a) VALUES ('a')")
            writer.execute("INSERT INTO t (a) VALUES ('b')")
            writer.commit()
            time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            place = folder / str(number)
            place.mkdir()
            assert count(take_snapshot(source, place).path) % 2 == 0
    finally:
        stop.set()
        thread.join()
        writer.close()


def test_locked_file_is_waited_for_and_then_named(source: Path, folder: Path) -> None:
    writer = sqlite3.connect(source)
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SnapshotError, match=r"bookings\.db stayed locked for 0\.3 s"):
        take_snapshot(source, folder, lock_timeout=0.3)
    writer.rollback()
    assert count(take_snapshot(source, folder).path) == 500


def test_missing_file(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.db does not exist"):
        take_snapshot(folder / "nowhere.db", folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"just a text, and long enough to be looked at" * 10, "is not an SQLite database"),
        (b"SQLite format 3\x00" + b"\x00" * 20, "is truncated"),
    ],
)
def test_file_that_is_no_database(tmp_path: Path, folder: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bookings.db"
    path.write_bytes(content)
    with pytest.raises(SnapshotError, match=message):
        take_snapshot(path, folder)


def test_truncated_file(source: Path, folder: Path) -> None:
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size // 2)
    with pytest.raises(SnapshotError, match=r"is truncated: 32,768 bytes, where its header speaks of"):
        take_snapshot(source, folder)


def test_damaged_page(source: Path, folder: Path) -> None:
    with source.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(SnapshotError, match="is damaged"):
        take_snapshot(source, folder)


@pytest.mark.parametrize("damaged", ["t", "by_a"])
def test_damage_is_reported_and_nothing_is_committed(lab: Lab, damaged: str) -> None:
    """The load reads the table's pages but none of the index's: that damage comes to light beside the load."""
    rows = [(f"{n:>40}",) for n in range(2_000)]
    path = lab.fill("CREATE TABLE t (a TEXT); CREATE INDEX by_a ON t (a)", ("INSERT INTO t VALUES (?)", rows))
    with sqlite3.connect(path) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (page,) = connection.execute(query, (damaged,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    report = lab.migrate()
    assert report.status == "failed"
    assert report.error and "is damaged" in report.error and ".recover" in report.error
    assert not lab.fetch("SELECT FROM pg_tables WHERE schemaname = 'public'")


def test_digest_is_of_what_was_copied(source: Path, folder: Path) -> None:
    snapshot = take_snapshot(source, folder)
    digest = digest_files(source)
    assert digest is not None
    assert (snapshot.sha256, snapshot.source_digest) == (digest.main, digest.whole)
    assert snapshot.path.read_bytes() == source.read_bytes()
