"""How fast the job is: this, pgloader, the first release's method and COPY's own limit, in one run.

The contenders take turns, at least five times each, on one embedded PostgreSQL 16; medians and ratios
are printed and saved. Memory is the greatest resident size of the process and its children.
"""

import argparse
import asyncio
import json
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
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from typing import Any

import asyncpg
import matplotlib
from matplotlib import pyplot

from bench.embedded import EmbeddedServer, write_secrets
from bench.samples import write_fleet
from migrator.batches import BATCH_ROWS

DOCUMENT = Path("docs/PERFORMANCE.md")
PLOTS = (Path("docs/performance-rows.png"), Path("docs/performance-clients.png"))
PASSWORD = "measured"
# A call of pgloader for a small client takes a second or two; one in some hundreds never ends.
HUNG_SECONDS = 60
LIMIT = "COPY of a ready-made file (the limit)"
LOAD = "this: the load alone"
WHOLE = "this: whole migrate, verified"
PGLOADER = "pgloader: load and indexes"
FIRST = "the first release's method: load alone"
OURS = "this: migrate --all, verified"
AGAIN = "this: migrate --all again, nothing changed"
THEIRS = "pgloader: one call for each client"
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
        """Gives the role an empty database, and lets the disk come to rest: nobody pays for what others wrote."""
        self.server.run_sql("DROP DATABASE IF EXISTS bench")
        self.server.run_sql("CREATE DATABASE bench OWNER bencher ENCODING 'UTF8' TEMPLATE template0")
        self.server.run_sql("CHECKPOINT")
        os.sync()

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


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the whole job: seconds in all and for the load alone, and the greatest resident size in MiB."""

    seconds: float
    load_seconds: float
    memory: float


_MEASURE = (
    "import resource, subprocess, sys, time; started = time.monotonic(); "
    "done = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True); "
    "taken = time.monotonic() - started; sys.stdout.write(done.stdout); "
    "print(taken, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
)
_WITH_BATCH = "import migrator.batches, migrator.__main__; migrator.batches.BATCH_ROWS = {}; migrator.__main__.run()"


def run_job(contest: Contest, batch: int | None = None) -> Job:
    """Runs the whole job: snapshot, load, keys, indexes, content verification, commit.

    Args:
        contest: from where to where.
        batch: rows in a columnar batch, instead of the usual number.
    """
    environment = {
        **os.environ,
        "PGPASSWORD": PASSWORD,
        "REPORTS_DIR": str(contest.scratch / "reports"),
        "BACKUPS_DIR": str(contest.scratch / "backups"),
        # As in the image, modules are compiled once and not in each run.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(contest.server.folder / "bytecode"),
    }
    program = ["-m", "migrator"] if batch is None else ["-c", _WITH_BATCH.format(batch)]
    url = f"postgresql://bencher@127.0.0.1:{contest.server.port}/bench"
    command = [sys.executable, *program, "migrate", "--sqlite-path", str(contest.source), "--postgres-url", url]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *command], check=True, capture_output=True, text=True, env=environment
    )
    *lines, last = done.stdout.splitlines()
    seconds, memory = map(float, last.split())
    loaded = [event for event in map(json.loads, lines) if event["event"] == "table_loaded"]
    return Job(seconds, sum(event["copy_seconds"] for event in loaded), memory)


def run_contest(contest: Contest, rounds: int) -> dict[str, float]:
    """Lets all contenders take turns and gives the median of each, in seconds."""
    taken: dict[str, list[float]] = {name: [] for name in (LIMIT, LOAD, WHOLE, PGLOADER, FIRST)}

    def add(name: str, seconds: float) -> None:
        taken[name].append(seconds)
        print(f"{len(taken[name])}: {name}: {seconds:.2f} s", file=sys.stderr)

    for _ in range(rounds):
        contest.renew()
        add(LIMIT, run_limit(contest))
        contest.renew()
        job = run_job(contest)
        add(LOAD, job.load_seconds)
        add(WHOLE, job.seconds)
        if shutil.which("pgloader"):
            contest.renew()
            add(PGLOADER, run_pgloader(contest))
        contest.renew()
        add(FIRST, run_first_release(contest))
    return {name: statistics.median(times) for name, times in taken.items() if times}


def run_sizes(server: EmbeddedServer, scratch: Path, sizes: Sequence[int]) -> dict[int, tuple[Job, float | None]]:
    """Measures the job, and pgloader, at several numbers of rows, once each."""
    found: dict[int, tuple[Job, float | None]] = {}
    for rows in sizes:
        folder = scratch / f"rows_{rows}"
        folder.mkdir()
        source = folder / "bookings.db"
        write_bookings(source, rows)
        contest = Contest(server, source, folder)
        contest.renew()
        job = run_job(contest)
        contest.renew()
        theirs = run_pgloader(contest) if shutil.which("pgloader") else None
        found[rows] = (job, theirs)
        print(
            f"{rows:,} rows: {job.seconds:.1f} s, {job.memory:.0f} MiB; pgloader {theirs or 0:.1f} s", file=sys.stderr
        )
        shutil.rmtree(folder)
    return found


def run_batches(contest: Contest, sizes: Sequence[int], rounds: int) -> dict[int, Job]:
    """Measures the job with other numbers of rows in a columnar batch."""
    found: dict[int, list[Job]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            contest.renew()
            found[size].append(run_job(contest, size))
    return {size: sorted(jobs, key=lambda job: job.seconds)[len(jobs) // 2] for size, jobs in found.items()}


def run_fleet(server: EmbeddedServer, scratch: Path, clients: int, rows: int) -> dict[str, float]:
    """Moves a fleet with ``migrate --all``, does so again, and moves it with one pgloader call for each client."""
    scratch = scratch / f"fleet_{clients}"
    ids = write_fleet(scratch / "clients", rows=rows, clients=clients)
    write_secrets(scratch / "secrets", ids)
    for client in ids:
        server.run_sql(f"DROP DATABASE IF EXISTS {client}_db")
    server.provision(ids, scratch / "secrets")
    environment = server.make_environment(scratch)
    command = [sys.executable, "-m", "migrator", "migrate", "--all"]
    found: dict[str, float] = {}
    for name in (OURS, AGAIN):
        started = time.monotonic()
        subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL)
        found[name] = time.monotonic() - started
    if shutil.which("pgloader"):
        for client in ids:
            server.run_sql(f"DROP DATABASE {client}_db")
            server.run_sql(f"CREATE DATABASE {client}_db OWNER bencher ENCODING 'UTF8' TEMPLATE template0")
        hung = 0.0
        started = time.monotonic()
        for client in ids:
            begun = time.monotonic()
            url = f"postgresql://bencher:{PASSWORD}@127.0.0.1:{server.port}/{client}_db"
            path = scratch / "clients" / client / "bookings.db"
            command = ["pgloader", "--root-dir", str(scratch / "pgloader"), f"sqlite://{path}", url]
            try:
                subprocess.run(command, check=False, capture_output=True, timeout=HUNG_SECONDS)
            except subprocess.TimeoutExpired:
                hung += time.monotonic() - begun
                print(f"pgloader hung on {client}; its time does not count", file=sys.stderr)
        found[THEIRS] = time.monotonic() - started - hung
    print(f"{clients} clients: " + "; ".join(f"{name} {taken:.1f} s" for name, taken in found.items()), file=sys.stderr)
    return found


def main() -> int:
    """Runs the contest and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1_000, 3_000, 6_000, 20_000, 50_000])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 200])
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
            batches = run_batches(contest, chosen.batches, min(3, chosen.rounds))
            sizes = run_sizes(server, scratch, chosen.sizes)
            fleets = {clients: run_fleet(server, scratch, clients, chosen.client_rows) for clients in chosen.clients}
    draw_plots(sizes, fleets)
    text = render(chosen, medians, batches, sizes, fleets)
    DOCUMENT.write_text(text, encoding="utf-8")
    print(text)
    return 0


