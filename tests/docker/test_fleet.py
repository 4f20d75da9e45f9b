"""Many workers share a fleet: Compose's --scale and a Swarm job, with workers killed while they work."""

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from bench.samples import write_fleet
from tests.docker.conftest import Stack, copy_project
from tests.docker.test_stack import last_events

CLIENTS = 12
WORKERS = 4
KILLS = 3
SWARM = ("--resolve-image", "never", "-c", "deploy/swarm/migrate.yml", "migration")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("fleet")
    copy_project(folder)
    ids = write_fleet(folder / "clients", rows=6_000, clients=CLIENTS)
    stack = Stack(folder)
    stack.environment["CLIENTS"] = ",".join(ids)
    assert stack.run("make", "secrets").returncode == 0
    done = stack.compose("--profile", "migrate", "build")
    assert done.returncode == 0, done.stderr[-2000:]
    yield stack
    stack.compose("--profile", "migrate", "down", "--volumes", "--timeout", "5")


@pytest.fixture
def empty_fleet(fleet: Stack) -> Iterator[Stack]:
    """The fleet with an empty server, which is healthy."""
    done = fleet.compose("up", "--detach", "--wait", "postgres")
    assert done.returncode == 0, done.stderr[-2000:]
    yield fleet
    fleet.compose("--profile", "migrate", "down", "--volumes", "--timeout", "5")


def kill_workers(name: str, kills: int) -> int:
    """Kills workers (SIGKILL), each while it has a client in hand, until none is left to kill.

    Returns:
        How many were killed.
    """
    engine = docker.from_env()
    killed: set[str] = set()
    deadline = time.monotonic() + 60
    while len(killed) < kills and time.monotonic() < deadline:
        found: list[Container] = engine.containers.list(filters={"name": name})
        for container in found:
            if container.id in killed or len(killed) >= kills:
                continue
            log = container.logs().decode()
            if log.count("client_started") > log.count("client_finished"):
                container.kill()
                killed.add(str(container.id))
        time.sleep(0.05)
    return len(killed)


def await_workers() -> list[int]:
    """Waits for the workers' ends and gives their exit codes."""
    found: list[Container] = docker.from_env().containers.list(all=True, filters={"name": "-migrate-"})
    return sorted(container.wait()["StatusCode"] for container in found)


def assert_each_client_was_migrated_once(stack: Stack) -> None:
    for path in sorted((stack.folder / "clients").glob("*/bookings.db")):
        client = path.parent.name
        runs = stack.psql(
            f"{client}_db",
            "SELECT sum((t->>'rows_inserted')::int) FROM migrator.runs,"
            " jsonb_array_elements(report->'tables') AS t GROUP BY run_id",
        )
        assert len([count for count in runs.split() if int(count)]) == 1, (client, runs)
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        rows = connection.execute("SELECT count(*) FROM bookings").fetchone()[0]
        connection.close()
        rejected = (
            "(SELECT count(*) FROM migrator.rejected_rows WHERE table_name = 'bookings' AND verdict = 'rejected')"
        )
        assert int(stack.psql(f"{client}_db", f"SELECT count(*) + {rejected} FROM bookings")) == rows


def test_four_workers_with_kills(empty_fleet: Stack) -> None:
    up = ("--profile", "migrate", "up", "--detach", "--scale", f"migrate={WORKERS}", "migrate")
    assert empty_fleet.compose(*up).returncode == 0
    killed = kill_workers("-migrate-", KILLS)
    codes = await_workers()
    log = empty_fleet.compose("logs", "--no-log-prefix", "migrate").stdout
    assert (killed, codes) == (KILLS, [3, 137, 137, 137]), log[-3000:]
    assert_each_client_was_migrated_once(empty_fleet)
    assert empty_fleet.compose(*up).returncode == 0
    assert await_workers() == [3] * WORKERS
    again = empty_fleet.compose("logs", "--no-log-prefix", "--tail", "40", "migrate").stdout
    finished = last_events(again, "client_finished")
    assert finished and not [event for event in finished[-CLIENTS:] if event["rows_inserted"]]
    assert_each_client_was_migrated_once(empty_fleet)
    page = json.loads((empty_fleet.folder / "reports" / "fleet.json").read_text())
    assert len(page["clients"]) == CLIENTS and page["remaining"] == []
    print(f"compose: {WORKERS} workers, {killed} killed, {CLIENTS} clients each migrated once")


@pytest.fixture
def swarm(empty_fleet: Stack) -> Iterator[Stack]:
    engine = docker.from_env()
    before = engine.info()["Swarm"]["LocalNodeState"]
    if before == "inactive":
        engine.swarm.init(advertise_addr="127.0.0.1")
    network = engine.networks.create("booking-fleet", driver="overlay", attachable=True)
    network.connect("postgres-shared")
    yield empty_fleet
    empty_fleet.run("docker", "stack", "rm", "migration")
    network.disconnect("postgres-shared", force=True)
    if before == "inactive":
        engine.swarm.leave(force=True)


def test_swarm_job_with_kills(swarm: Stack) -> None:
    folders = {
        f"{name}_DIR": str(swarm.folder / path)
        for name, path in (
            ("CLIENTS", "clients"),
            ("REPORTS", "reports"),
            ("BACKUPS", "backups"),
            ("SECRETS", "secrets"),
        )
    }
    owner = (swarm.folder / "reports").stat()
    ids = {"MIGRATOR_UID": str(owner.st_uid), "MIGRATOR_GID": str(owner.st_gid)}
    done = swarm.run("docker", "stack", "deploy", *SWARM, **folders, **ids)
    assert done.returncode == 0, done.stderr
    killed = kill_workers("migration_migrate", KILLS)
    deadline = time.monotonic() + 180
    replicas = ""
    while f"({WORKERS}/{WORKERS} completed)" not in replicas and time.monotonic() < deadline:
        time.sleep(1)
        replicas = swarm.run(
            "docker", "service", "ls", "--format", "{{.Replicas}}", "--filter", "name=migration_migrate"
        ).stdout
    tasks = swarm.run("docker", "service", "ps", "--no-trunc", "migration_migrate").stdout
    assert killed == KILLS and f"({WORKERS}/{WORKERS} completed)" in replicas, replicas + tasks
    assert_each_client_was_migrated_once(swarm)
    print(f"swarm: {WORKERS} replicas, {killed} killed and begun again, {CLIENTS} clients each migrated once")


def test_swarm_file_is_where_its_own_text_says() -> None:
    text = Path("deploy/swarm/migrate.yml").read_text()
    assert " ".join(SWARM) in text
