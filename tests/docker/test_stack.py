"""The stack as its users drive it: compose and make, on a real engine."""

import json
import os
import sqlite3

from tests.docker.conftest import Stack

CLIENTS = ("client_001", "client_002", "client_003")


def last_events(output: str, name: str) -> list[dict[str, object]]:
    events = []
    for line in output.splitlines():
        start = line.find('{"')
        if start >= 0 and f'"event": "{name}"' in line:
            events.append(json.loads(line[start:]))
    return events


def test_start_without_passwords_says_what_to_do(stack: Stack) -> None:
    assert stack.compose("build", "postgres").returncode == 0
    done = stack.compose("run", "--rm", "--no-deps", "-T", "postgres")
    assert done.returncode == 1
    assert "no password in secrets/booking_admin_password. Run 'make secrets'" in done.stderr


def test_definitions_are_sound(stack: Stack) -> None:
    (stack.folder / "secrets").mkdir(exist_ok=True)
    done = stack.compose("--profile", "dev", "--profile", "migrate", "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert services["postgres"]["container_name"] == "postgres-shared"
    assert services["postgres"]["restart"] == "unless-stopped"
    for name in ("postgres", "pgadmin"):
        assert [port["host_ip"] for port in services[name]["ports"]] == ["127.0.0.1"]
    assert services["pgadmin"]["profiles"] == ["dev"]
    migrate = services["migrate"]
    assert (migrate["profiles"], migrate["restart"], migrate["read_only"], migrate["cap_drop"]) == (
        ["migrate"],
        "no",
        True,
        ["ALL"],
    )
    assert migrate["depends_on"]["postgres"]["condition"] == "service_healthy"
    readable = {mount["target"]: mount.get("read_only", False) for mount in migrate["volumes"]}
    assert readable == {"/clients": True, "/reports": False, "/backups": False, "/run/secrets/clients": True}
    assert json.loads(done.stdout)["networks"]["booking-network"]["name"] == "booking-network"


def test_three_clients_land_and_a_second_run_inserts_nothing(stack: Stack) -> None:
    assert stack.run("make", "secrets").returncode == 0
    for path in (stack.folder / "secrets").rglob("*_password"):
        assert path.stat().st_mode & 0o777 == 0o600
    up = ("--profile", "migrate", "up", "--build", "--exit-code-from", "migrate")
    first = stack.compose(*up)
    assert first.returncode == 3, first.stdout[-3000:] + first.stderr[-3000:]
    finished = last_events(first.stdout, "client_finished")
    assert sorted(str(event["client"]) for event in finished) == list(CLIENTS)
    assert all(event["verified"] for event in finished)
    inserted = {event["client"]: event["rows_inserted"] for event in finished}
    again = stack.compose(*up)
    assert again.returncode == 3
    finished = last_events(again.stdout, "client_finished")
    assert [event["rows_inserted"] for event in finished] == [0, 0, 0]
    assert {event["client"]: event["rows_already_present"] for event in finished} == inserted


def test_rows_are_read_back_with_psql(stack: Stack) -> None:
    assert stack.run("make", "up").returncode == 0
    for client in CLIENTS:
        source = sqlite3.connect(stack.folder / "clients" / client / "bookings.db")
        report = json.loads((stack.folder / "reports" / client / "latest.json").read_text())
        for table in report["tables"]:
            (rows,) = source.execute(f"SELECT count(*) FROM {table['name']}").fetchone()
            assert rows == table["rows_read"]
            there = int(stack.psql(f"{client}_db", f"SELECT count(*) FROM {table['name']}"))
            assert there == rows - table["rows_rejected"]
        (number, day, clock) = source.execute("SELECT id, date, time FROM bookings WHERE id = 10").fetchone()
        typed = stack.psql(
            f"{client}_db",
            "SELECT id, date, time, pg_typeof(date), pg_typeof(created_at) FROM bookings WHERE id = 10",
        )
        assert typed == f"{number}|{day}|{clock}:00|date|timestamp with time zone"
        assert stack.psql(f"{client}_db", "SELECT pg_typeof(is_active) FROM services LIMIT 1") == "boolean"
        source.close()


def test_reports_belong_to_the_jobs_uid(stack: Stack) -> None:
    owners = {path.stat().st_uid for path in (stack.folder / "reports").rglob("*.json*")}
    assert owners == {10001 if os.geteuid() == 0 else os.geteuid()}
    assert not list((stack.folder / "backups").rglob("snapshot.db"))


def test_make_migrates_and_verifies_one_client(stack: Stack) -> None:
    done = stack.run("make", "migrate", "CLIENT=client_001")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [event["rows_inserted"] for event in last_events(done.stdout, "client_finished")] == [0]
    assert stack.run("make", "verify", "CLIENT=client_001").returncode == 0
    first = "WHERE user_id = (SELECT min(user_id) FROM users)"
    stack.psql("client_001_db", f"UPDATE users SET first_seen = first_seen + interval '1 hour' {first}")
    changed = stack.run("make", "verify", "CLIENT=client_001")
    stack.psql("client_001_db", f"UPDATE users SET first_seen = first_seen - interval '1 hour' {first}")
    assert "first_seen: SQLite" in changed.stdout
    assert "Error 4" in changed.stderr


def test_job_has_no_rights_and_cannot_write_its_image(stack: Stack) -> None:
    done = stack.compose(
        "--profile", "migrate", "run", "--rm", "--no-deps", "-T", "--entrypoint", "/app/bin/python", "migrate", "-c",
        "import os, pathlib; print(os.geteuid());"
        "print(open('/proc/self/status').read().split('CapEff:')[1].split()[0]);"
        "print(*(p for p in ('/app/x', '/clients/x', '/etc/x', '/run/secrets/clients/x')"
        " if os.access(os.path.dirname(p), os.W_OK)));"
        "print(pathlib.Path('/run/secrets/booking_admin_password').exists(), pathlib.Path('/var/run/docker.sock').exists())",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[0] != "0"
    assert int(lines[1], 16) == 0
    assert lines[2] == ""
    assert lines[3] == "False False"


def test_clients_are_isolated_in_the_container(stack: Stack) -> None:
    done = stack.compose(
        "exec",
        "-T",
        "postgres",
        "psql",
        "-XqAt",
        "-U",
        "client_001_user",
        "-d",
        "client_002_db",
        "-c",
        "SELECT 1",
    )
    assert "permission denied for database" in done.stderr


def test_add_client_on_the_running_server(stack: Stack) -> None:
    done = stack.run("make", "add-client", "CLIENT=client_004")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stack.psql("client_004_db", "SELECT current_database()") == "client_004_db"
    assert (stack.folder / "secrets" / "clients" / "client_004_password").stat().st_mode & 0o777 == 0o600
    assert "CLIENTS=client_001,client_002,client_003,client_004" in (stack.folder / ".env").read_text()
    assert stack.run("make", "up").returncode == 0
    target = stack.folder / "clients" / "client_004"
    target.mkdir()
    (target / "bookings.db").write_bytes((stack.folder / "clients" / "client_001" / "bookings.db").read_bytes())
    assert stack.run("make", "migrate", "CLIENT=client_004").returncode == 0


def test_file_of_another_uid_is_read_or_named(stack: Stack) -> None:
    path = stack.folder / "clients" / "client_002" / "bookings.db"
    path.chmod(0o600)
    os.chown(path, 4321, 4321)
    refused = stack.run("make", "migrate", "CLIENT=client_002")
    (failed,) = last_events(refused.stdout, "client_failed")
    assert "set MIGRATOR_UID=4321 and MIGRATOR_GID=4321 in .env" in str(failed["error"])
    environment = stack.folder / ".env"
    lines = [line for line in environment.read_text().splitlines() if not line.startswith("MIGRATOR_")]
    environment.write_text("\n".join([*lines, "MIGRATOR_UID=4321", "MIGRATOR_GID=4321"]) + "\n")
    assert stack.run("make", "secrets").returncode == 0
    done = stack.run("make", "migrate", "CLIENT=client_002")
    assert done.returncode == 0, done.stdout + done.stderr
    latest = stack.folder / "reports" / "client_002" / "latest.json"
    assert (latest.stat().st_uid, latest.stat().st_gid) == (4321, 4321)


def test_health_check_is_red_while_a_database_is_missing(stack: Stack) -> None:
    assert stack.compose("exec", "-T", "postgres", "healthcheck.sh").returncode == 0
    stack.psql("postgres", "ALTER DATABASE client_003_db RENAME TO hidden")
    red = stack.compose("exec", "-T", "postgres", "healthcheck.sh")
    stack.psql("postgres", "ALTER DATABASE hidden RENAME TO client_003_db")
    assert red.returncode == 1
    assert "make add-client CLIENT=client_003" in red.stdout


def test_password_is_rotated_in_all_three_places(stack: Stack) -> None:
    environment = stack.folder / "clients" / "client_001" / ".env"
    secret = stack.folder / "secrets" / "clients" / "client_001_password"
    old = secret.read_text().strip()
    environment.write_text(
        f"# keep\nDATABASE_URL=postgresql://client_001_user:{old}@postgres-shared:5432/client_001_db\nA=1\n"
    )
    done = stack.run("make", "rotate-password", "CLIENT=client_001")
    assert done.returncode == 0, done.stdout + done.stderr
    new = secret.read_text().strip()
    assert new != old and len(new) >= 32
    assert new not in done.stdout + done.stderr
    assert (
        environment.read_text()
        == f"# keep\nDATABASE_URL=postgresql://client_001_user:{new}@postgres-shared:5432/client_001_db\nA=1\n"
    )
    assert secret.stat().st_mode & 0o777 == 0o600
    for password, code in ((old, 1), (new, 0)):
        done = stack.compose("--profile", "migrate", "run", "--rm", "-T", "-e", f"CLIENT_001_PASSWORD={password}",
                             "migrate", "migrate", "--client", "client_001")  # fmt: skip
        assert done.returncode == code, done.stdout
    assert stack.run("make", "migrate", "CLIENT=client_001").returncode == 0
    assert stack.run("make", "rotate-password", "CLIENT=client_999").returncode != 0
