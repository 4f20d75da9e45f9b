"""How fast the job is: this, pgloader, the first release's method and COPY's own limit, in one run.

The contenders take turns, at least five times each, on one embedded PostgreSQL 16; medians and ratios
are printed and saved. Memory is the greatest resident size of the process and its children.
"""

import argparse
import asyncio
import os
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from typing import Any

import asyncpg

from bench.embedded import EmbeddedServer, write_secrets
from bench.samples import write_fleet

DOCUMENT = Path("docs/PERFORMANCE.md")
PASSWORD = "measured"
COLUMNS = ("id", "date", "time", "user_id", "username", "created_at", "service_id", "duration_minutes")
TABLE = (
    "CREATE TABLE bookings (id bigint, date date, time time, user_id bigint, username text, created_at timestamptz,"
    " service_id bigint, duration_minutes bigint)"
)


@dataclass(frozen=True, slots=True)
class Contest:
    """Where the contenders meet: the server, the source file and a scratch folder."""

    server: EmbeddedServer
    source: Path
    scratch: Path

    def renew(self) -> None:
        """Gives the role an empty database."""
        self.server.run_sql("DROP DATABASE IF EXISTS bench")
        self.server.run_sql("CREATE DATABASE bench OWNER bencher ENCODING 'UTF8' TEMPLATE template0")
        self.server.run_sql("CHECKPOINT")

    async def connect(self) -> asyncpg.Connection:
        """Connects as the role."""
        return await asyncpg.connect(
            host="127.0.0.1", port=self.server.port, user="bencher", password=PASSWORD, database="bench"
        )


def write_bookings(path: Path, rows: int) -> None:
    """Writes a table of bookings with its keys and indexes, as the bots have it."""
    chance = random.Random(1)
    first, moment = date(2024, 1, 1), datetime(2024, 1, 1)  # noqa: DTZ001
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE bookings (id INTEGER PRIMARY KEY AUTOINCREMENT, date TEXT NOT NULL, time TEXT NOT NULL,"
        " user_id INTEGER NOT NULL, username TEXT, created_at TEXT NOT NULL, service_id INTEGER DEFAULT 1,"
        " duration_minutes INTEGER DEFAULT 60); CREATE INDEX by_slot ON bookings (date, time);"
        "CREATE INDEX by_user ON bookings (user_id);"
    )
    connection.executemany(
        "INSERT INTO bookings (date, time, user_id, username, created_at, service_id) VALUES (?, ?, ?, ?, ?, ?)",
        (
            (
                (first + timedelta(days=n % 1000)).isoformat(),
                f"{n // 1000 % 24:02d}:{n % 60:02d}",
                chance.randrange(10**9, 2**40),
                f"user_{n % 5000}",
                str(moment + timedelta(seconds=n)),
                n % 10 + 1,
            )
            for n in range(rows)
        ),
    )
    connection.commit()
    connection.close()


def _convert(row: tuple[Any, ...]) -> tuple[Any, ...]:
    day, hour, moment = date.fromisoformat(row[1]), clock.fromisoformat(row[2]), row[5] + "+00:00"
    return (row[0], day, hour, row[3], row[4], datetime.fromisoformat(moment), row[6], row[7])


def run_limit(contest: Contest) -> float:
    """A ready-made binary COPY file into a plain table: nothing can be faster."""
    payload = contest.scratch / "payload.bin"

    async def run() -> float:
        connection = await contest.connect()
        await connection.execute(TABLE)
        if not payload.exists():
            rows = sqlite3.connect(contest.source).execute(f"SELECT {', '.join(COLUMNS)} FROM bookings")
            records = (_convert(r) for r in rows)
            await connection.copy_records_to_table("bookings", columns=COLUMNS, records=records)
            await connection.copy_from_table("bookings", columns=COLUMNS, output=payload, format="binary")
            await connection.execute("TRUNCATE bookings")
        started = time.monotonic()
        await connection.copy_to_table("bookings", columns=COLUMNS, source=payload, format="binary")
        taken = time.monotonic() - started
        await connection.close()
        return taken

    return asyncio.run(run())


