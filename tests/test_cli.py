"""The command as its users run it: exit codes, one line for each failure, secrets nowhere."""

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.embedded import EmbeddedServer, write_secrets
from bench.samples import write_fleet
from tests.conftest import Lab


class Fleet:
    """Three clients, their provisioned server, and the command line."""

    def __init__(self, server: EmbeddedServer, folder: Path, command: list[str]) -> None:
        self.server = server
        self.folder = folder
        self.command = command
        self.ids = write_fleet(folder / "clients", rows=200)
        write_secrets(folder / "secrets", self.ids)
        for client in self.ids:
            server.run_sql(f"DROP DATABASE IF EXISTS {client}_db")
        server.provision(self.ids, folder / "secrets")

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command, *arguments],
            check=False,
            capture_output=True,
            text=True,
            env={**self.server.make_environment(self.folder), **environment},
        )

    def events(self, done: subprocess.CompletedProcess[str], name: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return [line for line in lines if line["event"] == name]

    def count(self, client: str, table: str) -> int:
        exists = self.server.run_sql(f"SELECT to_regclass('{table}') IS NOT NULL", database=f"{client}_db")
        return (
            int(self.server.run_sql(f"SELECT count(*) FROM {table}", database=f"{client}_db")) if exists == "t" else -1
        )


@pytest.fixture
def fleet(server: EmbeddedServer, tmp_path: Path, command_line: list[str]) -> Fleet:
    return Fleet(server, tmp_path, command_line)


def test_fleet_forward_and_again(fleet: Fleet) -> None:
    first = fleet.run("migrate", "--all")
    assert (first.returncode, first.stderr) == (3, "")
    finished = fleet.events(first, "client_finished")
    assert sorted((event["client"], event["status"]) for event in finished) == [
        ("client_001", "ok"),
        ("client_002", "ok"),
        ("client_003", "rejected_rows"),
    ]
    again = fleet.run("migrate", "--all")
    assert again.returncode == 3
    assert [event["rows_inserted"] for event in fleet.events(again, "client_finished")] == [0, 0, 0]
    report = json.loads((fleet.folder / "reports" / "client_001" / "latest.json").read_text())
    assert (report["schema_version"], report["status"], report["client"]) == (1, "ok", "client_001")
    assert {
        "run_id",
        "source",
        "target",
        "started_at",
        "finished_at",
        "duration_seconds",
        "tables",
        "totals",
        "notes",
        "error",
    } <= set(report)
    assert {"path", "size_bytes", "sha256", "journal_mode"} == set(report["source"])
    for table in report["tables"]:
        assert table["verified"] and table["digest_source"] == table["digest_target"]
    assert fleet.run("verify", "--client", "client_001").returncode == 0
    shown = fleet.run("report", "--client", "client_003")
    assert shown.returncode == 3
    assert "bookings" in shown.stdout and "rejected_rows" in shown.stdout


def test_password_is_nowhere(fleet: Fleet) -> None:
    done = fleet.run("-v", "migrate", "--all")
    secrets = [path.read_text().strip() for path in (fleet.folder / "secrets" / "clients").iterdir()]
    texts = [done.stdout, done.stderr, *(p.read_text() for p in (fleet.folder / "reports").rglob("*.json*"))]
    assert len(secrets) == 3 and len(texts) > 8
    assert not [secret for secret in secrets for text in texts if secret in text]


def test_wrong_password_fails_at_once_and_others_go_on(fleet: Fleet) -> None:
    (fleet.folder / "secrets" / "clients" / "client_001_password").write_text("wrong")
    done = fleet.run("migrate", "--all")
    assert done.returncode == 1
    (failed,) = fleet.events(done, "client_failed")
    assert "client_001_user" in failed["error"] and "refuses the role or its password" in failed["error"]
    assert fleet.events(done, "connect_retried") == []
    assert len(fleet.events(done, "client_finished")) == 2
    assert fleet.count("client_001", "bookings") == -1


def test_missing_password_fails_that_client_alone(fleet: Fleet) -> None:
    (fleet.folder / "secrets" / "clients" / "client_002_password").unlink()
    done = fleet.run("migrate", "--all")
    assert done.returncode == 2
    (failed,) = fleet.events(done, "client_failed")
    assert failed["client"] == "client_002" and "make secrets" in failed["error"]
    assert fleet.count("client_001", "bookings") > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"no database at all " * 20, "is not an SQLite database"), (None, "is truncated")],
)
def test_file_that_is_no_database(fleet: Fleet, content: bytes | None, message: str) -> None:
    path = fleet.folder / "clients" / "client_001" / "bookings.db"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    done = fleet.run("migrate", "--client", "client_001")
    assert done.returncode == 1
    (failed,) = fleet.events(done, "client_failed")
    assert str(path) in failed["error"] and message in failed["error"]
    assert fleet.count("client_001", "users") == -1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["migrate"], "name a client with --client ID, or --all"),
        (["migrate", "--client", "client_009"], "client_009/bookings.db does not exist"),
        (["migrate", "--all", "--client", "client_001"], "exclude each other"),
        (["migrate", "--sqlite-path", "x.db"], "--sqlite-path needs --postgres-url"),
        (["migrate", "--sqlite-path", "x.db", "--postgres-url", "postgresql://u@h/d"], "x.db does not exist"),
        (["migrate", "--sqlite-path", "x.db", "--postgres-url", "postgresql://u:p@h/d"], "holds a password"),
        (["migrate", "--all", "--time-zone", "Mars/Base"], "'Mars/Base' is no time zone"),
        (["report", "--client", "client_001"], "has no report yet"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(fleet: Fleet, arguments: list[str], message: str) -> None:
    done = fleet.run(*arguments)
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert message in json.loads(line)["error"]


def test_bad_setting_is_named(fleet: Fleet) -> None:
    done = fleet.run("migrate", "--all", POSTGRES_PORT="many")
    assert done.returncode == 2
    assert "POSTGRES_PORT='many'" in fleet.events(done, "job_failed")[0]["error"]


def test_server_that_is_down(fleet: Fleet) -> None:
    done = fleet.run("migrate", "--client", "client_001", "--connect-timeout", "2", POSTGRES_PORT="1")
    assert done.returncode == 1
    (failed,) = fleet.events(done, "client_failed")
    assert "127.0.0.1:1/client_001_db cannot be reached: connection refused" in failed["error"]
    assert len(fleet.events(done, "connect_retried")) >= 1


def test_missing_database_names_the_way_out(fleet: Fleet) -> None:
    shutil.copytree(fleet.folder / "clients" / "client_001", fleet.folder / "clients" / "client_777")
    write_secrets(fleet.folder / "secrets", ["client_777"])
    done = fleet.run("migrate", "--client", "client_777")
    assert done.returncode == 1
    assert "client_777" in fleet.events(done, "client_failed")[0]["error"]


def test_any_one_database_by_path_and_url(lab: Lab, command_line: list[str], tmp_path: Path) -> None:
    path = tmp_path / "my data.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('x')")
    connection.close()
    url = f"postgresql://{lab.database.role}@127.0.0.1:{lab.server.port}/{lab.database.name}"
    done = subprocess.run(
        [*command_line, "migrate", "--sqlite-path", str(path), "--postgres-url", url],
        check=False,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PGPASSWORD": "secret",
            "REPORTS_DIR": str(tmp_path / "r"),
            "BACKUPS_DIR": str(tmp_path / "b"),
        },
    )
    assert done.returncode == 0, done.stdout
    assert lab.fetch("SELECT * FROM t") == [("x",)]


