"""The init SQL: isolation between clients, a watcher that reads all and writes nothing."""

import re
import subprocess
from pathlib import Path

import pytest

from bench.embedded import EmbeddedServer, write_secrets

CLIENTS = ["iso_001", "iso_002"]


@pytest.fixture(scope="module")
def secrets_dir(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    write_secrets(folder, CLIENTS)
    server.provision(CLIENTS, folder)
    return folder


def read(folder: Path, name: str) -> str:
    return (folder / name).read_text().strip()


def run_as(server: EmbeddedServer, folder: Path, who: str, database: str, sql: str) -> str:
    name = "monitoring_user_password" if who == "monitoring_user" else f"clients/{who.removesuffix('_user')}_password"
    return server.run_sql(sql, database=database, role=who, password=read(folder, name))


def refuse(server: EmbeddedServer, folder: Path, who: str, database: str, sql: str) -> str:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_as(server, folder, who, database, sql)
    return str(caught.value.stderr)


def test_client_is_alone_in_its_database(server: EmbeddedServer, secrets_dir: Path) -> None:
    assert run_as(server, secrets_dir, "iso_001_user", "iso_001_db", "SELECT 1") == "1"
    for database in ("iso_002_db", "postgres", "template1"):
        assert "permission denied for database" in refuse(server, secrets_dir, "iso_001_user", database, "SELECT 1")


def test_watcher_reads_tables_made_later_and_writes_none(server: EmbeddedServer, secrets_dir: Path) -> None:
    run_as(
        server,
        secrets_dir,
        "iso_001_user",
        "iso_001_db",
        "CREATE TABLE later (a int); INSERT INTO later VALUES (7)",
    )
    run_as(server, secrets_dir, "iso_001_user", "iso_001_db", "CREATE SCHEMA own; CREATE TABLE own.t (a int)")
    server.run_sql("CREATE TABLE by_admin (a int)", database="iso_001_db")
    watcher = "monitoring_user"
    assert run_as(server, secrets_dir, watcher, "iso_001_db", "SELECT a FROM later") == "7"
    assert run_as(server, secrets_dir, watcher, "iso_001_db", "SELECT count(*) FROM own.t") == "0"
    assert run_as(server, secrets_dir, watcher, "iso_001_db", "SELECT count(*) FROM by_admin") == "0"
    for sql in (
        "INSERT INTO later VALUES (1)",
        "DELETE FROM later",
        "CREATE TABLE mine (a int)",
        "TRUNCATE later",
    ):
        denied = refuse(server, secrets_dir, watcher, "iso_001_db", f"BEGIN READ WRITE; {sql}; COMMIT")
        assert "permission denied" in denied


def test_limits_owners_and_encoding(server: EmbeddedServer, secrets_dir: Path) -> None:
    limits = server.run_sql(
        "SELECT rolname, rolconnlimit, rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles"
        " WHERE rolname IN ('iso_001_user', 'iso_002_user', 'monitoring_user') ORDER BY 1"
    )
    assert limits.splitlines() == ["iso_001_user|50|f", "iso_002_user|50|f", "monitoring_user|10|f"]
    assert (
        server.run_sql("SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'iso_001_db'") == "UTF8"
    )
    assert "permission denied" in refuse(server, secrets_dir, "iso_001_user", "iso_001_db", "CREATE ROLE x")


def test_again_changes_nothing_but_the_password(server: EmbeddedServer, secrets_dir: Path) -> None:
    run_as(
        server,
        secrets_dir,
        "iso_002_user",
        "iso_002_db",
        "CREATE TABLE kept (a int); INSERT INTO kept VALUES (1)",
    )
    (secrets_dir / "clients" / "iso_002_password").write_text("it's a 'new' $one\n")
    server.provision(CLIENTS, secrets_dir)
    assert run_as(server, secrets_dir, "iso_002_user", "iso_002_db", "SELECT a FROM kept") == "1"


def test_password_stays_out_of_the_servers_log(server: EmbeddedServer, secrets_dir: Path) -> None:
    log = (server.folder / "server.log").read_text(errors="replace")
    assert read(secrets_dir, "clients/iso_001_password") not in log


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (["iso_003"], "no password in .*iso_003_password. Run 'make secrets'"),
        (["Bad-Name"], "a client id has"),
    ],
)
def test_what_is_missing_is_named(server: EmbeddedServer, secrets_dir: Path, clients: list[str], message: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        server.provision(clients, secrets_dir)
    assert re.search(message, str(caught.value.stderr))