def run_first_release(contest: Contest) -> float:
    """The first release's method: executemany, 500 rows at a time, ON CONFLICT DO NOTHING."""

    async def run() -> float:
        connection = await contest.connect()
        await connection.execute(TABLE + "; ALTER TABLE bookings ADD PRIMARY KEY (id)")
        started = time.monotonic()
        cursor = sqlite3.connect(contest.source).execute(f"SELECT {', '.join(COLUMNS)} FROM bookings")
        statement = f"INSERT INTO bookings VALUES ({', '.join(f'${n}' for n in range(1, 9))}) ON CONFLICT DO NOTHING"
        while rows := cursor.fetchmany(500):
            await connection.executemany(
                statement,
                [_convert(r) for r in rows],
            )
        taken = time.monotonic() - started
        await connection.close()
        return taken

    return asyncio.run(run())


def run_pgloader(contest: Contest) -> float:
    """Runs pgloader with its defaults: load, keys and indexes; nothing is verified."""
    url = f"postgresql://bencher:{PASSWORD}@127.0.0.1:{contest.server.port}/bench"
    started = time.monotonic()
    subprocess.run(
        ["pgloader", "--root-dir", str(contest.scratch / "pgloader"), f"sqlite://{contest.source}", url],
        check=True,
        capture_output=True,
    )
    return time.monotonic() - started


def run_migrator(contest: Contest, *arguments: str) -> float:
    """The whole job: snapshot, load, keys, indexes, content verification, commit."""
    environment = {
        **os.environ,
        "PGPASSWORD": PASSWORD,
        "REPORTS_DIR": str(contest.scratch / "reports"),
        "BACKUPS_DIR": str(contest.scratch / "backups"),
    }
    url = f"postgresql://bencher@127.0.0.1:{contest.server.port}/bench"
    command = [sys.executable, "-m", "migrator", "migrate", "--sqlite-path", str(contest.source), "--postgres-url", url]
    started = time.monotonic()
    subprocess.run([*command, *arguments], check=True, capture_output=True, env=environment)
    return time.monotonic() - started