def test_unreadable_file_names_the_uid(fleet: Fleet) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file that another user cannot read and run as that user")
    fleet.folder.chmod(0o755)
    for place in fleet.folder.parents:
        if place not in (Path("/"), Path("/tmp")) and place.stat().st_uid == 0:
            place.chmod(place.stat().st_mode | 0o011)
    path = fleet.folder / "clients" / "client_001" / "bookings.db"
    path.chmod(0o600)
    os.chown(path, 1234, 1234)
    for name in ("reports", "backups"):
        (fleet.folder / name).mkdir(exist_ok=True)
        os.chown(fleet.folder / name, 65534, 65534)
    shutil.chown(fleet.folder / "secrets", 65534)
    for file in (fleet.folder / "secrets").rglob("*"):
        os.chown(file, 65534, 65534)
    script = (
        "import concurrent.futures.thread, os, sys; from datetime import datetime; from migrator import pages;"
        "from migrator.cli import main;"
        "pages.render_fleet((), (), (), datetime.now()); os.setgid(65534); os.setuid(65534);"
        "sys.argv = ['migrator', 'migrate', '--client', 'client_001']; main()"
    )
    fleet.command[1:] = ["-c", script]
    done = fleet.run()
    assert done.returncode == 2, done.stderr
    error = fleet.events(done, "client_failed")[0]["error"]
    assert "belongs to uid 1234" in error and "MIGRATOR_UID=1234 and MIGRATOR_GID=1234" in error
