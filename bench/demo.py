"""The whole job on this machine without Docker: sample clients, a real PostgreSQL, the migration."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.embedded import EmbeddedServer, write_secrets
from bench.samples import write_fleet
from migrator.errors import ExitCode
from migrator.report import read_latest
from migrator.terminal import make_console, print_reports

SEED = 1
ROWS = 3000
REPORTS = Path("reports/demo")


def main() -> int:
    """Runs the demonstration.

    Returns:
        0 where ``migrate --all`` answered 0 or 3, else its answer.
    """
    console = make_console()
    scratch = Path(tempfile.mkdtemp(prefix="migrator-demo-"))
    shutil.rmtree(REPORTS, ignore_errors=True)
    try:
        clients = write_fleet(scratch / "clients", seed=SEED, rows=ROWS)
        console.print(f"Wrote {len(clients)} sample clients.", highlight=False)
        write_secrets(scratch / "secrets", clients)
        with EmbeddedServer(scratch / "postgres") as server:
            console.print(f"Started PostgreSQL 16 on port {server.port}.", highlight=False)
            server.provision(clients, scratch / "secrets")
            code = _migrate(scratch, server)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    console.print("Stopped PostgreSQL.\n", highlight=False)
    reports = [read_latest(REPORTS, client) for client in clients]
    print_reports(reports, console, tables=True)
    adding_up = sum(table.adds_up for report in reports for table in report.tables)
    tables = sum(len(report.tables) for report in reports)
    console.print(f"\nRow accounting holds for {adding_up} of {tables} tables.", highlight=False)
    console.print(
        f"Reports: {REPORTS}/<client>/latest.json; rejected rows: rejected.jsonl beside each run's report",
        highlight=False,
    )
    meaning = {
        ExitCode.OK: "all rows are in and verified",
        ExitCode.REJECTED_ROWS: "verified; some rows are quarantined",
    }
    console.print(
        f"migrate --all ended with exit code {code}: {meaning.get(ExitCode(code), 'failed')}.",
        highlight=False,
    )
    return 0 if code in (ExitCode.OK, ExitCode.REJECTED_ROWS) else code


def _migrate(scratch: Path, server: EmbeddedServer) -> int:
    environment = server.make_environment(scratch) | {"REPORTS_DIR": str(REPORTS)}
    log = REPORTS / "migrate.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "migrator", "migrate", "--all"], check=False, env=environment, stdout=file
        )
    print(f"Ran migrate --all; its log is {log}.")
    if done.returncode not in (ExitCode.OK, ExitCode.REJECTED_ROWS):
        print(log.read_text())
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