def measure_memory(contest: Contest) -> float:
    """Gives the job's greatest resident size in MiB, from a process that runs nothing else."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    url = f"postgresql://bencher@127.0.0.1:{contest.server.port}/bench"
    command = [sys.executable, "-m", "migrator", "migrate", "--sqlite-path", str(contest.source), "--postgres-url", url]
    environment = {
        **os.environ,
        "PGPASSWORD": PASSWORD,
        "REPORTS_DIR": str(contest.scratch / "reports"),
        "BACKUPS_DIR": str(contest.scratch / "backups"),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, *command], check=True, capture_output=True, text=True, env=environment
    )
    return float(done.stdout)


def run_contest(contest: Contest, rounds: int) -> dict[str, float]:
    """Lets all contenders take turns and gives the median of each, in seconds."""
    contenders: dict[str, Callable[[Contest], float]] = {"COPY of a ready-made file (the limit)": run_limit}
    contenders["this: whole migrate, verified"] = run_migrator
    if shutil.which("pgloader"):
        contenders["pgloader: load and indexes"] = run_pgloader
    contenders["the first release's method: load alone"] = run_first_release
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            contest.renew()
            taken[name].append(run(contest))
            print(f"round {number + 1}: {name}: {taken[name][-1]:.2f} s", file=sys.stderr)
    return {name: statistics.median(times) for name, times in taken.items()}


def run_fleet(server: EmbeddedServer, scratch: Path, clients: int, rows: int) -> dict[str, float]:
    """Moves a fleet with ``migrate --all``, and with one pgloader call for each client."""
    ids = write_fleet(scratch / "clients", rows=rows, clients=clients)
    write_secrets(scratch / "secrets", ids)
    found: dict[str, float] = {}
    server.provision(ids, scratch / "secrets")
    environment = {
        **os.environ,
        "CLIENTS_DIR": str(scratch / "clients"),
        "SECRETS_DIR": str(scratch / "secrets" / "clients"),
        "BACKUPS_DIR": str(scratch / "backups"),
        "REPORTS_DIR": str(scratch / "reports"),
        "POSTGRES_PORT": str(server.port),
    }
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "migrator", "migrate", "--all"], check=False, env=environment, stdout=subprocess.DEVNULL
    )
    found["this: migrate --all, verified"] = time.monotonic() - started
    if shutil.which("pgloader"):
        started = time.monotonic()
        for client in ids:
            server.run_sql(f"DROP DATABASE {client}_db")
            server.run_sql(f"CREATE DATABASE {client}_db OWNER bencher ENCODING 'UTF8' TEMPLATE template0")
        preparing = time.monotonic() - started
        started = time.monotonic()
        for client in ids:
            url = f"postgresql://bencher:{PASSWORD}@127.0.0.1:{server.port}/{client}_db"
            path = scratch / "clients" / client / "bookings.db"
            subprocess.run(
                ["pgloader", "--root-dir", str(scratch / "pgloader"), f"sqlite://{path}", url],
                check=False,
                capture_output=True,
            )
        found["pgloader: one call for each client"] = time.monotonic() - started
        print(f"(preparing databases for pgloader took {preparing:.1f} s and is not counted)", file=sys.stderr)
    return found


def main() -> int:
    """Runs the contest and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--client-rows", type=int, default=5000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        scratch = Path(folder)
        with EmbeddedServer(scratch / "postgres", auth="md5", settings={"max_wal_size": "4GB"}) as server:
            server.run_sql(f"CREATE ROLE bencher LOGIN PASSWORD '{PASSWORD}'")
            source = scratch / "bookings.db"
            write_bookings(source, chosen.rows)
            contest = Contest(server, source, scratch)
            medians = run_contest(contest, chosen.rounds)
            contest.renew()
            memory = {chosen.rows: measure_memory(contest)}
            small = scratch / "small.db"
            write_bookings(small, chosen.rows // 10)
            contest.renew()
            memory[chosen.rows // 10] = measure_memory(Contest(server, small, scratch))
            fleet = run_fleet(server, scratch, chosen.clients, chosen.client_rows)
    text = render(chosen, medians, memory, fleet)
    DOCUMENT.write_text(text, encoding="utf-8")
    print(text)
    return 0


def render(
    chosen: argparse.Namespace, medians: dict[str, float], memory: dict[int, float], fleet: dict[str, float]
) -> str:
    """Writes the document."""
    limit = next(iter(medians.values()))
    single = "\n".join(f"| {name} | {taken:.2f} | {taken / limit:.1f} |" for name, taken in medians.items())
    ours = next(iter(fleet.values()))
    many = "\n".join(
        f"| {name} | {taken:.1f} | {taken / chosen.clients:.3f} | {taken / ours:.1f} |" for name, taken in fleet.items()
    )
    sizes = "; ".join(f"{rows:,} rows: {size:.0f} MiB" for rows, size in sorted(memory.items()))
    return (
        "# Performance\n\n"
        f"Measured by `make bench` on {os.cpu_count()} processors, on the embedded PostgreSQL 16 with fsync off. The\n"
        f"contenders took turns {chosen.rounds} times; the figures are medians of wall time, start-up included.\n\n"
        f"## One table of {chosen.rows:,} bookings\n\n"
        f"| contender | seconds | times the limit |\n| --- | --- | --- |\n{single}\n\n"
        f"Greatest resident memory of the job: {sizes}.\n\n"
        f"## {chosen.clients} clients of about {chosen.client_rows:,} rows\n\n"
        f"| contender | seconds | seconds a client | ratio |\n| --- | --- | --- | --- |\n{many}\n"
    )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sys.exit(main())