def draw_plots(sizes: dict[int, tuple[Job, float | None]], fleets: dict[int, dict[str, float]]) -> None:
    """Draws time against rows and time against clients."""
    matplotlib.use("Agg")
    rows = sorted(sizes)
    lines = {"this: whole migrate, verified": [(n, sizes[n][0].seconds) for n in rows]}
    if all(sizes[n][1] for n in rows):
        lines["pgloader: load and indexes"] = [(n, sizes[n][1] or 0.0) for n in rows]
    _draw_plot(PLOTS[0], "rows in one table", lines)
    names = list(next(iter(fleets.values())))
    _draw_plot(PLOTS[1], "clients", {name: [(n, fleets[n][name]) for n in sorted(fleets)] for name in names})


def _draw_plot(path: Path, unit: str, lines: dict[str, list[tuple[int, float]]]) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for (name, points), colour, marker in zip(lines.items(), ("#2a78d6", "#c98500", "#5b6470"), "os^", strict=False):
        axes.plot(*zip(*points, strict=True), label=name, color=colour, marker=marker, linewidth=2)
    axes.set(xlabel=unit, ylabel="seconds", xlim=(0, None), ylim=(0, None))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(color="#dde1e6")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def render(
    chosen: argparse.Namespace,
    medians: dict[str, float],
    batches: dict[int, Job],
    sizes: dict[int, tuple[Job, float | None]],
    fleets: dict[int, dict[str, float]],
) -> str:
    """Writes the document."""
    limit, theirs = medians[LIMIT], medians.get(PGLOADER)
    single = "\n".join(
        f"| {name} | {taken:.2f} | {taken / limit:.1f} | {f'{taken / theirs:.2f}' if theirs else ''} |"
        for name, taken in medians.items()
    )
    batched = "\n".join(f"| {size:,} | {job.seconds:.2f} | {job.memory:.0f} |" for size, job in batches.items())
    sized = "\n".join(
        f"| {rows:,} | {job.seconds:.1f} | {job.seconds / rows * 1e6:.1f} | {job.memory:.0f} |"
        f" {f'{other:.1f}' if other else ''} |"
        for rows, (job, other) in sizes.items()
    )
    many = "\n".join(
        f"| {clients} | {name} | {taken:.1f} | {taken / clients:.3f} | {taken / found[OURS]:.1f} |"
        for clients, found in fleets.items()
        for name, taken in found.items()
    )
    return (
        "# Performance\n\n"
        f"Measured by `make bench` on {os.cpu_count()} processors, on the embedded PostgreSQL 16 with fsync off. The\n"
        f"contenders took turns {chosen.rounds} times; the figures are medians of wall time, start-up included.\n\n"
        f"## One table of {chosen.rows:,} bookings\n\n"
        f"| contender | seconds | times the limit | times pgloader |\n| --- | --- | --- | --- |\n{single}\n\n"
        f"## From small to large\n\nEach measured once; the job's greatest resident memory stays below a bound.\n\n"
        f"![time against rows]({PLOTS[0].name})\n\n"
        f"| rows | seconds | microseconds a row | MiB | pgloader, seconds |\n| --- | --- | --- | --- | --- |\n{sized}\n\n"
        f"## Rows in a columnar batch\n\n{chosen.rows:,} rows; the usual number is {BATCH_ROWS:,}: more rows take more\n"
        f"memory and save little time.\n\n| rows | seconds | MiB |\n| --- | --- | --- |\n{batched}\n\n"
        f"## Fleets of clients of about {chosen.client_rows:,} rows\n\n![time against clients]({PLOTS[1].name})\n\n"
        f"| clients | contender | seconds | seconds a client | ratio |\n| --- | --- | --- | --- | --- |\n{many}\n"
    )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    sys.exit(main())
