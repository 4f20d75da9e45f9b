"""What the move buys: the same booking workload through the adapter, on SQLite and on PostgreSQL.

Some processes, as a bot, its admin panel and its jobs are, share a client's database. Each writer books
in a transaction that looks whether the slot is free, waits for a moment as a bot waits for Telegram,
inserts the booking and its history. A busy error is one that reached the writer after its time-out.
"""

import asyncio
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from typing import Any

from bench.embedded import EmbeddedServer, write_secrets
from bench.samples import write_client
from migrator.database import Connection, Database, DatabaseBusy, DatabaseSettings, UniqueViolation, open_database
from migrator.logs import configure_logs

WRITERS = (10, 30, 50)
PROCESSES = 5
SECONDS = 5.0
THINKING = 0.02
BUSY_AFTER = 1.0
DOCUMENT = Path("docs/WORKLOAD.md")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What some writers did: bookings, busy errors, and the median time of a booking in seconds."""

    bookings: int
    busy: int
    median: float


async def _write(database: Database, number: int, until: float, times: list[float]) -> tuple[int, int]:
    done = busy = 0
    step = 0
    while time.monotonic() < until:
        place = number * 10_000 + step
        step += 1
        day, hour = date(2031, 1, 1) + timedelta(days=place // 1440), clock(place // 60 % 24, place % 60)
        started = time.monotonic()
        try:
            async with database.transaction() as connection:
                await _book(connection, day, hour, number)
        except DatabaseBusy:
            busy += 1
        except UniqueViolation:
            continue
        else:
            done += 1
            times.append(time.monotonic() - started)
    return done, busy


async def _book(connection: Connection, day: date, hour: clock, number: int) -> None:
    taken = await connection.fetchval("SELECT id FROM bookings WHERE date = $1 AND time = $2", day, hour)
    if taken is not None:
        return
    await asyncio.sleep(THINKING)
    booking = await connection.fetchval(
        "INSERT INTO bookings (date, time, user_id, created_at) VALUES ($1, $2, $3, $4) RETURNING id",
        day, hour, number, datetime.now(UTC),
    )  # fmt: skip
    await connection.execute(
        "INSERT INTO booking_history (booking_id, action, changed_by, changed_by_type) VALUES ($1, 'created', $2, 'user')",
        booking, number,
    )  # fmt: skip


async def _run_writers(settings: dict[str, Any], numbers: list[int]) -> tuple[int, int, list[float]]:
    times: list[float] = []
    async with await open_database(DatabaseSettings(**settings)) as database:
        until = time.monotonic() + SECONDS
        found = await asyncio.gather(*(_write(database, number, until, times) for number in numbers))
    return sum(done for done, _ in found), sum(busy for _, busy in found), times


def _work(settings: dict[str, Any], numbers: list[int]) -> tuple[int, int, list[float]]:
    configure_logs()
    sys.stdout = sys.stderr
    return asyncio.run(_run_writers(settings, numbers))


def measure(settings: dict[str, Any], writers: int) -> Outcome:
    """Lets some writers, spread over processes, book for a while."""
    shares = [list(range(start, writers, PROCESSES)) for start in range(PROCESSES)]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        found = pool.starmap(_work, [(settings, share) for share in shares])
    times = [value for _, _, share in found for value in share]
    return Outcome(sum(f[0] for f in found), sum(f[1] for f in found), statistics.median(times) if times else 0.0)


def main() -> int:
    """Measures both sides and writes the document."""
    rows: list[tuple[int, Outcome, Outcome]] = []
    with tempfile.TemporaryDirectory(prefix="workload-") as scratch:
        folder = Path(scratch)
        write_secrets(folder / "secrets", ["client_001"])
        with EmbeddedServer(folder / "postgres", settings={"fsync": "on"}) as server:
            server.provision(["client_001"], folder / "secrets")
            password = (folder / "secrets" / "clients" / "client_001_password").read_text().strip()
            limits = {"db_pool_min_size": 1, "db_pool_max_size": 10, "db_pool_timeout": BUSY_AFTER}
            for writers in WRITERS:
                path = folder / f"bookings_{writers}.db"
                write_client(path, seed=1, rows=3000)
                before = measure({"db_type": "sqlite", "database_path": str(path), **limits}, writers)
                url = f"postgresql://client_001_user:{password}@127.0.0.1:{server.port}/client_001_db"
                _migrate(server, folder, path)
                after = measure({"db_type": "postgresql", "database_url": url, **limits}, writers)
                rows.append((writers, before, after))
                print(f"{writers} writers: SQLite {before}, PostgreSQL {after}", file=sys.stderr)
    DOCUMENT.write_text(_render(rows), encoding="utf-8")
    print(_render(rows))
    return 0


def _migrate(server: EmbeddedServer, folder: Path, path: Path) -> None:
    client = folder / "clients" / "client_001"
    client.mkdir(parents=True, exist_ok=True)
    server.run_sql("DROP OWNED BY client_001_user CASCADE", database="client_001_db")
    server.provision(["client_001"], folder / "secrets")
    path.replace(client / "bookings.db")
    for companion in ("-wal", "-shm"):
        path.with_name(path.name + companion).unlink(missing_ok=True)
    environment = server.make_environment(folder)
    subprocess.run(
        [sys.executable, "-m", "migrator", "migrate", "--all"], check=True, env=environment, stdout=subprocess.DEVNULL
    )


def _render(rows: list[tuple[int, Outcome, Outcome]]) -> str:
    lines = "\n".join(
        f"| {writers} | {before.bookings / SECONDS:.0f} | {after.bookings / SECONDS:.0f}"
        f" | {after.bookings / max(before.bookings, 1):.1f} | {before.busy} | {after.busy}"
        f" | {before.median * 1000:.0f} | {after.median * 1000:.0f} |"
        for writers, before, after in rows
    )
    return (
        "# What the move buys\n\n"
        f"Measured by `make workload`: writers in {PROCESSES} processes book for {SECONDS:g} s, each booking a\n"
        f"transaction with {THINKING * 1000:g} ms of waiting in it, as for Telegram's answer; SQLite in WAL mode, both with\n"
        f"fsync. A busy error is a booking that failed because the database was not free within {BUSY_AFTER:g} s.\n\n"
        "| writers | SQLite, bookings/s | PostgreSQL, bookings/s | ratio | SQLite, busy errors | PostgreSQL, busy errors"
        " | SQLite, median ms | PostgreSQL, median ms |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        f"{lines}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
