"""What every fault test needs: a job that can be killed, a server that can be killed, and the checks."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.embedded import EmbeddedServer, write_secrets
from bench.samples import write_client

CLIENT = "client_001"
ROWS = int(os.environ.get("FAULT_ROWS", "12000"))
ROUNDS = int(os.environ.get("FAULT_ROUNDS", "50"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: its exit code (negative for a signal) and its log."""

    code: int
    events: tuple[dict[str, object], ...]

    def find(self, name: str) -> list[dict[str, object]]:
        return [event for event in self.events if event["event"] == name]


def list_boundaries(names: Sequence[str]) -> list[int]:
    """Lists the facts at which a stage begins or ends: of a row of equal ones the first two and the last."""
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names, start=1):
        places.setdefault(name, []).append(number)
    return sorted({number for found in places.values() for number in (*found[:2], found[-1])})


class Bench:
    """One client on a server of its own, and everything that must hold of it."""

    def __init__(self, folder: Path, server: EmbeddedServer) -> None:
        self.folder = folder
        self.server = server
        self.source = folder / "clients" / CLIENT / "bookings.db"
        self.source.parent.mkdir(parents=True)
        write_client(self.source, seed=7, rows=ROWS, dirty=True)
        write_secrets(folder / "secrets", [CLIENT])
        server.provision([CLIENT], folder / "secrets")
        self.sha256 = hashlib.sha256(self.source.read_bytes()).hexdigest()
        self.port = server.port
        started = time.monotonic()
        first = self.run()
        self.seconds = time.monotonic() - started
        assert first.code == 3, first.events[-1]
        self.boundaries = list_boundaries([str(event["event"]) for event in first.events])
        self.expected = self.count_rows()
        self.reset()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        settings = {
            "CLIENTS_DIR": str(self.folder / "clients"),
            "SECRETS_DIR": str(self.folder / "secrets" / "clients"),
            "BACKUPS_DIR": str(self.folder / "backups"),
            "REPORTS_DIR": str(self.folder / "reports"),
            "POSTGRES_PORT": str(self.port),
            "PYTHONPATH": str(Path.cwd()),
        }
        command = [
            sys.executable,
            "-m",
            "migrator",
            "migrate",
            "--client",
            CLIENT,
            "--connect-timeout",
            "30",
            *arguments,
        ]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **settings, **environment},
        )

    def finish(self, job: subprocess.Popen[str], before: Sequence[str] = ()) -> Outcome:
        output, _ = job.communicate(timeout=120)
        lines = [*before, *output.splitlines()]
        return Outcome(
            job.returncode, tuple(json.loads(line) for line in lines if line.startswith("{") and line.endswith("}"))
        )

    def run(self, *arguments: str, **environment: str) -> Outcome:
        return self.finish(self.start(*arguments, **environment))

    def kill_after(self, seconds: float) -> Outcome:
        job = self.start()
        time.sleep(seconds)
        job.send_signal(signal.SIGKILL)
        return self.finish(job)

    def kill_at_event(self, number: int) -> Outcome:
        """Kills the job as soon as it has said its n-th fact."""
        job = self.start()
        lines = self.read_events(job, number)
        job.send_signal(signal.SIGKILL)
        return self.finish(job, lines)

    def read_events(self, job: subprocess.Popen[str], number: int) -> list[str]:
        """Reads the job's log until it has said its n-th fact."""
        assert job.stdout is not None
        lines: list[str] = []
        while len(lines) < number and (line := job.stdout.readline()):
            lines.append(line.rstrip("\n"))
        return lines

    def sql(self, query: str) -> str:
        return self.server.run_sql(query, database=f"{CLIENT}_db")

    def await_silence(self) -> None:
        """Waits until the server has noticed that its client is gone."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'migrator'") == "0":
                return
            time.sleep(0.02)
        raise AssertionError("a connection of the dead job is still there")

    def list_objects(self) -> list[str]:
        """Everything that a migration makes: tables, sequences, indexes, schemas."""
        query = (
            "SELECT nspname || '.' || relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
            " UNION ALL SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%'"
            " AND nspname NOT IN ('public', 'information_schema') ORDER BY 1"
        )
        return self.sql(query).splitlines()

    def count_rows(self) -> dict[str, int]:
        query = self.sql(
            "SELECT string_agg(format('SELECT %L, count(*) FROM public.%I', tablename, tablename), ' UNION ALL ')"
            " FROM pg_tables WHERE schemaname = 'public'"
        )
        lines = self.sql(query).splitlines() if query else []
        return {table: int(rows) for table, rows in sorted(line.split("|") for line in lines)}

    def check_all_or_nothing(self) -> bool:
        """Checks what must hold after any fault.

        Returns:
            Whether the client's rows are there.
        """
        self.await_silence()
        assert hashlib.sha256(self.source.read_bytes()).hexdigest() == self.sha256
        assert [path.name for path in self.source.parent.iterdir()] == ["bookings.db"]
        assert self.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0"
        if not self.list_objects():
            return False
        assert self.count_rows() == self.expected
        return True

    def check_next_run(self, already_there: bool) -> None:
        """Checks that the next run ends right and that nothing is left lying about."""
        done = self.run()
        assert done.code == 3, done.events[-1]
        (finished,) = done.find("client_finished")
        total = sum(self.expected.values())
        assert finished["verified"]
        assert (finished["rows_inserted"], finished["rows_already_present"]) == (
            (0, total) if already_there else (total, 0)
        )
        assert self.check_all_or_nothing()
        assert not (self.folder / "backups" / ".work").exists()
        assert not list((self.folder / "reports").rglob(".*"))
        assert self.sql("SELECT count(*) FROM pg_ls_tmpdir()") == "0"

    def reset(self) -> None:
        self.await_silence()
        owned = self.sql("SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables WHERE schemaname = 'public'")
        self.sql("DROP SCHEMA IF EXISTS migrator CASCADE" + (f"; DROP TABLE {owned} CASCADE" if owned else ""))
        assert self.list_objects() == []


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="migrator-faults-") as folder,
        EmbeddedServer(Path(folder) / "postgres", settings={"restart_after_crash": "on"}) as server,
    ):
        yield Bench(Path(folder), server)


@pytest.fixture(autouse=True)
def _clean(bench: Bench) -> Iterator[None]:
    yield
    bench.port = bench.server.port
    bench.reset()
